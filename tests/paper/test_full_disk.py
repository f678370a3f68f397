"""When the disk is full what was there stays, and nothing half written is left."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import pytest

from qru import figures
from qru.experiments import keep
from qru.records import SECTIONS, write_json
from qru.typeset import pdf, save_figure, save_scores
from tests.synthetic import synthetic_record


@contextlib.contextmanager
def full_disk(room: int = 100):
    """No file can grow beyond ``room`` bytes: the write that would fails as it does when the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def table(folder: Path) -> None:
    save_scores(str(folder / "made"), [synthetic_record("full")])


def figure(folder: Path) -> None:
    save_figure(str(folder / "made"), figures.recovery(synthetic_record("full")))


def document(folder: Path) -> None:
    (folder / "source.typ").write_text("= Title\n")
    pdf(folder / "source.typ", folder / "made.pdf")


def record(folder: Path) -> None:
    keep(folder / "run.log", folder / "made.json")


@pytest.mark.parametrize(("make", "ending"), [(table, "typ"), (figure, "pdf"), (document, "pdf"), (record, "json")])
def test_the_old_file_stays_and_no_half_one_is_left(tmp_path, make, ending):
    kept = tmp_path / f"made.{ending}"
    kept.write_text("old")
    write_json(tmp_path / "record.json", {name: {} for name in SECTIONS} | {"verdict": ["x" * 500]})
    (tmp_path / "run.log").write_text(f"record: {tmp_path / 'record.json'}\n")
    there = {"source.typ", "run.log", "record.json", kept.name}
    with full_disk(), pytest.raises(OSError, match="File too large"):
        make(tmp_path)
    assert kept.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} <= there
    make(tmp_path)
    assert kept.read_text(errors="replace") != "old", "with room it is made"
