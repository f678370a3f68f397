"""A certificate -> a table and a figure: the worst bounds by precision and transform. ``qru.certificate`` makes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qru import style
from qru.figures import finished, label_ends
from qru.style import INK, drawing, precision_label

LEAK, USE = "excess, points (at most)", "utility left (at least)"


def worst_frame(certificate: Mapping[str, Any]) -> pd.DataFrame:
    """A row a precision and transform, with the decisive bounds over all models and metrics.

    Args:
        certificate: from ``qru.certificate.certify``.

    Returns:
        Columns ``precision``, ``transform``; ``excess`` and ``upper`` (points) where ``upper`` is largest, ``leaks``;
        ``share`` and ``lower`` (percent of the target's utility) where ``lower`` is smallest, ``useless``, missing
        after relearning.
    """
    rows = []
    for precision in certificate["declared"]["quantizers"]:
        for transform in certificate["declared"]["transforms"]:
            cells = [
                row for row in certificate["cells"] if (row["quantizer"], row["transform"]) == (precision, transform)
            ]
            worst = max((one for row in cells for one in row["forget"].values()), key=lambda one: one["upper"])
            row = {"precision": precision, "transform": transform, "excess": worst["excess"], "upper": worst["upper"]}
            row["leaks"] = not worst["holds"]
            if kept := [one for row in cells for one in row["utility"].values()]:
                least = min(kept, key=lambda one: one["lower"])
                row |= {"share": 100 * least["share"], "lower": 100 * least["lower"], "useless": not least["holds"]}
            rows.append(row)
    return pd.DataFrame(rows)


def bounds_table(certificate: Mapping[str, Any]) -> pd.DataFrame:
    """Precisions by transforms: the worst excess and what is left of utility, each with its bound; ✗ where it fails."""
    rows: dict[str, dict[tuple[str, str], str]] = {}
    for one in worst_frame(certificate).to_dict("records"):
        line = rows.setdefault(one["precision"], {})
        line[LEAK, one["transform"]] = f"{one['excess']:+.1f} (≤ {one['upper']:.1f})" + " ✗" * one["leaks"]
        if one["lower"] == one["lower"]:  # none after relearning
            text = f"{one['share']:.0f} % (≥ {one['lower']:.0f} %)" + " ✗" * bool(one["useless"])
            line[USE, one["transform"]] = text
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.columns = pd.MultiIndex.from_tuples(table.columns)
    return table.sort_index(axis=1, level=0, sort_remaining=False)


def bounds(certificate: Mapping[str, Any]) -> Figure:
    """Upper bounds of the excess against the ceiling, lower bounds of utility against the floor, by precision."""
    frame = worst_frame(certificate)
    precisions = certificate["declared"]["quantizers"]
    with drawing():
        figure, axes = plt.subplots(2, 1, figsize=(10, 6.2), sharex=True)
        ceiling, floor = certificate["forget_ceiling"], certificate["utility_floor"]
        lines(axes[0], frame, precisions, "upper", ceiling, f"allowed: {ceiling:g}")
        axes[0].set_title("given away beyond the retrained model, at most (points)")
        lines(axes[1], frame, precisions, "lower", 100 * floor, f"required: {100 * floor:.0f} %")
        axes[1].set_title("utility left, at least (% of the target's)")
        axes[1].set_xticks(range(len(precisions)), [precision_label(name).replace(" ", "\n") for name in precisions])
        count = len(certificate["declared"]["seeds"])
        counts = ", ".join(f"{name} {n}" for name, n in certificate["examples"].items())
        figure.suptitle(
            f"{certificate['outcome']}: one-sided 95 % bounds, worst of {count} model{'s' * (count > 1)} and all "
            f"metrics; n: {counts}",
            x=0.01, ha="left", fontsize=10,
        )  # fmt: skip
        figure.align_ylabels()
        figure.tight_layout(h_pad=1.5)
    return finished(figure)


def lines(ax: Axes, frame: pd.DataFrame, precisions: list[str], value: str, limit: float, text: str) -> None:
    """A line a transform, named at its end, and the line that they are held against."""
    names = list(frame["transform"].unique())  # all, so that a transform looks alike in both panels
    frame = frame.dropna(subset=[value])
    ends, colours = {}, {}
    for i, name in enumerate(names):
        look = i % len(style.ARMS)
        rows = frame[frame["transform"] == name]
        if rows.empty:
            continue
        x = [precisions.index(one) + 0.06 * (i - (len(names) - 1) / 2) for one in rows["precision"]]
        ax.plot(
            x, rows[value], linewidth=1.2,
            color=style.ARMS[look], marker=style.ARM_MARKERS[look], linestyle=style.ARM_LINES[look],
        )  # fmt: skip
        ends[name], colours[name] = (x[-1], float(rows[value].iloc[-1])), style.ARMS[look]
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, 0), max(high, 1.15 * limit))
    ax.axhline(limit, color=INK, linewidth=1, linestyle="--")
    ax.annotate(
        text, (0.005, limit), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points", fontsize=9
    )
    label_ends(ax, ends, colours)
