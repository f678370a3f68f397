"""How far the weights of a run moved, as a file small enough to commit: all that its figure needs of the models.

python -m qru.update_record runs/<run> ...        # writes paper/records/updates/<run>.json

A figure of sizes of updates needs the weights before and after. They are too large to commit, and nothing in a run's
record replaces them; this keeps the counts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qru import movement, why
from qru.ops import QuantSpec
from qru.records import Record, keep_measured, named_or_all, provenance, read_json, rounded

KIND = "update-sizes"
KEPT = Path(__file__).resolve().parent.parent / "paper" / "records" / "updates"
QUANTIZER = "rtn-int4-g128"  # in whose steps updates are measured
BITS = (8, 4, 3, 2)
GROUPS = ("g32", "g64", "g128", "row", "tensor")
CONFIG = (
    "method", "adapter", "weights", "moments", "rounding", "corpus", "scale", "seed", "learning_rate", "retain_weight",
    "adam_beta2", "hash",
)  # fmt: skip


def measure(
    record: Record, quantizer: str = QUANTIZER, bits: Sequence[int] = BITS, groups: Sequence[str] = GROUPS
) -> dict[str, Any]:
    """Sizes of updates and crossings over a grid of quantizers, from a run's saved weights.

    Args:
        record: of a run whose models are still there.
        quantizer: in whose steps |ΔW| is measured.
        bits, groups: of the grid; see ``movement.grid_table``.

    Returns:
        ``kind``, ``run``, ``arm`` (as ``why.ARMS`` calls it), ``config`` (what tells the run from others),
        ``quantizer``, ``sizes`` (rows of ``movement.update_sizes``), ``grid`` (rows of ``movement.grid_table``) and
        ``provenance``.

    Raises:
        FileNotFoundError: a model is gone.
        ValueError: the arm is none of the experiment's, or a quantizer does not fit the layers.
    """
    sizes = movement.update_sizes(record, QuantSpec.parse(quantizer))
    grid = movement.grid_table(record, bits, groups)
    return {
        "kind": KIND,
        "run": record.run,
        "arm": why.arm_of(record.config),
        "config": {key: record.config.get(key) for key in CONFIG},
        "quantizer": quantizer,
        "sizes": rounded(sizes.to_dict("records")),
        "grid": rounded(grid.astype(object).where(grid.notna(), None).to_dict("records")),
        "provenance": provenance(),
    }


def load_updates(files: Sequence[str] = (), folder: Path = KEPT) -> list[dict[str, Any]]:
    """What ``measure`` has kept.

    Args:
        files: of such records; if there are none, all in the folder.
        folder: of committed ones.

    Raises:
        LookupError: there is none.
        ValueError: one is something else (names it).
    """
    make = "Make them: python -m qru.update_record runs/<run>"
    out = []
    for path in named_or_all(files, folder, f"no sizes of updates in {folder}. {make}"):
        value = read_json(path)
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise ValueError(f"{path} holds no sizes of updates. {make}")
        out.append(value)
    return out


def main(*runs: str) -> None:
    """Measure runs, given by folder or record, and keep what was found."""
    keep_measured(runs, measure, KEPT)


if __name__ == "__main__":
    main(*sys.argv[1:])
