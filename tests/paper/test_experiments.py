"""The declaration of the experiments: what it expands to, and what it refuses before anything runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from qru import experiments
from qru.experiments import (
    Cell,
    Plan,
    cause,
    combinations,
    drawing,
    drop_damaged,
    failures,
    keep,
    plan,
    promote,
    records_of,
    tell,
)
from qru.records import write_json

ROOT = Path(__file__).resolve().parents[2]
DECLARED = ROOT / "paper" / "experiments.yaml"
SMALL = Path(__file__).parent / "experiments.yaml"  # a declaration to make mistakes in


@pytest.fixture
def changed(tmp_path):
    """Write the paper's declaration with one piece of text replaced."""

    def write(old: str, new: str) -> Path:
        text = SMALL.read_text()
        assert old in text, f"{SMALL.name} has changed; the test replaces {old!r}"
        path = tmp_path / "experiments.yaml"
        path.write_text(text.replace(old, new, 1))
        return path

    return write


def test_the_core_grid_is_small_and_part_of_the_full_one():
    core, full = (set(plan(DECLARED, "mini", grid).cells) for grid in experiments.GRIDS)
    assert len(core) <= 60, "training runs, two minutes and more each on two cores"
    assert core <= full


def test_the_core_is_every_method_on_every_arm():
    made = plan(DECLARED, "mini")
    configs = [cell.config for cell in made.cells.values()]
    arms = {(config["method"], config["adapter"], config["weights"]) for config in configs}
    methods = ("ga_gdr", "ga_klr", "npo_gdr", "npo_klr")
    assert arms >= {(m, *arm) for m in methods for arm in (("full", "bf16"), ("lora", "fp32"))}
    assert made.artefacts["table_one"].files == ("tables/one.typ", "tables/one.tex")
    assert made.artefacts["fig_why"].files == ("figures/why.pdf", "figures/why.svg")


def test_smoke_is_one_run_an_experiment():
    names = re.findall(r"^  (\w+):\n    why", DECLARED.read_text().split("artefacts:")[0], flags=re.MULTILINE)
    assert 1 <= len(plan(DECLARED, "smoke").cells) <= len(names)


def test_at_muse_the_corpora_are_those_of_the_hub():
    made = plan(DECLARED, "muse")
    assert {cell.config["corpus"] for cell in made.cells.values()} <= {"muse-bench/MUSE-Books", "muse-bench/MUSE-News"}
    assert all(cell.name.startswith("MUSE-") and "/" not in cell.name for cell in made.cells.values())


def test_a_changed_setting_is_another_run(changed):
    before = set(plan(SMALL, "smoke").cells)
    after = set(plan(changed("seed: 0", "seed: 0\n  learning_rate: 3e-4"), "smoke").cells)
    assert not before & after


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        ("[ga_gdr,", "[ga_gdl,", ["experiment 'arms'", "unknown method", "ga_gdr"]),
        ("seed: 0", "sede: 0", ["experiment 'arms'", "Did you mean 'seed'"]),
        ("corpus: books", "corpus: book", ["experiment 'arms'", "Did you mean 'books'"]),
        ("full-bf16, lora]", "full-fp16, lora]", ["experiment 'arms'", "full-fp32"]),
        ("seed: 0", "seed: zero", ["experiment 'arms'", "it must be int"]),
        ("seed: 0", "seed: 0\n  quantizers: [rtm-int4-g128]", ["experiment 'arms'", "rtn"]),
        ("smoke: {method: npo_gdr", "smoke: {method: npo", ["experiment 'arms'", "none of its runs"]),
        ("    smoke:", "    grid: ful\n    smoke:", ["experiment 'arms'", "Did you mean 'full'"]),
        ("    smoke:", "    full: {beta: 1.0}\n    smoke:", ["experiment 'arms'", "more values of 'beta'"]),
        ("    smoke:", "    layers: rtn-int4-g12\n    smoke:", ["experiment 'arms'", "rtn-int4-g128"]),
        ("    smoke:", "    notebook: 02_unlern\n    smoke:", ["experiment 'arms'", "Did you mean '02_unlearn'"]),
        ("    smoke:", "    slices: {lora_rang: [4]}\n    smoke:", ["experiment 'arms'", "Did you mean 'lora_rank'"]),
        ("    each:\n", "    sizes:\n", ["'arms': unknown key 'sizes'"]),
        ("experiments: [arms]", "experiments: [arm]", ["artefact 'table_scores'", "Did you mean 'arms'"]),
        ("fig_recovery:", "fig_recovry:", ["artefact 'fig_recovry'", "fig_recovery"]),
        ("precisions: [", "precision: [", ["artefact 'table_scores'", "Did you mean 'precisions'"]),
        ("    why: The rise", "    reason: The rise", ["fig_recovery", "unknown key 'reason'"]),
        ("seed: 0", "seed: 0\n  seed: 1", ["'seed' is given twice"]),
        ("experiments:\n", "experiment:\n", ["Did you mean 'experiments'"]),
        ("defaults:", "defaults: [", ["no YAML"]),
    ],
)
def test_a_mistake_is_named_with_its_line(changed, old, new, messages):
    path = changed(old, new)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        plan(path, "mini")
    assert re.search(r"experiments.yaml:\d+|no YAML", str(caught.value))
    for message in messages:
        assert message in str(caught.value)


def test_a_plan_is_remembered_until_its_sources_change(changed, tmp_path, monkeypatch):
    kept = tmp_path / "plan.json"
    made = plan(DECLARED, "smoke", kept=kept)
    monkeypatch.setattr(experiments, "_plan", None)  # calling it again would fail
    again = plan(DECLARED, "smoke", kept=kept)
    assert json.loads(json.dumps(list(again.cells))) == list(made.cells)
    assert [cell.config for cell in again.cells.values()] == [cell.config for cell in made.cells.values()]
    with pytest.raises(TypeError):
        plan(changed("seed: 0", "seed: 1"), "smoke", kept=kept)


EMPTY = {"scores": {}, "crossings": {}, "cost": {}, "provenance": {}}


def cell(name: str, **fields) -> Cell:
    known = {"notebook": "02_unlearn", "folder": "mini", "parameters": {}, "config": {}}
    return Cell(**{"name": name} | known | fields)


def test_slices_vary_one_value_while_the_others_stay():
    entry = {
        "each": {"method": ["ga", "npo"], "lora_rank": 8, "alpha": 16},
        "slices": {"lora_rank": [4, 8], "size": [{"lora_rank": 2, "alpha": 4}]},
        "full": {"lora_rank": 32},
    }
    around = [(8, 16), (4, 16), (8, 16), (2, 4)]
    core = [(one["method"], one["lora_rank"], one["alpha"]) for one in combinations({"seed": 0}, entry)]
    assert core == [(method, *pair) for method in ("ga", "npo") for pair in around]
    full = [(one["method"], one["lora_rank"], one["alpha"]) for one in combinations({"seed": 0}, entry, "full")]
    assert full == [(m, *pair) for m in ("ga", "npo") for pair in [*around[:3], (32, 16), around[3]]]


def test_the_full_grid_has_more_values_of_what_is_there():
    entry = {"each": {"method": ["ga"]}, "full": {"method": ["npo"], "seed": [1, 2]}}
    assert [one["seed"] for one in combinations({"seed": 0}, entry)] == [0]
    full = [(one["method"], one["seed"]) for one in combinations({"seed": 0}, entry, "full")]
    assert full == [("ga", 0), ("ga", 1), ("ga", 2), ("npo", 0), ("npo", 1), ("npo", 2)]
    with pytest.raises(ValueError, match="more values of 'beta'"):
        combinations({}, {"each": {"method": ["ga"]}, "full": {"beta": [1.0]}})


MORE = """
  extra:
    why: A test.
    grid: full
    each: {method: [ga, npo]}
  again:
    why: Asks for a run that another experiment has, and for the counts of its layers.
    each: {method: ga_gdr, arm: [lora]}
    layers: rtn-int4-g128
  timing:
    why: Committed records.
    records: kernel
    notebook: 05_kernel
    each: {threads: [1, 2]}
    alone: true
"""


def test_grids_shared_runs_and_committed_records(changed, tmp_path):
    path = changed(
        "\nartefacts:\n", MORE + "\nartefacts:\n  fig_recovery:\n    why: A test.\n    experiments: [timing]\n"
    )
    path.write_text(path.read_text().split("  table_scores:")[0])
    before, core, full = plan(SMALL, "mini"), plan(path, "mini"), plan(path, "mini", "full")
    assert set(core.cells) == set(before.cells), "the run that is asked for twice is one run"
    assert sorted(full.cells[name].config["method"] for name in set(full.cells) - set(core.cells)) == ["ga", "npo"]
    held = {(one.config["method"], one.config["adapter"]) for one in core.cells.values() if one.layers}
    assert held == {("ga_gdr", "lora")}
    artefact = core.artefacts["fig_recovery"]
    assert (artefact.cells, artefact.folders) == ((), ("kernel",))
    assert [file.name for file in records_of(artefact, ROOT / "paper" / "records", "mini")] == [
        "epyc-zen4-1-thread.json",
        "epyc-zen4-2-threads.json",
    ]
    with pytest.raises(ValueError, match="there are none"):
        records_of(artefact, tmp_path, "mini")
    fresh = [one for one in plan(path, "mini", fresh=True).cells.values() if one.notebook == "05_kernel"]
    assert [one.parameters for one in fresh] == [{"threads": n, "scale": "mini"} for n in (1, 2)]
    assert {(one.folder, one.alone) for one in fresh} == {("kernel", True)}
    assert not [one for one in plan(path, "smoke", fresh=True).cells.values() if one.notebook == "05_kernel"]
    path.write_text(path.read_text().replace("    records: kernel\n", "    records: kernel\n    again: full\n"))
    for grid, again in (("core", 0), ("full", 2)):
        cells = plan(path, "mini", grid, fresh=True).cells.values()
        assert len([one for one in cells if one.notebook == "05_kernel"]) == again
    path.write_text(path.read_text().replace("again: full", "again: never"))
    with pytest.raises(ValueError, match="'never'"):
        plan(path, "mini")


ONLY = """
  chosen:
    why: Those committed records that say so.
    records: kept
    only:
      - {corpus: news, arm: full-bf16}
      - {corpus: news, arm: lora-fp32, seed: [0, 1]}
"""


def test_committed_records_are_chosen_by_what_they_say_of_themselves(changed, tmp_path):
    path = changed("\nartefacts:\n", ONLY + "\nartefacts:\n  table_two:\n    why: A test.\n    experiments: [chosen]\n")
    path.write_text(path.read_text().split("  table_scores:")[0])
    artefact = plan(path, "mini").artefacts["table_two"]
    records = {
        "of-books": {"corpus": "books", "adapter": "full", "weights": "bf16"},
        "master": {"corpus": "news", "adapter": "full", "weights": "fp32"},
        "stepped": {"corpus": "news", "adapter": "full", "weights": "bf16"},
        "low-rank": {"corpus": "news", "adapter": "lora", "weights": "fp32", "seed": 1},
        "another-seed": {"corpus": "news", "adapter": "lora", "weights": "fp32", "seed": 2},
    }
    for name, config in records.items():
        write_json(tmp_path / "kept" / f"{name}.json", {"config": config | {"scale": "mini"}})
    assert [file.stem for file in records_of(artefact, tmp_path, "mini")] == ["low-rank", "stepped"]
    assert records_of(artefact, tmp_path, "smoke") == [], "records of another scale stand in no table beside these"
    (tmp_path / "kept" / "stepped.json").unlink()
    with pytest.raises(ValueError, match=r"'arm': 'full-bf16'.*no record there is so"):
        records_of(artefact, tmp_path, "mini")
    path.write_text(path.read_text().replace("news, arm: full", "news, amr: full"))
    with pytest.raises(ValueError, match=r"unknown parameter 'amr'\. Did you mean 'arm'"):
        plan(path, "mini")
    path.write_text(path.read_text().replace("    records: kept\n", "").replace("amr:", "arm:"))
    with pytest.raises(ValueError, match="has no records:"):
        plan(path, "mini")


def test_an_error_names_the_line_of_what_it_quotes(changed):
    path = changed("method: [ga_gdr,", "method: [ga_gdl,")
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "ga_gdl" in text)
    with pytest.raises(ValueError, match=rf":{line}: experiment 'arms': unknown method 'ga_gdl'"):
        plan(path, "mini")
    path = changed("    experiments: [arms]\n    parameters:", "    parameters:")
    with pytest.raises(ValueError, match="'table_scores' shows nothing"):
        plan(path, "mini")


def test_an_experiment_of_one_grid_is_not_in_the_other(changed):
    def methods(entry: str, grid: str) -> set[str]:
        path = changed("\nartefacts:\n", f"  more:\n    why: A test.\n{entry}    each: {{method: npo}}\n\nartefacts:\n")
        return {cell.config["method"] for cell in plan(path, "mini", grid).cells.values()}

    assert "npo" in methods("", "core") & methods("", "full")
    assert "npo" in methods("    grid: core\n", "core") - methods("    grid: core\n", "full")
    assert "npo" in methods("    grid: full\n", "full") - methods("    grid: full\n", "core")


def test_every_artefact_of_either_grid_shows_runs_that_can_stand_together():
    """Of one cell no two runs differ but in the seed: else a table of the full grid would fail after all its runs."""
    for grid in experiments.GRIDS:
        made = plan(DECLARED, "mini", grid)
        for name in ("table_one", "table_two"):
            artefact, found = made.artefacts[name], {}
            committed = [json.loads(path.read_text())["config"] for path in _committed(artefact)]
            for config in [*(made.cells[cell].config for cell in artefact.cells), *committed]:
                place = tuple(config[key] for key in ("corpus", "method", "adapter", "weights"))
                found.setdefault(place, []).append(config["seed"])
            assert all(len(seeds) == len(set(seeds)) for seeds in found.values()), (grid, name)


def _committed(artefact) -> list[Path]:
    runs = {f"{cell}.json" for cell in artefact.cells}
    shown = records_of(artefact, ROOT / "paper" / "records", "mini")
    return [path for path in shown if path.name not in runs]


def test_what_would_be_made_is_what_is_missing_or_damaged(tmp_path):
    made = Plan({name: cell(name) for name in ("good", "cut", "gone")}, {})
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "good.json").write_text(json.dumps(EMPTY | {"config": {}}))
    (tmp_path / "mini" / "cut.json").write_text("{")
    assert [path.stem for path in experiments.to_make(made, tmp_path)] == ["cut", "gone"]


def test_damaged_and_foreign_records_are_named_and_removed(tmp_path):
    cells = [
        cell("good", config={"epochs": 2, "corpus": "/data/books"}),
        cell("foreign", config={"epochs": 2}),
        cell("cut"),
        cell("thin", layers=("rtn-int4-g128",)),
        cell("missing"),
        cell("other", notebook="05_kernel", config={"threads": 2}),
    ]
    texts = {
        "good": json.dumps(EMPTY | {"config": {"epochs": 2, "corpus": "books"}}),
        "foreign": json.dumps(EMPTY | {"config": {"epochs": 99}}),
        "cut": '{"config": {',
        "thin": json.dumps(EMPTY | {"config": {}}),
        "other": json.dumps({"config": {"threads": 1}}),
    }
    for name, text in texts.items():
        (tmp_path / "mini").mkdir(exist_ok=True)
        (tmp_path / "mini" / f"{name}.json").write_text(text)
    made = Plan({one.name: one for one in cells}, {})
    assert len(drop_damaged(made, tmp_path, dry=True)) == 4
    assert len(list((tmp_path / "mini").iterdir())) == 5, "only looked at"
    found = " ".join(drop_damaged(made, tmp_path))
    assert [path.stem for path in (tmp_path / "mini").iterdir()] == ["good"]
    for message in ("another epochs", "cut.json is not whole JSON", "layers under rtn-int4-g128", "another threads"):
        assert message in found


def test_keep_needs_a_record_in_the_log_and_makes_it_slim(tmp_path):
    log = tmp_path / "run.log"
    log.write_text("nothing of the kind\n")
    with pytest.raises(ValueError, match="names no record"):
        keep(log, tmp_path / "out.json")
    file = tmp_path / "run" / "record.json"
    counts = {"layers": {"q": {"weights": 4, "crossed": 1}}, "total": {"weights": 4}}
    write_json(file, EMPTY | {"config": {"seed": 1}, "crossings": {"a": counts, "b": counts}, "answers": ["long"]})
    log.write_text(f"scoring\nrecord: {file.with_name('earlier')}\nrecord: {file}\n")
    keep(log, tmp_path / "out.json", ["b"])
    made = json.loads((tmp_path / "out.json").read_text())
    assert made["config"] == {"seed": 1}
    assert "answers" not in made
    assert [len(made["crossings"][name]["layers"]) for name in ("a", "b")] == [0, 1]
    write_json(file, {"kind": "kernel-benchmark", "results": [1]})
    keep(log, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == {"kind": "kernel-benchmark", "results": [1]}


def test_fresh_records_replace_the_committed_ones(tmp_path):
    committed, made = tmp_path / "records", tmp_path / "fresh"
    for name in ("mini/a", "mini/of-another-grid", "kernel/machine", "why/not-made-again"):
        write_json(committed / f"{name}.json", "old")
    for name in ("mini/a", "kernel/new"):
        write_json(made / "records" / f"{name}.json", "new")
    promote(made, committed, "mini")
    found = {str(path.relative_to(committed)): json.loads(path.read_text()) for path in committed.rglob("*.json")}
    assert found == {
        "mini/a.json": "new", "mini/of-another-grid.json": "old", "kernel/new.json": "new",
        "why/not-made-again.json": "old",
    }  # fmt: skip
    assert not made.exists()


def test_a_failure_is_told_with_its_cause_and_notebook(tmp_path):
    log, typst = tmp_path / "run.log", tmp_path / "typst.log"
    log.write_text(
        'Exception encountered at "In [3]":\n\x1b[0;31mValueError\x1b[0m: seed is -1;\nit must be 0 or more.\n\n'
    )
    assert cause(log) == "ValueError: seed is -1;"
    assert cause(tmp_path / "none.log") == "it said nothing"
    log.write_text("Killed\n")
    typst.write_text("error: unknown variable: nothing\n  3 │ #nothing\n")
    failed = tmp_path / "failed.tsv"
    assert failures(failed) == []
    failed.write_text(f"run a-s0\tbuild/a-s0.ipynb\t{log}\ntypeset\t-\t{typst}\n")
    said = "\n".join(failures(failed))
    for message in ("2 failed", "run a-s0", "Killed", "notebook: build/a-s0.ipynb", "unknown variable", "3 │ #nothing"):
        assert message in said


def test_what_would_be_made_is_told_in_words():
    said = (
        "paper: scale mini, grid core: 3 runs\nBuilding DAG of jobs...\nJob 7: run b (follow it: tail -f b.log)\n"
        "[Sat Nov 21]\nJob 8: run a (follow it: tail -f a.log)\nJob 1: table scores\nJob 0: typeset paper.pdf\n"
    )
    assert tell(said) == [
        "paper: scale mini, grid core: 3 runs", "runs to make (2):", "  a", "  b", "tables to draw (1):", "  scores",
        "then typeset paper.pdf",
    ]  # fmt: skip
    assert tell("paper: 3 runs\nNothing to be done (all requested files are present and up to date).\n") == [
        "paper: 3 runs",
        "nothing to do",
    ]
    assert tell("no such file") == ["no such file"], "what is not understood is shown as it is"


def test_what_draws_an_artefact_is_read_from_its_notebook():
    found = set(drawing("fig_recovery"))
    assert found >= {"figures", "tables", "typeset"}, "named"
    assert "style" in found, "named by what is named"
    assert not found & {"unlearn", "models", "experiments"}


def test_everything_that_the_paper_reads_is_made_by_the_graph():
    source = (ROOT / "paper" / "paper.typ").read_text()
    made = {file for artefact in plan(DECLARED, "mini").artefacts.values() for file in artefact.files}
    read = {f"tables/{name}.typ" for name in re.findall(r'tabled\("(\w+)"', source)}
    read |= {f"figures/{name}.pdf" for name in re.findall(r'drawn\("(\w+)"', source)}
    read -= {f"figures/{name}.pdf" for name in re.findall(r'"figures/(\w+)" in facts', source)}
    read -= {f"tables/{name}.typ" for name in re.findall(r'"tables/(\w+)" in facts', source)}
    assert read <= made, read - made
