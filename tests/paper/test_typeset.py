"""From records to the page: what is printed is what a record holds, and mistakes say where they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typst as compiler

from qru import figures, typeset
from qru.records import SECTIONS, Record, write_json
from qru.typeset import chosen, latex, pdf, save_figure, scores_latex, scores_typst, title
from tests.synthetic import forget_set_records, synthetic_record


def write_record(record: Record, path: Path) -> Path:
    write_json(path, {name: getattr(record, name) for name in SECTIONS} | record.extra)
    return path


def test_a_typst_error_shows_the_line(tmp_path):
    (tmp_path / "wrong.typ").write_text("= Title\n\n#nothing\n")
    with pytest.raises(SystemExit, match=r"unknown variable: nothing[\s\S]*wrong.typ:3"):
        pdf(tmp_path / "wrong.typ", tmp_path / "wrong.pdf")
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.typ"], "no half files"


def test_tables_hold_every_row_and_mark_what_returns():
    records = [synthetic_record("full"), synthetic_record("lora")]
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
