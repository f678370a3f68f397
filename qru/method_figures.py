"""Forgetting against utility: every method in bf16, and where the worst of its quantizers takes it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from qru import style
from qru.figures import finished
from qru.method_tables import (
    Contender,
    contenders,
    fewer_seeds,
    met_goal,
    quantizer_title,
    quantizers_of,
    recovered_of,
)
from qru.paper_tables import counted, listed
from qru.records import Record, examples_of
from qru.style import INK, MUTED
from qru.tables import METRICS
from qru.typeset import method_title
from qru.why_figures import PAGE, printing

BACK, HELD = style.ARMS[1], style.ARMS[0]  # memory returns under the worst quantizer in some seed, or in none
FIRST = "ga_gdr"  # the method that most arms and guards were run with: a panel of its own


@dataclass(frozen=True)
class Arrow:
    """From bf16 to the quantizer under which most text is left.

    Attributes:
        start, end: (VerbMem, Utility), means over seeds, percent.
        quantizer: of the end.
        back: whether memory returns there in any seed.
        met: whether all of these runs met the forgetting goal.
    """

    name: str
    start: tuple[float, float]
    end: tuple[float, float]
    quantizer: str
    back: bool
    met: bool


def arrow_of(one: Contender, quantizers: Sequence[str]) -> Arrow | None:
    """The worst case of a contender: of the quantizers, the one under which mean VerbMem is highest.

    Both ends of it are of one model under one quantizer. ``None`` where VerbMem or Utility was not measured.
    """

    def at(precision: str) -> tuple[float, float] | None:
        scores = [run.scores["unlearned"].get(precision, {}) for run in one.shown]
        known = [score for score in scores if {"verbmem", "utility"} <= set(score)]
        if not known:
            return None
        return tuple(statistics.fmean(score[metric]["value"] for score in known) for metric in ("verbmem", "utility"))

    ends = {name: end for name in quantizers if (end := at(name))}
    start = at("bf16")
    if start is None or not ends:
        return None
    worst = max(ends, key=lambda name: ends[name][0])
    back = any(found["recovers"]["recovers"] for found in recovered_of(one.shown, worst))
    return Arrow(one.name, start, ends[worst], worst, back, all(map(met_goal, one.shown)))


def panels(found: Sequence[Contender]) -> dict[str, list[Contender]]:
    """Title -> contenders: arms and guards of one method, and the other methods."""
    first = [one for one in found if one.method == FIRST]
    rest = [one for one in found if one.method != FIRST]
    out = {f"{method_title(FIRST)}: arms and guards": first, "Other methods" if first else "": rest}
    return {title: part for title, part in out.items() if part}


def tradeoff(records: Sequence[Record]) -> Figure:
    """VerbMem against Utility, an arrow a method and arm: from bf16 to its worst quantizer; to the right is memory.

    Args:
        records: of language models, of one corpus and scale.

    Raises:
        ValueError: runs of several corpora, or see ``method_tables.contenders``.
    """
    found = contenders(records)
    if len(corpora := sorted({one.corpus for one in found})) > 1:
        raise ValueError(f"forgetting and utility are drawn of one corpus; these are of {listed(corpora)}.")
    parts, quantizers = panels(found), quantizers_of(records)
    baselines = {
        model: tuple(records[0].scores[model]["bf16"][metric]["value"] for metric in ("verbmem", "utility"))
        for model in style.MODELS
    }
    arrows = {title: [arrow for one in part if (arrow := arrow_of(one, quantizers))] for title, part in parts.items()}
    every = [
        *baselines.values(),
        *(end for part in arrows.values() for arrow in part for end in (arrow.start, arrow.end)),
    ]
    with printing():
        figure, axes = plt.subplots(
            len(parts), 1, figsize=(PAGE, 0.5 + 2.5 * len(parts)), squeeze=False, sharex=True, sharey=True,
            layout="constrained",
        )  # fmt: skip
        low, high = (end(y for _, y in every) for end in (min, max))
        room = max(high - low, 12.0)  # small differences must not fill the picture
        for ax, title in zip(axes[:, 0], arrows, strict=True):
            ax.grid(True, axis="both")
            ax.set_xlim(-3, 103)
            ax.set_ylim(max(-4, low - 0.2 * room), high + 0.15 * room)
            ax.set_title(title, fontweight="normal")
            ax.set_ylabel(f"{METRICS['utility']} (%)")
        axes[-1, 0].set_xlabel(f"{METRICS['verbmem']} (%): what is left of the forgotten text")
        figure.legend(handles=legend(), loc="outside upper center", ncols=4, handletextpad=0.4)
        figure.draw_without_rendering()  # places are taken on the axes as they are laid out
        for ax, (title, part) in zip(axes[:, 0], arrows.items(), strict=True):
            draw_arrows(
                ax, part, baselines, f"{method_title(FIRST)}, " if title.startswith(method_title(FIRST)) else ""
            )
    return finished(figure)


def legend() -> list[Line2D]:
    return [
        Line2D([], [], color=HELD, linewidth=0.9, marker="o", markersize=4, label="bf16 → worst quantizer"),
        Line2D([], [], color=BACK, linewidth=2.0, marker="o", markersize=4, label="thick: memory returns there"),
        Line2D([], [], color=INK, linestyle="", marker="o", markersize=4, markerfacecolor="white",
               label="open: the goal was missed"),
    ]  # fmt: skip


def draw_arrows(ax: Axes, arrows: Sequence[Arrow], baselines: dict[str, tuple[float, float]], common: str) -> None:
    """Arrows, points of target and retrained model, and a label at each; what all names share is left out."""
    labels = []
    for model, at in baselines.items():
        colour, marker, _ = style.MODELS[model]
        ax.plot(*at, marker, color=colour, markersize=6.5, zorder=4)
        labels.append((model, at, colour))
    for arrow in arrows:
        colour, width = (BACK, 2.0) if arrow.back else (HELD, 0.9)
        ax.annotate(
            "", xy=arrow.end, xytext=arrow.start,
            arrowprops={"arrowstyle": "-|>", "color": colour, "lw": width, "shrinkA": 0, "shrinkB": 0,
                        "mutation_scale": 8},
        )  # fmt: skip
        ax.plot(
            *arrow.start, "o", color=colour, markersize=4, markerfacecolor=colour if arrow.met else "white",
            markeredgewidth=0.9, zorder=3,
        )  # fmt: skip
        name = arrow.name.removeprefix(common)
        labels.append((f"{name} ({quantizer_title(arrow.quantizer)})", arrow.end, colour))
    put_labels(ax, labels, [(arrow.start, arrow.end) for arrow in arrows])


def put_labels(
    ax: Axes,
    labels: Sequence[tuple[str, tuple[float, float], str]],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    fontsize: float = 7.0,
) -> None:
    """Write each label near its point: where it hides no other label, no point and as little of the lines as can be.

    Args:
        labels: text, point in data coordinates, colour.
        lines: two points each, in data coordinates.
        fontsize: in points.
    """
    renderer, to_pixels = ax.figure.canvas.get_renderer(), ax.transData.transform
    frame, unit = ax.get_window_extent(renderer), ax.figure.dpi / 72  # pixels in a point
    points = [to_pixels(at) for at in [*(at for _, at, _ in labels), *(start for start, _ in lines)]]
    taken = [Bbox.from_bounds(x - 3 * unit, y - 3 * unit, 6 * unit, 6 * unit) for x, y in points]
    along = np.concatenate([np.linspace(to_pixels(a), to_pixels(b), 60) for a, b in lines] or [np.zeros((0, 2))])
    for text, at, colour in sorted(labels, key=lambda label: -label[1][0]):  # the right end is the narrowest
        probe = ax.text(0, 0, text, fontsize=fontsize)
        size = probe.get_window_extent(renderer)
        probe.remove()
        point = to_pixels(at)
        box = min(spots(point, size.width, size.height, unit), key=lambda box: cost(box, point, taken, along, frame))
        taken.append(box)
        along = np.concatenate([along, leader(box, point)])
        middle = ax.transData.inverted().transform(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))
        ax.annotate(
            text, xy=at, xytext=middle, ha="center", va="center", fontsize=fontsize, color=colour, zorder=5,
            arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.5, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip


def spots(point: Sequence[float], width: float, height: float, unit: float) -> list[Bbox]:
    """Places for a label around a point, in pixels; near ones first."""
    out = []
    for radius in (5, 12, 20, 30, 42, 56, 72, 90):
        for angle in np.linspace(0, 2 * math.pi, 24, endpoint=False):
            across, up = math.cos(angle), math.sin(angle)
            x = point[0] + unit * radius * across + (across - 1) / 2 * width
            y = point[1] + unit * radius * up + (up - 1) / 2 * height
            out.append(Bbox.from_bounds(x, y, width, height))
    return out


def cost(box: Bbox, point: Sequence[float], taken: Sequence[Bbox], along: np.ndarray, frame: Bbox) -> float:
    """How bad a place is: over labels and points worst, then out of the frame, then over lines, then far away."""
    inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
    hidden = sum(box.overlaps(other) for other in taken)
    crossed = ((along >= box.min) & (along <= box.max)).all(1).sum()
    led = leader(box, point)
    under = sum(int(((led > other.min + 1) & (led < other.max - 1)).all(1).any()) for other in taken)
    return 1e5 * hidden + 1e5 * (not inside) + 300 * max(0, under - 1) + 60 * float(crossed) + len(led)


def leader(box: Bbox, point: Sequence[float]) -> np.ndarray:
    """Pixels from a point to the edge of its label, one a unit of length: (n, 2)."""
    edge = np.clip(point, box.min, box.max)
    length = math.hypot(*(edge - point))
    return np.linspace(point, edge, max(2, round(length)))


def caption(records: Sequence[Record]) -> str:
    """What the arrows are, n, seeds, and runs that missed the goal."""
    found = contenders(records)
    seeds = sorted({record.config["seed"] for record in records})
    counts = {
        metric: sorted({n for r in records if (n := examples_of(r.scores["unlearned"]["bf16"].get(metric, {})))})
        for metric in ("verbmem", "utility")
    }
    missed = sum(len(one.runs) - len(one.met) for one in found)
    whole = [one for one in found if not one.met]
    told = [
        f"{counted(len(records), 'run')}, means over {'seeds' if len(seeds) > 1 else 'seed'} {listed(seeds)}; "
        f"n = {listed(counts['verbmem'])} passages and {listed(counts['utility'])} questions.",
        *fewer_seeds(found),
        f"Worst of {counted(len(quantizers_of(records)), 'quantizer')}: the one named, under which VerbMem is highest; "
        "Utility is that under the same one.",
    ]
    if missed:
        told.append(
            f"{counted(missed, 'run')} missed the forgetting goal and {'is' if missed == 1 else 'are'} left out"
            + (f", but of {listed([one.name for one in whole])}, where all did." if whole else ".")
        )
    return " ".join(told)
