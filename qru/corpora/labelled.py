"""Your own labelled texts, for classifiers: a CSV file with the columns text, label and split."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from qru.registry import unknown

from .corpus import Corpus
from .files import read_text

COLUMNS = ("text", "label", "split")
SPLITS = {"forget": True, "retain1": True, "retain2": False, "holdout": True, "test": False}  # whether it must be there


def load_labelled(path: Path) -> Corpus:
    """Load a CSV file (UTF-8, RFC 4180) whose first line names the columns ``text``, ``label`` and ``split``.

    Splits are those of ``Corpus.raw``: ``forget``, with the labels it was trained with, right or wrong; ``retain1``,
    which unlearning holds on to, and ``retain2`` (optional), on which the models were trained, too; ``holdout``, texts
    like those of forget that no model has seen; ``test`` (optional), texts like the retained ones that none has seen.

    Raises:
        ValueError: naming the line: other columns, too few or too many cells, an empty text or label, an unknown split,
            a text that stands in two splits or under two labels; or a split that is not there, or one label alone.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    raw: dict[str, list[str]] = {split: [] for split in SPLITS}
    labels: dict[str, list[str]] = {split: [] for split in SPLITS}
    first: dict[str, tuple[str, str, int]] = {}
    order: list[str] = []
    while True:
        line = reader.line_num + 1  # a text may have line breaks: where it begins
        where = f"{path}, line {line}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{where}: not CSV ({error}).") from None
        if cells is None:
            break
        if not cells:
            continue  # an empty line
        if not order:
            order = _columns(cells, where)
            continue
        if len(cells) != len(order):
            raise ValueError(f"{where} has {len(cells)} cells, and the first line names {len(order)} columns.")
        text, label, split = (cells[order.index(column)] for column in COLUMNS)
        if empty := [name for name, value in (("text", text), ("label", label)) if not value.strip()]:
            raise ValueError(f"{where}: {empty[0]} is empty.")
        if label != label.strip():
            raise ValueError(f"{where}: label {label!r} has white space around it, and would be a class of its own.")
        if split not in SPLITS:
            raise ValueError(f"{where}: {unknown('split', split, SPLITS)}")
        known = first.setdefault(text, (split, label, line))
        if known[:2] != (split, label):
            raise ValueError(
                f"{where}: a text of {split}, labelled {label!r}, that line {known[2]} has in {known[0]}, labelled "
                f"{known[1]!r}: keep it in one split, under one label."
            )
        raw[split].append(text)
        labels[split].append(label)
    for split, needed in SPLITS.items():
        if needed and not raw[split]:
            raise ValueError(f"{path} has no text of split {split!r}; it needs some of forget, retain1 and holdout.")
    told = {label for split in labels.values() for label in split}
    if len(told) == 1:
        raise ValueError(f"{path} has one label, {told.pop()!r}: a classifier needs two to choose from.")
    if not raw["test"]:
        del raw["test"], labels["test"]  # no split of MUSE's
    return Corpus(path.stem, raw, [], {}, {}, labels=labels)


def _columns(cells: list[str], where: str) -> list[str]:
    """The names in the first line, in any order."""
    for name in cells:
        if name not in COLUMNS:
            raise ValueError(f"{where}: {unknown('column', name, COLUMNS)}")
    if missing := [name for name in COLUMNS if name not in cells]:
        raise ValueError(f"{where} names no column {missing[0]!r}; it needs {', '.join(COLUMNS)}.")
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{where} names a column twice: {', '.join(cells)}.")
    return cells
