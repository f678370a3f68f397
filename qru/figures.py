"""Records -> figures. Every figure is closed for pyplot and returned, so that a notebook shows it exactly once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from qru import style
from qru.records import Record
from qru.registry import unknown
from qru.style import INK, MUTED, drawing, precision_label
from qru.tables import HEADINGS, METRICS, OF_CLASSIFIERS, crossing_frame, forget_set_frame, labelled, score_frame

PRECISION_MARKERS = ("o", "D", "s", "^", "v", "P", "X", "<", ">")
MODULE_ORDER = ("q", "k", "v", "o", "gate", "up", "down")


def looks(models: Sequence[str]) -> dict[str, dict]:
    """Colour, marker and line of each model: fixed for target and retrained, in order for the arms."""
    out, arms = {}, 0
    for model in models:
        if model in style.MODELS:
            colour, marker, line = style.MODELS[model]
        else:
            colour, marker, line = style.ARMS[arms], style.ARM_MARKERS[arms], style.ARM_LINES[arms]
            arms += 1
        out[model] = {"color": colour, "marker": marker, "linestyle": line}
    return out


def label_ends(
    ax: Axes, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, str], gap: float = 0.085
) -> None:
    """Write each line's name beside its last point, pushed apart where names would overlap.

    Args:
        ends: name -> last point, in data coordinates.
        gap: least distance of two names, as a share of the axes' height.
    """
    low, high = ax.get_ylim()
    places = {name: (ax.transData.transform((x, y))[1], x, y) for name, (x, y) in ends.items()}
    bottom, top = ax.transAxes.transform((0, 0))[1], ax.transAxes.transform((0, 1))[1]
    heights = {name: (place[0] - bottom) / (top - bottom) for name, place in places.items()}
    order = sorted(heights, key=heights.get)
    for _ in range(100):  # relax: neighbours that are too close push each other away by half of what is missing
        for lower, upper in itertools.pairwise(order):
            missing = gap - (heights[upper] - heights[lower])
            if missing > 1e-6:
                heights[lower] -= missing / 2
                heights[upper] += missing / 2
    shift = max(0.0, gap / 2 - heights[order[0]]) or min(0.0, 1 - gap / 2 - heights[order[-1]])  # none beside the ticks
    heights = {name: height + shift for name, height in heights.items()}
    right = max(x for _, x, _ in places.values())
    for name, height in heights.items():
        ax.annotate(
            name, xy=(right, places[name][2]), xycoords="data", xytext=(1.02, height), textcoords="axes fraction",
            color=colours[name], va="center", ha="left", fontsize=9, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colours[name], "lw": 0.6, "shrinkA": 1, "shrinkB": 4,
                        "relpos": (0, 0.5)},
        )  # fmt: skip
    ax.set_ylim(low, high)


def finished(figure: Figure) -> Figure:
    plt.close(figure)
    return figure


def sentence(text: str) -> Figure:
    """A figure of one line, where there is nothing to draw."""
    with drawing():
        figure, ax = plt.subplots(figsize=(10, 0.6))  # notebooks show no figure without axes
        ax.axis("off")
        ax.text(0.5, 0.5, text, ha="center", va="center", color=MUTED)
    return finished(figure)


def scores_by_precision(
    *records: Record, metrics: Sequence[str] = ("verbmem", "knowmem", "privleak", "utility", *OF_CLASSIFIERS)
) -> Figure:
    """Each metric over precisions with 95 % intervals: the target, every unlearned arm, the retrained model.

    Metrics that the corpus has no examples of are left out.
    """
    frame = score_frame(labelled(*records))
    metrics = [metric for metric in metrics if metric in set(frame["metric"])]
    models, precisions = list(frame["model"].unique()), list(frame["precision"].unique())
    look = looks(models)
    with drawing():
        figure, axes = plt.subplots(-(-len(metrics) // 2), 2, figsize=(10, 3.1 * -(-len(metrics) // 2)), squeeze=False)
        for ax, metric in zip(axes.flat, metrics, strict=False):
            ends = {}
            for i, model in enumerate(models):
                rows = frame[(frame["model"] == model) & (frame["metric"] == metric)]
                # Dodged, so that intervals of models that agree do not hide each other.
                x = np.array([precisions.index(p) for p in rows["precision"]]) + 0.09 * (i - (len(models) - 1) / 2)
                y = rows["value"].to_numpy()
                error = np.abs(np.stack([y - rows["low"], rows["high"] - y]))
                ax.errorbar(x, y, yerr=error, capsize=2, elinewidth=1, **look[model])
                ends[model] = (float(x[-1]), float(y[-1]))
            ax.set_title(HEADINGS[metric])
            ax.set_ylabel("percent")
            ax.set_xticks(range(len(precisions)), [precision_label(p).replace(" ", "\n") for p in precisions])
            ax.margins(x=0.03)
            if metric == "privleak":
                ax.axhline(0, color=MUTED, linewidth=0.8)
            else:
                ax.set_ylim(-4, 104)
            label_ends(ax, ends, {m: look[m]["color"] for m in models})
        for ax in axes.flat[len(metrics) :]:
            ax.remove()
        figure.align_ylabels()
        figure.tight_layout(w_pad=2.5, h_pad=1.5)
    return finished(figure)


def forget_utility(*records: Record) -> Figure:
    """Forgetting against utility: arrows from each model in bf16 to its quantized versions; to the right is memory.

    Of classifiers, the accuracy on what was to be forgotten against that on what was to be kept. A corpus without
    questions on what is kept has no utility, and gets a sentence in place of the picture.
    """
    frame = score_frame(labelled(*records))
    titles = {"verbmem": "forgotten text (VerbMem)", "knowmem": "forgotten knowledge (KnowMem)"}
    titles |= {"forget_accuracy": "forgotten labels (forget accuracy)"}
    titles = {metric: title for metric, title in titles.items() if metric in set(frame["metric"])}
    kept = "retain_accuracy" if "forget_accuracy" in titles else "utility"
    if not titles or kept not in set(frame["metric"]):
        return sentence(
            "The corpus has no questions on what is kept, so there is no utility to set forgetting against."
        )
    wide = frame.pivot(index=["model", "precision"], columns="metric", values=["value", "low", "high"])
    models, precisions = list(frame["model"].unique()), list(frame["precision"].unique())
    look = looks(models)
    with drawing():
        figure, axes = plt.subplots(1, len(titles), figsize=(5 * len(titles), 5), sharey=True, squeeze=False)
        axes = axes[0]
        for ax, (metric, title) in zip(axes, titles.items(), strict=True):
            ax.grid(True, axis="both")
            for model in models:
                colour = look[model]["color"]
                rows = wide.loc[model].reindex(precisions)
                x, y = rows[("value", metric)].to_numpy(), rows[("value", kept)].to_numpy()
                for end in range(1, len(x)):
                    ax.annotate(
                        "", xy=(x[end], y[end]), xytext=(x[0], y[0]),
                        arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.1, "alpha": 0.7, "shrinkB": 4},
                    )  # fmt: skip
                for i, marker in zip(range(len(x)), PRECISION_MARKERS, strict=False):
                    # bf16 is filled and drawn last: int8 usually lies right on it.
                    face, size, above = (colour, 8, 4) if i == 0 else ("white", 7, 3)
                    ax.plot(x[i], y[i], marker, color=colour, markerfacecolor=face, markersize=size, zorder=above)
                low, high = rows[("low", metric)].to_numpy(), rows[("high", metric)].to_numpy()
                ax.errorbar(x[0], y[0], xerr=[[abs(x[0] - low[0])], [abs(high[0] - x[0])]], color=colour, lw=1)
            ax.set_title(title)
            ax.set_xlabel("remembered (%) — less is better")
            ax.set_xlim(-4, 104)
            ax.xaxis.set_major_locator(MaxNLocator(6))
        what = kept.replace("_", " ")
        axes[0].set_ylabel(f"{what} (%) — more is better")
        low, high = axes[0].get_ylim()
        middle, half = (low + high) / 2, max(20, (high - low) / 2 + 4)  # small differences must not fill the picture
        axes[0].set_ylim(max(-4, middle - half), min(104, middle + half))
        shapes = [
            Line2D([], [], marker=marker, linestyle="", color=INK, markerfacecolor=INK if i == 0 else "white",
                   label=precision_label(p))
            for i, (p, marker) in enumerate(zip(precisions, PRECISION_MARKERS, strict=False))
        ]  # fmt: skip
        colours = [Line2D([], [], color=look[m]["color"], lw=4, label=m) for m in models]
        figure.legend(handles=colours, loc="lower center", ncols=4, bbox_to_anchor=(0.52, 0.055))
        figure.legend(handles=shapes, loc="lower center", ncols=len(shapes), bbox_to_anchor=(0.52, -0.005))
        figure.tight_layout(rect=(0, 0.13, 1, 1), w_pad=2)
    return finished(figure)


def learning_curve(*records: Record) -> Figure:
    """The forget and retain terms over training steps, and the forget scores where a goal was watched."""
    arms = labelled(*records)
    look = looks(list(arms))
    histories = {label: pd.DataFrame(record.extra["history"]) for label, record in arms.items()}
    panels = {"forget": "forget term", "retain": "retain term", "verbmem": "VerbMem, stopping half (%)"}
    panels["forget_accuracy"] = "forget accuracy, stopping half (%)"
    panels = {key: title for key, title in panels.items() if any(key in h for h in histories.values())}
    with drawing():
        figure, axes = plt.subplots(1, len(panels), figsize=(10, 3.1), squeeze=False)
        for ax, (key, title) in zip(axes[0], panels.items(), strict=True):
            for label, history in histories.items():
                if key in history:
                    rows = history.dropna(subset=[key])
                    few = len(rows) < 25
                    ax.plot(rows["step"], rows[key], **look[label] | {"marker": look[label]["marker"] if few else ""})
            ax.set_title(title)
            ax.set_xlabel("step")
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            if key not in ("verbmem", "forget_accuracy"):
                ax.set_ylabel("loss (nats)")
        handles = [Line2D([], [], label=label, **look[label]) for label in arms]
        figure.legend(handles=handles, loc="lower center", ncols=len(handles))
        figure.tight_layout(rect=(0, 0.09, 1, 1), w_pad=2)
    return finished(figure)


def training_curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Loss of base, target and retrained over their training steps.

    Args:
        histories: model -> one dict per step with ``step`` and ``loss`` (nats a token, or a classifier's a text); none
            gives a sentence.
    """
    if not histories:
        return sentence("These models came ready: how they were trained is not known here.")
    with drawing():
        figure, axes = plt.subplots(1, len(histories), figsize=(10, 2.9), squeeze=False, sharey=True)
        for ax, (name, history) in zip(axes[0], histories.items(), strict=True):
            frame = pd.DataFrame(list(history))
            ax.plot(frame["step"], frame["loss"], color=style.ARMS[0], alpha=0.3, linewidth=1)
            smooth = frame["loss"].rolling(max(1, len(frame) // 40), min_periods=1).mean()
            ax.plot(frame["step"], smooth, color=style.ARMS[0])
            ax.annotate(
                f"{smooth.iloc[-1]:.2f}", (frame["step"].iloc[-1], smooth.iloc[-1]), xytext=(0, 8),
                textcoords="offset points", ha="right",
            )  # fmt: skip
            ax.set_title(name)
            ax.set_xlabel("step")
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes[0][0].set_ylabel("loss (nats)")
        axes[0][0].set_ylim(bottom=0)
        figure.tight_layout(w_pad=2)
    return finished(figure)


def module_order(frame: pd.DataFrame) -> list[str]:
    """Module types in the order data takes through a block; those of other architectures behind."""
    found = list(frame["module"].unique())
    return sorted(found, key=lambda m: MODULE_ORDER.index(m) if m in MODULE_ORDER else len(MODULE_ORDER))


def crossings_by_layer(*records: Record, precision: str | None = None) -> Figure:
    """``crossings`` of recorded runs; ``precision`` is the first 4-bit quantizer unless given."""
    arms = labelled(*records)
    precisions = list(next(iter(arms.values())).crossings)
    chosen = precision or next((p for p in precisions if "int4" in p), precisions[0])
    return crossings({label: record.crossings for label, record in arms.items()}, chosen)


def crossings(reports: Mapping[str, Mapping[str, Any]], precision: str) -> Figure:
    """Left: share of weights that crossed a bin, by block and module type. Right: the same against the prediction.

    Args:
        reports: label -> quantizer -> what ``qru.audit`` gives.
        precision: quantizer of the left side; the right side shows all.
    """
    frame = crossing_frame(reports)
    models, precisions = list(frame["model"].unique()), list(frame["precision"].unique())
    chosen = frame[frame["precision"] == precision]
    modules = module_order(frame)
    blocks = sorted(frame["block"].unique())
    ceiling = max(chosen["crossed"].max(), 1e-3)
    with drawing():
        height = max(2.9, 0.26 * len(blocks) + 1.4)
        figure, axes = plt.subplots(
            len(models), 2, figsize=(10, height * len(models)), squeeze=False, width_ratios=(1.25, 1)
        )
        for row, model in zip(axes, models, strict=True):
            rows = chosen[chosen["model"] == model]
            grid = rows.pivot(index="block", columns="module", values="crossed")[modules]
            sns.heatmap(
                grid, ax=row[0], cmap="Blues", vmin=0, vmax=ceiling, annot=len(blocks) <= 16, fmt=".2g",
                annot_kws={"fontsize": 9}, linewidths=1, linecolor="white", cbar=len(blocks) > 16,
            )  # fmt: skip
            all_layers = np.average(rows["crossed"], weights=rows["weights"])
            row[0].set_title(f"{model}\n{all_layers:.2g} % crossed under {precision_label(precision)}; by layer (%)")
            row[0].set_xlabel("module")
            row[0].set_ylabel("block")
            row[0].tick_params(length=0)
            row[0].set_yticklabels(row[0].get_yticklabels(), rotation=0)
            predicted_against_measured(row[1], frame[frame["model"] == model], precisions)
        figure.tight_layout(w_pad=2.5, h_pad=2)
    return finished(figure)


def predicted_against_measured(ax: Axes, frame: pd.DataFrame, precisions: Sequence[str]) -> None:
    """A point a layer and quantizer, on logarithmic axes; on the diagonal the prediction min(|ΔW|/s, 1) holds."""
    floor = 1e-3
    ax.grid(True, axis="both")
    ax.plot([floor, 100], [floor, 100], color=MUTED, linewidth=0.8)
    shown = list(zip(precisions, style.ARMS, PRECISION_MARKERS[1:], strict=False))
    for precision, colour, marker in shown:
        rows = frame[frame["precision"] == precision]
        ax.plot(
            rows["predicted"].clip(lower=floor), rows["crossed"].clip(lower=floor), marker, color=colour,
            markerfacecolor="none", markersize=5, label=precision_label(precision),
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_aspect("equal")
    ax.set_xlim(floor / 1.5, 150)
    ax.set_ylim(floor / 1.5, 150)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_title("measured and predicted\na point a layer")
    ax.set_xlabel("predicted: min(|ΔW|/s, 1) (%)")
    ax.set_ylabel("measured (%)")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.2)


def survival(reports: Mapping[str, Mapping[str, Any]], precision: str) -> Figure:
    """How much of the update is left after rounding, a point a layer: projection on it, and cosine with it.

    Args:
        reports: label -> quantizer -> what ``qru.audit`` gives.
        precision: quantizer.
    """
    frame = crossing_frame({label: {precision: by[precision]} for label, by in reports.items()})
    modules = module_order(frame)
    look = looks(list(reports))
    titles = {"projection": "projection: the part that survives on average", "cosine": "cosine: signal against noise"}
    with drawing():
        figure, axes = plt.subplots(1, 2, figsize=(10, 3.4))
        for ax, (key, title) in zip(axes, titles.items(), strict=True):
            for i, label in enumerate(reports):
                rows = frame[(frame["model"] == label) & frame[key].notna()]
                x = [modules.index(m) + 0.16 * (i - (len(reports) - 1) / 2) for m in rows["module"]]
                ax.plot(
                    x, rows[key], look[label]["marker"], color=look[label]["color"], markerfacecolor="none", label=label
                )
            ax.axhline(1, color=MUTED, linewidth=0.8)
            ax.set_ylim(bottom=min(0, frame[key].min()) - 0.05)
            ax.set_xticks(range(len(modules)), modules)
            ax.set_title(title)
            ax.set_xlabel("module")
        axes[0].set_ylabel(f"under {precision_label(precision)}")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=len(reports))
        figure.tight_layout(rect=(0, 0.09, 1, 1), w_pad=2)
    return finished(figure)


def grids(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Crossed share and surviving projection over bits × groups, a row an arm.

    Args:
        tables: arm -> columns ``bits``, ``group``, ``crossed`` (percent), ``projection``.
    """
    titles = {"crossed": "crossed (% of weights)", "projection": "projection (1: the update survives)"}
    with drawing():
        figure, axes = plt.subplots(len(tables), 2, figsize=(10, 2.7 * len(tables)), squeeze=False)
        for row, (label, table) in zip(axes, tables.items(), strict=True):
            groups = list(dict.fromkeys(table["group"]))
            for ax, (key, title) in zip(row, titles.items(), strict=True):
                values = table.pivot(index="bits", columns="group", values=key)[groups].astype(float)
                # Crossings span decades, so their colours are on a logarithmic scale; numbers stand in the cells.
                shade = np.log10(values.clip(lower=1e-3)) if key == "crossed" else values.clip(0, 1.2)
                limits = (-3, 2) if key == "crossed" else (0, 1.2)
                sns.heatmap(
                    shade, ax=ax, annot=values, fmt=".2g", cmap="Blues", vmin=limits[0], vmax=limits[1], cbar=False,
                    linewidths=1, linecolor="white", annot_kws={"fontsize": 9},
                )  # fmt: skip
                ax.set_title(f"{label}\n{title}")
                ax.tick_params(length=0)
                ax.set_yticklabels(ax.get_yticklabels(), rotation=0)
        figure.tight_layout(w_pad=2.5, h_pad=2)
    return finished(figure)


def weight_row(
    before: Sequence[float], after: Sequence[float], codes_before: Sequence[int], codes_after: Sequence[int],
    step: float,
) -> Figure:  # fmt: skip
    """Weights of one row on their grid: what moved, and what a quantized model sees of it.

    Args:
        before, after: weights before and after unlearning.
        codes_before, codes_after: their codes on the grid of the weights before.
        step: of that grid, in the weights' unit.
    """
    before, after = np.asarray(before), np.asarray(after)
    crossed = np.asarray(codes_before) != np.asarray(codes_after)
    x = np.arange(len(before))
    with drawing():
        figure, ax = plt.subplots(figsize=(10, 4.2))
        low, high = min(before.min(), after.min()), max(before.max(), after.max())
        ax.grid(False)
        lines = np.arange(np.floor(low / step), np.ceil(high / step) + 1)
        for code in lines:  # values that the grid can hold, and bands that round to the same one
            ax.axhline(code * step, color="#B9B9B9", linewidth=0.8)
            if code % 2 == 0:
                ax.axhspan((code - 0.5) * step, (code + 0.5) * step, color="#F3F3F3", zorder=0)
        ax.vlines(x, before, after, color=[style.ARMS[1] if c else style.ARMS[0] for c in crossed], linewidth=2)
        ax.plot(x, before, "o", color=MUTED, markerfacecolor="white", markersize=5, label="before unlearning")
        ax.plot(x[~crossed], after[~crossed], "o", color=style.ARMS[0], markersize=4, label="after, same code")
        ax.plot(x[crossed], after[crossed], "D", color=style.ARMS[1], markersize=6, label="after, crossed a bin")
        ax.set_yticks(lines * step, [f"{int(code):+d}" if code else "0" for code in lines])
        ax.set_ylim((lines[0] - 0.6) * step, (lines[-1] + 0.6) * step)
        ax.set_ylabel(f"code (one step = {step:.3g})")
        ax.set_xlabel("weight in the group")
        ax.set_title(f"{crossed.sum()} of {len(x)} weights crossed a bin; the others look as if nothing had happened")
        ax.margins(x=0.01)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
        figure.tight_layout()
    return finished(figure)


def moved_by_magnitude(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Share of weights that moved at all, by their size: the dead zone of weights stored and stepped in bf16.

    Args:
        frames: arm -> columns ``magnitude`` (lower edge of a power-of-two bin), ``weights``, ``moved`` (counts).
    """
    look = looks(list(frames))
    with drawing():
        figure, (ax, below) = plt.subplots(2, 1, figsize=(10, 4.4), sharex=True, height_ratios=(2.4, 1))
        for label, frame in frames.items():
            rows = frame[frame["weights"] > 0]
            ax.plot(2**0.5 * rows["magnitude"], 100 * rows["moved"] / rows["weights"], label=label, **look[label])
        rows = next(iter(frames.values()))
        rows = rows[rows["weights"] > 0]
        below.bar(
            rows["magnitude"], 100 * rows["weights"] / rows["weights"].sum(), width=rows["magnitude"], align="edge",
            color="#BDBDBD", edgecolor="white",
        )  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.set_ylim(-4, 104)
        ax.set_ylabel("moved (% of bin)")
        below.set_ylabel("weights (%)")
        below.set_xlabel("size of the weight before unlearning, |W| (bins are powers of two)")
        ax.set_title("Which weights moved at all")
        ax.legend(loc="lower left")
        figure.align_ylabels()
        figure.tight_layout()
    return finished(figure)


def update_sizes(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """How large the updates are in steps of the grid, |ΔW|/s: the part right of 1/2 can cross from anywhere.

    Args:
        frames: arm -> columns ``steps`` (lower edge of a power-of-two bin) and ``share`` (percent of all weights).
    """
    look = looks(list(frames))
    used = [frame["steps"][frame["share"] >= 0.05] for frame in frames.values()]
    used = [steps for steps in used if len(steps)]
    low, high = (min(s.min() for s in used), max(s.max() for s in used)) if used else (2**-4, 0.5)
    with drawing():
        figure, ax = plt.subplots(figsize=(10, 3.4))
        for label, frame in frames.items():
            unmoved = 100 - frame["share"].sum()
            ax.step(
                frame["steps"], frame["share"], where="post", color=look[label]["color"],
                linestyle=look[label]["linestyle"], label=f"{label} ({unmoved:.0f} % did not move)",
            )  # fmt: skip
        ax.axvline(0.5, color=MUTED, linewidth=1)
        ax.annotate("half a step", (0.5, 0.97), xycoords=("data", "axes fraction"), xytext=(4, 0),
                    textcoords="offset points", va="top", color=MUTED, fontsize=9)  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.set_xlim(low / 2, max(2 * high, 2))
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        ax.set_xlabel("|ΔW| / s (bins are powers of two)")
        ax.set_ylabel("share of all weights")
        ax.set_title("Size of the updates, in quantization steps")
        ax.legend(loc="upper left")
        figure.tight_layout()
    return finished(figure)


def recovery(*records: Record) -> Figure:
    """Does memory rise from bf16 towards the target? A column a method, a row a metric, a line a model.

    Args:
        records: arms of any number of methods, of one corpus and scale.
    """
    by_method: dict[str, list[Record]] = {}
    for record in records:
        by_method.setdefault(record.config["method"], []).append(record)
    arms = {m: labelled(*found) for m, found in by_method.items()}
    lines = [label.removeprefix(f"{m} ") for m, found in arms.items() for label in found]
    look = looks(["target", *dict.fromkeys(lines), "retrained"])
    with drawing():
        figure, axes = plt.subplots(
            2, len(arms), figsize=(max(3.4, 1.85 * len(arms)), 3.9), squeeze=False, sharex=True, sharey=True
        )
        for column, (method, found) in zip(axes.T, arms.items(), strict=True):
            frame = score_frame(found)
            precisions = list(frame["precision"].unique())
            models = list(frame["model"].unique())
            for ax, metric in zip(column, ("verbmem", "knowmem"), strict=True):
                for i, model in enumerate(models):
                    rows = frame[(frame["model"] == model) & (frame["metric"] == metric)]
                    x = np.arange(len(rows)) + 0.12 * (i - (len(models) - 1) / 2)
                    y = rows["value"].to_numpy()
                    error = np.abs(np.stack([y - rows["low"], rows["high"] - y]))
                    ax.errorbar(
                        x, y, yerr=error, capsize=1.5, elinewidth=0.7,
                        **look[model.removeprefix(f"{method} ")] | {"linewidth": 1.2, "markersize": 3.5},
                    )  # fmt: skip
                ax.set_ylim(-4, 104)
                ax.set_xticks(range(len(precisions)), [precision_label(p) for p in precisions], fontsize=7)
                ax.tick_params(axis="x", rotation=60)
                ax.tick_params(axis="y", labelsize=7)
            column[0].set_title(method.upper().replace("_", "+"), fontsize=9)
        for ax, metric in zip(axes[:, 0], ("verbmem", "knowmem"), strict=True):
            ax.set_ylabel(f"{METRICS[metric].split()[0]} (%)", fontsize=8)
        handles = [Line2D([], [], label=name.replace("lora", "LoRA"), markersize=4, linewidth=1.2,
                      **look[name])
                   for name in look]  # fmt: skip
        figure.legend(handles=handles, loc="lower center", ncols=2 if len(arms) == 1 else 4, fontsize=8)
        figure.tight_layout(rect=(0, 0.12 if len(arms) == 1 else 0.07, 1, 1), w_pad=0.6)
    return finished(figure)


FORGET_SETS = {"scal": ("documents", "documents to be forgotten at once"), "sust": ("number", "requests, one by one")}
PARTS = {
    "utility": METRICS["utility"],
    "forgotten": "VerbMem ↓, to be forgotten",
    "remaining": "VerbMem, not yet asked for",
}


def over_forget_sets(*records: Record, kind: str, precision: str | None = None) -> Figure:
    """Utility, and VerbMem of what is to be forgotten and of what is not yet, over forget sets.

    Solid and filled: bf16. Dashed and open: quantized. Target and retrained model, in bf16: lines without markers.

    Args:
        records: of one corpus and scale; those of another kind are left out.
        kind: ``"scal"`` (nested sets, each forgotten at once) or ``"sust"`` (one request after another).
        precision: quantizer of the dashed lines; the first of the records unless given.

    Raises:
        ValueError: none of the records is of this kind, or a quantizer that they do not have.
    """
    frame = forget_set_frame(*records)
    frame = frame[frame["kind"] == kind]
    if frame.empty:
        raise ValueError(f"none of the records is of a forget set {kind}_1, {kind}_2, …")
    quantizers = [name for name in frame["precision"].unique() if name != "bf16"]
    if precision is not None and precision not in quantizers:
        raise unknown("precision of these records", precision, quantizers)
    frame = frame[frame["precision"].isin(["bf16", precision or quantizers[0]])]
    column, label = FORGET_SETS[kind]
    measures = [measure for measure in PARTS if (frame["measure"] == measure).any()]
    arms = list(frame["arm"].unique())
    look = looks(["target", *arms, "retrained"])
    margin = 0.07 * max(1.0, float(np.ptp(frame[column])))
    with drawing():
        figure, axes = plt.subplots(1, len(measures), figsize=(10, 3.7), sharey=True, squeeze=False)
        for ax, measure in zip(axes[0], measures, strict=True):
            shown = frame[frame["measure"] == measure]
            examples = shown.drop_duplicates(column).set_index(column)["examples"].sort_index()
            same = measure == "utility"  # the same questions after every set
            ax.set_title(PARTS[measure] + (f" (n = {examples.iloc[0]})" if same else ""))
            ax.set_xticks(examples.index, [str(x) if same else f"{x}\nn = {n}" for x, n in examples.items()])
            ax.set_xlim(frame[column].min() - margin, frame[column].max() + margin)
            ax.set_xlabel(label)
            ax.set_ylim(-4, 104)
            ends = forget_set_lines(ax, shown, column, look, 0.25 * margin)
            if len(arms) == 1:
                label_ends(ax, ends, {name: look.get(name, look[arms[0]])["color"] for name in ends})
        axes[0][0].set_ylabel("percent")
        if len(arms) > 1:
            handles = forget_set_handles(look, list(frame["precision"].unique()))
            figure.legend(handles=handles, loc="lower center", ncols=3)
        rows = -(-(len(arms) + 4) // 3) if len(arms) > 1 else 0
        figure.set_figheight(3.7 + 0.22 * rows)
        figure.tight_layout(rect=(0, 0.22 * rows / (3.7 + 0.22 * rows), 1, 1), w_pad=1.5)
    return finished(figure)


def forget_set_handles(look: Mapping[str, Mapping[str, Any]], precisions: Sequence[str]) -> list[Line2D]:
    """Legend entries: models by colour, bf16 and the quantizer by line and filling."""
    bare = {name: at | ({"marker": ""} if name in style.MODELS else {}) for name, at in look.items()}
    models = [Line2D([], [], label=name, **at) for name, at in bare.items()]
    shapes = [
        Line2D([], [], color=MUTED, linestyle=line, marker="o", markerfacecolor=face, label=precision_label(name))
        for name, (line, face) in zip(precisions, (("-", MUTED), ("--", "white")), strict=True)
    ]
    return models + shapes


def forget_set_lines(
    ax: Axes, frame: pd.DataFrame, column: str, look: Mapping[str, Mapping[str, Any]], apart: float
) -> dict[str, tuple[float, float]]:
    """Draw one measure of every model; points of one place stand ``apart``, so that none hides another.

    Returns:
        Name -> last point of the references and of the last arm's precisions.
    """
    ends = {}
    for model in ("target", "retrained"):  # the same whichever arm stands beside it
        rows = frame[(frame["model"] == model) & (frame["precision"] == "bf16")]
        rows = rows.drop_duplicates(column).sort_values(column)
        marker = "_" if len(rows) == 1 else ""  # a line of one point is none
        ax.plot(rows[column], rows["value"], **look[model] | {"marker": marker, "markersize": 30, "linewidth": 1.2})
        ends[model] = rows[column].iloc[-1], rows["value"].iloc[-1]
    lines = list(itertools.product(frame["arm"].unique(), frame["precision"].unique()))
    for i, (arm, precision) in enumerate(lines):
        rows = frame[(frame["model"] == "unlearned") & (frame["precision"] == precision) & (frame["arm"] == arm)]
        x = rows[column] + apart * (i - (len(lines) - 1) / 2)
        error = np.abs([rows["value"] - rows["low"], rows["high"] - rows["value"]])
        line, face = ("-", look[arm]["color"]) if precision == "bf16" else ("--", "white")
        ax.errorbar(
            x, rows["value"], yerr=error, capsize=2, elinewidth=0.8, color=look[arm]["color"],
            marker=look[arm]["marker"], linestyle=line, markerfacecolor=face,
        )  # fmt: skip
        ends[precision_label(precision)] = x.iloc[-1], rows["value"].iloc[-1]
    return ends
