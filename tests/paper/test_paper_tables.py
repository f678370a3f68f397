"""Tables over seeds: means worked out by hand, what is missing named, and one definition in two renderings."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import typst as compiler

from qru.paper_tables import (
    arm_name,
    cells_over_seeds,
    cost_frame,
    median_cell,
    over_seeds,
    score_means,
    seed_range,
    seeded,
    short_labels,
    table_cost,
    table_one,
    table_two,
    three_digits,
)
from qru.records import SECTIONS, Record, slim, write_json
from qru.sheet import Block, Cell, Sheet, save_sheet, sheet_latex, sheet_typst
from qru.tables import METRICS
from tests.synthetic import synthetic_record

PRECISIONS = ("bf16", "rtn-int8-g128", "rtn-int4-g128")
# VerbMem of three seeds, in bf16 and int4: means 18.0 and 60.5.
VERBMEM = {0: (10.0, 50.0), 1: (20.0, 60.5), 2: (24.0, 71.0)}


def run(method="ga_klr", adapter="full", weights=None, corpus="books", seed=0, **config) -> Record:
    """A run whose VerbMem is known by its seed; intervals of bf16 reach 4 below it and 6 above."""
    record = synthetic_record(adapter, weights)
    name = f"{corpus}{method}{adapter}{weights}{seed}{config}"
    for precision, value in zip(("bf16", "rtn-int4-g128"), VERBMEM.get(seed, (0.0, 0.0)), strict=True):
        record.scores["unlearned"][precision]["verbmem"] |= {"value": value, "ci": [value - 4, value + 6]}
    changes = {"method": method, "corpus": corpus, "seed": seed, "hash": name} | config
    return dataclasses.replace(record, path=record.path.parent / name / "record.json", config=record.config | changes)


def slimmed(record: Record) -> Record:
    value = slim(record)
    extra = {key: part for key, part in value.items() if key not in SECTIONS}
    return Record(record.path, *(value[name] for name in SECTIONS), extra=extra)


def row_of(sheet: Sheet, *labels: str) -> list[Cell]:
    """The cells of a row, found by its labels; those that repeat the row above are blank in print."""
    seen = ""
    for row in sheet.rows:
        seen = row[0].text or seen
        if (seen, *(cell.text for cell in row[1 : len(labels)])) == labels:
            return list(row[len(labels) :])
    raise AssertionError(f"no row {labels}")


def test_a_mean_over_seeds():
    found = over_seeds([{"value": 10.0, "ci": [4.0, 18.0]}, {"value": 20.5, "ci": [10.0, 30.0]}])
    assert found == {"mean": 15.25, "lowest": 10.0, "highest": 20.5, "low": 7.0, "high": 24.0, "seeds": 2}


@pytest.mark.parametrize("form", [lambda record: record, slimmed], ids=["whole", "slim"])
def test_scores_are_means_over_seeds(form):
    frame = score_means([form(run(seed=seed)) for seed in (2, 0, 1)])
    rows = frame.set_index(["method", "arm", "precision", "metric"])
    assert rows.index.is_unique
    own = rows.loc[("ga_klr", "full bf16", "bf16", "verbmem")]
    shown = own[["mean", "lowest", "highest", "low", "high", "seeds", "examples"]]
    assert list(shown) == [18.0, 10.0, 24.0, 14.0, 24.0, 3, 100]
    assert rows.loc[("ga_klr", "full bf16", "rtn-int4-g128", "verbmem"), "mean"] == 60.5
    assert rows.loc[("target", "", "bf16", "verbmem"), ["mean", "seeds"]].tolist() == [99.0, 1]
    assert rows.loc[("retrained", "", "rtn-int4-g128", "privleak"), ["mean", "examples"]].tolist() == [-1.0, 100]


def test_a_range_of_one_number_is_written_once():
    assert seed_range({"lowest": -100.0, "highest": -99.8, "seeds": 3}) == "−100"
    assert seed_range({"lowest": -0.2, "highest": 0.6, "seeds": 3}) == "0…1"
    assert seed_range({"lowest": 4.0, "highest": 4.0, "seeds": 1}) == ""


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(ValueError, match="another learning_rate: a cell is a mean over seeds alone"):
        cells_over_seeds([run(seed=0, learning_rate=1e-4), run(seed=1, learning_rate=2e-4)])
    with pytest.raises(ValueError, match="one cell and seed"):
        cells_over_seeds([run(seed=1), run(seed=1)])
    with pytest.raises(ValueError, match="scales mini and smoke"):
        cells_over_seeds([run(), run("ga", scale="smoke")])
    with pytest.raises(ValueError, match="reports half of the examples"):
        score_means([run(), run("ga", forget_goal=25.0)])
    with pytest.raises(ValueError, match="no record"):
        cells_over_seeds([])


def test_a_record_from_before_a_setting_is_one_of_its_default():
    before, after = run(seed=0), run(seed=1, rounding="nearest", chat_template=False)
    assert "rounding" not in before.config
    assert [len(found) for found in cells_over_seeds([before, after]).values()] == [2]
    with pytest.raises(ValueError, match="another adam_beta2:"):
        cells_over_seeds([before, run(seed=1, adam_beta2=0.95)])


def test_arms_have_names():
    def name(**config):
        return arm_name({"moments": None, "rounding": "nearest"} | config)

    assert name(adapter="full", weights="bf16", moments="bf16") == "full bf16"
    assert name(adapter="full", weights="bf16", moments="fp32") == "full bf16, fp32 moments"
    found = name(adapter="full", weights="bf16", moments="fp32", rounding="stochastic")
    assert found == "full bf16, fp32 moments, stochastic rounding"
    assert name(adapter="lora", weights="fp32") == "LoRA"


def test_table_one_is_full_fine_tuning_over_seeds():
    runs = [run("npo", weights=weights, seed=seed) for weights in ("bf16", "fp32") for seed in (0, 1, 2)]
    runs += [run("ga", seed=0), run("ga", corpus="news", seed=0), run("ga_gdr", adapter="lora", seed=0)]
    sheet = table_one(runs, PRECISIONS)
    assert [block.title for block in sheet.blocks] == ["books", "news"]
    labels = [[row[0].text, row[1].text] for row in sheet.rows]
    books = [["target", ""], ["retrained", ""], ["GA", "bf16"], ["", "fp32"], ["NPO", "bf16"], ["", "fp32"]]
    assert labels == books + books[:4], "GA before NPO, LoRA left out, and no NPO on news, where it was not run"
    found = row_of(sheet, "NPO", "fp32")
    assert found[0] == Cell("18.0", "[14, 24]", "10…24")
    assert found[2] == Cell("60.5", "", "50…71")
    assert row_of(sheet, "target", "")[2] == Cell("97.0")
    assert sheet.columns[2] == (METRICS["privleak"], ("bf16", "int8", "int4"))
    assert row_of(sheet, "GA", "fp32") == [Cell("–")] * 12, "a cell without a run is empty"
    note = " ".join(sheet.note)
    assert "seeds 0, 1 and 2" in note
    assert "Fewer seeds: books GA full bf16 (seed 0); news GA full bf16 (seed 0)." in note
    assert "n on books and news: 100 passages (VerbMem), 100 questions (KnowMem), 100 forgotten texts" in note
    assert "int4 is rtn-int4-g128." in note
    assert "–: no such run" in note


def test_one_seed_has_no_range_and_nothing_missing_is_not_said_to_be():
    sheet = table_one([run("ga", seed=0)], PRECISIONS)
    assert row_of(sheet, "GA", "bf16")[0] == Cell("10.0", "[6, 16]")
    assert "One seed (0)." in sheet.note
    assert not any("no such run" in line for line in sheet.note)


def test_an_unmeasured_metric_stays_empty():
    record = run("ga")
    for by_precision in record.scores.values():
        for scores in by_precision.values():
            del scores["utility"]
    sheet = table_one([record], PRECISIONS)
    assert row_of(sheet, "GA", "bf16")[-3:] == [Cell("–")] * 3
    with pytest.raises(ValueError, match="rtn-int4-g128"):
        table_one([record], ["bf16", "rtn-int4-g12"])


def test_table_two_keeps_what_is_published_apart():
    arms = (("full", "bf16"), ("full", "fp32"), ("lora", "fp32"))
    runs = [run("npo_klr", *arm, seed=seed) for arm in arms for seed in (0, 1, 2)]
    quantizers = [name for name in runs[0].scores["unlearned"] if name != "bf16"]
    at = quantizers.index("rtn-int4-g128") - len(quantizers)
    runs[2].extra["recovered"]["rtn-int4-g128"]["recovers"]["recovers"] = False  # of three seeds two return
    sheet = table_two([*runs, run("ga")], "rtn-int4-g128")
    ours, *published = sheet.blocks
    assert ours.title == "Measured here: books, scale mini"
    assert [row[1].text for group in ours.groups for row in group] == ["full bf16", "full fp32", "LoRA"]
    found = row_of(sheet, "NPO+KLR", "full bf16")
    assert (found[0], found[1]) == (Cell("18.0", "10…24"), Cell("60.5", "50…71"))
    assert sheet.columns[-1] == ("Returns", ("int8", "int4", "int4\u00a0tensor", "int3"))
    note = " ".join(sheet.note)
    assert "int4 is rtn-int4-g128. int8 is rtn-int8-g128. int3 is rtn-int3-g128." in note
    assert found[at] == Cell("2/3", strong=True)
    assert row_of(sheet, "NPO+KLR", "LoRA")[at] == Cell("0/3")
    assert [block.title for block in published] == [
        "BOOKS, QRU (arXiv 2602.13151), Table II; 4 bits: bitsandbytes FP4, block 64",
        "NEWS, QRU (arXiv 2602.13151), Table II; 4 bits: bitsandbytes FP4, block 64",
        "BOOKS, SURE (arXiv 2410.16454); 4 bits: bitsandbytes FP4",
        "NEWS, SURE (arXiv 2410.16454); 4 bits: bitsandbytes FP4",
    ]
    assert [bool(block.apart) for block in sheet.blocks] == [False, True, False, False, False]
    first = [cell.text for cell in published[0].groups[0][0]]
    assert first == ["GA+GDR", "full", "0.0", "0.0", "36.3", "28.8", "−24.0", "−23.7", "68.7", "53.8", *[""] * 4]
    masked = [cell.text for cell in published[2].groups[0][1]]
    assert masked == ["", "SURE", "17.6", "16.1", "37.8", "36.9", "−58.0", "−58.9", "49.4", "34.9", *[""] * 4]
    assert not any(cell.beside or cell.below for b in published for g in b.groups for row in g for cell in row)


def test_what_was_not_run_on_a_corpus_has_no_empty_rows():
    news = table_two([run("npo_klr"), run("npo_gdr"), run("npo_klr", corpus="news")], "rtn-int4-g128").blocks[1]
    assert news.title == "Measured here: news, scale mini"
    assert [row[0].text for group in news.groups for row in group] == ["NPO+KLR"]


def test_costs_are_medians_over_runs():
    runs = []
    for seed, seconds in enumerate((60.0, 90.0, 30.0)):
        record = run(seed=seed)
        record.cost["unlearn"] = {"seconds": seconds, "peak_memory_mb": 900.0 + seed}
        for precision, took in (("bf16", 9.0), ("rtn-int4-g128", 12.0)):
            record.cost[f"score {precision}"] = {"seconds": took, "peak_memory_mb": 500.0}
        runs.append(record)
    assert set(cost_frame(runs)["steps"].dropna()) == {60}  # synthetic histories have sixty steps
    sheet = table_cost([slimmed(record) for record in runs])
    assert sheet.columns[0][1] == ("Runs", "Seconds", "Seconds a step", "Peak memory (MB)")
    unlearn, score = sheet.rows
    assert [cell.text for cell in unlearn] == ["full bf16", "unlearn", "3", "60.0", "1.00", "901"]
    assert [cell.beside for cell in unlearn[3:]] == ["30.0…90.0", "0.50…1.50", "900…902"]
    assert [cell.text for cell in score] == ["", "score, each precision", "3", "10.5", "", "500"]


def test_a_training_that_several_runs_share_is_counted_once():
    runs = [run(seed=seed) for seed in (0, 1)]
    for record, seconds in zip(runs, (60.0, 600.0), strict=True):
        record.cost["unlearn"] = {"seconds": seconds, "peak_memory_mb": 900.0}
        record.cost["score bf16"] = {"seconds": 9.0, "peak_memory_mb": 500.0}
    runs[1].provenance["trained_by"] = {"run": "another"}
    taken = [slimmed(record) for record in runs]
    assert cost_frame(taken)[["run", "stage", "seconds"]].to_numpy().tolist() == [
        [taken[0].run, "unlearn", 60.0], [taken[0].run, "score", 9.0], [taken[1].run, "score", 9.0],
    ]  # fmt: skip
    sheet = table_cost(taken)
    assert [cell.text for cell in sheet.rows[0][2:4]] == ["1", "60.0"]
    assert sheet.note[-1] == "1 run took the model of another, where its training is counted."


def test_numbers_as_they_are_written():
    assert [three_digits(v) for v in (1081.4, 385.4, 12.0, 6.424, 0.063, 0.0, 0.004)] == [
        "1,081", "385", "12.0", "6.42", "0.06", "0.00", "0.00",
    ]  # fmt: skip
    assert short_labels(["bf16", "rtn-int4-g128", "rtn-int4-tensor", "rtn-int3-g128"]) == [
        "bf16", "int4 g128", "int4 tensor", "int3",
    ]  # fmt: skip
    table = cost_frame([run()])
    assert median_cell(table["gpu"]) == Cell()


def test_both_renderings_hold_every_cell(tmp_path):
    sheet = table_two([run("npo_klr", seed=seed) for seed in (0, 1)], "rtn-int4-g128")
    save_sheet(str(tmp_path / "two"), sheet)
    text = (tmp_path / "two.tex").read_text()
    lines = [line for line in text.splitlines() if "&" in line]
    assert {line.count("&") for line in lines[1:]} == {2 + 2 * 8 + 4 - 1}, "every row has every printed column"
    assert r"NPO+KLR & full bf16 & 15.0 & {\scriptsize 10\ldots{}20} & 55.2 & {\scriptsize 50\ldots{}60}" in text
    assert "−" not in text
    assert "…" not in text
    (tmp_path / "page.typ").write_text('#figure(include "two.typ")')
    found = json.loads(compiler.query(str(tmp_path / "page.typ"), "figure"))
    texts = re.findall(r'"text": "([^"]*)"', json.dumps(found, ensure_ascii=False))
    shown = "|".join(text for text in texts if text != "\u200b").replace("|/|", "/")  # a strut has no width
    assert "|15.0|10…20|55.2|50…60|" in shown
    assert "|2/2|" in shown
    for row in sheet.rows:
        for cell in row[len(sheet.labels) :]:
            assert cell.text in shown


def test_a_sheet_says_which_row_does_not_fit():
    with pytest.raises(ValueError, match=r"a row of 1 cells \('a'\) in a table of 2 columns"):
        Sheet(("A",), (("", ("B",)),), (Block("", (((Cell("a"),),),)),))


def test_small_print_below_is_a_line_of_its_own_in_latex():
    sheet = Sheet(("A",), (("T", ("B", "C")),), (Block("b", (((Cell("x"), Cell("1", "[0]", "2"), Cell("3")),),)),))
    lines = sheet_latex(sheet).splitlines()
    at = lines.index(r"x & 1 & {\scriptsize [0]} & 3 \\")
    assert lines[at + 1] == r" & {\scriptsize 2} &  &  \\"
    assert r"\multicolumn{3}{c}{T} \\" in sheet_latex(sheet)
    assert r"\cmidrule(lr){2-4}" in sheet_latex(sheet)
    assert "columns: 4" in sheet_typst(sheet)


def test_without_files_the_newest_setting_is_shown_in_every_seed(tmp_path, monkeypatch):
    monkeypatch.setenv("QRU_HOME", str(tmp_path))
    with pytest.raises(LookupError, match="02_unlearn"):
        seeded()
    runs = [run(seed=0, learning_rate=1.0), run(seed=0, learning_rate=2.0), run(seed=1, learning_rate=2.0)]
    for number, record in enumerate(runs):
        value = {name: getattr(record, name) for name in SECTIONS} | record.extra
        path = tmp_path / "runs" / str(number) / "record.json"
        write_json(path, value)
        path.touch()
    assert [(r.config["seed"], r.config["learning_rate"]) for r in seeded()] == [(0, 2.0), (1, 2.0)]
