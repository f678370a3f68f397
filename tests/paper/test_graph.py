"""The graph at smoke, as make runs it: built, left alone when nothing changed, rebuilt where a record changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typst

from qru.experiments import plan, tell
from qru.records import load_record, write_json

ROOT = Path(__file__).resolve().parents[2]


def snakemake(folder: Path, home: Path, target: str = "paper", *config: str, **environment: str) -> str:
    """Run the graph of ``folder/paper`` at smoke; return everything it says, its exit status last."""
    command = [sys.executable, "-m", "snakemake", target, "--snakefile", "paper/Snakefile", "--cores", "2",
               "--config", "scale=smoke", *config]  # fmt: skip
    environment = os.environ | {"QRU_HOME": str(home), "OMP_NUM_THREADS": "1"} | environment
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    return f"{ran.stdout}{ran.stderr}\nexit {ran.returncode}"


@pytest.fixture
def folder(tmp_path):
    """The paper's graph over a small paper: it finds its sources beside itself and leaves what it makes there."""
    paper = tmp_path / "paper"
    paper.mkdir()
    shutil.copy(ROOT / "paper" / "refs.bib", paper)
    shutil.copytree(ROOT / "paper" / "profiles", paper / "profiles")
    shutil.copy(Path(__file__).parent / "experiments.yaml", paper)
    (paper / "paper.typ").write_text('#figure(include "tables/scores.typ") <scores>\n')
    graph, facts = (ROOT / "paper" / "Snakefile").read_text(), "{PYTHON} -m qru.paper_facts {output} {params.shown:q}"
    assert facts in graph  # the facts of the real text are of all its artefacts, and have tests of their own
    (paper / "Snakefile").write_text(graph.replace(facts, "echo {{}} > {output}"))
    return tmp_path


@pytest.mark.slow
def test_the_graph(folder, qru_home):
    paper = folder / "paper"
    declared = (paper / "experiments.yaml").read_text()
    (paper / "experiments.yaml").write_text(declared.replace("[ga_gdr,", "[ga_gdl,"))
    said = snakemake(folder, qru_home)
    assert "experiment 'arms': unknown method 'ga_gdl'" in said
    assert said.endswith("exit 1")
    assert sorted(path.name for path in paper.iterdir() if path.is_dir()) == ["profiles"], "something ran"

    (paper / "experiments.yaml").write_text(declared)
    said = snakemake(folder, qru_home)
    assert said.endswith("exit 0"), said
    (record,) = (paper / "records" / "smoke").glob("*.json")
    assert (paper / "build" / "notebooks" / "smoke" / f"{record.stem}.ipynb").is_file()
    for name in ("tables/scores.typ", "tables/scores.tex", "figures/recovery.pdf", "figures/recovery.svg"):
        assert (paper / name).stat().st_size > 500
    first = (paper / "build" / "paper.pdf").read_bytes()
    score = load_record(record).scores["unlearned"]["rtn-int4-g128"]["verbmem"]
    assert f"{score['value']:.1f}" in typst.query(str(paper / "paper.typ"), "<scores>")

    assert "Nothing to be done" in snakemake(folder, qru_home)

    value = json.loads(record.read_text())
    value["scores"]["unlearned"]["rtn-int4-g128"]["verbmem"]["value"] = 83.7
    write_json(record, value)
    said = snakemake(folder, qru_home)
    assert said.endswith("exit 0"), said
    assert "follow it" not in said, "a run was made again"
    assert "83.7" in typst.query(str(paper / "paper.typ"), "<scores>")
    assert (paper / "build" / "paper.pdf").read_bytes() != first


@pytest.mark.slow
def test_the_paper_itself_at_smoke(tmp_path, qru_home):
    """``make paper SCALE=smoke`` in a clone with its committed records: every table, every figure, and the PDF."""
    paper = tmp_path / "paper"
    generated = shutil.ignore_patterns("build", "figures", "tables", "smoke", "__pycache__")
    shutil.copytree(ROOT / "paper", paper, ignore=generated)
    said = snakemake(tmp_path, qru_home)
    assert said.endswith("exit 0"), said
    made = plan(paper / "experiments.yaml", "smoke")
    missing = [file for artefact in made.artefacts.values() for file in artefact.files if not (paper / file).is_file()]
    assert not missing
    facts = json.loads((paper / "build" / "facts.json").read_text())
    assert facts["scale"] == "smoke"
    assert (paper / "build" / "paper.pdf").read_bytes().startswith(b"%PDF-")


DECLARED = """
experiments:
  one: {why: A test., each: {method: ga}}
  two: {why: A test., each: {method: npo}}
artefacts:
  table_scores: {why: A test., experiments: [one]}
  fig_recovery: {why: A test., experiments: [two]}
"""


@pytest.fixture
def build(folder, tmp_path):
    """Run the graph of two runs, a table and a figure, whose notebooks take no time; say what was done, and all."""
    (folder / "paper" / "experiments.yaml").write_text(DECLARED)
    (folder / "paper" / "paper.typ").write_text('#include "tables/scores.typ"\n')
    done = tmp_path / "done"
    fake = {"PYTHONPATH": str(Path(__file__).parent / "fake"), "DONE": str(done)}

    def run(*arguments: str, **environment: str) -> tuple[list[str], str]:
        done.write_text("")
        said = snakemake(folder, tmp_path / "home", *arguments, **fake, **environment)
        return sorted(name.split("-full")[0] for name in done.read_text().split()), said

    return run


@pytest.mark.slow
def test_what_fails_what_is_kept_and_what_is_made_again(build, folder):
    paper = folder / "paper"
    pdf = paper / "build" / "paper.pdf"

    done, said = build(FAIL="-npo-")
    assert said.endswith("exit 1")
    assert done == ["books-smoke-ga", "books-smoke-npo", "table_scores"], "what does not depend on it is made"
    assert not pdf.exists()
    summary = said[said.index("1 failed.") :]
    assert "ValueError: it was told to fail" in summary
    notebook = next(word for word in summary.split() if word.endswith(".ipynb"))
    assert (folder / notebook).is_file()

    done, said = build()
    assert said.endswith("exit 0"), said
    assert done == ["books-smoke-npo", "fig_recovery"], "only what was missing"
    made = {path: path.read_bytes() for path in paper.glob("records/smoke/*.json")}
    assert len(made) == 2

    done, said = build()
    assert "Nothing to be done" in said
    assert done == []

    before = pdf.stat().st_mtime_ns
    (cut,) = paper.glob("records/smoke/*-ga-*.json")
    cut.write_text('{"config": {')
    done, said = build()
    assert f"{cut.name} is not whole JSON" in said
    assert done == ["books-smoke-ga", "table_scores"], "the run, and what shows it"
    assert pdf.stat().st_mtime_ns > before

    cut.unlink()
    command = [sys.executable, "-m", "qru.experiments", "to-make", "paper", "smoke", "core"]
    again = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.split()
    assert [Path(path).name for path in again] == [cut.name]
    done, said = build("--dry-run", "--forcerun", *again)  # as make paper-plan asks
    assert done == []
    assert tell(said)[1:5] == ["runs to make (1):", f"  {cut.stem}", "tables to draw (1):", "  scores"]
    done, said = build()
    assert done == ["books-smoke-ga", "table_scores"], "a record that is gone is made again, and what shows it"

    (paper / "paper.typ").write_text('#include "tables/scores.typ"\n\n#nothing\n')
    first = pdf.read_bytes()
    done, said = build("fresh", "fresh=1", FAIL="-npo-")
    assert done == ["books-smoke-ga", "books-smoke-npo"]
    assert {path: path.read_bytes() for path in made} == made, "the committed records stay until all are made"
    done, said = build("fresh", "fresh=1")
    assert said.endswith("exit 0"), said
    assert done == ["books-smoke-npo"], "a fresh build is resumed, too"
    homes = {json.loads(path.read_text())["provenance"]["home"] for path in made}
    assert homes == {str(paper / "build" / "fresh")}, "with models and runs of its own"
    assert not (paper / "build" / "fresh").exists()

    done, said = build()
    assert done == ["fig_recovery", "table_scores"], "drawn from the new records"
    assert "unknown variable: nothing" in said[said.index("1 failed.") :]
    assert "paper.typ:3" in said[said.index("1 failed.") :], "the line of the source"
    assert not pdf.exists() or pdf.read_bytes() == first, "no half file"
