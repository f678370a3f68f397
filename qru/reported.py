"""Numbers that other papers report, read from ``paper/reported``; never mixed with those of records."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd

from qru.registry import unknown

FOLDER = Path(__file__).resolve().parent.parent / "paper" / "reported"
METRICS = ("verbmem", "knowmem", "privleak", "utility")
CELL = ("source", "table", "corpus", "method", "arm", "precision")  # which cell of which table a row is
COLUMNS = (*CELL, *METRICS, "note")
KNOWN = {
    "source": ("QRU", "SURE", "MUSE"),
    "corpus": ("books", "news"),
    "method": ("target", "retrained", "ga", "npo", "ga_gdr", "ga_klr", "npo_gdr", "npo_klr"),
    "arm": ("", "full", "lora", "sure"),  # target and retrained have none
    "precision": ("bf16", "int8", "int4", "4-bit"),
}


def reported(folder: Path = FOLDER) -> pd.DataFrame:
    """Every published cell.

    Args:
        folder: of CSV files with the columns ``COLUMNS``; its ``README.md`` says what each source's 4 bits are.

    Returns:
        ``COLUMNS`` in the order of the files; the metrics in percent, NaN where a number is not available.

    Raises:
        FileNotFoundError: no CSV file is there.
        ValueError: a file has other columns, an unknown name, a number out of its range, a row without any number or
            note, or a cell twice (names file and line).
    """
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise FileNotFoundError(f"no published numbers in {folder}. They come with a clone of the repository.")
    rows, seen = [], {}
    for file in files:
        with open(file, newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(f"{file} has the columns {reader.fieldnames}; they must be {', '.join(COLUMNS)}.")
            for row in reader:
                where = f"{file}:{reader.line_num}"
                rows.append(_checked(row, where))
                cell = tuple(row[key] for key in CELL)
                if cell in seen:
                    raise ValueError(f"{where} is of the same cell as {seen[cell]}: {' '.join(filter(None, cell))}.")
                seen[cell] = where
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _checked(row: dict[str, str], where: str) -> dict[str, str | float]:
    if None in row or None in row.values():
        raise ValueError(f"{where} has {'more' if None in row else 'fewer'} than {len(COLUMNS)} fields.")
    for key, known in KNOWN.items():
        if row[key] not in known:
            raise ValueError(f"{where}: {unknown(key, row[key], known)}")
    out: dict[str, str | float] = dict(row)
    for metric in METRICS:
        try:
            value = float(row[metric] or "nan")
        except ValueError:
            raise ValueError(f"{where}: {metric} is {row[metric]!r}; it must be a number, or empty.") from None
        # PrivLeak is 100 (AUC / AUC_retrain - 1): a little over 100 where AUC_retrain is a little under one half.
        low, high = (-100, 115) if metric == "privleak" else (0, 100)
        if row[metric] and not low <= value <= high:
            raise ValueError(f"{where}: {metric} is {row[metric]}; it must be from {low} to {high}, in percent.")
        out[metric] = value
    if not any(row[metric] for metric in METRICS) and not row["note"]:
        raise ValueError(f"{where} holds no number and no note. Say why the numbers are missing.")
    return out
