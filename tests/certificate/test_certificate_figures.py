"""What is shown of a certificate: the worst cell of every precision and transform, and which bound fails."""

from __future__ import annotations

import itertools

import pytest

from qru.certificate_figures import LEAK, USE, bounds, bounds_table, worst_frame


def leak(excess: float, upper: float) -> dict:
    return {"excess": excess, "upper": upper, "holds": upper <= 10}


def use(share: float, lower: float) -> dict:
    return {"share": share, "lower": lower, "holds": lower >= 0.8}


@pytest.fixture
def certificate():
    """Two seeds, two precisions, one attack; the second seed is worse in 3 bits."""
    cells = []
    for seed, quantizer in itertools.product((0, 1), ("bf16", "rtn-int3-g128")):
        bad = seed == 1 and quantizer != "bf16"
        forget = {"verbmem": leak(12.0, 21.5) if bad else leak(1.0, 4.0), "knowmem": leak(-2.0, 5.0)}
        utility = {"utility": use(0.9, 0.7 if bad else 0.85)}
        row = {"seed": seed, "quantizer": quantizer}
        cells.append(row | {"transform": "merged", "forget": forget, "utility": utility})
        cells.append(row | {"transform": "relearn-4x8", "forget": {"verbmem": leak(3.0, 9.5)}, "utility": {}})
    return {
        "outcome": "refused",
        "declared": {
            "quantizers": ["bf16", "rtn-int3-g128"], "transforms": {"merged": "", "relearn-4x8": ""}, "seeds": [0, 1],
        },
        "examples": {"verbmem": 50, "knowmem": 40, "utility": 60},
        "cells": cells,
        "forget_ceiling": 10.0,
        "utility_floor": 0.8,
    }  # fmt: skip


def test_the_worst_of_seeds_and_metrics_is_shown(certificate):
    found = worst_frame(certificate).set_index(["precision", "transform"])
    assert found.loc[("bf16", "merged"), "upper"] == 5.0, "KnowMem's bound is the larger one"
    assert found.loc[("bf16", "merged"), "excess"] == -2.0, "and the excess is its own"
    assert found.loc[("rtn-int3-g128", "merged"), "upper"] == 21.5
    assert found.loc[("rtn-int3-g128", "merged"), "lower"] == pytest.approx(70)
    assert found["lower"].isna().tolist() == [False, True, False, True]


def test_the_table_marks_what_fails(certificate):
    table = bounds_table(certificate)
    assert table.columns.tolist() == [(LEAK, "merged"), (LEAK, "relearn-4x8"), (USE, "merged")]
    assert table.loc["rtn-int3-g128"].tolist() == ["+12.0 (≤ 21.5) ✗", "+3.0 (≤ 9.5)", "90 % (≥ 70 %) ✗"]
    assert table.loc["bf16"].tolist() == ["-2.0 (≤ 5.0)", "+3.0 (≤ 9.5)", "90 % (≥ 85 %)"]


def test_the_figure_holds_the_bounds_against_what_is_allowed(certificate):
    leaks, kept = bounds(certificate).axes
    drawn = {tuple(line.get_ydata()) for line in leaks.lines}
    assert drawn == {(5.0, 21.5), (9.5, 9.5), (10.0, 10.0)}
    assert {tuple(line.get_ydata()) for line in kept.lines} == {(85.0, 70.0), (80.0, 80.0)}
    assert {text.get_text() for text in leaks.texts} == {"merged", "relearn-4x8", "allowed: 10"}
    assert {text.get_text() for text in kept.texts} == {"merged", "required: 80 %"}
    assert leaks.get_ylim()[1] > 10, "the ceiling is in the picture"
