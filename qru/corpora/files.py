"""Reading texts and pairs from files, so that whatever is wrong with one is said with its name, line or item."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qru.registry import unknown

Items = list[tuple[str, Any]]
"""(where it stands, what stands there): the place is for messages."""

READABLE = (".json", ".jsonl", ".parquet", ".txt")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, a byte order mark and the difference of line ends aside; the rest is verbatim.

    Raises:
        ValueError: it is empty, or not UTF-8 (names the line).
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: not UTF-8 (byte 0x{content[error.start]:02x}). Save it as UTF-8, for example with "
            "iconv -f WINDOWS-1252 -t UTF-8."
        ) from None
    if not text or text.isspace():
        raise ValueError(f"{path} is empty.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_items(path: Path) -> Items:
    """What a file lists: the items of a JSON list, the lines of JSONL, the rows of parquet, or a .txt as one text.

    Raises:
        ValueError: unreadable, empty, invalid, or of an unknown kind (names file, line or item, and the way out).
    """
    if path.suffix not in READABLE:
        raise ValueError(f"{path}: {unknown('kind of file', path.suffix, READABLE)}")
    if path.suffix == ".parquet":
        return _rows(path)
    text = read_text(path)
    if path.suffix == ".txt":
        return [(str(path), text)]
    if path.suffix == ".jsonl":
        # Not splitlines: JSON may hold U+2028 and its like inside a string.
        lines = [(f"{path}, line {n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        return [(where, _parse(line, where)) for where, line in lines]
    listed = _parse(text, str(path))
    if not isinstance(listed, list):
        raise ValueError(f"{path} holds {_kind(listed)}; a list is needed.")
    if not listed:
        raise ValueError(f"{path} is empty: it lists nothing.")
    return [(f"{path}, item {n}", item) for n, item in enumerate(listed, 1)]


def texts(items: Items) -> list[str]:
    """The texts of items that are strings or hold one under "text", as both occur in MUSE's files; order is kept.

    Raises:
        ValueError: an item is neither, or holds half a character (names it).
    """
    out = []
    for where, item in items:
        value = cell(where, item, "text", ("text",)) if isinstance(item, dict) else item
        out.append(string(where, "text", value))
    return out


def pairs(items: Items, columns: tuple[str, str]) -> list[dict[str, str]]:
    """The pairs of items that hold two texts, such as a question and an answer; other columns are left out.

    Raises:
        ValueError: an item is no object, lacks a column (suggests which was meant), or a text is empty (names it).
    """
    out = []
    for where, item in items:
        pair = {column: string(where, column, cell(where, item, column, columns)) for column in columns}
        if empty := [column for column in columns if not pair[column].strip()]:
            raise ValueError(f"{where}: {empty[0]} is empty.")
        out.append(pair)
    return out


def _rows(path: Path) -> Items:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path}: parquet needs pyarrow: pip install pyarrow.") from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from None
    if not rows:
        raise ValueError(f"{path} is empty: it has no rows.")
    return [(f"{path}, item {n}", row) for n, row in enumerate(rows, 1)]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if ", line " not in where else ""
        raise ValueError(f"{where}{line}, column {error.colno}: not JSON ({error.msg}).") from None


def cell(where: str, item: Any, column: str, known: Sequence[str]) -> Any:
    """What an object holds in a column; ``known`` are the columns that it may have, to suggest which was meant.

    Raises:
        ValueError: it is no object, or has no such column.
    """
    if not isinstance(item, dict):
        raise ValueError(f"{where}: {_kind(item)}; an object with {column!r} is needed.")
    if column not in item:
        strange = difflib.get_close_matches(column, [name for name in item if name not in known], n=1, cutoff=0)
        meant = f": {unknown('column', strange[0], known)}" if strange else "."
        raise ValueError(f"{where} has no column {column!r}{meant}")
    return item[column]


def string(where: str, column: str, value: Any) -> str:
    """The value, which must be a text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {column} is {_kind(value)}; a text is needed.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: {column} holds half a character (an unpaired surrogate escape).") from None
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    shown = repr(value)
    return f"{names.get(type(value), 'a number')} ({shown if len(shown) <= 60 else shown[:57] + '...'})"
