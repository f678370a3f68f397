"""Records of the shipping benchmark -> figures: seconds against the floors, and memory."""

from __future__ import annotations

import statistics
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qru import style
from qru.figures import finished, sentence
from qru.ship_record import FLOORS, NAMES, OWN_MB, floor_of, in_order, machine, title
from qru.style import INK, MUTED, drawing

COLOURS = {
    "quantize": style.ARMS[0], "audit": style.ARMS[0], "llmcompressor": style.ARMS[1], "peft-nf4": style.ARMS[3],
    "read": MUTED, "disk": MUTED, "kernel": MUTED,
}  # fmt: skip


def time_and_memory(record: dict[str, Any]) -> Figure:
    """Seconds of every contestant with its rounds as points, and memory below; a tick marks the larger floor."""
    results = in_order(record)
    apart = record["config"]["apart"]
    with drawing():
        height = 1.1 + 0.36 * len(results)
        figure, axes = plt.subplots(
            1 + apart, 1, figsize=(9, height * (1 + apart)), squeeze=False, layout="constrained"
        )
        seconds(axes[0, 0], record, results)
        text = f"{title(record)}\n{machine(record)}, medians of n = {record['config']['rounds']}"
        figure.suptitle(text, x=0.01, ha="left", fontsize=10)
        if apart:
            memory(
                axes[1, 0], {name: found for name, found in results.items() if name not in ("read", "disk", "kernel")}
            )
    return finished(figure)


def bars(ax: Axes, names: list[str]) -> None:
    """Names from the top down, a grid along the numbers."""
    ax.set_yticks(range(len(names)), [NAMES[name] for name in names])
    ax.invert_yaxis()
    ax.grid(True, axis="x")
    ax.grid(False, axis="y")


def seconds(ax: Axes, record: dict[str, Any], results: dict[str, dict[str, list[float]]]) -> None:
    longest = max(max(found["seconds"]) for found in results.values())
    for at, (name, found) in enumerate(results.items()):
        middle = statistics.median(found["seconds"])
        ax.barh(at, middle, 0.62, color=COLOURS[name], alpha=0.35 if name in ("read", "disk", "kernel") else 0.85)
        ax.plot(found["seconds"], [at] * len(found["seconds"]), "o", color=INK, markersize=3)
        text = f"{middle:.3g} s"
        if name in FLOORS:
            floor = floor_of(record, name)[1]
            ax.plot([floor, floor], [at - 0.4, at + 0.4], color=INK, linewidth=2)
            text += f", {middle / floor:.2g} × its floor"
        ax.annotate(
            text, (max(found["seconds"]), at), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9
        )
    bars(ax, list(results))
    ax.set_xlim(0, 1.25 * longest)
    ax.set_xlabel("time (s); points: rounds, line: the larger floor")


def memory(ax: Axes, results: dict[str, dict[str, list[float]]]) -> None:
    largest = max(max(*found["peak_mb"], *found["resident_mb"]) for found in results.values())
    for at, (name, found) in enumerate(results.items()):
        own, resident = max(found["peak_mb"]), max(found["resident_mb"])
        ax.barh(at, resident, 0.62, facecolor="none", edgecolor=COLOURS[name])
        ax.barh(at, own, 0.62, color=COLOURS[name], alpha=0.85)
        text = f"{own:,.0f} MB of its own"
        ax.annotate(text, (max(own, resident), at), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
    bars(ax, list(results))
    if 1.25 * largest > OWN_MB:
        ax.axvline(OWN_MB, color=INK, linewidth=1, linestyle=":")
        ax.annotate(
            "goal for ours",
            (OWN_MB, 0.02),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=8,
        )
    ax.set_xlim(0, 1.25 * largest)
    ax.set_xlabel("most memory in any round (MB); filled: its own, outline: with mapped files")


def pictures(records: list[dict[str, Any]]) -> list[Figure]:
    """A figure a record; one that says so where there is none."""
    return [time_and_memory(record) for record in records] or [sentence("There is no committed record yet.")]
