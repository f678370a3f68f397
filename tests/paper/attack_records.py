"""Certificates over attacks made up for tests: every number known by hand."""

from __future__ import annotations

from typing import Any

INT4 = "rtn-int4-g128"
TWICE, PRUNED, RELEARNED = "twice-rtn-int8-row", "prune-10", "relearn-4x8"
WORDS = {"merged": "as it is", TWICE: "stored first", PRUNED: "without the smallest", RELEARNED: "trained again"}
CALM = (20.0, 24.0, 14.0, 15.2)  # of one transform: seed 0, seed 1, retrained, largest bound
BACK = (40.0, 54.0, 15.0, 47.4)
Scores = dict[str, tuple[float, float, float, float]]
HELD: Scores = {"merged": CALM, TWICE: CALM, PRUNED: CALM}


def attacked_certificate(
    scores: Scores, adapter: str = "lora", weights: str = "fp32", guard: str | None = None, ceiling: float = 20.0,
    outcome: str = "", least: float = 0.884, fewer: int = 46, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """Of seeds 0 and 1, in bf16 and int4, as far as table and text read it.

    Args:
        scores: transform -> VerbMem of seed 0, of seed 1, of the retrained model, each in bf16 and 2, 2 and 1 points
            higher under int4; and the upper bound of seed 1, one point over that of seed 0.
        fewer: passages after relearning; 50 otherwise.
    """
    cells = []
    for seed in (0, 1):
        for transform, (*unlearned, retrained, upper) in scores.items():
            for name, more in (("bf16", 0), (INT4, 1)):
                bound = upper - 1 + seed
                leak = {"unlearned": unlearned[seed] + 2 * more, "retrained": retrained + more, "upper": bound,
                        "n": fewer if transform == RELEARNED else 50, "holds": bound <= ceiling}  # fmt: skip
                cells.append({"seed": seed, "transform": transform, "quantizer": name, "forget": {"verbmem": leak}})
    over = any(not cell["forget"]["verbmem"]["holds"] for cell in cells)
    return {
        "certificate": 1, "outcome": outcome or ("does not hold" if over else "holds"), "least_utility": least,
        "forget_ceiling": ceiling, "utility_floor": 0.8,
        "declared": {"quantizers": ["bf16", INT4], "transforms": {name: WORDS.get(name, name) for name in scores},
                     "seeds": [0, 1], "metrics": {"forget": ["verbmem"], "utility": ["utility"]}},
        "cells": cells,
        "configuration": {"method": "ga_gdr", "adapter": adapter, "weights": weights, "guard": guard},
        "corpus": "books-texts", "bound_to": {"retrained": {"content": "0123"}}, "config": {"corpus": "books"},
    } | changes  # fmt: skip
