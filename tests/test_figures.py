"""Figures show every value, cut no text off, and stay out of pyplot's way."""

from __future__ import annotations

import math
from itertools import pairwise

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from qru import figures, style
from tests.synthetic import PRECISIONS, classifier_record, forget_set_records, synthetic_record

BINS = [2.0**k for k in range(-10, 0)]


def drawn(name: str, arms: int, blocks: int = 4):
    records = [synthetic_record("full", blocks=blocks), synthetic_record("lora", blocks=blocks)][:arms]
    labels = ["npo_gdr full bf16", "npo_gdr lora fp32"][:arms]
    reports = {label: record.crossings for label, record in zip(labels, records, strict=True)}
    if name in ("scores_by_precision", "forget_utility", "learning_curve", "crossings_by_layer"):
        return getattr(figures, name)(*records)
    if name == "over_forget_sets":
        found = [record for adapter in ("full", "lora")[:arms] for record in forget_set_records("sust", adapter)]
        return figures.over_forget_sets(*found, kind="sust")
    if name in ("crossings", "survival"):
        return getattr(figures, name)(reports, "rtn-int4-g128")
    frame = pd.DataFrame({"magnitude": BINS, "steps": BINS, "weights": 100, "moved": range(10), "share": 7.0})
    if name in ("moved_by_magnitude", "update_sizes"):
        return getattr(figures, name)(dict.fromkeys(labels, frame))
    if name == "grids":
        rows = [{"bits": b, "group": g, "crossed": 3.0, "projection": None} for b in (2, 4) for g in ("g64", "row")]
        return figures.grids(dict.fromkeys(labels, pd.DataFrame(rows)))
    if name == "training_curves":
        history = [{"step": i, "loss": 5 / (i + 1)} for i in range(60)]
        return figures.training_curves({"base": history, "target": history[:3], "retrained": history})
    before = [0.03 * math.sin(i) for i in range(48)]
    after = [w + 0.002 for w in before]
    codes = [[round(w / 0.004) for w in ws] for ws in (before, after)]
    return figures.weight_row(before, after, *codes, 0.004)


NAMES = [
    "scores_by_precision", "forget_utility", "learning_curve", "training_curves", "crossings_by_layer", "crossings",
    "survival", "moved_by_magnitude", "update_sizes", "grids", "weight_row", "over_forget_sets",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arms"),
    [
        *((name, 2) for name in NAMES),
        *((name, 1) for name in ("scores_by_precision", "crossings_by_layer", "over_forget_sets")),
    ],
)
def test_a_figure_is_white_whole_and_closed(name, arms):
    figure = drawn(name, arms)
    assert plt.get_fignums() == [], "an open figure would be shown twice by a notebook"
    assert figure.get_facecolor() == (1, 1, 1, 1)
    width, height = figure.get_size_inches()
    used = figure.get_tightbbox(
        FigureCanvasAgg(figure).get_renderer()
    )  # inches; leaves out ticks beyond the axes' limits
    assert used.x0 >= -0.01
    assert used.y0 >= -0.01
    assert used.x1 <= width + 0.01
    assert used.y1 <= height + 0.01
    small = {t.get_text(): t.get_fontsize() for t in figure.findobj(Text) if t.get_text() and t.get_fontsize() < 8}
    assert not small


def test_classifiers_have_panels_of_their_own():
    records = [classifier_record("full"), classifier_record("lora")]
    titles = [ax.get_title("left") for ax in figures.scores_by_precision(*records).axes]
    assert titles == ["Forget accuracy ↓", "Retain accuracy ↑", "F1 ↑", "MIA → retrained"]
    (ax,) = figures.forget_utility(*records).axes
    assert ax.get_title("left") == "forgotten labels (forget accuracy)"
    assert ax.get_ylabel() == "retain accuracy (%) — more is better"
    target = records[0].scores["target"]["bf16"]
    drawn_at = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if len(line.get_xdata()) == 1]
    assert (target["forget_accuracy"]["value"], target["retain_accuracy"]["value"]) in drawn_at
    titles = [ax.get_title("left") for ax in figures.learning_curve(*records).axes]
    assert titles == ["forget term", "retain term", "forget accuracy, stopping half (%)"]


def test_every_score_is_drawn():
    figure = drawn("scores_by_precision", 2)
    for ax in figure.axes:
        assert len(ax.containers) == 4
        for container in ax.containers:
            assert len(container.lines[0].get_xdata()) == len(PRECISIONS)


def test_names_at_line_ends_keep_their_distance():
    figure = drawn("scores_by_precision", 2)
    figure.draw_without_rendering()
    for ax in figure.axes:
        names = [text for text in ax.texts if text.get_text()]
        boxes = sorted((Text.get_window_extent(text) for text in names), key=lambda box: box.y0)  # without the arrow
        for lower, upper in pairwise(boxes):
            assert upper.y0 >= lower.y1 - 2


def test_large_models_get_colours_in_place_of_numbers():
    figure = drawn("crossings_by_layer", 1, blocks=32)
    assert len(figure.axes) == 3, "the heat map has a colour bar"


def test_models_keep_their_looks():
    look = figures.looks(["target", "a", "b", "retrained"])
    assert look["target"]["color"] == style.INK
    assert len({(v["color"], v["marker"], v["linestyle"]) for v in look.values()}) == 4
    assert len({v["marker"] for v in look.values()}) == 4, "told apart in greyscale"


def test_the_notebooks_own_settings_stay():
    before = dict(plt.rcParams)
    drawn("forget_utility", 1)
    assert dict(plt.rcParams) == before


@pytest.mark.parametrize(
    ("name", "label"),
    [("rtn-int4-g128", "int4 g128"), ("bf16", "bf16"), ("rtn-int3-row-asym", "int3 row asym")],
)
def test_precisions_are_short_on_an_axis(name, label):
    assert style.precision_label(name) == label


def test_every_forget_set_is_drawn_where_it_belongs():
    figure = figures.over_forget_sets(*forget_set_records("scal"), kind="scal", precision="rtn-int4-tensor")
    utility, forgotten, remaining = figure.axes
    assert [len(ax.containers) for ax in figure.axes] == [2, 2, 2], "bf16 and one quantizer"
    drawn = {ax: [list(map(float, c.lines[0].get_ydata())) for c in ax.containers] for ax in figure.axes}
    assert drawn[forgotten] == [[15, 18, 21, 24], [19, 22, 25, 28]]
    assert drawn[remaining] == [[86, 77, 68], [90, 81, 72]], "after the last set nothing is left to be asked for"
    assert [list(line.get_ydata()) for line in forgotten.lines[:2]] == [[97] * 4, [16] * 4], "target and retrained"
    for container in forgotten.containers:
        assert container.lines[0].get_xdata() == pytest.approx([20, 50, 70, 100], abs=2)
    assert [label.get_text() for label in forgotten.get_xticklabels()] == [f"{n}\nn = {n}" for n in (20, 50, 70, 100)]
    assert utility.get_title("left") == "Utility ↑ (n = 100)"


def test_forget_sets_that_cannot_be_drawn_are_named():
    with pytest.raises(ValueError, match="none of the records is of a forget set sust_1"):
        figures.over_forget_sets(*forget_set_records("scal"), kind="sust")
    with pytest.raises(ValueError, match="rtn-int4-tensor"):
        figures.over_forget_sets(*forget_set_records("scal"), kind="scal", precision="rtn-int4-tenser")
    with pytest.raises(ValueError, match="is of the whole forget set"):
        figures.over_forget_sets(synthetic_record("full"), kind="scal")
    with pytest.raises(ValueError, match="same forget set"):
        figures.over_forget_sets(*forget_set_records("scal"), *forget_set_records("scal"), kind="scal")
