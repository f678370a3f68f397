"""Figures of the experiment on why forgotten text comes back: tables of ``qru.why`` -> matplotlib, at printed size.

Two families of arms, told apart by colour: those that step bf16 weights in place, whose larger weights cannot move (a
dead zone), and those without one. Every run is a point; a run that missed the forgetting goal is hollow. Bars, where
there are any, are intervals over examples, never over seeds.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from qru import style
from qru.figures import finished, module_order, sentence
from qru.registry import unknown
from qru.style import INK, MUTED, drawing, precision_label
from qru.tables import METRICS

COLUMN, PAGE = 3.4, 7.0  # inches: one column of the paper, and both
DEAD, FREE = style.ARMS[1], style.ARMS[0]  # weights that cannot move, and none
# Display name -> colour (the family) and marker.
ARMS = {
    "bf16": (DEAD, "o"),
    "bf16, fp32 moments": (DEAD, "s"),
    "bf16, stochastic rounding": (FREE, "^"),
    "fp32 master": (FREE, "D"),
    "LoRA fp32": (FREE, "v"),
    "LoRA bf16": (FREE, "P"),
    "ΔW bf16 from zero": (FREE, "X"),
}
FAMILIES = {DEAD: "bf16 weights stepped in place: larger ones cannot move", FREE: "all weights can move"}
PREDICTED = "#E6E2D3"
METHOD_MARKERS = ("o", "^", "s", "D", "v", "P")
BITS = {"int8": (style.ARMS[2], "s"), "int4": (style.ARMS[0], "o"), "int3": (style.ARMS[1], "^")}
MEASURES = {
    "text_regained": ("text regained", "%"),
    "knowledge_regained": ("knowledge regained", "%"),
    "projection": ("projection", "1: all survives"),
}
PRINT = {
    "font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 8,
    "legend.fontsize": 7.5, "lines.markersize": 4.5, "lines.linewidth": 1.2, "xtick.major.size": 2.5,
    "ytick.major.size": 2.5, "axes.linewidth": 0.7, "grid.linewidth": 0.6,
}  # fmt: skip


@contextmanager
def printing() -> Iterator[None]:
    """The house style in the sizes of a printed column."""
    with drawing(), plt.rc_context(PRINT):
        yield


def checked(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The table, once it is seen to be empty, or to have these columns and no arm that nobody knows."""
    if missing := [column for column in columns if column not in table and len(table)]:
        raise ValueError(f"the table lacks {', '.join(missing)}; it has {', '.join(map(str, table.columns))}.")
    for arm in table["arm"].unique() if "arm" in table else ():
        if arm not in ARMS:
            raise unknown("arm", arm, ARMS)
    return table


def known_arms(table: pd.DataFrame) -> list[str]:
    """The arms of a table in the experiment's order."""
    return [arm for arm in ARMS if (table["arm"] == arm).any()]


def finest_first(table: pd.DataFrame) -> list[str]:
    """Quantizers by the size of their zero bin; where none is known, as they come."""
    middle = table.groupby("quantizer", sort=False)["zero_bin"].median()
    return list(middle.sort_values(kind="stable").index)


def method_label(name: str) -> str:
    return name.upper().replace("_", "+")


def of_arms(number: float) -> str:
    return f"{number:.2g}"


def span(values: pd.Series, form=of_arms) -> str:
    """``"0.0039"``, or ``"0.0039–0.0078"``; empty where there is no number."""
    ends = list(dict.fromkeys(form(end) for end in (values.min(), values.max()))) if values.notna().any() else []
    return "–".join(ends)


# --- the arms at equal forgetting -------------------------------------------------------------------------------


def arms(table: pd.DataFrame, measure: str = "text") -> Figure:
    """What quantizing brings back, at equal forgetting: a row an arm, a column a quantizer, a point a run.

    Points carry their 95 % interval over examples. Shaded: predicted to come back, before anything was run. A share
    that cannot be measured (nothing was forgotten) is a cross at the left.

    Args:
        table: of ``qru.why``; columns ``corpus``, ``method``, ``arm``, ``seed``, ``quantizer``, ``reached``,
            ``predicted``, ``edge``, ``zero_bin``, and ``{measure}_regained``, ``{measure}_low``, ``{measure}_high`` in
            percent.
        measure: ``"text"`` or ``"knowledge"``.

    Raises:
        ValueError: a column is missing, or an arm or measure is unknown.
    """
    if measure not in ("text", "knowledge"):
        raise unknown("measure", measure, ("text", "knowledge"))
    value = f"{measure}_regained"
    needed = ["corpus", "method", "arm", "seed", "quantizer", "reached", "predicted", "edge", "zero_bin", value]
    checked(table, [*needed, f"{measure}_low", f"{measure}_high"])
    if table.empty:
        return sentence("No runs to show yet.")
    names, quantizers = known_arms(table), finest_first(table)
    corpora, methods = list(table["corpus"].unique()), list(table["method"].unique())
    lanes = sorted({*zip(table["method"], table["seed"], strict=True)}, key=lambda at: (methods.index(at[0]), at[1]))
    height = 0.76 / len(lanes)  # rows of 1, with a gap between arms
    table = table.assign(
        y=[
            names.index(arm) + (lanes.index((method, seed)) + 0.5) * height - 0.38
            for arm, method, seed in zip(table["arm"], table["method"], table["seed"], strict=True)
        ]
    )
    limits, gutter = share_limits(table[value])
    with printing():
        figure, axes = plt.subplots(
            len(corpora), len(quantizers), squeeze=False, sharex=True, sharey="row", layout="constrained",
            figsize=(max(4.6, PAGE - 1.08 * (5 - len(quantizers))), 1.15 + len(corpora) * (0.3 + 0.3 * len(names))),
        )  # fmt: skip
        for row, corpus in zip(axes, corpora, strict=True):
            for ax, quantizer in zip(row, quantizers, strict=True):
                shown = table[(table["corpus"] == corpus) & (table["quantizer"] == quantizer)]
                headed(ax, precision_label(quantizer) if corpus == corpora[0] else "")
                if hidden := span(shown["zero_bin"]):
                    over(ax, f"zero bin ±{hidden}", MUTED)
                draw_shares(ax, shown, measure, methods, height, limits, gutter)
            row[0].set_ylabel(corpus, fontweight="bold")
            name_arms(row[0], names, table[table["corpus"] == corpus])
            row[0].set_ylim(len(names) - 0.5, -0.5)
        axes[0, 0].set_xlim(limits)
        seeds = table.groupby(["corpus", "method", "arm", "quantizer"])["seed"].nunique()
        wide = len(quantizers) > 2
        figure.supxlabel(
            f"{measure} regained (% of what was forgotten;{' ' if wide else chr(10)}"
            f"a point a run, seeds: {span(seeds, str)}, lines: 95 % over examples)",
            fontsize=8,
        )
        figure.legend(handles=share_handles(table, methods, value), loc="outside upper right", ncols=2 if wide else 1)
    return finished(figure)


def share_limits(shares: pd.Series) -> tuple[tuple[float, float], float | None]:
    """Limits of an axis of recovered shares, and where the unmeasurable stand on it (None where there are none).

    A share far beyond 0 … 100 (little was forgotten) must not squeeze the others: it is drawn at the edge.
    """
    low = max(-30.0, min(-9.0, shares.min() - 5)) if shares.notna().any() else -9.0
    high = min(130.0, max(109.0, shares.max() + 5)) if shares.notna().any() else 109.0
    if not shares.isna().any():
        return (low, high), None
    return (low - 18, high), low - 8


def draw_shares(
    ax: Axes, table: pd.DataFrame, measure: str, methods: Sequence[str], height: float,
    limits: tuple[float, float], gutter: float | None,
) -> None:  # fmt: skip
    """One panel: shading, intervals and points of one corpus and quantizer."""
    ax.grid(False)
    low = limits[0] if gutter is None else gutter + 8
    for at in (0, 100):
        ax.axvline(at, color="#C8C8C8", linewidth=0.6, zorder=0.5)
    if gutter is not None:
        ax.axvline(low, color="#C8C8C8", linewidth=0.6, linestyle=":", zorder=0.5)
    for y in table.loc[table["predicted"].astype(bool), "y"]:  # an outline of the same colour closes hairlines
        ax.axhspan(y - height / 2, y + height / 2, facecolor=PREDICTED, edgecolor=PREDICTED, linewidth=0.4, zorder=0)
    for (arm, method, reached), rows in table.groupby(["arm", "method", "reached"], sort=False):
        colour = ARMS[arm][0]
        unknown_, rows = rows[rows[f"{measure}_regained"].isna()], rows[rows[f"{measure}_regained"].notna()]
        ax.plot([gutter] * len(unknown_), unknown_["y"], "x", color=MUTED, markersize=3.2, markeredgewidth=0.8)
        if rows.empty:
            continue
        inside = rows[[f"{measure}_{end}" for end in ("regained", "low", "high")]].clip(low, limits[1])
        ax.hlines(rows["y"], inside.iloc[:, 1], inside.iloc[:, 2], color=colour, linewidth=0.7, alpha=0.55)
        ax.plot(
            inside.iloc[:, 0], rows["y"], METHOD_MARKERS[methods.index(method)], color=colour, markersize=3.6,
            markerfacecolor=colour if reached else "white", markeredgewidth=0.8, label=f"{arm}|{method}", clip_on=False,
        )  # fmt: skip
        for share, y in zip(rows[f"{measure}_regained"], rows["y"], strict=True):
            if not low <= share <= limits[1]:
                at, shift, side = (low, 5, "left") if share < low else (limits[1], -5, "right")
                ax.annotate(
                    f"{share:.0f}".replace("-", "−"), (at, y), xytext=(shift, 0), textcoords="offset points", ha=side,
                    va="center", fontsize=7,
                )  # fmt: skip
    ax.set_xticks([0, 50, 100])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def headed(ax: Axes, heading: str, colour: str = INK, loc: str = "left", fontsize: float = 8.5) -> None:
    """A panel's heading, with room for a line under it."""
    ax.set_title(heading, pad=11, color=colour, loc=loc, fontsize=fontsize)


def over(ax: Axes, text: str, colour: str, at: float = 0.0) -> None:
    """A line of small print right over a panel."""
    ax.annotate(
        text, (at, 1), xycoords="axes fraction", xytext=(0, 2.5), textcoords="offset points", fontsize=7, color=colour,
        ha="left" if at == 0 else "center",
    )  # fmt: skip


def name_arms(ax: Axes, names: Sequence[str], table: pd.DataFrame) -> None:
    """Names of the arms in their family's colour, with the size under which their weights can move."""
    edges = {}
    for arm in names:
        known = sorted(table.loc[table["arm"] == arm, "edge"].dropna().unique())
        edges[arm] = " or ".join(map(of_arms, known))
    ax.set_yticks(range(len(names)), [arm + (f"\nmoves |w| < {edges[arm]}" if edges[arm] else "") for arm in names])
    for label, arm in zip(ax.get_yticklabels(), names, strict=True):
        label.set_color(ARMS[arm][0])


def share_handles(table: pd.DataFrame, methods: Sequence[str], value: str) -> list[Line2D | Patch]:
    """The legend: methods, families, and only those other marks that occur."""
    bare = {"color": INK, "linestyle": "", "markersize": 4.5}
    out: list[Line2D | Patch] = [
        Line2D([], [], marker=marker, label=method_label(method), **bare)
        for method, marker in zip(methods, METHOD_MARKERS, strict=False)
    ]
    if not table["reached"].all():
        out.append(
            Line2D([], [], marker="o", markerfacecolor="white", label="hollow: missed the forgetting goal", **bare)
        )
    if table[value].isna().any():
        out.append(
            Line2D([], [], marker="x", label="nothing was forgotten, so nothing can return", **bare | {"color": MUTED})
        )
    if table["predicted"].any():
        out.append(Patch(facecolor=PREDICTED, label="shaded: predicted to come back"))
    colours = dict.fromkeys(ARMS[arm][0] for arm in known_arms(table))
    return [*out, *(Patch(facecolor=colour, label=FAMILIES[colour]) for colour in colours)]


# --- the dial ---------------------------------------------------------------------------------------------------


def dial(table: pd.DataFrame, measure: str = "text_regained") -> Figure:
    """Does recovery switch where the arithmetic says? One arm over learning rates and quantizers.

    Left: against the largest weight that can move, over the largest that the zero bin hides; under 1 everything that
    moved is hidden. Right: the same numbers by learning rate and quantizer, the predicted cells outlined.

    Args:
        table: rows of one corpus, method and arm with a dead zone; columns ``quantizer``, ``learning_rate``, ``edge``,
            ``zero_bin``, ``reached``, ``predicted``, and the measure.
        measure: ``"text_regained"``, ``"knowledge_regained"`` (percent) or ``"projection"``.

    Raises:
        ValueError: a column is missing, the measure is unknown, the rows are of several arms, methods or corpora, or
            the arm has no dead zone.
    """
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
    one = ["corpus", "method", "arm"]
    checked(table, [*one, "quantizer", "learning_rate", "edge", "zero_bin", "reached", "predicted", measure])
    if table.empty:
        return sentence("No runs to show yet.")
    for column in one:
        if table[column].nunique() > 1:
            raise ValueError(f"a dial is of one {column}, and these rows are of {', '.join(table[column].unique())}.")
    if not (table["edge"] > 0).all():
        raise ValueError(f"{table['arm'].iloc[0]} has no dead zone (edge is {table['edge'].min()}): nothing to dial.")
    quantizers, rates = finest_first(table), sorted(table["learning_rate"].unique(), reverse=True)
    name, unit = MEASURES[measure]
    with printing():
        figure, (ax, heat) = plt.subplots(
            1, 2, figsize=(PAGE, max(2.9, 1.2 + 0.24 * len(rates))), layout="constrained",
            width_ratios=(1, max(0.75, 0.16 * len(quantizers))),
        )  # fmt: skip
        draw_switch(ax, table, measure, quantizers)
        ax.set_ylabel(f"{name} ({unit})")
        ax.set_xlabel("largest |w| that can move / largest |w| rounded to 0")
        ax.set_title(f"{table['arm'].iloc[0]}, {method_label(table['method'].iloc[0])}, {table['corpus'].iloc[0]}")
        draw_rates(heat, table, measure, quantizers, rates)
        many = table.groupby(["quantizer", "learning_rate"]).size().max()
        of_runs = f", means of {many} runs" if many > 1 else ""
        heat.set_title(f"{name} ({unit}){of_runs}; outlined: predicted", fontweight="normal")
    return finished(figure)


def draw_switch(ax: Axes, table: pd.DataFrame, measure: str, quantizers: Sequence[str]) -> None:
    """A point a run over edge / zero bin; a thin line joins a quantizer's points."""
    ratio = table["edge"] / table["zero_bin"]
    left, right = min(ratio.min() / 1.5, 1 / 12), max(ratio.max() * 1.5, 12)
    values = table[measure]
    top = 1.0 if measure == "projection" else 100.0
    low = min(-0.06 * top, values.min() - 0.04 * top) if values.notna().any() else -0.06 * top
    high = max(1.08 * top, values.max() + 0.04 * top) if values.notna().any() else 1.08 * top
    nowhere = low - 0.07 * top  # where runs without a value stand
    ax.set_xscale("log", base=2)
    ax.set_xlim(left, right)
    ax.set_ylim(low - 0.14 * top if values.isna().any() else low, high)
    ax.axvspan(left, 1, facecolor=PREDICTED, linewidth=0, zorder=0)
    ax.axvline(1, color=MUTED, linewidth=0.9)
    heights = (0.72, 0.3) if measure == "projection" else (0.45, 0.45)  # where points are not expected
    sides = ("all that moved", "rounds to 0", heights[0], -4, "right"), ("some of it", "is seen", heights[1], 4, "left")
    for first, second, height, shift, side in sides:
        ax.annotate(
            f"{first}\n{second}", (1, height), xycoords=("data", "axes fraction"), xytext=(shift, 0),
            textcoords="offset points", ha=side, va="center", color=MUTED, fontsize=7.5,
        )  # fmt: skip
    seen = {}
    for quantizer in quantizers:
        rows = table[table["quantizer"] == quantizer].sort_values("learning_rate")
        family = next((bits for bits in BITS if bits in quantizer), precision_label(quantizer))
        colour, marker = BITS.get(family, (style.ARMS[3], "D"))
        seen[family] = Line2D([], [], color=colour, marker=marker, linestyle="", label=family)
        x, y = rows["edge"] / rows["zero_bin"], rows[measure]
        middle = y.groupby(x).mean().dropna()
        ax.plot(middle.index, middle, color=colour, linewidth=0.6, alpha=0.45)
        ax.plot(x[y.isna()], [nowhere] * int(y.isna().sum()), "x", color=MUTED, markersize=3.5, markeredgewidth=0.8)
        for reached, face in ((True, colour), (False, "white")):
            there = y.notna() & (rows["reached"].astype(bool) == reached)
            ax.plot(x[there], y[there], marker, color=colour, markerfacecolor=face, markeredgewidth=0.8)
    if not table["reached"].all():
        seen["missed"] = Line2D(
            [], [], color=INK, marker="o", markerfacecolor="white", linestyle="", label="missed the goal (in brackets)"
        )
    if values.isna().any():
        seen["nothing"] = Line2D([], [], color=MUTED, marker="x", linestyle="", label="nothing was forgotten")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}" if at >= 1 else f"1/{1 / at:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    # Under the axes: points may lie anywhere within them.
    ax.figure.legend(
        handles=list(seen.values()), loc="outside lower left", ncols=len(seen), handletextpad=0.1, columnspacing=1
    )


def draw_rates(ax: Axes, table: pd.DataFrame, measure: str, quantizers: Sequence[str], rates: Sequence[float]) -> None:
    """Numbers by learning rate (rows, largest on top) and quantizer (columns, finest first)."""
    grid = table.pivot_table(index="learning_rate", columns="quantizer", values=measure, aggfunc="mean", dropna=False)
    grid = grid.reindex(index=rates, columns=quantizers)
    cells = table.groupby(["learning_rate", "quantizer"])[["reached", "predicted"]].agg("mean")
    top = 1.0 if measure == "projection" else 100.0
    form = "{:.2f}" if measure == "projection" else "{:.0f}"
    sns.heatmap(
        grid.clip(0, top), ax=ax, cmap="Greys", vmin=0, vmax=1.35 * top, cbar=False, linewidths=0.6, linecolor="white"
    )
    for (i, rate), (j, quantizer) in itertools.product(enumerate(rates), enumerate(quantizers)):
        if (rate, quantizer) not in cells.index:
            continue
        share, reached = grid.iloc[i, j], bool(cells.loc[(rate, quantizer), "reached"] == 1)
        text = "–" if np.isnan(share) else form.format(share)
        text = text.removeprefix("-") if not text.strip("-0.") else text  # no "-0"
        text = text if reached else f"({text})"
        dark = not np.isnan(share) and share > 0.75 * top
        ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", color="white" if dark else INK, fontsize=7.5)
    inside = np.array([[bool(cells["predicted"].get((rate, name), 0) > 0.5) for name in quantizers] for rate in rates])
    for (x0, y0), (x1, y1) in outline(inside):
        ax.plot([x0, x1], [y0, y1], color=DEAD, linewidth=1.8, solid_capstyle="projecting", clip_on=False)
    ax.set_xticks(
        np.arange(len(quantizers)) + 0.5, [precision_label(name).replace(" ", "\n") for name in quantizers], rotation=0
    )
    ax.set_yticks(np.arange(len(rates)) + 0.5, [f"{rate:.2g}" for rate in rates], rotation=0)
    ax.grid(False)
    ax.tick_params(length=0)
    ax.set_xlabel("quantizer, finest first")
    ax.set_ylabel("learning rate")


def outline(inside: np.ndarray) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Edges around the true cells of a (rows, columns) mask, as ((x0, y0), (x1, y1)) in cells."""
    padded = np.pad(inside, 1)
    upright = [((x, y - 1), (x, y)) for y, x in np.argwhere(padded[:, 1:] != padded[:, :-1])]
    level = [((x - 1, y), (x, y)) for y, x in np.argwhere(padded[1:] != padded[:-1])]
    return upright + level


# --- layer by layer ---------------------------------------------------------------------------------------------

LAYER_QUANTITIES = {
    "hidden": ("foreseen\nhidden (%)", Normalize(0, 100)),
    "moved": ("moved (%)", Normalize(0, 100)),
    "crossed": ("crossed (%)", LogNorm(1e-3, 100)),
    "projection": ("projection", Normalize(0, 1.2)),  # 1: the update survives
}


def layers(table: pd.DataFrame) -> Figure:
    """Which layers moved, crossed a bin, and kept their update: a column an arm, module × block in each panel.

    Over each panel stands its median over layers, for crossings beside what min(|ΔW|/s, 1) predicts. Several runs
    of an arm are shown by their median. Hatched: no value (nothing moved, so there is nothing to project on).

    Args:
        table: columns ``layer`` (``"model.layers.0.self_attn.q_proj"``), ``arm``, ``moved``, ``crossed``,
            ``predicted_crossed`` (percent of weights), ``projection``; a row a layer and run, all under one quantizer.
            Where it has ``hidden`` (percent of the movable weights that cannot leave the zero bin), that stands first.

    Raises:
        ValueError: a column is missing, an arm is unknown, or the rows are of several quantizers.
    """
    checked(table, ["layer", "arm", "moved", "crossed", "predicted_crossed", "projection"])
    if table.empty:
        return sentence("No layers to show yet.")
    quantizers = list(table["quantizer"].unique()) if "quantizer" in table else []
    if len(quantizers) > 1:
        raise ValueError(f"layers are of one quantizer, and these rows are of {', '.join(quantizers)}.")
    parts = table["layer"].str.extract(r"\.(?P<block>\d+)\..*?(?P<module>\w+?)(?:_proj)?$")
    table = table.assign(block=parts["block"].astype(int), module=parts["module"])
    names, modules, blocks = known_arms(table), module_order(table), sorted(table["block"].unique())
    foreseen = "hidden" in table and table["hidden"].notna().any()
    quantities = {key: value for key, value in LAYER_QUANTITIES.items() if key != "hidden" or foreseen}
    first = next(iter(quantities))
    tall = 0.32 + max(0.5, min(1.6, 0.13 * len(blocks)))
    with printing():
        figure, axes = plt.subplots(
            len(quantities), len(names), squeeze=False, sharex=True, sharey=True, layout="constrained",
            figsize=(max(COLUMN, 0.9 + 0.87 * len(names)), 0.75 + len(quantities) * tall),
        )  # fmt: skip
        for row, (key, (title, norm)) in zip(axes, quantities.items(), strict=True):
            for ax, arm in zip(row, names, strict=True):
                rows = table[table["arm"] == arm]
                grid = rows.pivot_table(index="block", columns="module", values=key, aggfunc="median", dropna=False)
                grid = grid.reindex(index=blocks, columns=modules)
                ax.set_facecolor("#F4F4F4")
                ax.patch.set(hatch="/////", edgecolor="#C8C8C8", linewidth=0)
                shade = grid.clip(lower=norm.vmin, upper=norm.vmax).to_numpy(float)
                mesh = ax.pcolormesh(
                    np.arange(len(modules) + 1) - 0.5, np.arange(len(blocks) + 1) - 0.5, np.ma.masked_invalid(shade),
                    cmap="Blues", norm=norm, edgecolor="white", linewidth=0.5,
                )  # fmt: skip
                middle = grid.stack().median()
                text = "–" if np.isnan(middle) else f"{middle:.0f}" if middle >= 99.5 else f"{middle:.2g}"
                if key == "crossed":
                    text += f" ({rows['predicted_crossed'].median():.2g})"
                headed(
                    ax,
                    "\n".join(textwrap.wrap(arm, 12)) if key == first else "",
                    ARMS[arm][0],
                    loc="center",
                    fontsize=7.5,
                )
                over(ax, text, INK, at=0.5)
                ax.grid(False)
                ax.spines[:].set_visible(False)
                ax.tick_params(length=0)
                ax.set_xticks(range(len(modules)), modules, rotation=90, fontsize=7)
            shown = list(range(0, len(blocks), -(-len(blocks) // 6)))
            row[0].set_yticks(shown, [str(blocks[i]) for i in shown], fontsize=7)
            row[0].set_ylim(len(blocks) - 0.5, -0.5)
            row[0].set_ylabel("block")
            bar = figure.colorbar(mesh, ax=list(row), fraction=0.05, aspect=12, pad=0.01)
            bar.set_label(title)
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=7)
            if isinstance(norm, LogNorm):
                bar.ax.yaxis.set_major_locator(FixedLocator([1e-3, 1e-1, 10]))
                bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}"))
            bar.ax.yaxis.set_minor_locator(NullLocator())
        under = f"under {precision_label(quantizers[0])}; " if quantizers else ""
        split = " " if len(names) > 3 else "\n"
        figure.supxlabel(
            f"module ({under}numbers: medians over layers,{split}in brackets what min(|ΔW|/s, 1) predicts)", fontsize=8
        )
    return finished(figure)


# --- size -------------------------------------------------------------------------------------------------------


def forgetting(table: pd.DataFrame) -> Figure:
    """How far weights must move to forget, against the size of the model; dashed: ∝ 1/√(width·depth).

    Args:
        table: a row a run; columns ``width``, ``layers``, ``parameters`` (counts), ``arm``, ``seed``,
            ``relative_update`` (rms ΔW / σ); and, where known, ``relative_edge`` (largest weight that can move / σ, NaN
            for arms without a dead zone), drawn as bars, and ``reached``.

    Raises:
        ValueError: a column is missing or an arm is unknown.
    """
    checked(table, ["width", "layers", "parameters", "arm", "seed", "relative_update"])
    if table.empty:
        return sentence("No runs to show yet.")
    table = table.assign(size=table["width"] * table["layers"], reached=table.get("reached", True))
    shown = table[table["relative_update"] > 0]
    if shown.empty:
        return sentence("No weights that moved to show yet.")
    with printing():
        figure, ax = plt.subplots(figsize=(COLUMN, 2.6 + 0.08 * len(known_arms(shown))), layout="constrained")
        ax.set_xscale("log")
        ax.set_yscale("log")
        names = known_arms(shown)
        sizes = np.array(sorted(shown["size"].unique()), float)
        left, right = sizes[0] / 1.35, sizes[-1] * 1.35
        for i, arm in enumerate(names):
            colour, marker = ARMS[arm]
            rows = shown[shown["arm"] == arm]
            aside = 1.035 ** (i - (len(names) - 1) / 2)  # so that arms of one size do not hide each other
            middle = rows.groupby("size")["relative_update"].median()
            ax.plot(middle.index * aside, middle, color=colour, linewidth=0.8, alpha=0.5)
            for reached, face in ((True, colour), (False, "white")):
                found = rows[rows["reached"].astype(bool) == reached]
                ax.plot(
                    found["size"] * aside, found["relative_update"], marker, color=colour, markerfacecolor=face,
                    markeredgewidth=0.8, label=arm,
                )  # fmt: skip
        centre = np.exp(np.log(shown["relative_update"]).mean() + np.log(shown["size"]).mean() / 2)
        ax.plot([left, right], centre / np.sqrt([left, right]), color=MUTED, linestyle="--", linewidth=1)
        edges = table[table.get("relative_edge", pd.Series(np.nan, table.index)) > 0]
        if len(edges):
            ax.plot(edges["size"], edges["relative_edge"], "_", color=DEAD, markersize=13, markeredgewidth=1.6)
            ax.annotate(
                "largest |w| that can move / σ", (edges["size"].iloc[0], edges["relative_edge"].max()), xytext=(-6, 4),
                textcoords="offset points", color=DEAD, fontsize=7.5,
            )  # fmt: skip
        ax.set_xlim(left, right)
        ax.margins(y=0.12)
        ticks = shown.drop_duplicates("size").set_index("size").sort_index()
        shapes = ticks[["width", "layers", "parameters"]].itertuples(index=False)
        ax.set_xticks(ticks.index, [f"{at.width} × {at.layers}\n{counted(at.parameters)}" for at in shapes])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}"))
        seeds = shown.groupby(["size", "arm"])["seed"].nunique()
        ax.set_xlabel(f"width × layers, parameters (seeds: {span(seeds, str)})")
        ax.set_ylabel("update needed, rms |ΔW| / σ")
        handles = [arm_handle(arm) for arm in names]
        handles.append(Line2D([], [], color=MUTED, linestyle="--", linewidth=1, label="∝ 1/√(width·depth)"))
        if not shown["reached"].all():
            handles.append(Line2D([], [], color=INK, marker="o", markerfacecolor="white", linestyle="", label="missed"))
        figure.legend(handles=handles, loc="outside upper center", ncols=2, handletextpad=0.3, columnspacing=1)
    return finished(figure)


def arm_handle(arm: str) -> Line2D:
    colour, marker = ARMS[arm]
    return Line2D([], [], color=colour, marker=marker, linestyle="", label=arm)


def counted(parameters: float) -> str:
    """``1_300_000`` -> ``1.3M``."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{letter}"
    return f"{parameters:g}"


# --- one factor at a time ---------------------------------------------------------------------------------------

FACTORS = {
    "alpha": "LoRA α",
    "lora_alpha": "LoRA α",
    "learning_rate": "learning rate",
    "layers": "layers trained",
}
SLICED = {
    "update": ("size of the update", "rms |ΔW| / rms |W|"),
    "verbmem_bf16": (METRICS["verbmem"], "%"),
    "utility_bf16": (METRICS["utility"], "%"),
    "disjoint_bf16": (METRICS["disjoint"], "%"),
}


def slices(table: pd.DataFrame, x: str) -> Figure:
    """One factor against the size of the update and the scores in bf16: a panel a quantity, a point a run.

    Dotted, in the panel of the update: proportional to the factor, through the smallest value.

    Args:
        table: columns ``x``, ``update`` (rms |ΔW| over rms |W|), ``verbmem_bf16``, ``utility_bf16``,
            ``disjoint_bf16`` (percent), ``seed``; ``arm`` and ``reached`` where known.
        x: column of the factor; numbers stand on a logarithmic axis, names in the order they come.

    Raises:
        ValueError: a column is missing or an arm is unknown.
    """
    checked(table, [x, *SLICED, "seed"])
    panels = {key: words for key, words in SLICED.items() if len(table) and table[key].notna().any()}
    if not panels:
        return sentence("No runs to show yet.")
    numeric = pd.api.types.is_numeric_dtype(table[x]) and (table[x] > 0).all()
    order, bare = sorted(table[x].unique()) if numeric else list(table[x].unique()), "arm" not in table
    table = table.assign(
        at=table[x] if numeric else [order.index(value) for value in table[x]],
        arm=table.get("arm", "fp32 master"),
        reached=table.get("reached", True),
    ).sort_values("at", kind="stable")
    names = known_arms(table)
    with printing():
        figure, axes = plt.subplots(
            1, len(panels), figsize=(max(COLUMN, PAGE * len(panels) / 4), 2.1), squeeze=False, layout="constrained"
        )
        for ax, (key, (title, unit)) in zip(axes[0], panels.items(), strict=True):
            for arm in names:
                colour, marker = (FREE, "o") if bare else ARMS[arm]
                rows = table[(table["arm"] == arm) & table[key].notna()]
                middle = rows.groupby("at")[key].median()
                if numeric:  # a line between names would say that there is something in between
                    ax.plot(middle.index, middle, color=colour, linewidth=0.8, alpha=0.6)
                for reached, face in ((True, colour), (False, "white")):
                    found = rows[rows["reached"].astype(bool) == reached]
                    ax.plot(
                        found["at"], found[key], marker, color=colour, markerfacecolor=face, markeredgewidth=0.8,
                        label=arm,
                    )  # fmt: skip
            ax.set_title(title)
            ax.set_ylabel(unit)
            factor_axis(ax, x, order, numeric)
            if key == "update":
                size_axis(ax, table, FACTORS.get(x, x) if numeric else "")
            else:
                ax.set_ylim(-4, 104)
        seeds = table.groupby(["arm", "at"])["seed"].nunique()
        figure.supxlabel(f"{FACTORS.get(x, x)} (a point a run, seeds: {span(seeds, str)})", fontsize=8)
        if len(names) > 1:
            figure.legend(handles=[arm_handle(arm) for arm in names], loc="outside upper center", ncols=4)
    return finished(figure)


def factor_axis(ax: Axes, x: str, order: Sequence, numeric: bool) -> None:
    """Ticks at the values that were run."""
    if numeric:
        ax.set_xscale("log")
        ax.set_xlim(order[0] / 1.4, order[-1] * 1.4)
        shown = order if len(order) <= 5 else order[:: -(-len(order) // 4)]
        ax.set_xticks(shown, [f"{value:g}" for value in shown], rotation=45 if x == "learning_rate" else 0)
    else:
        ax.set_xlim(-0.5, len(order) - 0.5)
        ax.set_xticks(range(len(order)), [str(value).replace("_", "\n") for value in order])
    ax.xaxis.set_minor_locator(NullLocator())


def size_axis(ax: Axes, table: pd.DataFrame, factor: str) -> None:
    """Sizes of updates: logarithmic, with the line of proportion, where all are positive."""
    moved = table[table["update"] > 0]
    if not factor or moved.empty or len(moved) < table["update"].notna().sum():
        ax.set_ylim(0, 1.1 * table["update"].max() or 1)
        return
    ax.set_yscale("log")
    ends = np.array([moved["at"].min(), moved["at"].max()], float)
    first = moved.loc[moved["at"] == ends[0], "update"].median()
    ax.plot(ends, first * ends / ends[0], color=MUTED, linestyle=":", linewidth=1)
    ax.annotate(
        f"∝ {factor}", (ends[1], first * ends[1] / ends[0]), xytext=(-9, -2), textcoords="offset points", ha="right",
        va="center", color=MUTED, fontsize=7.5,
    )  # fmt: skip
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}"))
