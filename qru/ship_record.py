"""What a record of the shipping benchmark says, in words and tables. ``qru.ship_bench`` writes such records."""

from __future__ import annotations

import random
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from qru.records import file_size, read_json

KIND = "ship-benchmark"
COMMITTED = Path(__file__).resolve().parent.parent / "paper" / "records" / "ship"
# Contestants in the order they are shown, and what they do.
NAMES = {
    "quantize": "qru quantize",
    "audit": "qru audit",
    "llmcompressor": "peft merge + llmcompressor RTN",
    "peft-nf4": "peft merge, save, reload in NF4",
    "read": "floor: reading the input",
    "disk": "floor: reading it, writing the output",
    "kernel": "floor: the kernel alone",
}
RIVALS = ("peft-nf4", "llmcompressor")
FLOORS = {"quantize": ("disk", "kernel"), "audit": ("read", "kernel")}
# Goals: at least so many times as fast and at most this share of the memory of each rival, at most so many times the
# larger floor, and less memory of its own than this.
FASTER, SHARE, OF_FLOOR, OWN_MB = 5.0, 0.25, 1.5, 2000.0
MET, MISSED, OPEN = "met", "not met", "open"
NOTE = (
    "Own memory: pages that are not mapped from files. Resident: with mapped files, which are page cache. "
    "peft's merge is loaded again in NF4, another grid in blocks of 64; llmcompressor rounds to 4 bits with the step "
    "max|W| / 7.5. Neither counts what crosses a bin, and llmcompressor does not read back what it wrote. The floor of "
    "reading and writing does one after the other; what does both at once, as qru does, may lie under it. Three rounds "
    "are few for an interval."
)
RESAMPLES = 1000


class Goal(NamedTuple):
    """One aim and what was measured.

    Attributes:
        text: what is aimed at.
        value: measured, of medians. low, high: its 95 % interval over rounds.
        verdict: ``"met"``, ``"not met"``, or ``"open"`` where the interval holds the aim.
    """

    text: str
    value: float
    low: float
    high: float
    verdict: str


def checked(record: Any, name: str = "this") -> dict[str, Any]:
    """The record, if it is one of this benchmark.

    Raises:
        ValueError: it is something else (names it).
    """
    if not isinstance(record, dict) or record.get("kind") != KIND or not record.get("results"):
        raise ValueError(f"{name} is no record of the shipping benchmark. Make one: make bench-ship")
    return record


def committed(folder: Path = COMMITTED) -> list[dict[str, Any]]:
    """The records that are kept with the code, by their names."""
    return [checked(read_json(path), str(path)) for path in sorted(folder.glob("*.json"))]


def in_order(record: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """The contestants' results in the order of ``NAMES``."""
    return {name: record["results"][name] for name in NAMES if name in record["results"]}


def interval(*samples: list[float], of=lambda *middle: middle[0]) -> tuple[float, float, float]:
    """A function of medians over rounds, and the 95 % interval of it over rounds drawn with replacement.

    Args:
        samples: of one length; values of one round are drawn together.
        of: medians -> number; the first median unless given.
    """
    rounds, draw = list(zip(*samples, strict=True)), random.Random(0)
    value = of(*map(statistics.median, samples))
    drawn = sorted(
        of(*map(statistics.median, zip(*draw.choices(rounds, k=len(rounds)), strict=True))) for _ in range(RESAMPLES)
    )
    return value, drawn[round(0.025 * (RESAMPLES - 1))], drawn[round(0.975 * (RESAMPLES - 1))]


def table(record: dict[str, Any]) -> pd.DataFrame:
    """A row a contestant: seconds, spread (range over median), ratio of seconds and of memory to ours."""
    ours, rows = record["results"]["quantize"], []
    for name, found in in_order(record).items():
        middle = statistics.median(found["seconds"])
        ratio, low, high = interval(found["seconds"], ours["seconds"], of=lambda a, b: a / b)
        row = {
            "": NAMES[name],
            "seconds": middle,
            "spread %": 100 * (max(found["seconds"]) - min(found["seconds"])) / middle,
            "times ours": ratio,
            "95 %": f"{low:.3g} – {high:.3g}",
        }
        if record["config"]["apart"]:
            row |= {
                "own MB": max(found["peak_mb"]),
                "own MB, times ours": statistics.median(found["peak_mb"]) / statistics.median(ours["peak_mb"]),
                "resident MB": max(found["resident_mb"]),
            }
        rows.append(row)
    return pd.DataFrame(rows).set_index("")


def floor_of(record: dict[str, Any], name: str) -> tuple[str, float]:
    """The larger of one command's floors, and its median seconds."""
    middle = {floor: statistics.median(record["results"][floor]["seconds"]) for floor in FLOORS[name]}
    return max(middle.items(), key=lambda found: found[1])


def goals(record: dict[str, Any]) -> list[Goal]:
    """What was aimed at and whether this record meets it; nothing is judged of a toy size, or in one process."""
    results = record["results"]
    if not record["config"]["apart"]:
        return []
    found = []
    for name, floors in FLOORS.items():
        if name in results:
            seconds = [results[part]["seconds"] for part in (name, *floors)]
            measured = interval(*seconds, of=lambda ours, *lows: ours / max(lows))
            text = f"{NAMES[name]}: at most {OF_FLOOR:g} times the larger floor ({NAMES[floor_of(record, name)[0]]})"
            found.append(judged(text, measured, OF_FLOOR, False))
            peak = max(results[name]["peak_mb"])
            text = f"{NAMES[name]}: less than {OWN_MB / 1000:g} GB of its own memory (the most in any round, in GB)"
            found.append(judged(text, (peak / 1e3,) * 3, OWN_MB / 1000, False))
    for rival in RIVALS:
        if rival in results:
            measured = interval(results[rival]["seconds"], results["quantize"]["seconds"], of=lambda a, b: a / b)
            text = f"{NAMES['quantize']}: at least {FASTER:g} times as fast as {NAMES[rival]}"
            found.append(judged(text, measured, FASTER, True))
            measured = interval(results["quantize"]["peak_mb"], results[rival]["peak_mb"], of=lambda a, b: a / b)
            text = f"{NAMES['quantize']}: at most {SHARE:g} of the own memory of {NAMES[rival]}"
            found.append(judged(text, measured, SHARE, False))
    return found


def judged(text: str, measured: tuple[float, float, float], aim: float, at_least: bool) -> Goal:
    """A goal, by its interval."""
    value, low, high = measured
    worst, best = (low, high) if at_least else (-high, -low)
    aim_ = aim if at_least else -aim
    return Goal(text, value, low, high, MET if worst >= aim_ else MISSED if best < aim_ else OPEN)


def goal_table(record: dict[str, Any]) -> pd.DataFrame:
    """A row a goal: what was measured, its interval, and whether that meets it."""
    rows = [
        {"": goal.text, "measured": f"{goal.value:.3g}", "95 %": f"{goal.low:.3g} – {goal.high:.3g}", " ": goal.verdict}
        for goal in goals(record)
    ]
    return pd.DataFrame(rows, columns=["", "measured", "95 %", " "]).set_index("")


def lines(record: dict[str, Any]) -> list[str]:
    """The goals in words, a line each; one that says so where nothing is judged."""
    if not record["config"]["apart"]:
        return ["all contestants ran in one process: this shows that they run, and no goal is judged by it"]
    found = [
        f"{goal.verdict}: {goal.text}: {goal.value:.3g} [{goal.low:.3g}, {goal.high:.3g}]" for goal in goals(record)
    ]
    return found + [f"missing: {NAMES[name]}: {why}" for name, why in record["missing"].items()]


def aims(record: dict[str, Any]) -> str:
    """``lines`` in one sentence: how many goals are met, and what stands against the others."""
    others = [line for line in lines(record) if not line.startswith(f"{MET}: ")]
    found = [goal.verdict for goal in goals(record)]
    return "; ".join([f"{found.count(MET)} of {len(found)} aims met", *others]) + "."


def title(record: dict[str, Any]) -> str:
    """What was shipped, in a few words."""
    config = record["config"]
    return (
        f"{config['shape']} ({config['weights']:,} weights in {config['layers']} linear layers, "
        f"{file_size(record['input_bytes'])} with an adapter of rank {config['rank']}) to {config['spec']}, "
        f"{file_size(record['output_bytes'])}"
    )


def machine(record: dict[str, Any]) -> str:
    """Where it was measured, and whether the input had to come from the disk, in a few words."""
    threads, source = record["config"]["threads"], record["provenance"]
    cache = "warm" if record["config"].get("warm") else "cold"
    isa = source["kernel"].get("isa", "no kernel")
    return f"{threads} thread{'s' * (threads != 1)} of {source['hardware']['processor']} ({isa}), {cache} page cache"


def origin(record: dict[str, Any]) -> str:
    """Commits, versions and how busy the machine was: one line."""
    source = record["provenance"]
    attempts = source["attempts"]
    commits = list(dict.fromkeys((one["commit"] or "unknown")[:10] for one in attempts))
    changed = " with changes not committed" if any(one["dirty"] for one in attempts) else ""
    known = [
        f"{name} {source['versions'][name]}" for name in ("torch", "peft", "bitsandbytes") if name in source["versions"]
    ]
    if other := source.get("llmcompressor"):
        known.append(f"llmcompressor {other['llmcompressor']} (torch {other['torch']}, {other['threads']} threads)")
    load = ", ".join(f"{one['load_before']:.1f}" for one in attempts)
    several = f"; in {len(attempts)} attempts" if len(attempts) > 1 else ""
    return f"commit {', '.join(commits)}{changed}; {', '.join(known)}; load before {load}{several}"


def summary(record: dict[str, Any]) -> str:
    """A Markdown paragraph, a table of contestants, and which goals are not met."""
    config, results = record["config"], in_order(record)
    head = ["", "seconds", "times ours [95 %]", "own memory, MB", "resident, MB"]
    said = [
        f"{title(record)}, on {machine(record)}; medians of {config['rounds']} rounds, "
        f"largest memory; {origin(record)}.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for name, found in results.items():
        value, low, high = interval(found["seconds"], results["quantize"]["seconds"], of=lambda a, b: a / b)
        cells = [
            NAMES[name], f"{statistics.median(found['seconds']):.3g}", f"{value:.3g} [{low:.3g}, {high:.3g}]",
            f"{max(found['peak_mb']):,.0f}", f"{max(found['resident_mb']):,.0f}",
        ]  # fmt: skip
        said.append("| " + " | ".join(cells) + " |")
    return "\n".join([*said, "", aims(record)])
