"""From records to the page: what is printed is what a record holds, and mistakes say where they are."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import typst as compiler

from qru import figures, typeset
from qru.records import SECTIONS, Record, load_record, write_json
from qru.typeset import chosen, facts, latex, pdf, save_figure, save_scores, scores_latex, scores_typst, title
from tests.synthetic import PRECISIONS, forget_set_records, synthetic_record

PAPER = Path(__file__).resolve().parents[2] / "paper"


def whole_record(adapter: str) -> Record:
    """A made-up record with everything that the text of the paper mentions."""
    record = synthetic_record(adapter)
    config = {
        "learning_rate": 3e-5, "epochs": 7, "retain_weight": 2.0, "batch_size": 8, "beta": 0.1, "forget_goal": None,
        "lora_rank": 32, "lora_alpha": 64.0,
    }  # fmt: skip
    where = {
        "commit": "0123456789abcdef", "dirty": False, "hardware": {"processor": "none", "cores": 2},
        "versions": {"torch": "2"},
    }  # fmt: skip
    recovered = record.extra["recovered"]
    for found in recovered.values():
        limits = {"verbmem": {"threshold": 10.0}, "knowmem": {"threshold": 5.0}}
        found["recovers"] = found["recovers"] | {"metrics": limits}
    return dataclasses.replace(record, config=record.config | config, provenance=record.provenance | where)


def write_record(record: Record, path: Path) -> Path:
    write_json(path, {name: getattr(record, name) for name in SECTIONS} | record.extra)
    return path


def build(folder: Path, records: list[Record]) -> str:
    """Make the paper in ``folder`` without the graph; return its text as Typst has it after compiling."""
    for name in ("paper.typ", "refs.bib"):
        shutil.copy(PAPER / name, folder / name)
    save_scores(str(folder / "tables" / "scores"), records, PRECISIONS)
    save_figure(str(folder / "figures" / "recovery"), figures.recovery(*records))
    write_json(folder / "build" / "facts.json", facts(records))
    pdf(folder / "paper.typ", folder / "build" / "paper.pdf")
    return compiler.query(str(folder / "paper.typ"), "figure")


def test_the_pdf_says_what_the_records_say(tmp_path):
    paths = [write_record(whole_record(arm), tmp_path / f"{arm}.json") for arm in ("full", "lora")]
    text = build(tmp_path, [load_record(path) for path in paths])
    first = (tmp_path / "build" / "paper.pdf").read_bytes()
    assert first.startswith(b"%PDF")
    assert '"86.0"' in text, "VerbMem of the full arm under int4 tensor"
    assert '"12.3"' not in text
    build(tmp_path, [load_record(path) for path in paths])
    assert (tmp_path / "build" / "paper.pdf").read_bytes() == first, "the same records give the same bytes"

    value = json.loads(paths[0].read_text())
    value["scores"]["unlearned"]["rtn-int4-tensor"]["verbmem"]["value"] = 12.3
    write_json(paths[0], value)
    text = build(tmp_path, [load_record(path) for path in paths])
    assert '"12.3"' in text
    assert '"86.0"' not in text
    assert (tmp_path / "build" / "paper.pdf").read_bytes() != first


def test_a_typst_error_shows_the_line(tmp_path):
    (tmp_path / "wrong.typ").write_text("= Title\n\n#nothing\n")
    with pytest.raises(SystemExit, match=r"unknown variable: nothing[\s\S]*wrong.typ:3"):
        pdf(tmp_path / "wrong.typ", tmp_path / "wrong.pdf")
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.typ"], "no half files"


def test_tables_hold_every_row_and_mark_what_returns():
    records = [whole_record("full"), whole_record("lora")]
    made, text = scores_typst(records), scores_latex(records)
    assert made.count("rowspan: 5") == 4
    assert made.count("[*yes*]") == 4
    assert made.count("[no]") == 4
    assert text.count(r" \\") == 1 + 4 * 5
    assert r"NPO+GDR, LoRA fp32 & bf16 & 17.0" in text
    assert r"\textbf{86.0 [81.0, 91.0]}" in text
    assert "−" not in text, "a minus outside mathematics"
    with pytest.raises(ValueError, match="rtn-int4-tensor"):
        scores_typst(records, ["rtn-int4-tensr"])


@pytest.mark.parametrize("arms", [1, 2])
def test_figure_files_are_the_same_bytes_each_time(tmp_path, arms):
    records = [synthetic_record(arm) for arm in ("full", "lora")][:arms]
    written = []
    for name in ("a", "b"):
        save_figure(str(tmp_path / name), figures.recovery(*records))
        written.append([(tmp_path / f"{name}{ending}").read_bytes() for ending in (".pdf", ".svg")])
    assert written[0] == written[1]


def test_text_shows_what_it_says():
    assert title("ga_klr lora fp32, seed 1") == "GA+KLR, LoRA fp32, seed 1"
    assert latex("50 % of a_b → −1") == r"50 \% of a\_b $\rightarrow$ $-$1"
    source = typeset.typst("#let x_1 = *y* // $z$ [a] @b <c> ~ `d` \\")
    found = json.loads(compiler.query(f"#metadata([{source}]) <it>".encode(), "<it>", field="value", one=True))
    shown = "".join(part.get("text", " ") for part in found.get("children", [found]))
    assert shown == "#let x_1 = *y* // $z$ [a] @b <c> ~ `d` \\"


def test_an_artefact_without_runs_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.setenv("QRU_HOME", str(tmp_path))
    with pytest.raises(LookupError, match=r"papermill notebooks/02_unlearn\.ipynb -p scale smoke"):
        chosen(scale="smoke")


def test_a_run_on_a_part_of_the_forget_set_is_not_taken_for_one_on_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("QRU_HOME", str(tmp_path))
    write_record(synthetic_record("full"), tmp_path / "runs" / "whole" / "record.json")
    write_record(forget_set_records("sust")[-1], tmp_path / "runs" / "part" / "record.json")
    assert [record.path.parent.name for record in chosen()] == ["whole"]
