"""QUAIL: the hinge by hand, the readings of its step, and that it pushes logits apart as far as it says."""

import copy
import math

import pytest
import torch

from qru import compress, models
from qru.guards.quail import Quail, answers, carried_step, hinge, mean_step
from qru.ops import QuantSpec
from qru.quantizers import Update, load_quantizer
from qru.unlearn import Reference
from tests.guards.training import config, unlearned

ZERO = torch.zeros(1, 1, 2)
APART = torch.tensor([[[0.1, -0.6]]])
ALL = torch.ones(1, 1, dtype=torch.bool)


@pytest.mark.parametrize(
    ("step", "norm", "expected"),
    [
        (1.0, "abs", (0.4 + 0.0) / 2),
        (2.0, "abs", (0.9 + 0.4) / 2),
        (1.0, "l2", 0.0),
        (2.0, "l2", 1 - math.sqrt(0.01 + 0.36)),
        (1.0, "linf", 0.0),
        (2.0, "linf", 0.4),
    ],
)
def test_the_hinge_by_hand(step, norm, expected):
    assert hinge(APART, ZERO, ALL, step, norm).item() == pytest.approx(expected, abs=1e-6)
    assert hinge(ZERO, APART, ALL, step, norm).item() == pytest.approx(expected, abs=1e-6)


def test_documents_count_alike_and_padding_does_not():
    """One document of one token that is 0.4 short, and one of two tokens, 0 and 0.5 short: (0.4 + 0.25) / 2."""
    policy = torch.tensor([[[0.1], [9.0]], [[0.7], [0.0]]])
    mask = torch.tensor([[True, False], [True, True]])
    assert hinge(policy, torch.zeros(2, 2, 1), mask, 1.0).item() == pytest.approx(0.325, abs=1e-6)


@pytest.mark.parametrize("norm", ["abs", "l2", "linf"])
def test_logits_that_agree_are_not_pushed_and_give_no_nan(norm):
    policy = torch.zeros(1, 1, 3, requires_grad=True)
    loss = hinge(policy, torch.zeros(1, 1, 3), ALL, 1.0, norm)
    loss.backward()
    assert loss.item() == 0.5
    assert torch.equal(policy.grad, torch.zeros(1, 1, 3))


def test_descending_the_hinge_alone_takes_every_logit_to_the_margin_and_no_further():
    start = torch.tensor([[[0.01, -0.02, 0.3, 2.0]]])
    policy = start.clone().requires_grad_()
    for _ in range(400):
        (gradient,) = torch.autograd.grad(hinge(policy, torch.zeros_like(start), ALL, 1.0), policy)
        policy = (policy - 0.01 * gradient).detach().requires_grad_()
    assert hinge(policy, torch.zeros_like(start), ALL, 1.0).item() < 1e-6
    assert policy.detach().flatten().tolist() == pytest.approx([0.5, -0.5, 0.5, 2.0], abs=0.01)


def test_an_answer_is_what_follows_the_first_quarter():
    mask = torch.tensor([[True] * 8, [True] * 5 + [False] * 3, [True] + [False] * 7])
    assert answers(mask).sum(-1).tolist() == [6, 4, 1]
    assert answers(mask)[0].tolist() == [False] * 2 + [True] * 6
    assert not (answers(mask) & ~mask).any()
    behind = torch.tensor([[False] * 4 + [True] * 4])  # where another term has taken the opening away
    assert answers(behind)[0].tolist() == [False] * 5 + [True] * 3


def test_mean_and_carried_step_by_hand():
    """Steps of int4 are max/8. Groups of two: rows [1, 2] and [1, 0]; ‖x‖² in them 25 and 1."""
    weight = torch.tensor([[8.0, 0, 16, 0], [0, 8, 0, 0]])
    spec = QuantSpec(bits=4, group_size=2)
    assert mean_step([weight, torch.full((2, 2), 24.0)], spec) == pytest.approx((8 * 1.0 + 4 * 3.0) / 12)
    x = torch.tensor([[3.0, 4, 0, 1]])
    rows = [1 * 25 + 4 * 1, 1 * 25 + 0 * 1]
    assert carried_step(weight, x, spec) == pytest.approx(math.sqrt(sum(rows) / 2))
    assert carried_step(weight, x, QuantSpec(bits=4, group_size="tensor")) == pytest.approx(2 * math.sqrt(26))
    assert carried_step(weight, torch.cat([x, 0 * x]), spec) == pytest.approx(math.sqrt(sum(rows) / 4))


def test_a_carried_step_is_the_error_of_outputs_in_units_of_a_uniform_quantizer():
    """Its square over 12 is the variance of (Q(W) − W)·x, here drawn."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(400, 256, generator=generator), torch.randn(50, 256, generator=generator)
    spec = QuantSpec(bits=4, group_size=128)
    rounded, _ = load_quantizer("rtn-int4-g128")(weight, Update(), "layer")
    error = ((rounded - weight) @ x.T).square().mean().sqrt().item()
    assert carried_step(weight, x, spec) / math.sqrt(12) == pytest.approx(error, rel=0.03)


def test_the_measured_step_is_the_mean_change_of_logits_under_the_quantizer(made, short, tokenizer):
    target, _ = models.load(made.target)
    rows = models.rows(short.raw["forget"], tokenizer, 512)
    untouched = copy.deepcopy(target)

    def logits_of(row, model=target):
        with torch.no_grad():
            return model(input_ids=row[None], use_cache=False).logits[0, :-1]

    guard = Quail(config(guard="quail", quail_quantizer="rtn-int3-g64"), target, rows, logits_of)
    quantized = copy.deepcopy(target)
    before = compress.stored_layers(target)
    same = {name: Update(new_weight=weight) for name, weight in before.items()}
    compress.quantize_layers(quantized, before, same, load_quantizer("rtn-int3-g64"))
    with torch.no_grad():
        for layer in models.linear_layers(quantized).values():
            layer.weight.copy_(layer.weight.bfloat16())  # as it is held in training
    changes = torch.cat([(logits_of(row, quantized) - logits_of(row)).abs().flatten() for row in rows])
    assert guard.step == pytest.approx(changes.mean().item(), rel=1e-4)
    assert guard.step > 0
    for a, b in zip(target.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(a, b)  # it was only looked at


def test_every_reading_of_the_step_is_another_number(made, short, tokenizer):
    target, _ = models.load(made.target)
    rows = models.rows(short.raw["forget"][:4], tokenizer, 512)
    logits_of = lambda row: target(input_ids=row[None], use_cache=False).logits[0, :-1]  # noqa: E731
    steps = [
        Quail(config(guard="quail", quail_step=step), target, rows, logits_of).step
        for step in ("mean", "carried", "measured", 0.7)
    ]
    assert len(set(steps)) == 4
    assert steps[-1] == 0.7
    known = load_quantizer("rtn-int4-g128").spec
    scales = [compress.merge_quantize(w, spec=known).scales for w in compress.stored_layers(target).values()]
    weights = [s.numel() * 128 for s in scales]
    expected = sum(s.mean().item() * n for s, n in zip(scales, weights, strict=True)) / sum(weights)
    assert steps[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_it_pushes_logits_apart(adapter, made, short, tokenizer):
    """What is short of the margin is logged with any weight; with a heavy one less is short at the end."""
    left = []
    for weight in (0.0, 100.0):
        settings = config(
            guard="quail", guard_weight=weight, quail_step=2.0, adapter=adapter, method="ga_gdr", weights="fp32",
            learning_rate=1e-4 if adapter == "full" else 1e-3, epochs=3,
        )  # fmt: skip
        _, history = unlearned(made, short, tokenizer, settings)
        assert history[0]["guard"] == pytest.approx(1.0, abs=1e-3)  # half of the step: nothing has moved yet
        left.append(history[-1]["guard"])
    assert left[1] < left[0] - 0.02


def test_no_second_copy_and_no_second_pass_of_the_reference(made, short, tokenizer, monkeypatch):
    copies, passes = [], []

    def frozen():
        copies.append(1)
        return models.load(made.target)[0]

    original = Reference.__call__
    monkeypatch.setattr(Reference, "__call__", lambda *a, **k: passes.append(a[1].shape[0]) or original(*a, **k))
    for method, adapter, needed, rows in (
        ("ga_klr", "full", 1, 4),
        ("ga_gdr", "full", 1, 2),
        ("ga_klr", "lora", 0, 4),
        ("ga", "lora", 0, 2),
    ):
        copies.clear(), passes.clear()
        settings = config(method=method, adapter=adapter, guard="quail", quail_step=1.0)
        _, history = unlearned(made, short, tokenizer, settings, frozen=frozen)
        assert len(copies) == needed, (method, adapter)
        assert len(passes) == len(history)
        assert max(passes) == rows, (method, adapter)
