"""What QUAIL's step comes to on a target."""

import math

import pytest
import torch

from qru import margin_record, models
from qru.guards.quail import mean_step
from qru.ops import QuantSpec

INT4 = "rtn-int4-g128"


def test_margins_of_a_target(made):
    """The mean weight step is known from the weights alone; the spacing of bf16 between 2^e and 2^(e+1) is 2^(e-7)."""
    found = margin_record.measure("books", "smoke", (INT4,))
    assert [(row["quantizer"], row["step"]) for row in found["rows"]] == [
        (INT4, "mean"), (INT4, "carried"), (INT4, "measured")
    ]  # fmt: skip
    target, _ = models.load(made.target)
    weights = [layer.weight.to(torch.bfloat16) for layer in models.linear_layers(target).values()]
    assert found["rows"][0]["logits"] == pytest.approx(mean_step(weights, QuantSpec.parse(INT4)), rel=1e-5)
    assert all(row["logits"] > 0 for row in found["rows"])
    exponent = math.floor(math.log2(found["logit"]))
    assert found["spacing"] == 2.0 ** (exponent - 7)
