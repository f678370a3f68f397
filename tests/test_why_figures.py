"""Figures of the experiment show every run where it belongs, also when tables are ugly."""

from __future__ import annotations

import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.patches import Polygon, Rectangle
from matplotlib.text import Text

from qru import style, why_figures

ARMS = (
    "bf16", "bf16, fp32 moments", "bf16, stochastic rounding", "fp32 master", "LoRA fp32", "LoRA bf16",
    "ΔW bf16 from zero",
)  # fmt: skip
# Half a step of a layer, as of weights with a standard deviation of 0.02.
ZERO_BINS = {
    "rtn-int8-g128": 0.00022, "rtn-int4-g128": 0.0035, "rtn-int4-row": 0.0044, "rtn-int4-tensor": 0.0071,
    "rtn-int3-g128": 0.0070,
}  # fmt: skip
FINEST_FIRST = ["int8 g128", "int4 g128", "int4 row", "int3 g128", "int4 tensor"]


def comes_back(edge: float, zero_bin: float) -> bool:
    return edge <= zero_bin


def table(corpora=("books", "news"), methods=("ga_klr", "npo_klr"), seeds=(0, 1, 2), arms=ARMS, quantizers=ZERO_BINS):
    """What ``qru.why`` would give: the dead-zone arms come back where the zero bin holds what moved."""
    rng = np.random.default_rng(0)
    rows = []
    for corpus, method, arm, seed in itertools.product(corpora, methods, arms, seeds):
        edge = (2**-8 if method == "ga_klr" else 2**-7) if arm in ARMS[:2] else math.nan
        for quantizer in quantizers:
            predicted = comes_back(edge, zero := ZERO_BINS[quantizer])
            share = (80 if predicted else 2) + rng.normal(0, 6)
            rows.append({
                "corpus": corpus, "method": method, "arm": arm, "seed": seed, "quantizer": quantizer,
                "learning_rate": 1.3e-5, "retain_weight": 5.0, "steps": 400, "reached": True,
                "text_regained": share, "text_low": share - 9, "text_high": share + 9,
                "knowledge_regained": share / 2, "knowledge_low": share / 2 - 9, "knowledge_high": share / 2 + 9,
                "recovers": predicted, "predicted": predicted, "edge": edge, "zero_bin": zero,
                "projection": 0.02 if predicted else 1.0,
            })  # fmt: skip
    return pd.DataFrame(rows)


def dial_table():
    bins = ZERO_BINS | {"rtn-int4-g32": 0.0028, "rtn-int4-g64": 0.0031}
    rows = []
    for power, (quantizer, zero) in itertools.product((-10, -9, -8, -7, -6), bins.items()):
        predicted = comes_back(2.0**power, zero)
        share = 95.0 if predicted else 8.0
        rows.append({
            "corpus": "books", "method": "ga_klr", "arm": "bf16", "seed": 0, "quantizer": quantizer,
            "learning_rate": 2.0 ** (power - 8) / 1.18, "reached": power > -9, "predicted": predicted,
            "edge": 2.0**power, "zero_bin": zero, "projection": 0.01 if predicted else 0.97,
            "text_regained": math.nan if power == -10 else share,
            "knowledge_regained": share / 2,
        })  # fmt: skip
    return pd.DataFrame(rows)


def layer_table(arms=ARMS, blocks=4):
    rng = np.random.default_rng(0)
    modules = [f"self_attn.{m}_proj" for m in "qkvo"] + [f"mlp.{m}_proj" for m in ("gate", "up", "down")]
    rows = []
    for arm, block, module in itertools.product(arms, range(blocks), modules):
        dead = arm in ARMS[:2]
        rows.append({
            "arm": arm, "seed": 0, "layer": f"model.layers.{block}.{module}", "quantizer": "rtn-int4-tensor",
            "moved": rng.uniform(3, 12) if dead else rng.uniform(60, 98),
            "crossed": rng.uniform(0, 0.05) if dead else rng.uniform(2, 8),
            "predicted_crossed": 0.4 if dead else 5.0,
            "projection": rng.uniform(0, 0.1) if dead else rng.uniform(0.95, 1.05), "cosine": 0.3,
        })  # fmt: skip
    return pd.DataFrame(rows)


def size_table(arms=ARMS, seeds=(0, 1, 2)):
    rng = np.random.default_rng(0)
    sizes = ((128, 4, 1.1e6), (256, 4, 4.2e6), (512, 6, 2.2e7))
    return pd.DataFrame([
        {
            "width": width, "layers": layers, "parameters": parameters, "arm": arm, "seed": seed, "reached": True,
            "relative_update": 2 / math.sqrt(width * layers) * (0.5 + 0.14 * ARMS.index(arm)) * rng.uniform(0.9, 1.1),
            "relative_edge": 0.2 if arm in ARMS[:2] else math.nan,
        }
        for (width, layers, parameters), arm, seed in itertools.product(sizes, arms, seeds)
    ])  # fmt: skip


def slice_table(x="alpha", values=(8, 16, 32, 64, 128), seeds=(0, 1, 2)):
    return pd.DataFrame([
        {
            x: value, "seed": seed, "update": 0.004 * (i + 1) * (1 + 0.03 * seed), "verbmem_bf16": 95 / (i + 1) + seed,
            "utility_bf16": 97 - 6.0 * i, "disjoint_bf16": 96 - 9.0 * i + seed,
        }
        for (i, value), seed in itertools.product(enumerate(values), seeds)
    ])  # fmt: skip


def ugly_table():
    """A share that cannot be measured, missed runs, one seed and method in places, and shares far from 0 … 100."""
    frame = table().query("method == 'ga_klr' or seed == 0").reset_index(drop=True)
    frame.loc[frame["arm"] == "LoRA bf16", "reached"] = False
    lost = frame["arm"] == "ΔW bf16 from zero"
    frame.loc[lost, ["text_regained", "text_low", "text_high"]] = math.nan
    frame.loc[0, ["text_regained", "text_low", "text_high"]] = -310.0, -420.0, 40.0
    frame.loc[1, ["text_regained", "text_low", "text_high"]] = 260.0, 70.0, 900.0
    return frame


def zero_table(frame):
    numbers = frame.select_dtypes("number").columns.difference(
        ["seed", "zero_bin", "edge", "learning_rate", "alpha", "width", "layers", "parameters"]
    )
    return frame.assign(**dict.fromkeys(numbers, 0.0))


DRAWN = {
    "arms": lambda: why_figures.arms(table()),
    "arms, ugly": lambda: why_figures.arms(ugly_table()),
    "arms, little": lambda: why_figures.arms(table(("news",), ("npo_klr",), (2,), ARMS[:3], ["rtn-int4-row"])),
    "arms, zero": lambda: why_figures.arms(zero_table(table(("books",), ("ga_klr",)))),
    "arms, nothing measured": lambda: why_figures.arms(table(("news",)).assign(text_regained=math.nan)),
    "arms, none": lambda: why_figures.arms(pd.DataFrame()),
    "dial": lambda: why_figures.dial(dial_table()),
    "dial, projection": lambda: why_figures.dial(dial_table(), "projection"),
    "dial, one point": lambda: why_figures.dial(dial_table().tail(1)),
    "dial, zero": lambda: why_figures.dial(zero_table(dial_table())),
    "dial, nothing measured": lambda: why_figures.dial(dial_table().assign(text_regained=math.nan)),
    "layers": lambda: why_figures.layers(layer_table()),
    "layers, one arm": lambda: why_figures.layers(layer_table(("bf16",), 12)),
    "layers, two arms": lambda: why_figures.layers(layer_table(("bf16", "fp32 master"), 8).drop(columns="quantizer")),
    "layers, zero": lambda: why_figures.layers(zero_table(layer_table(("bf16",))).assign(projection=math.nan)),
    "forgetting": lambda: why_figures.forgetting(size_table()),
    "forgetting, two arms": lambda: why_figures.forgetting(size_table(("bf16", "LoRA fp32"), (1,))),
    "forgetting, one size": lambda: why_figures.forgetting(size_table(("bf16",), (1,)).head(1)),
    "forgetting, zero": lambda: why_figures.forgetting(zero_table(size_table())),
    "slices": lambda: why_figures.slices(slice_table(), "alpha"),
    "slices, names": lambda: why_figures.slices(slice_table("layers", ("all", "mlp", "attention")), "layers"),
    "slices, arms": lambda: why_figures.slices(
        pd.concat([slice_table("learning_rate", (1e-5, 2e-5, 4e-5, 8e-5)).assign(arm=arm) for arm in ARMS[1:4]]),
        "learning_rate",
    ),
    "slices, none": lambda: why_figures.slices(pd.DataFrame(), "alpha"),
    "slices, zero": lambda: why_figures.slices(zero_table(slice_table()), "alpha"),
    "slices, no disjoint": lambda: why_figures.slices(slice_table().assign(disjoint_bf16=math.nan), "alpha"),
}  # fmt: skip


def lines(ax, label=None):
    """Drawn points: (x, y, hollow) of every marker in a panel; crosses of the unmeasurable left out."""
    out = []
    for line in ax.lines:
        if line.get_marker() in ("None", "", "x", "_", None) or (label and line.get_label() != label):
            continue
        hollow = line.get_markerfacecolor() == "white"
        out += [(x, y, hollow) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]
    return out


def crosses(ax):
    return [xy for line in ax.lines if line.get_marker() == "x" for xy in zip(*line.get_data(), strict=True)]


def panel(figure, quantizer, row=0):
    columns = [ax.get_title(loc="left") for ax in figure.axes]
    return figure.axes[columns.index(quantizer) + row * len(FINEST_FIRST)]


def overlaps(figure):
    """Pairs of words of a drawn figure that cover one another."""
    unseen = set()  # labels of ticks beyond the limits
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        unseen |= {id(tick.label1) for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    boxes = {}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and id(text) not in unseen:
            box = Text.get_window_extent(text)  # of an annotation, without its arrow
            boxes[(text.get_text(), *map(round, box.bounds))] = box
    return [
        (first[0], second[0])
        for (first, one), (second, other) in itertools.combinations(boxes.items(), 2)
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 1.5 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1.5
    ]


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_whole_and_nothing_leaves_its_axes(name):
    figure = DRAWN[name]()
    assert plt.get_fignums() == []
    assert figure.get_facecolor() == (1, 1, 1, 1)
    figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    assert width <= 7.0 or len(figure.axes) == 1, "a sentence may be wider"
    used = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    assert min(used.x0, used.y0) >= -0.01
    assert used.x1 <= width + 0.01
    assert used.y1 <= height + 0.01
    for ax in figure.axes:
        (left, right), (low, high) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
        for x, y in (xy for line in ax.lines if line.get_transform() == ax.transData for xy in line.get_xydata()):
            assert left <= x <= right, f"{x} is beside the panel"
            assert low <= y <= high, f"{y} is over or under the panel"
    small = {t.get_text(): t.get_fontsize() for t in figure.findobj(Text) if t.get_text() and t.get_fontsize() < 7}
    assert not small
    assert not overlaps(figure)


@pytest.fixture(scope="module")
def figure():
    return why_figures.arms(table())


def test_every_run_is_a_point_under_its_quantizer(figure):
    frame = table()
    assert [ax.get_title(loc="left") for ax in figure.axes] == [*FINEST_FIRST, *[""] * 5]
    for row, corpus in enumerate(("books", "news")):
        for quantizer in ZERO_BINS:
            drawn = lines(panel(figure, style.precision_label(quantizer), row))
            rows = frame[(frame["corpus"] == corpus) & (frame["quantizer"] == quantizer)]
            assert len(drawn) == 7 * 2 * 3
            assert sorted(x for x, _, _ in drawn) == pytest.approx(sorted(rows["text_regained"]))
            assert not any(hollow for *_, hollow in drawn)
            assert len({y for _, y, _ in drawn}) == 42, "no two runs of a panel stand on one height"


def test_a_run_stands_in_the_row_of_its_arm(figure):
    frame = table().query("corpus == 'news'")
    assert [text.get_text().split("\n")[0] for text in figure.axes[0].get_yticklabels()] == list(ARMS)
    for i, arm in enumerate(ARMS):
        rows = frame[(frame["quantizer"] == "rtn-int4-tensor") & (frame["arm"] == arm)]
        here = [x for x, y, _ in lines(panel(figure, "int4 tensor", row=1)) if i - 0.5 < y < i + 0.5]
        assert sorted(here) == pytest.approx(sorted(rows["text_regained"]))


def test_families_have_their_colours_and_methods_their_markers(figure):
    ax = figure.axes[0]
    dots = [line for line in ax.lines if "|" in str(line.get_label())]
    colours = {line.get_label().split("|")[0]: line.get_color() for line in dots}
    assert {colours[arm] for arm in ARMS[:2]} == {style.ARMS[1]}
    assert {colours[arm] for arm in ARMS[2:]} == {style.ARMS[0]}
    markers = {line.get_label().split("|")[1]: line.get_marker() for line in dots}
    assert markers == {"ga_klr": "o", "npo_klr": "^"}


def test_predicted_runs_are_shaded_and_no_others(figure):
    frame = table()
    ax = panel(figure, "int4 row")
    bands = [patch for patch in ax.patches if isinstance(patch, (Rectangle, Polygon))]
    middles = [patch.get_y() + patch.get_height() / 2 for patch in bands]
    # 2^-8 = 0.0039 < 0.0044: both dead-zone arms under GA; 2^-7 = 0.0078 under NPO does not fit.
    assert len(middles) == 2 * 3
    shaded = [x for x, y, _ in lines(ax) if any(abs(y - middle) < 1e-9 for middle in middles)]
    rows = frame[(frame["corpus"] == "books") & (frame["quantizer"] == "rtn-int4-row") & frame["predicted"]]
    assert sorted(shaded) == pytest.approx(sorted(rows["text_regained"]))


def test_missed_runs_are_hollow_the_unmeasurable_are_crosses_and_far_shares_stay_at_the_edge():
    frame = ugly_table()
    figure = why_figures.arms(frame)
    hollow = sum(hollow for ax in figure.axes for *_, hollow in lines(ax))
    assert hollow == (~frame["reached"]).sum() == 5 * 2 * 4
    assert sum(len(crosses(ax)) for ax in figure.axes) == 5 * 2 * 4
    assert sum(len(lines(ax)) for ax in figure.axes) == frame["text_regained"].notna().sum()
    left, right = figure.axes[0].get_xlim()
    xs = [x for ax in figure.axes for x, *_ in lines(ax)]
    assert (min(xs), max(xs)) == (-30, 130)
    assert all(left < x < -30 for ax in figure.axes for x, _ in crosses(ax))
    assert right == 130
    words = {text.get_text() for ax in figure.axes for text in ax.texts}
    assert {"−310", "260"} <= words
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "hollow: missed the forgetting goal" in told
    assert any("nothing was forgotten" in word for word in told)


def test_intervals_are_those_over_examples():
    frame = table(("books",), ("ga_klr",), (0,), ("bf16",), ["rtn-int4-row"])
    (ax,) = why_figures.arms(frame).axes
    (bars,) = (c for c in ax.collections if isinstance(c, LineCollection))
    (segment,) = bars.get_segments()
    assert segment[:, 0] == pytest.approx([frame["text_low"][0], frame["text_high"][0]])


def test_the_legend_names_only_marks_that_occur():
    frame = table(("news",), ("npo_klr",), (2,), ARMS[2:4])
    told = [text.get_text() for text in why_figures.arms(frame).legends[0].get_texts()]
    assert told == ["NPO+KLR", "all weights can move"]


def test_knowledge_is_drawn_from_its_own_columns():
    frame = table(("books",), ("ga_klr",), (0,))
    drawn = lines(panel(why_figures.arms(frame, "knowledge"), "int8 g128"))
    rows = frame[frame["quantizer"] == "rtn-int8-g128"]
    assert sorted(x for x, *_ in drawn) == pytest.approx(sorted(rows["knowledge_regained"]))


def test_the_dial_stands_on_edge_over_zero_bin():
    frame = dial_table()
    ax, heat = why_figures.dial(frame).axes
    drawn = lines(ax)
    measured = frame[frame["text_regained"].notna()]
    assert len(drawn) == len(measured) == 28
    assert sorted(x for x, *_ in drawn) == pytest.approx(sorted(measured["edge"] / measured["zero_bin"]))
    assert all((x <= 1) == (y == 95) for x, y, _ in drawn)
    assert sum(hollow for *_, hollow in drawn) == 7
    bins = {*ZERO_BINS.values(), 0.0028, 0.0031}
    assert sorted(x for x, _ in crosses(ax)) == pytest.approx(sorted(2**-10 / zero for zero in bins))
    assert any(list(line.get_xdata()) == [1, 1] for line in ax.lines), "the switch is drawn"
    places = [(text.get_position(), text.get_text()) for text in heat.texts]
    cells = {(int(x), int(y)): word for (x, y), word in places}
    assert len(cells) == 35
    assert cells[0, 0] == "8", "int8, the largest learning rate"
    assert cells[6, 2] == "95", "int4 tensor at 2^-8"
    assert cells[6, 3] == "(95)", "missed"
    assert cells[6, 4] == "(–)", "nothing was forgotten"


def test_the_outline_goes_around_the_true_cells():
    found = why_figures.outline(np.array([[False, True], [False, True], [False, False]]))
    segments = {frozenset(tuple(int(v) for v in end) for end in segment) for segment in found}
    assert segments == {
        frozenset(pair) for pair in (
            ((1, 0), (2, 0)), ((1, 2), (2, 2)), ((1, 0), (1, 1)), ((1, 1), (1, 2)), ((2, 0), (2, 1)), ((2, 1), (2, 2)),
        )
    }  # fmt: skip


def test_layers_are_median_by_block_and_module():
    frame = layer_table(blocks=3)
    figure = why_figures.layers(frame)
    maps = [ax for ax in figure.axes if len(ax.get_yticks()) and ax.get_title(loc="center") is not None][:21]
    meshes = [ax.collections[0] for ax in maps]
    rows = frame[frame["arm"] == "LoRA fp32"].set_index("layer")
    moved = np.asarray(meshes[4].get_array()).reshape(3, 7)
    assert moved[2, 6] == pytest.approx(rows.loc["model.layers.2.mlp.down_proj", "moved"])
    crossed = np.asarray(meshes[7 + 4].get_array()).reshape(3, 7)
    assert crossed[1, 1] == pytest.approx(rows.loc["model.layers.1.self_attn.k_proj", "crossed"])
    words = [text.get_text() for text in maps[7 + 4].texts]
    assert words == [f"{rows['crossed'].median():.2g} (5)"]


def test_layers_without_a_projection_are_left_open():
    frame = layer_table(("bf16",), 2)
    frame.loc[3, "projection"] = math.nan
    ax = why_figures.layers(frame).axes[2]
    assert np.ma.getmaskarray(ax.collections[0].get_array()).sum() == 1


def test_sizes_are_drawn_with_a_line_of_slope_minus_a_half():
    frame = size_table()
    frame.loc[0, "reached"] = False
    ax = why_figures.forgetting(frame).axes[0]
    drawn = [point for arm in ARMS for point in lines(ax, arm)]
    assert sorted(y for _, y, _ in drawn) == pytest.approx(sorted(frame["relative_update"]))
    assert sum(hollow for *_, hollow in drawn) == 1
    (guide,) = (line for line in ax.lines if line.get_linestyle() == "--")
    (x0, y0), (x1, y1) = guide.get_xydata()
    assert math.log(y1 / y0) / math.log(x1 / x0) == pytest.approx(-0.5)
    (edge,) = (line for line in ax.lines if line.get_marker() == "_")
    assert len(edge.get_xdata()) == 2 * 3 * 3
    assert [text.get_text() for text in ax.get_xticklabels()] == ["128 × 4\n1.1M", "256 × 4\n4.2M", "512 × 6\n22M"]


def test_slices_show_every_seed_and_the_line_of_proportion():
    frame = slice_table()
    figure = why_figures.slices(frame, "alpha")
    for ax, column in zip(figure.axes, ("update", "verbmem_bf16", "utility_bf16", "disjoint_bf16"), strict=True):
        assert sorted(y for _, y, _ in lines(ax)) == pytest.approx(sorted(frame[column]))
    (guide,) = (line for line in figure.axes[0].lines if line.get_linestyle() == ":")
    (x0, y0), (x1, y1) = guide.get_xydata()
    assert (x0, x1) == (8, 128)
    assert y1 / y0 == pytest.approx(16)
    assert "LoRA α" in figure._supxlabel.get_text()


def test_names_stand_in_the_order_they_come_and_empty_scores_get_no_panel():
    figure = DRAWN["slices, names"]()
    assert not any(line.get_linestyle() == "-" for line in figure.axes[0].lines), "nothing lies between names"
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["all", "mlp", "attention"]
    assert len(DRAWN["slices, no disjoint"]().axes) == 3


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(ValueError, match="lacks reached, text_high"):
        why_figures.arms(table().drop(columns=["text_high", "reached"]))
    with pytest.raises(ValueError, match="Did you mean 'fp32 master'"):
        why_figures.arms(table().replace("fp32 master", "fp32 mastered"))
    with pytest.raises(ValueError, match="unknown measure 'texts'"):
        why_figures.arms(table(), "texts")
    with pytest.raises(ValueError, match="of one arm, and these rows are of bf16, fp32 master"):
        why_figures.dial(table(("books",), ("ga_klr",), arms=("bf16", "fp32 master")))
    with pytest.raises(ValueError, match="no dead zone"):
        why_figures.dial(table(("books",), ("ga_klr",), arms=("fp32 master",)))
    with pytest.raises(ValueError, match="of one quantizer"):
        why_figures.layers(pd.concat([layer_table(), layer_table().assign(quantizer="rtn-int8-g128")]))
    with pytest.raises(ValueError, match="lacks alpha"):
        why_figures.slices(slice_table("lr", (1, 2)), "alpha")


def test_the_notebooks_own_settings_stay():
    before = dict(plt.rcParams)
    DRAWN["slices"]()
    assert dict(plt.rcParams) == before
