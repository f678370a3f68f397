"""Figures of the paper that are of no experiment's own: the LoRA grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from qru.config import WHOLE
from qru.figures import finished, sentence
from qru.paper_tables import listed, over_seeds, settings
from qru.records import Record, load_record, load_records
from qru.registry import unknown
from qru.style import INK, precision_label
from qru.tables import METRICS
from qru.typeset import method_title
from qru.why_figures import PAGE, printing

# What the search varies -> its name on an axis; the papers' grid, in the order of their text.
FACTORS = {
    "lora_rank": "rank r",
    "lora_alpha": "α",
    "learning_rate": "learning rate",
    "epochs": "epochs",
    "lora_targets": "layers",
    "retain_weight": "λ",
}
LAYERS = {"all": "all", "mlp": "MLP", "attention": "attn."}
COLOURS = {"verbmem": "Oranges", "utility": "Blues"}
STRIPS = ("learning_rate", "epochs", "lora_targets", "retain_weight")
CELL = 0.27  # inches: height of a cell


def grid_records(files: Sequence[str] = (), scale: str = "mini") -> list[Record]:
    """The records that the figure of the grid shows.

    Args:
        files: record files; if there are none, every run of LoRA with fp32 adapters on the whole forget set.
        scale: of the runs, if no file is named.
    """
    if files:
        return [load_record(file) for file in files]
    wanted = {"scale": scale, "adapter": "lora", "weights": "fp32"}
    return [
        record
        for record in load_records()
        if wanted.items() <= record.config.items() and record.config.get("forget_set", WHOLE) == WHOLE
    ]


def grid_frame(records: Sequence[Record], quantizer: str) -> pd.DataFrame:
    """Settings of LoRA and what they led to, means over seeds, a row a setting.

    Args:
        records: of one scale; of other arms than LoRA nothing is shown.
        quantizer: name of the one beside bf16.

    Returns:
        Columns ``corpus``, ``method``, those of ``FACTORS``, ``seeds`` (how many), and ``(metric, precision)`` in
        percent for VerbMem and Utility in bf16 and quantized (NaN: not measured).

    Raises:
        ValueError: runs differ in something else than those columns and the seed, two are of one setting and seed, or
            none was quantized so.
    """
    groups: dict[tuple, list[Record]] = {}
    lora = [record for record in records if record.config["adapter"] == "lora"]
    for record in lora:
        first = settings(lora[0].config)
        rest = [
            key
            for key, value in settings(record.config).items()
            if key not in ("corpus", "method", *FACTORS) and first.get(key) != value
        ]
        if rest:
            raise ValueError(f"{record.path} differs from {lora[0].path} in {', '.join(rest)}: that is another grid.")
        key = tuple(record.config[name] for name in ("corpus", "method", *FACTORS))
        groups.setdefault(key, []).append(record)
    rows = []
    for key, found in groups.items():
        if len({record.config["seed"] for record in found}) < len(found):
            raise ValueError(f"{found[0].path} and {found[1].path} are of one setting; two share a seed.")
        row: dict[Any, Any] = dict(zip(("corpus", "method", *FACTORS), key, strict=True)) | {"seeds": len(found)}
        for precision in ("bf16", quantizer):
            for metric in COLOURS:
                scores = [record.scores["unlearned"].get(precision, {}).get(metric) for record in found]
                scores = [score for score in scores if score]
                row[metric, precision] = over_seeds(scores)["mean"] if scores else float("nan")
        rows.append(row)
    measured = {precision for record in lora for precision in record.scores["unlearned"]}
    if lora and quantizer not in measured:
        raise unknown("quantizer of these records", quantizer, measured)
    return pd.DataFrame(rows)


def chosen_row(frame: pd.DataFrame, chosen: Sequence[Any] = ()) -> pd.Series:
    """The row of the chosen setting.

    Args:
        frame: rows of ``grid_frame`` of one corpus and method.
        chosen: its values of ``FACTORS``, in order; none: the setting that most others differ from in one factor.

    Raises:
        ValueError: no run has this setting, or none is given and several have equally many neighbours.
    """
    factors = list(FACTORS)
    if len(chosen):
        if len(chosen) != len(factors):
            raise ValueError(f"chosen is {list(chosen)}; it must be {', '.join(factors)}.")
        wanted = [str(c) if name == "lora_targets" else float(c) for name, c in zip(factors, chosen, strict=True)]
        match = [all(row[name] == value for name, value in zip(factors, wanted, strict=True))
                 for _, row in frame.iterrows()]  # fmt: skip
        if not any(match):
            raise ValueError(f"no run has the chosen setting {dict(zip(factors, wanted, strict=True))}.")
        return frame[match].iloc[0]
    values = frame[factors].to_numpy(dtype=object)
    neighbours = pd.Series([int((((values != row).sum(axis=1)) == 1).sum()) for row in values], index=frame.index)
    most = neighbours[neighbours == neighbours.max()]
    if len(most) > 1 and len(frame) > 1:
        raise ValueError(
            f"{len(most)} settings have {most.iloc[0]} neighbours each, so which was chosen is unknown: give chosen, "
            f"{', '.join(factors)}."
        )
    return frame.loc[most.index[0]]


def lora_grid(records: Sequence[Record], quantizer: str = "rtn-int4-g128", chosen: Sequence[Any] = ()) -> Figure:
    """VerbMem and Utility over LoRA's settings, in bf16 and quantized; the chosen setting is outlined.

    For each corpus and method: maps over rank and α, and below them a strip for each other factor that varies. Of a
    full product this shows the cuts through the chosen setting.

    Args:
        records: runs of LoRA of one scale.
        quantizer: shown beside bf16.
        chosen: see ``chosen_row``.

    Raises:
        ValueError: see ``grid_frame`` and ``chosen_row``.
    """
    frame = grid_frame(records, quantizer)
    if frame.empty:
        return sentence("No run of LoRA among these records.")
    bands = [(names, rows) for names, rows in frame.groupby(["corpus", "method"], sort=False)]
    planes = [plane_of(rows, chosen_row(rows, chosen)) for _, rows in bands]
    strips = [strips_of(rows, chosen_row(rows, chosen)) for _, rows in bands]
    heights = [0.9 + CELL * len(plane.index) + (0.75 + CELL * 4) * bool(found)
               for plane, found in zip(planes, strips, strict=True)]  # fmt: skip
    with printing():
        figure = plt.figure(figsize=(PAGE, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(bands), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, ((corpus, method), rows), plane, found in zip(parts, bands, planes, strips, strict=True):
            seeds = listed(sorted(set(rows["seeds"])))
            runs = f"means of {seeds} seeds" if seeds != "1" else "one seed"
            part.suptitle(
                f"{corpus}, {method_title(method)}, {runs}; outlined: the chosen setting",
                x=0.005, ha="left", fontsize=8.5, fontweight="bold",
            )  # fmt: skip
            draw_band(part, rows, plane, found, chosen_row(rows, chosen).name, quantizer)
    return finished(figure)


def through(frame: pd.DataFrame, at: pd.Series, free: Sequence[str]) -> pd.DataFrame:
    """Rows that agree with one in every factor but the free ones."""
    same = [(frame[name] == at[name]) for name in FACTORS if name not in free]
    return frame[pd.concat(same, axis=1).all(axis=1)]


def plane_of(frame: pd.DataFrame, at: pd.Series) -> pd.DataFrame:
    """Rank × α (or × α/r, where that takes fewer columns) -> row label in ``frame``; NaN where nothing was run."""
    rows = through(frame, at, ("lora_rank", "lora_alpha"))
    across = {"α": rows["lora_alpha"], "α/r": rows["lora_alpha"] / rows["lora_rank"]}
    name = min(across, key=lambda name: across[name].nunique())
    table = pd.DataFrame({"rank r": rows["lora_rank"], name: across[name], "row": rows.index})
    return table.pivot(index="rank r", columns=name, values="row")


def strips_of(frame: pd.DataFrame, at: pd.Series) -> dict[str, pd.DataFrame]:
    """Factor -> the rows that differ from one in this factor alone, and that one, by the factor's value."""
    found = {name: through(frame, at, [name]) for name in STRIPS}
    order = {value: number for number, value in enumerate(LAYERS)}
    return {
        name: rows.sort_values(name, key=lambda values: values.map(lambda value: order.get(value, value)))
        for name, rows in found.items()
        if len(rows) > 1
    }


def draw_band(
    part: SubFigure, frame: pd.DataFrame, plane: pd.DataFrame, strips: Mapping[str, pd.DataFrame], at: Any,
    quantizer: str,
) -> None:  # fmt: skip
    """Maps over rank and α above, strips of the other factors below; of one corpus and method.

    Args:
        part: to draw on.
        frame: rows of ``grid_frame``.
        plane, strips: of ``plane_of`` and ``strips_of``.
        at: label of the chosen row.
        quantizer: shown beside bf16.
    """
    measures = [(metric, precision) for metric in COLOURS for precision in ("bf16", quantizer)]
    above, below = part, None
    if strips:
        above, below = part.subfigures(2, 1, height_ratios=(0.9 + CELL * len(plane.index), 0.75 + CELL * 4))
    axes = above.subplots(1, len(measures), sharey=True)
    cells = [(i, j, row) for i, line in enumerate(plane.to_numpy()) for j, row in enumerate(line) if row == row]
    for ax, measure in zip(axes, measures, strict=True):
        values = [[float("nan")] * plane.shape[1] for _ in plane.index]
        for i, j, row in cells:
            values[i][j] = frame[measure][row]
        draw_cells(ax, values, [COLOURS[measure[0]]] * len(values), [(i, j) for i, j, row in cells if row == at])
        ax.set_title(measure_label(*measure), fontweight="normal")
        ax.set_xlabel(plane.columns.name)
        ax.set_xticks(range(len(plane.columns)), [short(value) for value in plane.columns])
        ax.set_yticks(range(len(plane.index)), [short(value) for value in plane.index])
    axes[0].set_ylabel("rank r")
    if not strips:
        return
    widths = [len(rows) for rows in strips.values()]
    widths.append(max(0, 13 - sum(widths)))  # few values must not make wide cells
    axes = below.subplots(1, len(widths), squeeze=False, sharey=True, width_ratios=[max(w, 0.01) for w in widths])[0]
    axes[-1].remove()
    for ax, (name, rows) in zip(axes, strips.items(), strict=False):
        values = [list(rows[measure]) for measure in measures]
        column = list(rows.index).index(at)
        draw_cells(ax, values, [COLOURS[metric] for metric, _ in measures], [(i, column) for i in range(len(measures))])
        ax.set_xlabel(FACTORS[name])
        ax.set_xticks(range(len(rows)), [short(value) for value in rows[name]])
        ax.set_yticks(range(len(measures)), [measure_label(*measure) for measure in measures])


def measure_label(metric: str, precision: str) -> str:
    return f"{METRICS[metric]} {precision_label(precision)}"


def short(value: Any) -> str:
    """A setting on an axis: ``32``, ``2.5e-4``, ``MLP``."""
    if isinstance(value, str):
        return LAYERS.get(value, value)
    return f"{value:g}" if value >= 0.01 else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


def draw_cells(
    ax: Axes, values: Sequence[Sequence[float]], colours: Sequence[str], chosen: Sequence[tuple[int, int]]
) -> None:
    """A heat map as vectors: numbers in percent on a scale from 0 to 100, nothing where nothing was run.

    Args:
        values: rows of columns; NaN stays blank.
        colours: colour map of each row.
        chosen: (row, column) of cells to be outlined, as one where they touch.
    """
    for i, (line, colour) in enumerate(zip(values, colours, strict=True)):
        for j, value in enumerate(line):
            if value != value:
                continue
            shade = colormaps[colour](0.05 + 0.75 * min(max(value, 0), 100) / 100)
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=shade, edgecolor="white", linewidth=1))
            dark = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] < 0.5
            ax.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7.5, color="white" if dark else INK)
    if chosen:
        (top, left), (bottom, right) = min(chosen), max(chosen)
        ax.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5), right - left + 1, bottom - top + 1, fill=False, edgecolor=INK, linewidth=1.4,
                zorder=3, clip_on=False,
            )
        )  # fmt: skip
    ax.set_xlim(-0.5, max(map(len, values)) - 0.5)
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.grid(False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
