"""The experiment's tables, words and kept records, against runs made up by hand: 0.2 or 0.21 of the text is said in
bf16, 0.8 where it comes back, 1 by the target."""

from __future__ import annotations

import dataclasses
import json
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from qru import choose, pipeline, records, why, why_records, why_verdict
from qru.config import RunConfig
from qru.defaults import resolve
from tests.notebooks.test_notebooks import ROOT
from tests.synthetic import why_record

TENSOR, INT3 = "rtn-int4-tensor", "rtn-int3-g128"
BF16, MOMENTS, MASTER, LORA = "bf16", "bf16, fp32 moments", "fp32 master", "LoRA fp32"


@pytest.fixture(scope="module")
def runs():
    """Two seeds of four arms: bf16 fails under two grids, fp32 moments at one seed; one LoRA run missed the goal."""
    return [
        *(why_record(BF16, seed=seed, back=(TENSOR, INT3)) for seed in (0, 1)),
        why_record(MOMENTS, seed=0, back=(INT3,)), why_record(MOMENTS, seed=1),
        *(why_record(MASTER, seed=seed) for seed in (0, 1)),
        why_record(LORA, seed=0), why_record(LORA, seed=1, back=(INT3,), reached=False),
    ]  # fmt: skip


# --- tables -----------------------------------------------------------------------------------------------------


def test_a_row_a_run_and_quantizer(runs):
    table = why.table(runs)
    assert len(table) == 8 * 4
    row = table[(table["run"] == runs[0].run) & (table["quantizer"] == TENSOR)].iloc[0]
    # Half of the examples stand at 0.2 and half at 0.21: (0.8 − 0.205) / (1 − 0.205).
    assert row["text_regained"] == pytest.approx(100 * 0.595 / 0.795)
    assert (row["arm"], row["seed"], row["steps"], row["reached"]) == (BF16, 0, 400, True)
    assert (row["edge"], row["predicted"]) == (2**-8, True)
    assert table.loc[table["arm"] == MASTER, "edge"].isna().all()
    assert not table.loc[table["run"] == runs[-1].run, "reached"].any()


def test_shares_over_seeds_are_of_mean_scores(runs):
    shares = why.over_seeds(runs).set_index(["arm", "quantizer"])
    assert shares.loc[(BF16, TENSOR), "share"] == pytest.approx(100 * 0.595 / 0.795)
    # One seed of two comes back: the mean of 0.205 and 0.8.
    assert shares.loc[(MOMENTS, INT3), "share"] == pytest.approx(100 * (0.5025 - 0.205) / 0.795)
    assert shares.loc[(MASTER, INT3), "share"] == pytest.approx(0, abs=1e-9)
    assert set(shares["seeds"]) == {2}
    assert shares["reached"].groupby("arm").first().to_dict() == {BF16: 2, MOMENTS: 2, MASTER: 2, LORA: 1}
    assert set(shares["examples"]) == {50}


def test_every_arm_is_known_by_its_settings():
    for arm in why.ARMS:
        assert why.arm_of(why_record(arm).config) == arm
    with pytest.raises(ValueError, match="no arm of the experiment is"):
        why.arm_of({"adapter": "lora", "weights": "fp16"})


@pytest.mark.parametrize("name", ["comparison", "dial", "plateau", "layers", "rate", "beta2", "size"])
def test_every_run_that_is_compared_stops_at_one_goal(name):
    grid = why.grid() if name == "comparison" else why_records.PARTS[name]("mini")
    assert {(config.forget_goal, config.goal_metrics) for config in grid} == {(25.0, ("verbmem",))}


def test_outcomes_count_only_runs_that_met_the_goal(runs):
    table = why_verdict.outcomes(runs)
    back = table.groupby(["arm", "quantizer"])["back"].agg(list)
    assert back[BF16, TENSOR] == [True, True]
    assert back[MOMENTS, INT3] == [True, False]
    assert back[LORA, INT3] == [False, None]
    assert dict(zip(table["arm"], table["family"], strict=True)) == {
        BF16: why_verdict.STILL, MOMENTS: why_verdict.STILL, MASTER: why_verdict.STEPPED, LORA: why_verdict.LOW,
    }  # fmt: skip


def test_shares_as_shown(runs):
    shown = why_verdict.share_table(runs)
    assert list(shown.columns) == ["rtn-int8-g128", "rtn-int4-g128", INT3, TENSOR, "seeds", "reached"]
    assert shown.loc[("books", "ga_klr", MASTER), TENSOR] == "0 [0, 0]"
    assert re.fullmatch(r"75 \[7\d, 7\d\]", shown.loc[("books", "ga_klr", BF16), INT3])


def test_single_runs_as_shown(runs):
    shown = why_verdict.regained_table(runs[:1] + runs[-1:])
    assert list(shown.columns[:3]) == ["moves |w| <", "steps", "reached"]
    bf16, lora = shown.loc[("mini", BF16, "1.3e-05", 0)], shown.loc[("mini", LORA, "1.3e-05", 1)]
    assert (bf16["moves |w| <"], bf16["reached"], lora["moves |w| <"], lora["reached"]) == (
        "0.00390625", "yes", "–", "no",
    )  # fmt: skip
    assert bf16[TENSOR].startswith("75 [")
    assert bf16[TENSOR].endswith("]*")
    assert bf16["rtn-int4-g128"] == "0 [0, 0]"
    by_beta = why_verdict.regained_table([why_record(BF16, adam_beta2=beta) for beta in (0.95, 0.999)], "adam_beta2")
    assert list(by_beta.index.get_level_values("adam_beta2")) == [0.95, 0.999]


def test_predictions_are_counted_against_outcomes(runs):
    counts = why_verdict.prediction_table(runs)
    # Four runs with an edge of 2^-8 = 0.0039 are predicted to return where half a step is 0.007: 8, of which 5 did.
    assert counts.loc[(why_verdict.STILL, "will come back")].to_dict() == {
        "came back": 5, "did not": 3, why_verdict.UNDECIDED: 0,
    }  # fmt: skip
    assert counts.loc[(why_verdict.LOW, "will not")].to_dict() == {
        "came back": 0, "did not": 4, why_verdict.UNDECIDED: 4,
    }  # fmt: skip
    assert int(counts.to_numpy().sum()) == 32
    wrong = why_verdict.mistakes(runs)
    assert list(zip(wrong["arm"], wrong["seed"], wrong["quantizer"], strict=True)) == [
        (MOMENTS, 0, TENSOR), (MOMENTS, 1, TENSOR), (MOMENTS, 1, INT3),
    ]  # fmt: skip


# --- words ------------------------------------------------------------------------------------------------------


def test_the_verdict_is_counted(runs):
    lines = why_verdict.sentences(runs)
    assert lines[0] == (
        "8 runs (4 arms, 1 method, 1 corpus, 2 seeds); 7 reached the forgetting goal; missed, and left out below: "
        "“LoRA fp32” 1 of 2."
    )
    assert "VerbMem 20, KnowMem 50, Utility 90, Disjoint QA 80" in lines[1]
    assert "under rtn-int8-g128 the text comes back in none of 7 runs." in lines
    assert (
        "under rtn-int3-g128 the text comes back in “bf16” (2 of 2 runs, median 75 %) and “bf16, fp32 moments” "
        "(1 of 2 runs, median 75 %), and in none of 3 runs of the other arms."
    ) in lines
    assert (
        "Under one quantizer or another text comes back in 3 of 4 runs of full rank with a dead zone, 0 of 2 runs of "
        "full rank without one and 0 of 1 run of LoRA. Full rank does not suffice for a return, and low rank is not "
        "needed to prevent one: what the failing arms share is the dead zone."
    ) in lines
    assert lines[-1].startswith("Of 28 predictions (a run under a quantizer)")
    assert "25 were right, 3 false alarms and 0 missed a return; it came back in 5; 4 more could not" in lines[-1]


def test_the_verdict_can_fall_the_other_way():
    alike = [why_record(arm, back=(INT3,)) for arm in (BF16, MASTER)] + [why_record(LORA)]
    lines = why_verdict.sentences(alike)
    assert any("rank tells them apart." in line for line in lines)
    assert "1 missed a return" in lines[-1]  # the fp32 master's
    everywhere = [why_record(arm, back=(INT3,), knowledge=True) for arm in (BF16, MASTER, LORA)]
    lines = why_verdict.sentences(everywhere)
    assert any("neither the dead zone nor rank tells them apart" in line for line in lines)
    assert any(line.startswith("Of knowledge") and "1 of 1 run of LoRA" in line for line in lines)


def test_nothing_forgotten_is_nothing_to_say():
    lines = why_verdict.sentences([why_record(BF16, back=(INT3,), reached=False)])
    assert lines[-1].startswith("No run forgot anything that could come back")


# --- kept records -----------------------------------------------------------------------------------------------


def test_a_kept_record_says_the_same_and_is_small(runs, tmp_path):
    for record in runs:
        records.keep(record, tmp_path, (TENSOR,))
    kept = {record.run: record for record in records.kept(tmp_path)}
    again = [kept[record.run] for record in runs]
    assert_frame_equal(why.table(again), why.table(runs), rtol=1e-5)
    assert_frame_equal(why.over_seeds(again), why.over_seeds(runs), rtol=1e-5, atol=0.02)
    assert_frame_equal(why.over_seeds(again, "knowmem"), why.over_seeds(runs, "knowmem"), rtol=1e-5, atol=0.02)
    assert_frame_equal(why.layer_table(again, TENSOR), why.layer_table(runs, TENSOR), rtol=1e-5)
    assert why_verdict.sentences(again) == why_verdict.sentences(runs)
    for path in tmp_path.glob("*.json"):
        assert path.stat().st_size < 25_000
        assert "somewhere" not in path.read_text()


def test_a_kept_record_can_be_kept_again(runs, tmp_path):
    first = records.keep(runs[0], tmp_path, (TENSOR,)).read_text()
    (kept,) = records.kept(tmp_path)
    assert records.keep(kept, tmp_path, (TENSOR,)).read_text() == first


def test_no_text_and_no_place_is_kept(runs):
    record = runs[0]
    text = {"responses": ["once upon a time"], "per_example": record.scores["target"]["bf16"]["verbmem"]["per_example"]}
    scores = {"target": {"bf16": {"verbmem": {"value": 1.0, "ci": [0.0, 2.0]} | text}}}
    places = {"target": "/home/me/target", "corpus": "/home/me/books", "hash": "abc"}
    told = records.Record(
        record.path, record.config | places, scores, record.crossings, {}, record.provenance,
        record.extra | {"answers": ["once upon a time"]},
    )  # fmt: skip
    slim = records.slim(told)
    assert slim["config"] == record.config | {"target": "target", "corpus": "books", "hash": "abc"}
    assert "once upon" not in json.dumps(slim)
    assert "/home" not in json.dumps(slim)


def test_settings_are_kept_to_the_last_digit(tmp_path):
    record = why_record(BF16, learning_rate=2.6123456789e-5)
    records.keep(record, tmp_path)
    (kept,) = records.kept(tmp_path)
    assert kept.config["learning_rate"] == 2.6123456789e-5


# --- which records are shown ------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder in place of the committed records, and runs of their own; nothing may be trained."""
    monkeypatch.setenv("QRU_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(why_records, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(why_records, "PARTS", {})
    monkeypatch.setattr(pipeline, "run_all", lambda configs: ran.extend(configs))
    monkeypatch.setattr(why_records, "tidy", lambda: None)
    ran: list = []
    return tmp_path / "kept", ran


def as_run(config, home):
    """A record of a configuration where a run would have left it."""
    made = why_record(why.arm_of(config.to_dict()))
    value = {name: getattr(made, name) for name in records.SECTIONS} | made.extra | {"config": config.to_dict()}
    name = f"{config.corpus}-{config.method}-{config.adapter}-{config.weights}-{config.moments}-{config.rounding}"
    records.write_json(home / "runs" / f"{name}-s{config.seed}" / "record.json", value)


def test_committed_records_are_shown_in_the_order_of_the_grid(kept, monkeypatch):
    folder, ran = kept
    for seed in (1, 0):
        config = why.configuration(BF16, "ga_klr", seed=seed)
        record = why_record(BF16, seed=seed)
        records.keep(records.Record(record.path, config.to_dict() | {"hash": "x"}, record.scores, record.crossings,
                                    record.cost, record.provenance, record.extra), folder)  # fmt: skip
    found = why_records.collect(methods=["ga_klr"])
    assert [record.config["seed"] for record in found["comparison"]] == [0, 1]
    assert ran == []
    with pytest.raises(LookupError, match=r"-p rerun True -p parts comparison -p corpora news, -p methods ga_klr,$"):
        why_records.collect(corpora=["news"], methods=["ga_klr"])


def test_a_rerun_shows_its_own_runs_and_leaves_the_committed_ones(kept, tmp_path):
    folder, ran = kept
    for arm in (BF16, MOMENTS):
        as_run(why.configuration(arm, "ga_klr"), tmp_path / "home")
    asked = {"corpora": ["books"], "methods": ["ga_klr"], "arms": ["bf16", "bf16", "fp32 moments"], "seeds": ["0"]}
    found = why_records.collect(**asked, rerun=True)
    assert ran == why.grid(["books"], ["ga_klr"], [BF16, MOMENTS], [0])
    assert [why.arm_of(record.config) for record in found["comparison"]] == [BF16, MOMENTS]
    assert not folder.exists()
    assert "runs" in why_records.announce(found, "mini").data


def test_keep_writes_whole_grids_and_drops_what_is_of_none(kept, tmp_path, monkeypatch, capfd):
    folder, _ = kept
    grid = {"corpora": ("books",), "methods": ("ga_klr",), "arms": (BF16, LORA), "seeds": (0,)}
    monkeypatch.setitem(why_records.GRIDS, "mini", grid)
    for arm in (BF16, LORA):
        as_run(why.configuration(arm, "ga_klr"), tmp_path / "home")
    records.keep(why_record(MASTER), folder)
    why_records.collect(rerun=True, keep=True)
    assert {why.arm_of(record.config) for record in records.kept(folder)} == {BF16, LORA}
    assert "is of no grid of this experiment now: removed" in capfd.readouterr().err
    assert len(why_records.layers_of(records.kept(folder))) == 2 * 28


@pytest.mark.parametrize("change", [{"arms": [BF16]}, {"seeds": [0]}, {"scale": "smoke"}, {"rerun": False}], ids=str)
def test_a_part_of_a_grid_is_not_kept(kept, change):
    with pytest.raises(ValueError, match="keep writes the records that are committed"):
        why_records.collect(**{"rerun": True, "keep": True} | change)
    assert kept[1] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ["bf17"]}, "Did you mean 'bf16'"),
        ({"corpora": ["books", "bookz"]}, "unknown corpus 'bookz'. Did you mean 'books'"),
        ({"methods": ["ga_kl"]}, "unknown method 'ga_kl'. Did you mean 'ga_klr'"),
        ({"seeds": ["one"]}, "whole numbers, 0 or more, and 'one' is none"),
        ({"seeds": [0, 1.5]}, r"seeds are \[0, 1.5\]; .* and 1.5 is none"),
        ({"seeds": [True]}, "and True is none"),
        ({"seeds": [None]}, "and None is none"),
        ({"seeds": [-1]}, "and -1 is none"),
        ({"seeds": ["0", "1000"]}, "seeds names '1000', but on seed 1000 learning rates and λ were chosen"),
        ({"scale": "muse"}, "mini"),
        ({"scale": "mini-128x4"}, "unknown scale of this experiment 'mini-128x4'. Did you mean 'mini'"),
        ({"parts": ["dail"]}, "unknown part 'dail'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("rerun", [True, False])
def test_unknown_names_stop_before_any_work(kept, change, message, rerun):
    with pytest.raises(ValueError, match=message):
        why_records.collect(**{"rerun": rerun} | change)
    assert kept[1] == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parts": ["dial"]}, r"parts is \['dial'\], but they are what rerun completes, and rerun is not set"),
        ({"parts": ["comparison", "dial"]}, "rerun is not set"),
        ({"parts": []}, "rerun is not set"),
        ({"parts": [], "rerun": True}, "nothing to complete: give some of comparison, dial"),
        ({"parts": [], "scale": "smoke"}, "nothing to complete"),
    ],
    ids=str,
)
def test_parts_that_would_not_be_run_are_refused(kept, monkeypatch, given, message):
    monkeypatch.setattr(why_records, "PARTS", {"dial": why.dial_grid})
    with pytest.raises(ValueError, match=message):
        why_records.collect(**given)
    assert kept[1] == []


def test_the_seed_that_is_refused_is_that_of_the_committed_search():
    searched = records.read_json(ROOT / "paper" / "records" / "why" / "choice.json")["seed"]
    with pytest.raises(ValueError, match="were chosen"):
        why_records.whole_numbers([searched])
    assert why_records.whole_numbers(["0", 2]) == [0, 2]


def test_what_is_named_twice_is_run_once(kept, tmp_path):
    asked = {"corpora": ["books"], "methods": ["ga_klr"], "arms": [BF16], "seeds": [0]}
    as_run(why.configuration(BF16, "ga_klr"), tmp_path / "home")
    twice = {name: values * 2 for name, values in asked.items()} | {"seeds": [0, "0"]}
    found = why_records.collect(**twice, parts=["comparison"] * 2, rerun=True)
    assert kept[1] == why.grid(**asked)
    assert len(kept[1]) == 1
    assert len(found["comparison"]) == 1


def plateau(scale):
    return [why.configuration(MASTER, "ga_klr", seed=seed, scale=scale) for seed in (5, 6)]


def as_kept(config, folder):
    """A committed record of a configuration."""
    made = why_record(why.arm_of(config.to_dict()), seed=config.seed)
    records.keep(dataclasses.replace(made, config=config.to_dict() | {"hash": "x"}), folder)


def test_parts_that_are_not_asked_for_are_shown_from_the_committed_records(kept, tmp_path, monkeypatch):
    """On a machine where nothing was run before, and then where a part of the comparison was."""
    folder, _ = kept
    home = tmp_path / "home"
    grid = {"corpora": ("books",), "methods": ("ga_klr",), "arms": (BF16, LORA), "seeds": (0,)}
    monkeypatch.setitem(why_records.GRIDS, "mini", grid)
    dial = [why.configuration(BF16, "ga_klr", seed=7)]
    monkeypatch.setattr(
        why_records, "PARTS", {"dial": lambda scale: dial, "plateau": plateau, "size": lambda scale: dial[:0]}
    )
    for config in [*why.grid(**grid), *plateau("mini"), *dial]:
        as_kept(config, folder)
    monkeypatch.setattr(pipeline, "run_all", lambda configs: [as_run(one, home) for one in configs])

    for _ in range(2):
        found = why_records.collect(parts=["dial"], rerun=True)
        places = {part: {record.path.is_relative_to(home) for record in runs} for part, runs in found.items()}
        assert places == {"comparison": {False}, "dial": {True}, "plateau": {False}, "size": set()}
        assert [len(runs) for runs in found.values()] == [2, 1, 2, 0]
        monkeypatch.setattr(why_records.paths, "root", lambda: home)
        assert why_records.announce(found, "mini").data == (
            f"records: comparison 2 in `{folder}`, dial 1 of 1 in `runs`, plateau 2 of 2 in `{folder}`, size 0 of 0"
        )
        as_run(why.grid(**grid)[0], home)  # one of two is not shown in place of both

    as_run(why.grid(**grid)[1], home)
    found = why_records.collect(parts=["dial"], rerun=True)
    assert {record.path.is_relative_to(home) for record in found["comparison"]} == {True}
    found = why_records.collect()
    assert not any(record.path.is_relative_to(home) for runs in found.values() for record in runs)


@pytest.mark.parametrize("scale", ["mini", "smoke"])
def test_a_comparison_that_nobody_made_is_missed_before_anything_is_run(kept, monkeypatch, scale):
    folder, ran = kept
    if scale == "smoke":  # of which no record is committed
        as_kept(why.configuration(BF16, "ga_klr"), folder)
    monkeypatch.setattr(why_records, "PARTS", {"plateau": plateau})
    with pytest.raises(LookupError, match=r"or was made here\. Make them: .* -p rerun True -p parts comparison"):
        why_records.collect(parts=["plateau"], scale=scale, rerun=True)
    assert ran == []


def test_a_comma_inside_a_name_does_not_cut_it():
    assert why_records.whole_names(["bf16", "fp32 moments", "LoRA fp32"]) == [MOMENTS, LORA]
    assert why_records.whole_names(["bf16", "bf16", "stochastic rounding"]) == [BF16, "bf16, stochastic rounding"]
    assert why_records.whole_names([MOMENTS, BF16]) == [MOMENTS, BF16]


def test_one_factor_beside_the_scores():
    free = [why_record(LORA, lora_alpha=alpha, forget_goal=None, goal_metrics=None) for alpha in (16.0, 32.0)]
    table = why_records.factor_table(free, "lora_alpha")
    assert list(table["lora_alpha"]) == [16.0, 32.0]
    assert table["reached"].all()
    # rms ΔW over σ = 0.02
    total = free[0].crossings["rtn-int8-g128"]["total"]
    assert table["update"][0] == pytest.approx(np.sqrt(total["sum_dw2"] / total["weights"]) / 0.02)
    assert len(why_records.factor_table([], "lora_alpha")) == 0


def test_sizes_of_models():
    table = why_records.size_table([why_record(BF16)])
    # Llama of mini: 4 blocks of 4·256² and 3·256·768 and two norms, embeddings and head of 2048·256, a last norm.
    assert table["parameters"][0] == 4 * (4 * 256**2 + 3 * 256 * 768 + 2 * 256) + 2 * 2048 * 256 + 256
    assert table["relative_edge"][0] == pytest.approx(2**-8 / 0.02)
    assert isinstance(table, pd.DataFrame)


def test_the_notebook_names_every_arm():
    cells = nbformat.read(ROOT / "notebooks" / "04_why.ipynb", as_version=4).cells
    rows = [line.split(" | ")[0].strip("| ") for cell in cells for line in cell.source.splitlines() if line[:2] == "| "]
    assert [row for row in rows if row in why.ARMS] == list(why.ARMS)


def test_the_rates_are_those_of_the_last_attempts_on_record():
    found = records.read_json(why_records.KEPT.parent / "choice.json")
    last = {(t["corpus"], t["method"], t["adapter"]): t for t in found["tried"]}
    left = {(corpus, method, "full") for corpus, methods in choose.LEFT.items() for method in methods}
    attempts = [t for t in found["tried"] if (t["corpus"], t["method"], t["adapter"]) in left]
    assert {last.pop(cell)["corpus"] for cell in left} == {"books"}
    assert len(attempts) == 6
    assert all(t["verbmem"] > resolve(RunConfig(method=t["method"])).forget_goal for t in attempts)
    assert set(last) == set(choose.cells(list(choose.SEARCHED)))
    for (corpus, method, adapter), attempt in last.items():
        taken = resolve(RunConfig(corpus=corpus, method=method, adapter=adapter))
        assert attempt[taken.goal_metrics[0]] <= taken.forget_goal
        assert (taken.learning_rate, taken.retain_weight) == (attempt["learning_rate"], attempt["retain_weight"])
    assert found["seed"] not in why.SEEDS
