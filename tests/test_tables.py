"""Tables say what records hold."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from qru import tables
from qru.metrics import direction
from tests.synthetic import PRECISIONS, classifier_record, forget_set_records, synthetic_record

ARROWS = {"lower": "↓", "higher": "↑", "towards zero": "→ 0"}


@pytest.fixture
def full():
    return synthetic_record("full")


@pytest.fixture
def lora():
    return synthetic_record("lora")


def test_headings_point_where_the_metrics_do():
    for metric, heading in tables.METRICS.items():
        assert heading.endswith(ARROWS[direction(metric)]), metric


def test_score_table_holds_every_score_of_every_model(full, lora):
    table = tables.score_table(full, lora)
    models = ["target", "npo_gdr full bf16", "npo_gdr lora fp32", "retrained"]
    assert list(table.index) == [(model, precision) for model in models for precision in PRECISIONS]
    assert list(table.columns) == list(tables.METRICS.values())
    score = lora.scores["unlearned"]["rtn-int4-g128"]["knowmem"]
    low, high = score["ci"]
    assert (
        table.loc[("npo_gdr lora fp32", "rtn-int4-g128"), "KnowMem ↓"]
        == f"{score['value']:.1f} [{low:.1f}, {high:.1f}]"
    )


def test_score_frame_counts_examples(full):
    frame = tables.score_frame(tables.labelled(full))
    assert set(frame["examples"]) == {100}
    assert len(frame) == 3 * len(PRECISIONS) * 5


@pytest.mark.parametrize(
    ("values", "text"), [((62.34, 48.0, 75.06), "62.3 [48.0, 75.1]"), ((-0.01, -3.0, 0.0), "0.0 [−3.0, 0.0]")]
)
def test_numbers_as_they_are_written(values, text):
    assert tables.with_interval(*values) == text


def test_recovered_table_names_what_cannot_be_measured(full, lora):
    table = tables.recovered_table(full, lora)
    assert table.loc[("npo_gdr full bf16", "rtn-int4-g128"), "text regained (%)"] == "62 [48, 75]"
    assert table.loc[("npo_gdr lora fp32", "rtn-int4-g128"), "text regained (%)"] == tables.UNDEFINED
    assert set(table["comes back"]) == {"yes", "no"}


def test_where_nothing_was_forgotten_nothing_can_come_back(full):
    recovered = copy.deepcopy(full.extra["recovered"])
    for metric in ("verbmem", "knowmem"):
        recovered["rtn-int4-g128"][metric]["defined"] = False
    table = tables.recovered_table(dataclasses.replace(full, extra=full.extra | {"recovered": recovered}))
    assert table.loc[("npo_gdr full bf16", "rtn-int4-g128"), "comes back"] == tables.UNDEFINED


def test_layer_names_are_read():
    found = tables.layer_name("model.layers.3.mlp.gate_proj")
    assert found == {"layer": "model.layers.3.mlp.gate_proj", "block": 3, "module": "gate"}
    assert tables.layer_name("lm_head")["block"] == -1


def test_crossings_are_shares_of_the_weights(full):
    frame = tables.crossing_frame({"a": full.crossings})
    assert len(frame) == 4 * 28
    assert set(frame["block"]) == {0, 1, 2, 3}
    row = frame.iloc[0]
    counts = full.crossings["rtn-int8-g128"]["layers"][row["layer"]]
    assert row["crossed"] == pytest.approx(100 * counts["crossed"] / counts["weights"])
    assert tables.crossing_table(full).loc[("npo_gdr full bf16", "rtn-int8-g128"), "weights"] == "1,835,008"


def test_an_update_of_zero_has_no_projection(full):
    counts = full.crossings["rtn-int4-g128"]["total"]
    counts |= {"projection": None, "cosine": None}
    table = tables.crossing_table(full)
    assert table.loc[("npo_gdr full bf16", "rtn-int4-g128"), "projection"] == tables.UNDEFINED


def test_labels_name_what_differs_and_no_more():
    found = tables.labelled(synthetic_record("full"), synthetic_record("full", seed=1), synthetic_record("lora"))
    assert list(found) == ["npo_gdr full bf16, seed 0", "npo_gdr full bf16, seed 1", "npo_gdr lora fp32"]


def test_labels_say_how_weights_were_stepped():
    other = synthetic_record("full")
    other.config["moments"] = "fp32"
    found = tables.labelled(synthetic_record("full"), other)
    assert list(found) == ["npo_gdr full bf16", "npo_gdr full bf16, fp32 moments"]


def test_the_same_run_twice_is_refused(full):
    with pytest.raises(ValueError, match="same configuration"):
        tables.labelled(full, full)
    with pytest.raises(ValueError, match="no record"):
        tables.labelled()


def test_records_of_two_corpora_do_not_share_a_table(full, lora):
    news = dataclasses.replace(lora, config=lora.config | {"corpus": "news"})
    with pytest.raises(ValueError, match="different corpus"):
        tables.score_table(full, news)


def test_cost_table_has_units(full):
    table = tables.cost_table(full)
    assert table.loc[("npo_gdr full bf16", "unlearn"), "seconds"] == "61.2"


def test_prose_keeps_line_breaks(full):
    frame = tables.score_frame(tables.labelled(full)).head(2)
    assert "pre-wrap" in tables.prose(frame).to_html()


def test_forget_sets_in_numbers():
    table = tables.forget_set_table(*forget_set_records("sust"), *forget_set_records("sust", "lora"))
    assert len(table) == 2 * 4 * len(PRECISIONS)
    second = table.loc[("npo_gdr full bf16", "sust_2", "rtn-int4-g128")]
    assert second["documents"] == 50
    assert second["VerbMem, to be forgotten ↓"] == "22.0 [12.0, 27.0]"
    assert second["VerbMem, not yet asked for"] == "81.0 [71.0, 86.0]"
    assert second["comes back"] == "yes"
    last = table.loc[("npo_gdr lora fp32", "sust_4", "bf16")]
    assert (last["VerbMem, not yet asked for"], last["comes back"]) == ("–", "")
    frame = tables.forget_set_frame(*forget_set_records("sust"))
    assert len(frame) == 3 * len(PRECISIONS) * (4 + 4 + 3), "models × precisions × (utility, forgotten, remaining)"
    assert set(frame[frame["measure"] == "remaining"]["examples"]) == {80, 50, 30}


def test_headings_of_classifiers_point_where_their_metrics_do():
    arrows = ARROWS | {"towards retrained": "→ retrained"}
    for metric, heading in tables.OF_CLASSIFIERS.items():
        assert heading.endswith(arrows[direction(metric)]), metric


def test_tables_of_classifiers_have_their_own_columns_and_no_other(full):
    record = classifier_record()
    assert list(tables.score_table(record).columns) == list(tables.OF_CLASSIFIERS.values())
    table = tables.recovered_table(record)
    assert list(table.columns) == ["labels regained (%)", "comes back"]
    assert table.loc[("npo_gdr full bf16", "rtn-int4-g128"), "labels regained (%)"] == "62 [48, 75]"
    assert list(tables.recovered_table(full).columns) == ["text regained (%)", "knowledge regained (%)", "comes back"]
