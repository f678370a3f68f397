"""Every notebook: well formed, without outputs, and run by papermill as a user would."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from papermill import inspect_notebook

from qru import experiments, models
from qru.arms import check_grids, run_arms
from qru.certificate import verify
from qru.config import FORGET_SETS, SCALES, RunConfig
from qru.corpora import has_labels
from qru.corpora.corpus import registry
from qru.notebook import declared_parameters
from qru.ops import build_info
from qru.records import SECTIONS, load_records, write_json
from qru.ship_record import committed
from qru.widgets import crossing_sliders

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAIN = ROOT / "notebooks" / "02_unlearn.ipynb"
# The other notebooks ask what only language models answer.
WITH_CLASSIFIERS = ("01_prepare", "02_unlearn", "03_crossings", "08_certify")


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_parameters(cell) -> bool:
    return "parameters" in cell.metadata.get("tags", [])


def papermill(home: Path, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", *map(str, arguments)]
    environment = os.environ | {"QRU_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_no_outputs_are_committed(notebook):
    for cell in code_cells(notebook):
        assert cell.outputs == [], "run nbstripout on it"
        assert cell.execution_count is None, "run nbstripout on it"


def test_parameters_are_literals_with_help(notebook):
    first, second = code_cells(notebook)[:2]
    assert is_parameters(first)
    assert sum(map(is_parameters, notebook.cells)) == 1
    declared = declared_parameters(first.source)
    assert declared, "the parameters cell holds lines such as `seed: int = 0  # help` and nothing else"
    for line in first.source.splitlines():
        assert re.fullmatch(r"\w+: \w+ = .+  # \S.*", line), f"{line!r} lacks a type or a help comment"
        assert line.count("=") == 1, f"{line!r}: papermill --help-notebook cannot read a second ="
    assert "check_parameters()" in second.source


def test_house_style(notebook):
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    assert "?" in notebook.cells[0].source, "the question that it answers"
    for cell in code_cells(notebook):
        tree = ast.parse(cell.source)
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)], cell.source
        assert is_parameters(cell) or len(cell.source.splitlines()) <= 12, f"a long cell:\n{cell.source}"
        for text in (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)):
            assert "/" not in text, f"{text!r} looks like a path"


def test_links_between_notebooks_lead_somewhere(notebook):
    for cell in notebook.cells:
        for target in re.findall(r"\]\((\w+\.ipynb)\)", cell.source):
            assert (ROOT / "notebooks" / target).is_file(), target


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem[0].isdigit()], ids=lambda path: path.stem)
def test_help_offers_the_scales_and_corpora_that_there_are(path):
    shown = inspect_notebook(str(path))
    given = "target" in shown  # the others know embedded models alone
    words = re.findall(r"[a-z]+", shown["scale"]["help"])
    assert [word for word in words if word in SCALES] == list(SCALES if given else models.SIZES)
    if path.stem in ("05_kernel", "07_ship"):  # those without a corpus
        assert "corpus" not in shown
        return
    corpus = shown["corpora" if path.stem == "04_why" else "corpus"]
    offered = [word for word in re.findall(r"[a-z]+", corpus["help"]) if word in registry]
    about_text = [name for name in registry.names() if not has_labels(name)]
    assert offered == (registry.names() if path.stem in WITH_CLASSIFIERS else about_text)


def test_the_main_notebook_takes_what_a_run_takes():
    declared = declared_parameters(code_cells(nbformat.read(MAIN, as_version=4))[0].source)
    defaults = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    assert set(declared) == set(defaults) | {"beside"}
    for name, default in defaults.items():
        value = declared[name][1]
        assert (tuple(value) if isinstance(value, list) else value) == default, f"default of {name}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_reach_the_command_line_help(path):
    shown = inspect_notebook(str(path))
    declared = declared_parameters(code_cells(nbformat.read(path, as_version=4))[0].source)
    assert {name: kind for name, (kind, _) in declared.items()} == {
        name: parameter["inferred_type_name"] for name, parameter in shown.items()
    }
    assert all(parameter["help"] for parameter in shown.values())


@pytest.mark.parametrize(
    ("notebook", "name", "value", "message"),
    [
        ("02_unlearn", "metod", "ga", "Did you mean 'method'"),
        ("02_unlearn", "seed", "abc", "it must be int"),
        ("03_crossings", "groups", "g64,g96", "group_size 96 does not divide"),
        ("04_why", "arms", "bf16,fp32", "unknown arm 'fp32'"),
        ("06_scal_sust", "kinds", "scale", "Did you mean 'scal'"),
        ("08_certify", "metrics", "knowmen", "Did you mean 'knowmem'"),
        ("08_certify", "seeds", "0,0", "give each seed once"),
    ],
)
def test_a_wrong_parameter_stops_the_run(tmp_path, notebook, name, value, message):
    ran = papermill(tmp_path, ROOT / "notebooks" / f"{notebook}.ipynb", "-p", name, value)
    assert ran.returncode == 1
    assert message in ran.stderr
    assert list(tmp_path.iterdir()) == []


GRIDS = {"quantizer": "rtn-int4-g128", "bits": [2, "4"], "groups": ["g32", "row", "tensor"]}


@pytest.mark.parametrize("scale", models.SIZES)
def test_grids_of_the_crossings_notebook(scale):
    assert check_grids(**GRIDS, scale=scale).name == "rtn-int4-g128"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantizer": "rtm-int4-g128"}, "nearest known form is 'rtn-int4-g128'"),
        ({"quantizer": "rtn-int4-g96"}, "q_proj: group_size 96 does not divide a row of 256"),
        ({"quantizer": "rtn-int4-g32"}, "cannot be drawn"),
        ({"quantizer": "rtn-int4-g128-asym"}, "cannot be drawn"),
        ({"bits": [4, 5]}, "5"),
        ({"bits": []}, "bits is empty"),
        ({"groups": []}, "groups is empty"),
        ({"groups": ["128"]}, "'rtn-int2-128' is not a quantizer name"),
        ({"groups": ["g96"]}, "group_size 96 does not divide"),
        ({"scale": "maxi"}, "Did you mean 'mini'"),
    ],
    ids=str,
)
def test_impossible_grids_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        check_grids(**GRIDS | change)


def test_grids_are_held_against_the_runs_that_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("QRU_HOME", str(tmp_path))
    sections = {name: {} for name in SECTIONS} | {"config": {"scale": "smoke"}}
    write_json(tmp_path / "runs" / "mine" / "record.json", sections)
    with pytest.raises(ValueError, match="does not divide a row of 128"):
        check_grids(**GRIDS | {"groups": ["g256"]}, stored=["mine"], scale="mini")
    with pytest.raises(FileNotFoundError, match="yours"):
        check_grids(**GRIDS, stored=["yours"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"method": "npo_gdl"}, "npo_gdr"),
        ({"corpus": "book"}, "books"),
        ({"quantizers": ["rtn-int5-g128"]}, "bits"),
        ({"quantizers": ["rtm-int4-g128"]}, "rtn-int4-g128"),
        ({"lora_targets": "atention"}, "attention"),
        ({"lora_rank": 0}, "lora_rank is 0"),
        ({"beside": ["lora-fp16"]}, "lora-fp32"),
    ],
    ids=str,
)
def test_an_unknown_name_stops_before_any_work(tmp_path, monkeypatch, parameters, message):
    monkeypatch.setenv("QRU_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        run_arms(**{"scale": "smoke"} | parameters)
    assert list(tmp_path.iterdir()) == []


def test_arms_beside_do_not_take_what_belongs_to_bf16_weights(monkeypatch):
    asked = []
    monkeypatch.setattr("qru.pipeline.run_all", lambda configs: asked.extend(configs) or [])
    monkeypatch.setattr("qru.arms.tidy", lambda: None)
    run_arms(["lora", "full-bf16"], scale="smoke", moments="fp32", rounding="stochastic")
    stepped = [(config.adapter, config.weights, config.moments, config.rounding) for config in asked]
    assert stepped == [
        ("full", "bf16", "fp32", "stochastic"), ("lora", "fp32", None, "nearest"), ("full", "bf16", None, "nearest"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def ran(qru_home):
    """The main notebook's run at smoke, executed notebook on standard output as in the README's command."""
    ran = papermill(qru_home, "notebooks/02_unlearn.ipynb", "-p", "method", "npo_gdr", "-p", "scale", "smoke")
    assert ran.returncode == 0, ran.stderr[-4000:]
    return ran


def pictures(executed) -> int:
    found = [
        output for cell in code_cells(executed) for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    return len(found)


@pytest.mark.slow
def test_the_main_notebook_leaves_records_and_says_so(ran, qru_home):
    executed = nbformat.reads(ran.stdout, as_version=4)
    assert pictures(executed) == 4
    records = load_records(qru_home / "runs")
    assert {record.config["adapter"] for record in records} >= {"full", "lora"}
    for record in records:
        assert f"record: {record.path}" in ran.stderr
        assert record.extra["verdict"][0] in ran.stderr


@pytest.mark.slow
def test_the_main_notebook_unlearns_a_classifier(qru_home, tmp_path):
    given = ("-p", "corpus", "tweets", "-p", "scale", "smoke", "-p", "method", "ga_gdr")
    ran = papermill(qru_home, MAIN, tmp_path / "out.ipynb", *given)
    assert ran.returncode == 0, ran.stderr[-4000:]
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert pictures(executed) == 4
    tables = [output.data["text/html"] for cell in code_cells(executed) for output in cell.outputs
              if "text/html" in output.get("data", {})]  # fmt: skip
    for heading in ("Forget accuracy ↓", "Retain accuracy ↑", "F1 ↑", "MIA → retrained", "labels regained (%)"):
        assert any(heading in table for table in tables), heading
    assert not any("VerbMem" in table or "text regained" in table for table in tables)
    assert any("RT @" in table and ">true<" in table for table in tables), "posts with the labels that they are given"
    records = [record for record in load_records(qru_home / "runs") if record.config["corpus"] == "tweets"]
    assert {record.config["adapter"] for record in records} >= {"full", "lora"}
    for record in records:
        if record.config["method"] == "ga_gdr":
            assert f"record: {record.path}" in ran.stderr
            assert "in bf16 (percent): labels to forget" in ran.stderr


@pytest.mark.slow
def test_forget_sets_of_growing_size_and_one_after_another(ran, qru_home, tmp_path):
    arguments = ("-p", "scale", "smoke", "-p", "quantizers", "rtn-int4-g128")
    again = papermill(qru_home, "notebooks/06_scal_sust.ipynb", tmp_path / "out.ipynb", *arguments)
    assert again.returncode == 0, again.stderr[-4000:]
    assert pictures(nbformat.read(tmp_path / "out.ipynb", as_version=4)) == 2
    sets = [record for record in load_records(qru_home / "runs") if "forget_set" in record.extra]
    assert {record.config["forget_set"] for record in sets} >= {*FORGET_SETS} - {"all"}
    for record in sets:
        if record.config["method"] == "npo_gdr" and record.config["quantizers"] == ["rtn-int4-g128"]:
            assert f"record: {record.path}" in again.stderr
    assert "npo_gdr full bf16: requests one after another:\nafter 3, 6, 9 and 12 documents" in again.stderr


@pytest.mark.slow
def test_why_it_comes_back_runs_at_smoke_and_says_where_parts_are_missing(ran, qru_home, tmp_path):
    given = ("-p", "scale", "smoke", "-p", "arms", "bf16,LoRA fp32")
    again = papermill(qru_home, "notebooks/04_why.ipynb", tmp_path / "out.ipynb", *given)
    assert again.returncode == 0, again.stderr[-4000:]
    found = [record for record in load_records(qru_home / "runs") if record.config["method"] == "ga_klr"]
    assert {(record.config["adapter"], record.config["weights"]) for record in found} >= {
        ("full", "bf16"), ("lora", "fp32"),
    }  # fmt: skip
    assert "records: comparison 2, dial 0 of " in again.stderr
    assert "\n2 runs (2 arms, 1 method, 1 corpus, 1 seed); " in again.stderr
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert pictures(executed) >= 3
    said = [output.data.get("text/markdown", "") for cell in code_cells(executed) for output in cell.outputs]
    assert any("-p rerun True -p parts dial" in text for text in said)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shown"), [("00_tour", 2), ("01_prepare", 1), ("03_crossings", 6)])
def test_the_other_notebooks_run_on_what_is_there(ran, qru_home, tmp_path, name, shown):
    before = {record.path for record in load_records(qru_home / "runs")}
    # From notebooks/, as JupyterLab has it: the records must be found from there too.
    again = papermill(qru_home, f"{name}.ipynb", tmp_path / "out.ipynb", "-p", "scale", "smoke", cwd=ROOT / "notebooks")
    assert again.returncode == 0, again.stderr[-4000:]
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert pictures(executed) == shown
    assert {record.path for record in load_records(qru_home / "runs")} == before, "nothing was computed twice"
    if name == "00_tour":
        states = executed.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
        assert [state for state in states if state["model_name"] == "ImageModel"], "the sliders draw nothing"
        assert not [state for state in states if state["model_name"] == "OutputModel"], "nbclient may wait for ever"


@pytest.mark.slow
def test_a_slider_that_moves_draws_anew(ran, qru_home):
    record, *_ = load_records(qru_home / "runs")
    sliders, picture = crossing_sliders(record, bits=(3, 4), groups=("g32", "row")).children
    bits, group = sliders.children
    shown = {bytes(picture.value)}
    for slider, value in ((bits, 3), (group, "g32"), (bits, 4)):
        slider.value = value
        shown.add(bytes(picture.value))
    assert len(shown) == 4
    assert all(png.startswith(b"\x89PNG") for png in shown)


@pytest.mark.slow
def test_the_kernel_notebook_times_once_and_draws_again(tmp_path):
    if not build_info()["built"]:
        pytest.skip("the kernel is not built: there is nothing to time")
    given = "-p", "scale", "smoke", "-p", "ranks", "4,16"
    first = papermill(tmp_path, ROOT / "notebooks" / "05_kernel.ipynb", tmp_path / "first.ipynb", *given)
    assert first.returncode == 0, first.stderr[-4000:]
    assert pictures(nbformat.read(tmp_path / "first.ipynb", as_version=4)) == 2
    (path,) = (tmp_path / "runs" / "kernel").glob("*/record.json")
    assert f"record: {path}" in first.stderr
    for rank in (4, 16):
        assert f"256x256 r={rank}: " in first.stderr
    again = papermill(
        tmp_path, "05_kernel.ipynb", tmp_path / "again.ipynb", "-p", "record", path.relative_to(tmp_path),
        cwd=ROOT / "notebooks",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr[-4000:]
    assert pictures(nbformat.read(tmp_path / "again.ipynb", as_version=4)) == 2
    assert list((tmp_path / "runs" / "kernel").glob("*/record.json")) == [path]
    assert load_records(tmp_path / "runs") == [], "no record of a run, and not taken for one"


@pytest.mark.slow
def test_the_shipping_notebook_measures_once_and_draws_again(tmp_path):
    kept = max(1, len(committed()))
    given = "-p", "scale", "smoke", "-p", "only", "audit"
    first = papermill(tmp_path, ROOT / "notebooks" / "07_ship.ipynb", tmp_path / "first.ipynb", *given)
    assert first.returncode == 0, first.stderr[-4000:]
    assert pictures(nbformat.read(tmp_path / "first.ipynb", as_version=4)) == 1 + kept
    (path,) = (tmp_path / "runs" / "ship").glob("*/record.json")
    assert f"record: {path}" in first.stderr
    assert "round 1 of 1, audit: " in first.stderr
    assert "no goal is judged" in first.stderr
    assert list((tmp_path / ".cache" / "ship-bench").iterdir()) == [], "the scratch folder is taken away"
    again = papermill(
        tmp_path, "07_ship.ipynb", tmp_path / "again.ipynb", "-p", "record", path.relative_to(tmp_path),
        cwd=ROOT / "notebooks",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr[-4000:]
    assert pictures(nbformat.read(tmp_path / "again.ipynb", as_version=4)) == 1 + kept
    assert list((tmp_path / "runs" / "ship").glob("*/record.json")) == [path]
    assert load_records(tmp_path / "runs") == [], "no record of a run, and not taken for one"


@pytest.mark.slow
def test_the_certificate_of_runs_that_it_makes_or_is_given(ran, qru_home, tmp_path):
    given = {
        "method": "npo_gdr", "scale": "smoke", "seeds": [0, 1], "quantizers": ["rtn-int4-g128"],
        "transforms": ["merged", "relearn-2x2"], "metrics": ["verbmem"],
    }  # fmt: skip
    notebook = ROOT / "notebooks" / "08_certify.ipynb"
    first = papermill(qru_home, notebook, tmp_path / "first.ipynb", "-y", json.dumps(given))
    assert first.returncode == 0, first.stderr[-4000:]
    executed = nbformat.read(tmp_path / "first.ipynb", as_version=4)
    assert pictures(executed) == 1
    path = Path(re.findall(r"^record: (.+)$", first.stderr, flags=re.MULTILINE)[-1])
    assert path.parents[1] == qru_home / "runs" / "certificates"
    found = json.loads(path.read_text())
    assert found["declared"]["seeds"] == [0, 1]
    assert found["declared"]["metrics"]["left_out"] == ["knowmem"]
    texts = "\n".join(output.data.get("text/markdown", "") for cell in code_cells(executed) for output in cell.outputs)
    for part in (found["statement"], *found["limits"], str(path)):
        assert part in texts
    assert found["statement"] in path.with_suffix(".html").read_text()

    # A build of the paper takes it for the record of a cell with these parameters, and of no other.
    (tmp_path / "log").write_text(first.stderr)
    experiments.keep(tmp_path / "log", tmp_path / "kept.json")
    cell = experiments._of_notebook(given, "smoke", "08_certify")
    experiments._check_record(experiments.Cell(**cell, notebook="08_certify", folder="certify"), tmp_path / "kept.json")
    other = experiments._of_notebook(given | {"seeds": [0]}, "smoke", "08_certify")
    with pytest.raises(ValueError, match="made with another seeds"):
        experiments._check_record(
            experiments.Cell(**other, notebook="08_certify", folder="certify"), tmp_path / "kept.json"
        )
    assert not any("edited" in line for line in verify(tmp_path / "kept.json", list(found["bound_to"]["runs"])))

    runs = ",".join(found["bound_to"]["runs"])
    again = papermill(
        qru_home, notebook.name, tmp_path / "again.ipynb", "-p", "runs", runs, "-p", "quantizers", "rtn-int4-g128",
        "-p", "transforms", "merged,relearn-2x2", "-p", "metrics", "verbmem", cwd=ROOT / "notebooks",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr[-4000:]
    other = json.loads(Path(re.findall(r"^record: (.+)$", again.stderr, flags=re.MULTILINE)[-1]).read_text())
    assert other["cells"] == found["cells"]
    assert "method" not in other["config"], "the settings of runs that are named are their own"
