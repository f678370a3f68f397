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

from qru.records import load_record, write_json

ROOT = Path(__file__).resolve().parents[2]


def snakemake(folder: Path, home: Path, *arguments: str) -> str:
    """Run the graph of ``folder/paper`` at smoke; return everything it says, its exit status last."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", "paper/Snakefile", "--cores", "2", *arguments,
               "--config", "scale=smoke"]  # fmt: skip
    environment = os.environ | {"QRU_HOME": str(home), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    return f"{ran.stdout}{ran.stderr}\nexit {ran.returncode}"


@pytest.fixture
def folder(tmp_path):
    """A copy of the paper's sources: the graph finds its sources beside itself and leaves what it makes there."""
    (tmp_path / "paper").mkdir()
    for name in ("Snakefile", "experiments.yaml", "paper.typ", "refs.bib"):
        shutil.copy(ROOT / "paper" / name, tmp_path / "paper" / name)
    shutil.copytree(ROOT / "paper" / "profiles", tmp_path / "paper" / "profiles")
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
    assert (paper / "build" / "notebooks" / f"{record.stem}.ipynb").is_file()
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
