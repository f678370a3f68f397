"""Bin-margin: reaches and penalty by hand, and that undecided weights decide."""

import pytest
import torch

from qru.guards.bin_margin import MARGIN, reaches, undecided
from qru.ops import QuantSpec
from qru.ops.grid import codes_on, grid_of
from tests.guards.training import config, unlearned

ROW = torch.tensor([[0.8, 0.1, 0.26, -0.8, 0.0]])  # int4: the step is 0.1, codes 7 (cut off), 1, 3, −8, 0


def test_reaches_by_hand():
    """To the boundaries at (q ± 1/2)·0.1, and 0.005 more; minus a step where a code is outermost."""
    up, down = reaches(ROW, QuantSpec(bits=4, group_size=-1))
    assert MARGIN == 0.05
    assert up[0].tolist() == pytest.approx([-0.1, 0.055, 0.095, 0.055, 0.055], abs=1e-6)
    assert down[0].tolist() == pytest.approx([0.155, 0.055, 0.015, -0.1, 0.055], abs=1e-6)


def test_groups_without_a_step_are_left_out():
    weight = torch.zeros(2, 4)
    weight[0, :2] = 1.0
    up, down = reaches(weight, QuantSpec(bits=4, group_size=2))
    assert up.isinf().tolist() == [[False, False, True, True], [True] * 4]
    delta = torch.full((2, 4), 0.3, requires_grad=True)
    rho = undecided(delta, up, down)
    rho.sum().backward()
    assert rho[1].tolist() == [0.0] * 4
    assert delta.grad[1].tolist() == [0.0] * 4


@pytest.mark.parametrize(
    "spec", [QuantSpec(bits=4, group_size=64), QuantSpec(bits=3, group_size="tensor", symmetric=False)]
)
def test_a_weight_that_reaches_its_margin_has_another_code_and_one_that_does_not_reach_the_boundary_has_not(spec):
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    scales, zeros = grid_of(weight, spec)
    steps = scales.repeat_interleave(weight.numel() // scales.numel()).view(weight.shape)
    codes = codes_on(weight, scales, zeros, spec)
    for sign, reach in zip((1, -1), reaches(weight, spec), strict=True):
        inner = reach > 0
        for part, crosses in ((reach, True), (reach - (MARGIN + 0.01) * steps, False)):
            after = codes_on(torch.where(inner, weight + sign * part, weight), scales, zeros, spec)
            assert torch.equal(after != codes, inner & crosses)
        assert 0 < (~inner).sum() < inner.sum()
        outward = codes_on(weight + sign * 3 * steps, scales, zeros, spec)
        assert torch.equal((outward == codes), ~inner)


@pytest.mark.parametrize(("delta", "expected"), [(0.0, 0.0), (0.25, 0.5625), (0.5, 1.0), (1.0, 0.0), (7.0, 0.0)])
def test_the_penalty_by_hand(delta, expected):
    """In parts of the reach: 16·u²·(1 − u)², each direction with a reach of its own."""
    up, down = torch.tensor([[0.02]]), torch.tensor([[0.3]])
    assert undecided(torch.tensor([[delta * 0.02]]), up, down).item() == pytest.approx(expected, abs=1e-5)
    assert undecided(torch.tensor([[-delta * 0.3]]), up, down).item() == pytest.approx(expected, abs=1e-5)
    assert undecided(torch.tensor([[0.05]]), torch.tensor([[-0.1]]), down).item() == pytest.approx(16 * 0.25)


def test_it_is_smooth_where_it_begins_and_ends():
    up, down = torch.full((9,), 0.5, dtype=torch.float64), torch.full((9,), 0.2, dtype=torch.float64)
    delta = torch.tensor([-0.3, -0.2001, -0.1999, -0.1, -1e-9, 1e-9, 0.25, 0.4999, 0.6], dtype=torch.float64)
    delta.requires_grad_()
    assert torch.autograd.gradcheck(lambda d: undecided(d, up, down), (delta,), eps=1e-7, atol=1e-4)
    (slope,) = torch.autograd.grad(undecided(delta, up, down).sum(), delta)
    assert slope.abs()[[0, 4, 5, 8]].max() < 1e-6
    assert slope.abs()[[1, 2, 7]].max() < 0.1


def test_descending_it_takes_weights_past_the_boundary_or_back():
    up = down = torch.ones(5)
    delta = torch.tensor([0.1, 0.45, 0.55, -0.9, -0.2])
    for _ in range(2000):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(undecided(delta, up, down).sum(), delta)
        delta = (delta - 0.01 * gradient).detach()
    assert delta.tolist() == pytest.approx([0, 0, 1, -1, 0], abs=0.05)


@pytest.mark.parametrize("adapter", ["full", "lora", "sure", "delta"])
def test_fewer_weights_are_left_undecided(adapter, made, short, tokenizer):
    left = []
    for weight in (0.0, 300.0):
        settings = config(
            guard="bin_margin", guard_weight=weight, adapter=adapter, method="ga_gdr", epochs=2,
            weights="bf16" if adapter == "delta" else "fp32", learning_rate=3e-4 if adapter == "full" else 1e-3,
        )  # fmt: skip
        _, history = unlearned(made, short, tokenizer, settings)
        assert history[0]["guard"] == 0  # nothing has moved yet
        left.append(history[-1]["guard"])
    assert 0 < left[1] < 0.9 * left[0]
