"""Records of the kernel's benchmark -> figures: time against rank, and the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from qru import style
from qru.figures import finished, label_ends
from qru.kernel_record import NAMES, machine
from qru.style import INK, MUTED, drawing, precision_label

# Ours in one colour, solid; what others offer in the others.
LOOKS = {
    "ours": (style.ARMS[0], "o", "-"),
    "dequantize": (style.ARMS[0], "v", ":"),
    "tensor-core": (style.ARMS[5], "D", "-"),
    "call": (style.ARMS[0], "P", "--"),
    "product": (MUTED, "x", ":"),
    "compile": (style.ARMS[2], "^", "-."),
    "peft-bnb": (style.ARMS[3], "s", "--"),
    "eager": (style.ARMS[1], "D", "--"),
}
LIMIT = "grey: below this machine's limit"


def shapes_of(record: dict[str, Any]) -> list[tuple[int, int]]:
    """The shapes of a record, in order."""
    return list(dict.fromkeys(tuple(result["shape"]) for result in record["results"]))


def results_of(record: dict[str, Any], shape: tuple[int, int]) -> list[dict[str, Any]]:
    """One shape's results by rank."""
    return sorted((r for r in record["results"] if tuple(r["shape"]) == shape), key=lambda result: result["rank"])


def present(results: list[dict[str, Any]]) -> list[str]:
    """The contestants that all these results have, in the order of ``NAMES``."""
    return [name for name in NAMES if all(name in result["contestants"] for result in results)]


def plain_logarithm(axis, subs=(1.0, 2.0, 5.0)) -> None:
    """Numbers as people write them on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_times(
    ax: Axes,
    results: Sequence[dict[str, Any]],
    ranks: Sequence[int],
    name: str,
    capsize: float,
    elinewidth: float,
    markersize: float | None = None,
) -> np.ndarray:
    """Medians of one contestant against rank, bars spanning the quartiles; returns the medians (ms)."""
    colour, marker, line = LOOKS[name]
    times = [result["contestants"][name] for result in results]
    middle = np.array([value["ms"] for value in times])
    error = [middle - [value["low"] for value in times], [value["high"] for value in times] - middle]
    ax.errorbar(
        ranks, middle, yerr=error, capsize=capsize, elinewidth=elinewidth, color=colour, marker=marker, linestyle=line,
        markersize=markersize, markerfacecolor="white" if name == "dequantize" else colour,
    )  # fmt: skip
    return middle


def time_by_rank(record: dict[str, Any]) -> Figure:
    """Median milliseconds against the adapter's rank, a line a contestant; bars span the quartiles."""
    shapes = shapes_of(record)
    with drawing():
        figure, axes = plt.subplots(len(shapes), 1, figsize=(9, 4.6 * len(shapes)), squeeze=False, layout="constrained")
        for ax, shape in zip(axes[:, 0], shapes, strict=True):
            results = results_of(record, shape)
            ranks = [result["rank"] for result in results]
            ends = {}
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            for name in present(results):
                middle = draw_times(ax, results, ranks, name, capsize=2, elinewidth=0.8)
                ends[NAMES[name]] = ranks[-1], middle[-1]
            needed = [max(r["ceilings"]["memory_ms"], r["ceilings"]["fma_ms"]) for r in results]
            bottom = min(*needed, *(result["contestants"]["ours"]["low"] for result in results)) / 1.6
            ax.fill_between(ranks, needed, bottom, color="#EEEEEE", linewidth=0, zorder=0)
            ends[LIMIT] = ranks[-1], needed[-1]
            ax.set_xticks(ranks, [str(rank) for rank in ranks])
            ax.xaxis.set_minor_locator(NullLocator())
            plain_logarithm(ax.yaxis)
            ax.set_ylim(bottom)
            ax.set_xlabel("rank of the adapter")
            ax.set_ylabel("time (ms)")
            ax.set_title(
                f"{title(record, shape)}\n{footing(record, results)}, bars span quartiles", fontweight="normal"
            )
            colours = {NAMES[name]: LOOKS[name][0] for name in LOOKS} | {LIMIT: MUTED}
            figure.draw_without_rendering()  # label_ends measures the axes as they are laid out
            label_ends(ax, ends, {name: colours[name] for name in ends}, gap=0.075)
    return finished(figure)


def roofline(record: dict[str, Any]) -> Figure:
    """Attained GFLOP/s of the low-rank product against its operations per byte, under the measured ceilings.

    The byte count is the least one (weights, adapters, codes, scales once), for all contestants alike: the height of a
    point is how much of the useful work is done in a second.
    """
    shapes = shapes_of(record)
    with drawing():
        figure, axes = plt.subplots(len(shapes), 1, figsize=(9, 5.2 * len(shapes)), squeeze=False, layout="constrained")
        for ax, shape in zip(axes[:, 0], shapes, strict=True):
            results = results_of(record, shape)
            intensity = np.array([result["flops"] / result["bytes"] for result in results])
            ends = {}
            ax.grid(True, axis="both")
            ax.set_xscale("log")
            ax.set_yscale("log")
            for name in [name for name in present(results) if name != "call"]:
                colour, marker, line = LOOKS[name]
                rates = [result["flops"] / result["contestants"][name]["ms"] / 1e6 for result in results]
                ax.plot(
                    intensity, rates, color=colour, marker=marker, linestyle=line,
                    markerfacecolor="white" if name == "dequantize" else colour,
                )  # fmt: skip
                ends[NAMES[name]] = intensity[-1], rates[-1]
            draw_ceilings(ax, results, intensity)
            above = ax.secondary_xaxis("top")
            above.set_xticks(intensity, [f"r = {r['rank']}\n{r['share_of_ceiling']:.0%}" for r in results], fontsize=8)
            above.minorticks_off()
            above.tick_params(length=0, labelcolor=LOOKS["ours"][0])
            plain_logarithm(ax.xaxis)
            plain_logarithm(ax.yaxis, subs=(1.0,))
            ax.set_xlabel("arithmetic intensity of the low-rank product (FLOP per byte that must move)")
            ax.set_ylabel("attained (GFLOP/s)")
            ax.set_title(
                f"{title(record, shape)}\n{footing(record, results)}; percentages: ours, of the ceiling",
                fontweight="normal",
            )
            figure.draw_without_rendering()
            label_ends(ax, ends, {NAMES[name]: look[0] for name, look in LOOKS.items()}, gap=0.06)
    return finished(figure)


def draw_ceilings(ax: Axes, results: list[dict[str, Any]], intensity: np.ndarray) -> None:
    """The memory slope and the multiply-add line, medians over the results' own measurements."""
    bandwidth = float(np.median([result["ceilings"]["bytes_per_s"] for result in results])) / 1e9
    peak = float(np.median([result["ceilings"]["flops_per_s"] for result in results])) / 1e9
    ridge = peak / bandwidth
    left, right = min(intensity[0], ridge) / 1.5, max(intensity[-1], ridge) * 1.5
    ax.plot([left, ridge, right], [left * bandwidth, peak, peak], color=INK, linewidth=1.4)
    ax.set_xlim(left, right)
    ax.annotate(
        f"float32 multiply-adds: {peak:.3g} GFLOP/s", (right, peak), xytext=(-4, 5), textcoords="offset points",
        ha="right", fontsize=9,
    )  # fmt: skip
    ax.annotate(
        f"slope: memory, {bandwidth:.3g} GB/s", (left, peak), xytext=(4, 5), textcoords="offset points", fontsize=9,
    )  # fmt: skip


def title(record: dict[str, Any], shape: tuple[int, int]) -> str:
    """The shape and what is made of it."""
    quantizer = precision_label(record["config"]["quantizer"])
    return f"{shape[0]} × {shape[1]}, {record['config']['dtype']} → {quantizer}"


def footing(record: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """Machine and number of runs."""
    return f"{machine(record)}, medians of n = {results[0]['rounds']} interleaved runs"
