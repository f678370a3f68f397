"""How fast the evaluation is: records of ``qru.metrics.bench`` -> a table for print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from qru.records import named_or_all, read_json
from qru.sheet import Block, Cell, Sheet
from qru.tables import METRICS

MUSE = ("verbmem", "knowmem", "privleak", "utility")  # the four of the protocol that is raced


def load_evaluations(files: Sequence[str] = (), folder: Path | None = None) -> list[dict[str, Any]]:
    """Records of the evaluation's speed, the target's first.

    Args:
        files: of the records; if there are none, all in the folder.
        folder: of committed ones; ``paper/records/evaluation`` unless given.

    Raises:
        LookupError: there is none.
        ValueError: one is something else (names it).
    """
    folder = folder or Path(__file__).resolve().parent.parent / "paper" / "records" / "evaluation"
    make = "Make one: python -m qru.metrics.bench"
    found = []
    for path in named_or_all(files, folder, f"no record in {folder}. {make}"):
        record = read_json(path)
        if not isinstance(record, dict) or not {"verified", "rounds", "metrics", "threads"} <= set(record):
            raise ValueError(f"{path} is no record of the evaluation's speed. {make}")
        found.append(record)
    return sorted(found, key=lambda record: record["config"]["model"] != "target")


def evaluation_frame(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a record and metric, and one of MUSE's four together.

    Returns:
        Columns ``record`` (its number), ``model``, ``metric`` (also ``muse`` and ``total``), ``ours``, ``alone``
        (seconds, medians) and ``ratio``.
    """
    rows = []
    for number, record in enumerate(records):
        seconds = {name: dict(found["seconds"]) for name, found in record["metrics"].items()}
        there = [name for name in MUSE if name in seconds]
        seconds["muse"] = {side: sum(seconds[name][side] for name in there) for side in ("ours", "alone")}
        for name in [*(name for name in METRICS if name in seconds), "muse", "total"]:
            one = seconds[name]
            ratio = one["alone"] / one["ours"]
            rows.append((number, record["config"]["model"], name, one["ours"], one["alone"], ratio))
    return pd.DataFrame(rows, columns=["record", "model", "metric", "ours", "alone", "ratio"])


def evaluation_sheet(records: Sequence[Mapping[str, Any]]) -> Sheet:
    """Seconds of each metric, the protocol's and ours, and their ratio; a group of columns a record."""
    frame = evaluation_frame(records)
    at = frame.set_index(["record", "metric"])
    names = {name: METRICS[name].split(" ↓")[0].split(" ↑")[0].split(" →")[0] for name in METRICS}
    names |= {"muse": "MUSE’s four", "total": "All"}
    shown = [name for name in names if name in set(frame["metric"])]
    rows = []
    for name in shown:
        cells = [Cell(names[name])]
        for number in range(len(records)):
            if (number, name) not in at.index:
                cells += [Cell("–")] * 3
                continue
            one = at.loc[(number, name)]
            cells += [
                Cell(seconds(one["alone"])),
                Cell(seconds(one["ours"])),
                Cell(f"{one['ratio']:.1f}", strong=True),
            ]
        rows.append(tuple(cells))
    heads = [f"{record['config']['model']} model (s)" for record in records]
    single = tuple(row for row, name in zip(rows, shown, strict=True) if name not in ("muse", "total"))
    return Sheet(
        labels=("Metric",),
        columns=tuple((head, ("alone", "ours", "ratio")) for head in heads),
        blocks=(Block("", (single, tuple(rows[len(single) :]))),),
        note=tuple(evaluation_note(records)),
    )


def seconds(value: float) -> str:
    """Three digits: ``0.72``, ``9.8``, ``92``."""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def evaluation_note(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where and how often it was measured, how busy the machine was, and what was held against each other before."""
    out = ["Alone: the protocol carried out one example at a time."]
    for record in records:
        config, hardware, verified = record["config"], record["provenance"]["hardware"], record["verified"]
        spread = max(record["metrics"]["total"]["spread"].values())
        load = record.get("load_average", [0.0])[0]
        busy = f", load {load:.0f} on {hardware['cores']} cores" if load > hardware["cores"] else ""
        threads = f"{record['threads']} thread{'s' * (record['threads'] != 1)}"
        out.append(
            f"{config['model'].capitalize()}: {config['corpus']} at {config['scale']}, {threads} of "
            f"{hardware['processor']}, medians of {record['rounds']} interleaved rounds, spread of the sums up to "
            f"{spread:.0%}".replace("%", " %")
            + f"{busy}; verified before: {verified['strings']} strings equal, "
            f"{verified['log_probs']:,} log-probabilities at most {verified['largest_log_prob_difference']:.1e} apart."
        )
    return out
