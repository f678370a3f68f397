"""Figures of the paper at printed size, and what their captions count: records and their tables -> matplotlib.

The pictures in the notebooks are for screens; these say the same on a column or a page of the paper.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from qru import style
from qru.figures import FORGET_SETS, PARTS, finished, forget_set_lines, label_ends, looks, sentence
from qru.kernel_figures import LIMIT, LOOKS, draw_times, plain_logarithm, present, results_of, shapes_of, title
from qru.kernel_record import NAMES, NOTE, checked, machine
from qru.records import Record, load_record, load_records, named_or_all, read_json
from qru.registry import unknown
from qru.style import INK, MUTED, precision_label
from qru.tables import METRICS, forget_set_frame
from qru.typeset import title as label_title
from qru.why_figures import ARMS, PAGE, arm_handle, factor_axis, known_arms, printing, size_axis

KERNELS = Path(__file__).resolve().parent.parent / "paper" / "records" / "kernel"


# --- one factor at a time ---------------------------------------------------------------------------------------

SLICED = {
    "update": ("update", "|ΔW| / |W|, rms"),
    "verbmem_bf16": (METRICS["verbmem"], "%"),
    "utility_bf16": (METRICS["utility"], "%"),
    "disjoint_bf16": (METRICS["disjoint"], "%"),
    "text_regained": ("text regained", "%"),
}
AXES = {"lora_alpha": "LoRA α", "lora_targets": "layers adapted", "learning_rate": "learning rate", "adam_beta2": "β₂"}
SHORT = {"mlp": "MLP", "attention": "attn."}


def slices(frames: Mapping[str, pd.DataFrame], quantizer: str) -> Figure:
    """The experiment's slices: a row a factor, a column a quantity, a point a run.

    Scores are of the model in bf16; the last column is what one quantizer brings back.

    Args:
        frames: factor -> rows of ``why.table`` under one quantizer, and a column of the factor's name. Empty frames
            have no row.
        quantizer: that they are under.

    Raises:
        ValueError: a factor or an arm is unknown.
    """
    frames = {factor: frame for factor, frame in frames.items() if len(frame)}
    for factor in frames:
        if factor not in AXES:
            raise unknown("factor", factor, AXES)
    if not frames:
        return sentence("No runs to show yet.")
    arms = [arm for arm in ARMS if any((frame["arm"] == arm).any() for frame in frames.values())]
    with printing(), plt.rc_context({"axes.titlesize": 8, "axes.labelsize": 7.5, "xtick.labelsize": 7}):
        figure, axes = plt.subplots(
            len(frames), len(SLICED), figsize=(PAGE, 0.6 + 1.35 * len(frames)), squeeze=False, layout="constrained"
        )
        for number, (row, (factor, frame)) in enumerate(zip(axes, frames.items(), strict=True)):
            for ax, (key, (name, unit)) in zip(row, SLICED.items(), strict=True):
                draw_slice(ax, frame, factor, key)
                if number == 0:
                    below = {"update": unit, "text_regained": f"(%) {precision_label(quantizer)}"}.get(
                        key, "(%) in bf16"
                    )
                    ax.set_title(f"{name}\n{below}", fontweight="normal")
                ax.tick_params(axis="y", labelsize=7)
            row[len(SLICED) // 2].set_xlabel(AXES[factor])
        handles = [arm_handle(arm) for arm in arms]
        if any(not frame["reached"].all() for frame in frames.values()):
            missed = Line2D([], [], color=INK, marker="o", markerfacecolor="white", linestyle="", label="missed goal")
            handles.append(missed)
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), handletextpad=0.1)
        figure.align_ylabels(axes[:, 0])
    return finished(figure)


def draw_slice(ax: Axes, frame: pd.DataFrame, factor: str, key: str) -> None:
    """One panel: a quantity over one factor."""
    values = frame[factor]
    # Two values of β₂ are two cases, not a scale; their logarithms would lie on top of each other.
    numeric = factor != "adam_beta2" and pd.api.types.is_numeric_dtype(values)
    order = sorted(values.unique()) if pd.api.types.is_numeric_dtype(values) else list(values.unique())
    frame = frame.assign(at=values if numeric else [order.index(value) for value in values])
    names = known_arms(frame)
    for i, arm in enumerate(names):
        colour, marker = ARMS[arm]
        rows = frame[(frame["arm"] == arm) & frame[key].notna()]
        aside = 0 if numeric else 0.16 * (i - (len(names) - 1) / 2)  # arms of one case must not hide each other
        if numeric:  # a line between names would say that there is something in between
            middle = rows.groupby("at")[key].median()
            ax.plot(middle.index, middle, color=colour, linewidth=0.8, alpha=0.6)
        for reached, face in ((True, colour), (False, "white")):
            found = rows[rows["reached"].astype(bool) == reached]
            ax.plot(
                found["at"] + aside, found[key], marker, color=colour, markerfacecolor=face, markeredgewidth=0.8,
                markersize=3.5, label=arm,
            )  # fmt: skip
    if frame[key].isna().all():
        ax.text(0.5, 0.5, "nothing forgotten", transform=ax.transAxes, ha="center", color=MUTED, fontsize=7)
    factor_axis(ax, factor, order, numeric)
    ticks = [SHORT.get(value, value) if isinstance(value, str) else f"{value:g}" for value in order]
    if factor == "learning_rate":
        ticks = [f"{value:.1e}".replace("e-0", "e-") for value in order]
    ax.set_xticks(order if numeric else range(len(order)), ticks, rotation=0, fontsize=6.5)
    if key == "update":
        size_axis(ax, frame, AXES[factor] if factor == "lora_alpha" else "")
        if factor != "lora_alpha":
            ax.yaxis.set_major_locator(MaxNLocator(4))
    else:
        shown = frame[key].dropna()
        ax.set_ylim(min(-4, shown.min() - 4 if len(shown) else -4), max(104, shown.max() + 4 if len(shown) else 104))
        ax.set_yticks([0, 50, 100])


# --- the kernel -------------------------------------------------------------------------------------------------


def load_kernels(files: Sequence[str] = (), folder: Path = KERNELS) -> list[dict[str, Any]]:
    """Records of the kernel's benchmark.

    Args:
        files: of the records; if there are none, all in the folder.
        folder: of committed ones.

    Raises:
        LookupError: there is none.
        ValueError: one is something else (names it).
    """
    paths = named_or_all(files, folder, f"no record in {folder}. Make one: make bench")
    return [checked(read_json(path), str(path)) for path in paths]


def kernel(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Time against rank above the machine's limit, and times others take as multiples of ours; a row a machine.

    Under each rank stands the share of the limit that our pass reaches.

    Args:
        records: of the kernel's benchmark, most ranks first in print.
    """
    rows = [(record, shape) for record in records for shape in shapes_of(record)]
    rows.sort(key=lambda row: -len(results_of(*row)))
    with printing():
        figure, axes = plt.subplots(
            len(rows), 2, figsize=(PAGE, 0.15 + 2.35 * len(rows)), squeeze=False, layout="constrained"
        )
        for (left, right), (record, shape) in zip(axes, rows, strict=True):
            results = results_of(record, shape)
            ranks = [result["rank"] for result in results]
            draw_kernel_times(left, results, ranks)
            ends = draw_kernel_ratios(right, results, ranks)
            left.set_title(f"{title(record, shape)}\n{machine(record)}", fontweight="normal", fontsize=8)
            right.set_title("times ours", fontweight="normal", fontsize=8)
            for ax in (left, right):
                ax.set_xscale("log", base=2)
                ax.set_yscale("log")
                plain_logarithm(ax.yaxis, subs=(1.0, 3.0) if ax is left else (1.0, 2.0, 5.0))
                ax.set_xticks(ranks, list(map(str, ranks)))
                ax.xaxis.set_minor_locator(NullLocator())
                ax.margins(x=0.06 if len(ranks) > 2 else 0.3)
            shares = [f"{result['rank']}\n{100 * result['share_of_ceiling']:.0f}" for result in results]
            left.set_xticks(ranks, shares)
            left.set_ylabel("time (ms)")
            left.set_xlabel("rank, and how many percent of the limit we reach")
            right.set_xlabel("rank")
            figure.draw_without_rendering()  # label_ends measures the axes as they are laid out
            with plt.rc_context({"font.size": 8}):
                label_ends(right, ends, {NAMES[name]: look[0] for name, look in LOOKS.items()}, gap=0.115)
            for text in right.texts:
                text.set_fontsize(7.5)
    return finished(figure)


def draw_kernel_times(ax: Axes, results: Sequence[Mapping[str, Any]], ranks: Sequence[int]) -> None:
    """Medians with quartiles, and the region below which no program can be on this machine."""
    for name in present(results):
        draw_times(ax, results, ranks, name, capsize=1.5, elinewidth=0.7, markersize=3.8)
    needed = [max(result["ceilings"]["memory_ms"], result["ceilings"]["fma_ms"]) for result in results]
    bottom = min(*needed, *(result["contestants"]["ours"]["low"] for result in results)) / 1.8
    ax.set_ylim(bottom, 1.5 * max(r["contestants"][name]["high"] for name in present(results) for r in results))
    ax.fill_between(ranks, needed, bottom, color="#E4E4E4", linewidth=0, zorder=0)
    ax.annotate(
        LIMIT.removeprefix("grey: "), (0.03, 0.03), xycoords="axes fraction", color=MUTED, fontsize=7, va="bottom"
    )


def draw_kernel_ratios(
    ax: Axes, results: Sequence[Mapping[str, Any]], ranks: Sequence[int]
) -> dict[str, tuple[float, float]]:
    """Ratios to ours with their intervals; contestants one beside the other, so that no interval hides another.

    Returns:
        Name -> last point.
    """
    ends = {}
    names = [name for name in present(results) if name != "ours"]
    ax.axhline(1, color=LOOKS["ours"][0], linewidth=1.2)
    ends[NAMES["ours"]] = ranks[-1], 1.0
    for i, name in enumerate(names):
        colour, marker, line = LOOKS[name]
        values = [result["contestants"][name] for result in results]
        middle = np.array([value["ratio"] for value in values])
        error = [middle - [v["ratio_low"] for v in values], [v["ratio_high"] for v in values] - middle]
        x = np.array(ranks) * 2 ** (0.1 * (i - (len(names) - 1) / 2))
        ax.errorbar(
            x, middle, yerr=np.maximum(error, 0), capsize=1.5, elinewidth=0.7, color=colour, marker=marker,
            linestyle=line, markersize=3.8, markerfacecolor="white" if name == "dequantize" else colour,
        )  # fmt: skip
        ends[NAMES[name]] = x[-1], middle[-1]
    return ends


def kernel_caption(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was timed, how often, and what the bars are."""
    rounds = sorted({result["rounds"] for record in records for result in record["results"]})
    return [
        f"Medians of n = {', '.join(map(str, rounds))} interleaved runs;",
        "bars on times span the quartiles, bars on ratios are 95 % intervals.",
        NOTE,
    ]


# --- forget sets ------------------------------------------------------------------------------------------------


def forget_set_records(files: Sequence[str] = (), scale: str = "mini") -> list[Record]:
    """The runs on forget sets that the figure shows.

    Args:
        files: record files; if there are none, of the newest such run's arm and corpus the newest of each set.
        scale: of the runs, if no file is named.

    Raises:
        LookupError: no file is named and there is no such run.
    """
    if files:
        return [load_record(file) for file in files]
    found = [r for r in load_records() if r.config["scale"] == scale and "forget_set" in r.extra]
    if not found:
        raise LookupError(f"no run on forget sets at {scale}. Make them: papermill notebooks/06_scal_sust.ipynb")
    rest = [{k: v for k, v in r.config.items() if k not in ("forget_set", "hash")} for r in found]
    return [record for record, config in zip(found, rest, strict=True) if config == rest[-1]]


def forget_sets(records: Sequence[Record], precision: str = "") -> Figure:
    """``figures.over_forget_sets`` for print: a row a kind, a panel a measure.

    Solid and filled: bf16. Dashed and open: quantized. Target and retrained model: lines without markers, in bf16.

    Args:
        records: runs on forget sets, of one corpus and scale.
        precision: quantizer of the dashed lines; the first of the records if empty.

    Raises:
        ValueError: a quantizer that they do not have.
    """
    frame = forget_set_frame(*records)
    quantizers = [name for name in frame["precision"].unique() if name != "bf16"]
    if precision and precision not in quantizers:
        raise unknown("precision of these records", precision, quantizers)
    frame = frame[frame["precision"].isin(["bf16", precision or quantizers[0]])]
    kinds = [kind for kind in FORGET_SETS if (frame["kind"] == kind).any()]
    measures = [measure for measure in PARTS if (frame["measure"] == measure).any()]
    arms = list(frame["arm"].unique())
    look = looks(["target", *arms, "retrained"])
    look = {name: at | {"linewidth": 1.2, "markersize": 4.5} for name, at in look.items()}
    with printing():
        figure, axes = plt.subplots(
            len(kinds), len(measures), figsize=(PAGE, 0.55 + 2.05 * len(kinds)), sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for number, (row, kind) in enumerate(zip(axes, kinds, strict=True)):
            column, label = FORGET_SETS[kind]
            of_kind = frame[frame["kind"] == kind]
            margin = 0.09 * max(1.0, float(np.ptp(of_kind[column])))
            for ax, measure in zip(row, measures, strict=True):
                shown = of_kind[of_kind["measure"] == measure]
                if shown.empty:
                    ax.remove()
                    continue
                examples = shown.drop_duplicates(column).set_index(column)["examples"].sort_index()
                same = measure == "utility"  # the same questions after every set
                if number == 0:
                    ax.set_title(PARTS[measure], fontweight="normal")
                ax.set_xticks(examples.index, [f"{x}\n{'' if same else f'n = {n}'}" for x, n in examples.items()])
                ax.set_xlim(of_kind[column].min() - margin, of_kind[column].max() + margin)
                ax.set_ylim(-4, 104)
                ax.set_xlabel(label)
                forget_set_lines(ax, shown, column, look, 0.25 * margin)
            row[0].set_ylabel("%")
        figure.legend(
            handles=forget_set_legend(look, list(frame["precision"].unique())), loc="outside upper center", ncols=6
        )
    return finished(figure)


def forget_set_legend(look: Mapping[str, Mapping[str, Any]], precisions: Sequence[str]) -> list[Line2D]:
    """Models by colour, precisions by line and filling."""
    bare = {name: at | ({"marker": ""} if name in style.MODELS else {}) for name, at in look.items()}
    models = [Line2D([], [], label=label_title(name), **at) for name, at in bare.items()]
    shapes = [
        Line2D([], [], color=MUTED, linestyle=line, marker="o", markerfacecolor=face, label=precision_label(name))
        for name, (line, face) in zip(precisions, (("-", MUTED), ("--", "white")), strict=True)
    ]
    return models + shapes


def forget_set_caption(records: Sequence[Record]) -> list[str]:
    """How many questions utility is of, which seeds, and what the bars are."""
    frame = forget_set_frame(*records)
    asked = sorted(set(frame.loc[frame["measure"] == "utility", "examples"].dropna().astype(int)))
    seeds = sorted({record.config["seed"] for record in records})
    questions = f"n = {', '.join(map(str, asked))} questions for utility, " if asked else ""
    out = f"{questions}n passages under each set for VerbMem;"
    return [out, "bars: 95 % over them;", f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}."]


# --- sizes of updates -------------------------------------------------------------------------------------------


def updates(kept: Sequence[Mapping[str, Any]]) -> Figure:
    """Above: how large updates are in steps of the grid. Below: crossings over bits × groups, measured and predicted.

    Args:
        kept: as ``update_record.measure`` makes them, of different arms, all under one quantizer and over one grid.

    Raises:
        ValueError: none is given, two are of one arm, an arm is unknown, or they are under different quantizers.
    """
    if not kept:
        return sentence("No sizes of updates to show yet.")
    names = [one["arm"] for one in kept]
    for name in names:
        if name not in ARMS:
            raise unknown("arm", name, ARMS)
    if len(set(names)) < len(names):
        raise ValueError(f"sizes of updates are shown of one run an arm; these are of {', '.join(names)}.")
    if len(quantizers := {one["quantizer"] for one in kept}) > 1:
        raise ValueError(f"sizes are in steps of one quantizer; these are of {', '.join(sorted(quantizers))}.")
    kept = sorted(kept, key=lambda one: list(ARMS).index(one["arm"]))
    grids = [pd.DataFrame(one["grid"]) for one in kept]
    with printing():
        figure = plt.figure(figsize=(PAGE, 4.3), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(1.9, 2.4))
        draw_sizes(above.subplots(), kept)
        axes = below.subplots(1, len(kept), sharey=True, squeeze=False)[0]
        for ax, one, grid in zip(axes, kept, grids, strict=True):
            draw_grid(ax, grid)
            heading = "\n".join(textwrap.wrap(one["arm"], 40 // len(kept) + 8))
            ax.set_title(heading, color=ARMS[one["arm"]][0], fontsize=8)
            ax.tick_params(axis="x", labelsize=7)
            ax.set_xlabel("weights that share a step")
        axes[0].set_ylabel("bits")
        below.suptitle("crossed (% of weights), and in brackets what min(|ΔW|/s, 1) predicts", fontsize=8)
    return finished(figure)


def draw_sizes(ax: Axes, kept: Sequence[Mapping[str, Any]]) -> None:
    """The distribution of |ΔW|/s, a line an arm; what did not move is in its label."""
    frames = {one["arm"]: pd.DataFrame(one["sizes"]) for one in kept}
    used = pd.concat([frame.loc[frame["share"] >= 0.05, "steps"] for frame in frames.values()])
    low, high = (used.min(), used.max()) if len(used) else (2**-4, 0.5)
    lines = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
    for (arm, frame), line in zip(frames.items(), lines, strict=False):
        still = max(0.0, 100 - frame["share"].sum())
        middle = frame["steps"] * 2**0.5
        ax.plot(
            middle, frame["share"], color=ARMS[arm][0], marker=ARMS[arm][1], markersize=3, linestyle=line,
            label=f"{arm} ({still:.0f} % did not move)",
        )  # fmt: skip
    ax.axvline(0.5, color=MUTED, linewidth=0.9)
    ax.annotate(
        "half a step", (0.5, 0.97), xycoords=("data", "axes fraction"), xytext=(3, 0), textcoords="offset points",
        va="top", color=MUTED, fontsize=7.5,
    )  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_xlim(low / 2, max(4 * high, 2))
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}" if at >= 1 else f"1/{1 / at:g}"))
    ax.set_xlabel(f"|ΔW| / s, s of {precision_label(kept[0]['quantizer'])} (a point a power of two)")
    ax.set_ylabel("share of all weights (%)")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_grid(ax: Axes, grid: pd.DataFrame) -> None:
    """Crossed shares over bits and groups, as vectors; shaded on a logarithmic scale from 0.001 to 100 percent."""
    bits, groups = sorted(grid["bits"].unique(), reverse=True), list(dict.fromkeys(grid["group"]))
    for row in grid.itertuples():
        x, y = groups.index(row.group), bits.index(row.bits)
        shade = colormaps["Blues"](0.05 + 0.75 * (np.log10(min(max(row.crossed, 1e-3), 100)) + 3) / 5)
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=shade, edgecolor="white", linewidth=1))
        dark = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] < 0.5
        ax.text(
            x, y, f"{short(row.crossed)}\n({short(row.predicted)})", ha="center", va="center", fontsize=6.5,
            color="white" if dark else INK, linespacing=1.05,
        )  # fmt: skip
    ax.set_xlim(-0.5, len(groups) - 0.5)
    ax.set_ylim(len(bits) - 0.5, -0.5)
    ax.set_xticks(range(len(groups)), [group.removeprefix("g") for group in groups])
    ax.set_yticks(range(len(bits)), [str(n) for n in bits])
    ax.grid(False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def short(value: float) -> str:
    """A share in two digits, as short as it goes: ``41``, ``5.8``, ``.043``, ``0``."""
    if value >= 9.95:
        return f"{value:.0f}"
    if value >= 0.95:
        return f"{value:.1f}"
    return f"{value:.1g}".removeprefix("0") if value >= 1e-3 else "0" if value == 0 else "<.001"


def updates_caption(kept: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which runs these are, a sentence an arm's setting."""
    corpora, methods, seeds = (
        sorted({str(one["config"][key]) for one in kept}) for key in ("corpus", "method", "seed")
    )
    weights = sorted({one["grid"][0]["weights"] for one in kept})
    return [
        f"{', '.join(methods).upper().replace('_', '+')} on {', '.join(corpora)}, one run an arm,",
        f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(seeds)};",
        f"{', '.join(f'{n:,}' for n in weights)} weights in linear layers.",
    ]
