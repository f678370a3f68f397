"""QUAIL's analysis of weights: sizes, steps and bucket overlap, by hand and of a run."""

import math

import pytest
import torch

from qru import movement, pipeline
from qru.ops import QuantSpec
from qru.tables import weight_change_table


def test_a_layer_by_hand():
    """int4 over the tensor: s = 0.8/8 = 0.1. Of four weights two move, by 0.02 and 0.06, and the second crosses."""
    before = torch.tensor([[0.8, 0.1], [0.2, 0.3]])
    after = torch.tensor([[0.8, 0.12], [0.26, 0.3]])
    same = before.clone()
    pairs = {"model.layers.3.mlp.up_proj": (before, after), "model.layers.4.mlp.up_proj": (before, same)}
    first, second, every = movement.weight_changes(pairs, QuantSpec(bits=4, group_size="tensor")).to_dict("records")
    assert (first["block"], first["module"], first["weights"]) == (3, "up", 4)
    assert first["moved"] == 50
    assert first["median_change"] == 0  # torch's lower median of 0, 0, 0.02, 0.06
    assert first["median_moved"] == pytest.approx(0.02, rel=1e-5)
    assert first["step"] == pytest.approx(0.1)
    assert first["ratio"] == pytest.approx(0.2, rel=1e-5)
    assert first["overlap"] == 75
    assert second["overlap"] == 100
    assert math.isnan(second["median_moved"])
    assert (every["layer"], every["weights"], every["moved"], every["overlap"]) == ("all", 8, 25, 87.5)


def test_the_table_of_a_run_agrees_with_its_record(made):
    record = pipeline.run(scale="smoke", quantizers="rtn-int4-g128", metrics="verbmem", adapter="lora")
    changes = movement.weight_changes(movement.stored_pairs(record), QuantSpec.parse("rtn-int4-g128"))
    known = record.crossings["rtn-int4-g128"]
    assert len(changes) == len(known["layers"]) + 1
    for row in changes.to_dict("records"):
        counts = known["layers"].get(row["layer"], known["total"])
        assert row["overlap"] == pytest.approx(100 - 100 * counts["crossed"] / counts["weights"])
        assert row["moved"] == pytest.approx(100 * counts["moved"] / counts["weights"])
    shown = weight_change_table(changes)
    assert list(shown.columns)[-1] == "bucket overlap (%)"
    assert shown.index[-1] == "all"
