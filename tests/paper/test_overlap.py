"""QUAIL's analysis in print: from saved weights, and from records that hold the counts of every layer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from qru import movement, overlap_record
from qru.overlap_tables import chosen, load_overlaps, overlap_sheet, overlap_words, percent, two_digits
from qru.records import slim, write_json
from tests.paper.method_records import INT3, INT4, method_record, seeds

LORA = {"adapter": "lora", "weights": "fp32"}


@pytest.fixture
def kept(tmp_path):
    """Of two arms the counts of layers under int4, of each seed."""
    files = []
    for i, record in enumerate([*seeds(0, 1), method_record(guard="quail"), method_record(**LORA)]):
        files.append(str(tmp_path / f"{i}.json"))
        write_json(tmp_path / files[-1], slim(record, (INT4,)))
    return files


def test_counts_of_layers_say_all_but_the_median(kept):
    sheet = overlap_sheet(chosen(load_overlaps(kept)))
    assert [title for title, _ in sheet.columns] == ["", "full bf16", "full bf16, QUAIL", "LoRA"]
    assert sheet.columns[1][1] == ("rms\n|ΔW|/s", "overlap"), "a column that nobody has is left out"
    assert [row[0].text for row in sheet.rows] == ["q", "k", "v", "o", "gate", "up", "down", "all layers"]
    # sum ΔW² = 0.004 over 1000 weights: 0.002; 20 of 1000 crossed; half a step is 0.0035.
    assert [cell.text for cell in sheet.rows[0]] == ["q", "0.007", *["29", "98.0"] * 3]
    assert [cell.text for cell in sheet.rows[-1]] == ["all layers", "0.007", *["29", "98.0"] * 3]
    note = " ".join(sheet.note)
    assert "GA+GDR on books, 4 runs, seeds 0 and 1; RTN int4 g128." in note
    assert "A module stands in 2 blocks" in note
    assert "Not kept in these records: the median of |ΔW|." in note
    assert overlap_words(chosen(load_overlaps(kept)))[0] == (
        "Full bf16: 98.0 % of a layer's weights stay in their bin; the root mean square of ΔW is 0.002, 29 % of the "
        "step."
    )


def test_older_records_have_no_size(kept, tmp_path):
    record = method_record()
    layers = {name: {k: v for k, v in counts.items() if k != "sum_dw2"} for name, counts in
              record.crossings[INT4]["layers"].items()}  # fmt: skip
    total = {k: v for k, v in record.crossings[INT4]["total"].items() if k != "sum_dw2"}
    crossings = record.crossings | {INT4: {"layers": layers, "total": total}}
    write_json(tmp_path / "old.json", slim(dataclasses.replace(record, crossings=crossings), (INT4,)))
    sheet = overlap_sheet(chosen(load_overlaps([str(tmp_path / "old.json")])))
    assert [cell.text for cell in sheet.rows[0]] == ["q", "0.007", "98.0"]
    assert "Not kept in these records: the median of |ΔW| and its root mean square." in sheet.note


def test_records_without_counts_of_layers_are_left_out(kept, tmp_path):
    write_json(tmp_path / "bare.json", slim(method_record(seed=2)))
    assert len(chosen(load_overlaps([*kept, str(tmp_path / "bare.json")]))) == len(kept)
    with pytest.raises(ValueError, match=r"and LoRA; there are: none\. A record holds them under the quantizers"):
        chosen(load_overlaps(kept, INT3))


def test_a_layer_by_hand(monkeypatch, tmp_path, kept):
    """int4 over the tensor: s = 0.8/8 = 0.1. Of four weights two move, by 0.02 and 0.06; one crosses."""
    before = torch.tensor([[0.8, 0.1], [0.2, 0.3]])
    after = torch.tensor([[0.8, 0.12], [0.26, 0.3]])
    pairs = {"model.layers.3.mlp.up_proj": (before, after), "model.layers.4.mlp.up_proj": (before, before)}
    monkeypatch.setattr(movement, "stored_pairs", lambda record: pairs)
    made = overlap_record.measure(method_record(), "rtn-int4-tensor")
    first, second, every = made["layers"]
    assert first["rms"] == pytest.approx((0.02**2 + 0.06**2) ** 0.5 / 2, rel=1e-4)
    assert first["expected"] == pytest.approx(100 * (0.2 + 0.6) / 4, rel=1e-4)
    assert first["overlap"] == 75
    assert first["median_moved"] == pytest.approx(0.02, rel=1e-4)
    assert "median_moved" not in second, "nothing moved"
    assert (every["module"], every["weights"], every["overlap"]) == ("all", 8, 87.5)
    assert every["rms"] == pytest.approx((0.02**2 + 0.06**2) ** 0.5 / 8**0.5, rel=1e-4)

    write_json(tmp_path / "measured.json", made)
    (one,) = load_overlaps([kept[0], str(tmp_path / "measured.json")])
    assert one["quantizer"] == "rtn-int4-tensor", "of the same run, what was measured"
    sheet = overlap_sheet([one])
    assert sheet.columns[1][1] == ("median\n|ΔW|/s", "rms\n|ΔW|/s", "overlap")
    up, whole = sheet.rows
    assert (up[1].text, up[4].text, up[4].below) == ("0.1", "88", "75…100")
    assert whole[4].text == "88"


def test_one_model_that_was_measured_in_two_ways_counts_once(kept, tmp_path):
    again = json.loads(Path(kept[0]).read_text())
    again["config"]["hash"] = "of other metrics"
    write_json(tmp_path / "again.json", again)
    assert len(load_overlaps([*kept, str(tmp_path / "again.json")])) == len(kept)
    first = next(iter(again["crossings"][INT4]["layers"].values()))
    first["crossed"] += 1  # another model
    write_json(tmp_path / "again.json", again)
    assert len(load_overlaps([*kept, str(tmp_path / "again.json")])) == len(kept) + 1


def test_what_cannot_stand_side_by_side_is_refused(kept):
    found = load_overlaps(kept)
    with pytest.raises(ValueError, match="no changes of weights of npo_gdr in full bf16, full bf16, QUAIL and LoRA"):
        chosen(found, "npo_gdr")
    other = dict(found[0], config=found[0]["config"] | {"corpus": "news"})
    with pytest.raises(ValueError, match="shown of one corpus; these are of books and news"):
        overlap_sheet([found[0], other])
    with pytest.raises(ValueError, match="bins are those of one quantizer"):
        overlap_sheet([found[0], dict(found[0], quantizer=INT3)])


def test_only_changes_of_weights_are_taken(tmp_path):
    write_json(tmp_path / "a.json", {"kind": "other"})
    with pytest.raises(ValueError, match=r"a\.json holds no changes of weights\. Make one: python -m qru"):
        load_overlaps([str(tmp_path / "a.json")])
    with pytest.raises(LookupError, match="no changes of weights in"):
        load_overlaps(folder=tmp_path / "none")


@pytest.mark.parametrize(("value", "shown"), [(94.2, "94"), (99.4, "99.4"), (99.9821, "99.982"), (100.0, "100")])
def test_overlaps_near_all_have_decimals(value, shown):
    assert percent(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(0.00112, "0.0011"), (1.24e-05, "1.2e−5"), (0, "0")])
def test_sizes_have_two_digits(value, shown):
    assert two_digits(value) == shown
