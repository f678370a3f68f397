"""Artefact notebooks of the experiments: what they print is counted by hand, and each runs as the graph runs it."""

from __future__ import annotations

import re

import nbformat
import pandas as pd
import pytest
import typst as compiler
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from qru import evaluation_sheet, movement, print_figures, records, update_record, why, why_sheets
from qru.sheet import Sheet, sheet_latex, sheet_typst
from tests.notebooks.test_notebooks import ROOT, papermill, pictures
from tests.paper.attack_records import BACK, HELD, RELEARNED, attacked_certificate
from tests.paper.method_records import GPTQ4, method_record
from tests.synthetic import forget_set_records, why_record

TENSOR, INT3, INT4 = "rtn-int4-tensor", "rtn-int3-g128", "rtn-int4-g128"
BF16, MOMENTS, MASTER, LORA = "bf16", "bf16, fp32 moments", "fp32 master", "LoRA fp32"


def made_up(config) -> records.Record:
    """A run of one configuration; in arms with a dead zone the text comes back under coarse grids."""
    arm = why.arm_of(config.to_dict())
    settings = {k: v for k, v in config.to_dict().items() if k not in ("method", "corpus", "seed")}
    back = (TENSOR, INT3) if arm in (BF16, MOMENTS) else ()
    return why_record(arm, config.corpus, config.method, config.seed, back=back, **settings)


def text_of(sheet: Sheet) -> list[list[str]]:
    return [[f"{cell.text} {cell.beside}".strip() for cell in row] for row in sheet.rows]


# --- the experiment ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs():
    """Two seeds of three arms: bf16 fails under two grids, fp32 moments at one seed under one; a LoRA run missed."""
    return [
        *(why_record(BF16, seed=seed, back=(TENSOR, INT3)) for seed in (0, 1)),
        why_record(MOMENTS, seed=0, back=(INT3,)), why_record(MOMENTS, seed=1),
        why_record(LORA, seed=0), why_record(LORA, seed=1, back=(INT3,), reached=False),
    ]  # fmt: skip


def test_shares_in_print_are_of_runs_at_equal_forgetting(runs):
    sheet = why_sheets.share_sheet(runs)
    assert sheet.heads == ("Method", "Arm", "int8 g128", "int4 g128", "int3 g128", "int4 tensor", "Reached")
    assert sheet.blocks[0].title == "books"
    bf16, moments, lora = text_of(sheet)
    assert bf16[:4] == ["GA+KLR", BF16, "0 [0, 0]", "0 [0, 0]"]
    # Half of the passages stand at 0.2, half at 0.21, and return to 0.8: (0.8 − 0.205) / (1 − 0.205) = 0.748.
    assert re.fullmatch(r"75 \[7\d, 7\d\]", bf16[5])
    # One seed of two returns: (0.5025 − 0.205) / 0.795 = 0.374.
    assert re.fullmatch(r"37 \[3\d, 3\d\]", moments[4])
    # The LoRA run that came back had missed the goal: it is in no mean.
    assert lora[4] == "0 [0, 0]"
    assert [row[-1] for row in (bf16, moments, lora)] == ["2/2", "2/2", "1/2"]
    bold = [[cell.text for cell in row if cell.strong] for row in sheet.rows]
    assert bold == [["75", "75"], ["37"], []]
    note = " ".join(sheet.note)
    assert "seeds (0 and 1)" in note
    assert "95 % over 50 passages" in note
    assert "1 of 6 runs missed the goal" in note


def test_an_arm_that_never_reached_the_goal_has_no_share():
    runs = [why_record(BF16, back=(TENSOR,)), why_record(LORA, back=(TENSOR,), reached=False)]
    row = text_of(why_sheets.share_sheet(runs))[1]
    assert row[2:] == ["–", "–", "–", "–", "0/1"]


def test_shares_of_knowledge_have_their_own_rule():
    # Knowledge goes from 0.5 to 1, as the target has it, under tensor alone.
    sheet = why_sheets.share_sheet([why_record(BF16, back=(TENSOR,), knowledge=True)], "knowmem")
    assert text_of(sheet)[0][2:] == ["0 [0, 0]", "0 [0, 0]", "0 [0, 0]", "100 [100, 100]", "1/1"]
    assert [cell.text for cell in sheet.rows[0] if cell.strong] == ["100"]
    with pytest.raises(ValueError, match="'utility'; it must be verbmem or knowmem"):
        why_sheets.share_sheet([why_record(BF16)], "utility")


def test_predictions_in_print(runs):
    sheet = why_sheets.prediction_sheet({"comparison": runs, "dial": runs[:1], "size": [], "alpha": runs})
    assert [block.title for block in sheet.blocks] == ["Arms at equal forgetting", "The dial"]
    # An edge of 2^-8 = 0.0039 lies within half a step of int3 and of tensor (0.007): 4 runs, 8 predictions, 5 right.
    assert text_of(sheet) == [
        ["full rank, dead zone", "comes back", "5", "3", "0"],
        ["", "does not", "0", "8", "0"],
        ["LoRA", "does not", "0", "4", "4"],
        ["full rank, dead zone", "comes back", "2", "0", "0"],
        ["", "does not", "0", "2", "0"],
    ]
    assert "Arms at equal forgetting: 17 of 20 right, 3 false alarms, 0 missed." in sheet.note
    assert "The dial: 4 of 4 right, 0 false alarms, 0 missed." in sheet.note
    with pytest.raises(ValueError, match="no record of any of comparison"):
        why_sheets.prediction_sheet({"alpha": runs})


def test_slices_have_their_setting_beside():
    alpha = [made_up(config) for config in why.slice_grid("alpha")[:2]]
    alpha[0].extra["history"][-1].pop("stopped")
    frames = why_sheets.slice_frames({"alpha": alpha, "beta2": [made_up(why.slice_grid("beta2")[0])]})
    assert list(frames["lora_alpha"]["lora_alpha"]) == [16.0, 32.0]
    assert frames["lora_alpha"]["reached"].all(), "without a goal there is none to miss"
    assert frames["adam_beta2"]["text_regained"].item() == pytest.approx(100 * 0.595 / 0.795)
    assert frames["lora_targets"].empty
    drawn = print_figures.slices(frames, TENSOR)
    regained = [ax for ax in drawn.axes if ax.get_title("left").startswith("text regained")]
    assert [ax.get_title("left") for ax in regained] == ["text regained\n(%) int4 tensor"], "over the first row alone"
    points = [tuple(line.get_ydata()) for line in drawn.axes[9].lines if len(line.get_ydata())]
    assert points == [(pytest.approx(74.84, abs=0.01),)]


def test_a_caption_counts(runs):
    assert " ".join(why_sheets.caption(runs)) == (
        "6 runs, seeds 0 and 1; n = 50 passages. 1 missed the forgetting goal."
    )
    assert " ".join(why_sheets.caption(runs[:1], "knowmem")) == "1 run, seed 0; n = 50 questions."


def test_files_fall_into_the_parts_of_the_experiment(tmp_path):
    configs = why.grid(["books"], ["ga_klr"], [BF16, LORA], [0]) + why.dial_grid()[:1]
    files = [tmp_path / f"{i}.json" for i in range(3)]
    for file, config in zip(files, configs, strict=True):
        records.write_json(file, records.slim(made_up(config)))
    found = why_sheets.parts([str(file) for file in files])
    assert [record.path for record in found["comparison"]] == files[:2]
    assert [record.path for record in found["dial"]] == files[2:]
    # The slice over β₂ begins with the comparison's own run.
    assert [record.path for record in found["beta2"]] == files[:1]
    assert found["alpha"] == []
    with pytest.raises(LookupError, match=r"no record of the comparison is among 1\. .*04_why"):
        why_sheets.parts([str(files[2])])


# --- the evaluation ---------------------------------------------------------------------------------------------


def raced(model: str, verbmem: float = 2.0) -> dict:
    seconds = {"verbmem": (verbmem, 30.0), "knowmem": (0.5, 10.0), "privleak": (4.0, 5.0), "utility": (0.5, 11.0),
               "disjoint": (0.5, 12.0), "total": (verbmem + 5.5, 68.0)}  # fmt: skip
    return {
        "config": {"corpus": "books", "scale": "mini", "model": model},
        "verified": {"strings": 400, "log_probs": 38592, "largest_log_prob_difference": 1.04e-05},
        "rounds": 3, "threads": 1, "load_average": [4.6, 1.0, 1.0],
        "metrics": {
            name: {"seconds": {"ours": ours, "alone": alone}, "spread": {"ours": 0.01, "alone": 0.034}, "ratio": 99.0}
            for name, (ours, alone) in seconds.items()
        },
        "provenance": {"hardware": {"processor": "Some CPU", "cores": 2}},
    }  # fmt: skip


def test_speed_of_evaluation_in_print():
    sheet = evaluation_sheet.evaluation_sheet([raced("target"), raced("retrained", verbmem=3.0)])
    assert [head for head, _ in sheet.columns] == ["target model (s)", "retrained model (s)"]
    rows = {row[0]: row[1:] for row in text_of(sheet)}
    assert rows["VerbMem"] == ["30", "2.0", "15.0", "30", "3.0", "10.0"]
    assert rows["KnowMem"][:3] == ["10", "0.50", "20.0"]
    assert rows["MUSE’s four"][:3] == ["56", "7.0", "8.0"]  # 30 + 10 + 5 + 11 over 2 + 0.5 + 4 + 0.5
    assert rows["All"][:3] == ["68", "7.5", "9.1"]
    assert (
        "1 thread of Some CPU, medians of 3 interleaved rounds, spread of the sums up to 3 %, load 5 on 2 cores"
        in (sheet.note[1])
    )
    assert "400 strings equal, 38,592 log-probabilities at most 1.0e-05 apart" in sheet.note[1]


def test_only_records_of_the_evaluation_are_taken(tmp_path):
    for name, model in (("a", "retrained"), ("b", "target")):
        records.write_json(tmp_path / f"{name}.json", raced(model))
    found = evaluation_sheet.load_evaluations(folder=tmp_path)
    assert [record["config"]["model"] for record in found] == ["target", "retrained"]
    records.write_json(tmp_path / "c.json", {"metrics": {}})
    with pytest.raises(ValueError, match=r"c\.json is no record of the evaluation's speed"):
        evaluation_sheet.load_evaluations([str(tmp_path / "c.json")])
    with pytest.raises(LookupError, match=r"python -m qru\.metrics\.bench"):
        evaluation_sheet.load_evaluations(folder=tmp_path / "none")


@pytest.mark.parametrize(
    "sheet",
    [
        lambda runs: why_sheets.share_sheet(runs),
        lambda runs: why_sheets.prediction_sheet({"comparison": runs}),
        lambda runs: evaluation_sheet.evaluation_sheet([raced("target")]),
    ],
    ids=["shares", "predictions", "evaluation"],
)
def test_every_table_compiles_and_has_the_same_text_in_latex(runs, sheet, tmp_path):
    made = sheet(runs)
    source = tmp_path / "table.typ"
    source.write_text(sheet_typst(made), encoding="utf-8")
    assert compiler.compile(str(source))[:4] == b"%PDF"
    latex = sheet_latex(made)
    assert latex.count("\\begin{tabular}") == 1
    for row in made.rows:
        for cell in row:
            assert cell.text.replace("Δ", r"$\Delta$").replace("–", "--") in latex


# --- figures of other records -----------------------------------------------------------------------------------


def test_the_kernel_in_print_shows_what_was_timed():
    (record,) = print_figures.load_kernels([str(print_figures.KERNELS / "epyc-zen4-2-threads.json")])
    figure = print_figures.kernel([record])
    left, right = figure.axes
    ours = [result["contestants"]["ours"]["ms"] for result in record["results"]]
    eager = [result["contestants"]["eager"]["ratio"] for result in record["results"]]
    assert any(list(line.get_ydata()) == ours for line in left.lines)
    assert any(list(line.get_ydata()) == eager for line in right.lines)
    first = record["results"][0]
    assert left.get_xticklabels()[0].get_text() == f"1\n{round(100 * first['share_of_ceiling'])}"
    assert "n = 9 interleaved runs" in print_figures.kernel_caption([record])[0]


def test_only_records_of_the_kernel_are_taken(tmp_path):
    records.write_json(tmp_path / "a.json", {"kind": "other"})
    with pytest.raises(ValueError, match=r"a\.json is no record of the kernel's benchmark"):
        print_figures.load_kernels(folder=tmp_path)
    with pytest.raises(LookupError, match="make bench"):
        print_figures.load_kernels(folder=tmp_path / "none")


def test_forget_sets_in_print():
    found = [*forget_set_records("scal"), *forget_set_records("sust")]
    figure = print_figures.forget_sets(found, TENSOR)
    assert len(figure.axes) == 6
    utility, forgotten, _ = figure.axes[:3]
    assert [ax.get_title("left") for ax in (utility, forgotten)] == ["Utility ↑", "VerbMem ↓, to be forgotten"]
    assert figure.axes[3].get_title("left") == ""
    # 12 + 3 k in bf16, 4 more quantized.
    drawn = [list(line.get_ydata()) for line in forgotten.lines]
    assert [15.0, 18.0, 21.0, 24.0] in drawn
    assert [19.0, 22.0, 25.0, 28.0] in drawn
    assert forgotten.get_xticklabels()[1].get_text() == "50\nn = 50"
    assert " ".join(print_figures.forget_set_caption(found)) == (
        "n = 100 questions for utility, n passages under each set for VerbMem; bars: 95 % over them; seed 0."
    )
    with pytest.raises(ValueError, match="rtn-int2"):
        print_figures.forget_sets(found, "rtn-int2")


def sizes_of(arm: str, crossed: float = 5.83) -> dict:
    grid = [
        {"bits": bits, "group": group, "weights": 1_966_080, "moved": 60.0, "crossed": crossed / 4 ** (i + j),
         "changed": 1.0, "predicted": 1.1 * crossed / 4 ** (i + j), "projection": 1.0, "cosine": 0.5}
        for i, bits in enumerate((8, 4, 3, 2))
        for j, group in enumerate(("g32", "g64", "g128", "row", "tensor"))
    ]  # fmt: skip
    return {
        "kind": "update-sizes", "run": arm, "arm": arm, "quantizer": INT4,
        "config": {"corpus": "books", "method": "ga_klr", "seed": 0},
        "sizes": [{"steps": 2.0**k, "share": 10.0 - abs(k + 5)} for k in range(-10, 0)],
        "grid": grid,
    }  # fmt: skip


def test_sizes_of_updates_in_print():
    kept = [sizes_of(MASTER, 58.3), sizes_of(BF16)]
    figure = print_figures.updates(kept)
    above, *below = figure.axes
    assert [ax.get_title("left") for ax in below] == [BF16, MASTER], "in the experiment's order"
    # 10 points of 10 − |k + 5|, k = −10 … −1, hold 75 %.
    assert [line.get_label() for line in above.lines][:2] == [
        "bf16 (25 % did not move)", "fp32 master (25 % did not move)"
    ]  # fmt: skip
    cells = [text.get_text() for text in below[0].texts]
    assert cells[0] == "5.8\n(6.4)"
    assert cells[1] == "1.5\n(1.6)"
    assert " ".join(print_figures.updates_caption(kept)) == (
        "GA+KLR on books, one run an arm, seed 0; 1,966,080 weights in linear layers."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": MASTER}, "one run an arm"),
        ({"arm": "fp16"}, "unknown arm 'fp16'"),
        ({"quantizer": INT3}, "steps of one quantizer"),
    ],
    ids=str,
)
def test_sizes_that_cannot_stand_side_by_side(change, message):
    with pytest.raises(ValueError, match=message):
        print_figures.updates([sizes_of(MASTER), sizes_of(BF16) | change])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(41.3, "41"), (9.96, "10"), (5.83, "5.8"), (0.43, ".4"), (0.0123, ".01"), (2e-4, "<.001"), (0, "0")],
)
def test_shares_in_cells_are_short(value, shown):
    assert print_figures.short(value) == shown


def test_sizes_of_updates_are_kept_and_read(tmp_path, monkeypatch):
    frames = {name: pd.DataFrame(sizes_of(BF16)[name]) for name in ("sizes", "grid")}
    frames["grid"].loc[3, "projection"] = float("nan")  # nothing moved: there is nothing to project on
    monkeypatch.setattr(movement, "update_sizes", lambda record, spec: frames["sizes"])
    monkeypatch.setattr(movement, "grid_table", lambda record, bits, groups: frames["grid"])
    record = why_record(BF16)
    value = update_record.measure(record)
    records.write_json(tmp_path / "a.json", value)
    (read,) = update_record.load_updates(folder=tmp_path)
    assert (read["arm"], read["run"], read["config"]["method"]) == (BF16, record.run, "ga_klr")
    assert read["grid"][3]["projection"] is None
    assert read["grid"][0]["crossed"] == 5.83
    records.write_json(tmp_path / "b.json", {"kind": "other"})
    with pytest.raises(ValueError, match=r"b\.json holds no sizes of updates"):
        update_record.load_updates([str(tmp_path / "b.json")])


# --- the notebooks ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What each notebook is given: made-up records of the experiment and of updates; of the rest the committed ones."""
    home = tmp_path_factory.mktemp("records")
    configs = [
        *why.grid(["books"], ["ga_klr"], [BF16, MASTER, LORA], [0]), *why.dial_grid()[:2],
        *(config for part in why_sheets.SLICES for config in why.slice_grid(part)[:2]), *why.size_grid()[:3],
    ]  # fmt: skip
    out = {"why": [], "updates": [], "sets": [], "methods": [], "tweets": []}
    for name, corpus in (("methods", "books"), ("tweets", "tweets")):
        for guard in (None, "quail"):
            out[name].append(home / name / f"{guard}.json")
            records.write_json(out[name][-1], records.slim(method_record(corpus=corpus, guard=guard), (INT4,)))
    for i, config in enumerate(dict.fromkeys(configs)):
        out["why"].append(home / "why" / f"{i}.json")
        records.write_json(out["why"][-1], records.slim(made_up(config), (TENSOR,)))
    for i, arm in enumerate((BF16, MASTER)):
        out["updates"].append(home / "updates" / f"{i}.json")
        records.write_json(out["updates"][-1], sizes_of(arm))
    for record in [*forget_set_records("scal"), *forget_set_records("sust")]:
        out["sets"].append(home / "sets" / f"{record.config['forget_set']}.json")
        records.write_json(out["sets"][-1], records.slim(record))
    out["calibration"] = [home / "calibration" / f"{i}.json" for i in range(2)]
    for path, names in zip(out["calibration"], ((GPTQ4,), (f"{GPTQ4}-heldout", f"{GPTQ4}-forget")), strict=True):
        records.write_json(path, records.slim(method_record(quantizers=names)))
    out["attacks"] = [home / "attacks" / "0.json"]
    records.write_json(out["attacks"][0], attacked_certificate(HELD | {RELEARNED: BACK}))
    return {name: [str(path) for path in paths] for name, paths in out.items()} | {"committed": []}


GIVEN = {
    "fig_why": "why", "fig_dial": "why", "fig_layers": "why", "fig_slices": "why", "fig_size": "why",
    "table_why": "why", "table_prediction": "why", "fig_kernel": "committed", "fig_scal_sust": "sets",
    "fig_updates": "updates", "table_evaluation": "committed", "table_three": "methods", "table_four": "tweets",
    "fig_tradeoff": "methods", "table_overlap": "methods",
    "table_attacks": "attacks", "table_calibration": "calibration", "table_quail": "methods",
}  # fmt: skip


@pytest.mark.slow
def test_every_artefact_runs_as_the_graph_runs_it(files, tmp_path):
    """All in one kernel, which is emptied before each: importing torch anew for every one would take minutes."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    joined = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    for name, given in GIVEN.items():
        notebook = load_notebook_node(str(ROOT / "notebooks" / f"{name}.ipynb"))
        parameters = {"scale": "smoke", "records": files[given], "out": str(tmp_path / "out" / name)}
        notebook = parameterize_notebook(notebook, parameters)
        for i, cell in enumerate(notebook.cells):
            cell["id"] = f"{name}-{i}"
        joined.cells += [nbformat.v4.new_code_cell("%reset -f", id=f"{name}-reset"), *notebook.cells]
    nbformat.write(joined, tmp_path / "joined.ipynb")
    ran = papermill(tmp_path, tmp_path / "joined.ipynb", tmp_path / "ran.ipynb")
    assert ran.returncode == 0, ran.stderr[-4000:]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    endings = {"table": (".typ", ".tex"), "fig": (".pdf", ".svg")}
    assert written == {name + ending for name in GIVEN for ending in endings[name.partition("_")[0]]}
    assert pictures(nbformat.read(tmp_path / "ran.ipynb", as_version=4)) == sum(
        name.startswith("fig") for name in GIVEN
    )
