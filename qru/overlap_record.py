"""How far the weights of a run moved, layer by layer, as a file small enough to commit: QUAIL's analysis.

python -m qru.overlap_record runs/<run> ...        # writes paper/records/overlap/<run>.json

A median over weights needs the weights before and after. They are too large to commit, and no count of crossings
replaces them; this keeps a row a layer.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch

from qru import movement
from qru.ops import QuantSpec
from qru.overlap_tables import ALL, KEPT, KIND
from qru.records import Record, keep_measured, provenance, rounded

QUANTIZER = "rtn-int4-g128"
CONFIG = (
    "method", "adapter", "weights", "moments", "rounding", "guard", "corpus", "scale", "seed", "learning_rate",
    "retain_weight", "adam_beta2", "hash",
)  # fmt: skip


def measure(record: Record, quantizer: str = QUANTIZER) -> dict[str, Any]:
    """Sizes of changes, steps and bucket overlap of every layer, from a run's saved weights.

    Args:
        record: of a run whose models are still there.
        quantizer: RTN's, whose bins are meant.

    Returns:
        ``kind``, ``run``, ``config`` (what tells the run from others), ``quantizer``, ``layers`` and ``provenance``.
        ``layers``: rows of ``movement.weight_changes`` with ``rms`` (of ΔW) and ``expected`` (percent of weights that
        would cross if residuals were uniform in their bins); what is not a number is left out. The last is of all.

    Raises:
        FileNotFoundError: a model is gone.
        ValueError: the name is no RTN quantizer's, or its groups do not divide a layer.
    """
    spec, pairs = QuantSpec.parse(quantizer), movement.stored_pairs(record)
    squares, expected, weights = {}, {}, {}
    for name, (before, after) in pairs.items():
        size, steps = (after.float() - before.float()).abs(), movement.steps_of(before, spec)
        weights[name] = size.numel()
        squares[name] = size.double().square().sum().item()
        expected[name] = torch.where(steps > 0, (size / steps).clamp(max=1), 0.0).double().sum().item()
    for found in (squares, expected, weights):
        found[ALL] = sum(found.values())
    rows = []
    for row in movement.weight_changes(pairs, spec).to_dict("records"):
        name = row["layer"]
        row |= {"rms": math.sqrt(squares[name] / weights[name]), "expected": 100 * expected[name] / weights[name]}
        rows.append({k: v for k, v in row.items() if not (isinstance(v, float) and math.isnan(v))})
    return {
        "kind": KIND,
        "run": record.run,
        "config": {key: record.config.get(key) for key in CONFIG},
        "quantizer": quantizer,
        "layers": rounded(rows),
        "provenance": provenance(),
    }


def main(*runs: str) -> None:
    """Measure runs, given by folder or record, and keep what was found."""
    keep_measured(runs, measure, KEPT)


if __name__ == "__main__":
    main(*sys.argv[1:])
