"""SAM: the forget gradient is that of the moved weights, which are then back where they were, to the bit."""

import math

import pytest
import torch

from qru import loop, models
from qru.guards.sam import Sam, ascent
from tests.guards.training import config, cross_entropy, first_rows, unlearned


def test_the_ascent_by_hand():
    """g = (3), (0, 4): norm 5; at ρ = 0.5 a tenth of each."""
    found = ascent([torch.tensor([3.0]), None, torch.tensor([0.0, 4.0])], 0.5)
    assert found[1] is None
    assert found[0].tolist() == pytest.approx([0.3])
    assert found[2].tolist() == pytest.approx([0.0, 0.4])
    assert ascent([torch.zeros(2)], 0.5)[0].tolist() == [0.0, 0.0]


def test_gradients_within_are_those_of_the_moved_weights_and_land_on_the_parameters():
    """L = Σ c·θ²/2 at θ = (1, 2), c = (3, 1): g = (3, 2); moved by ρ·g/√13, the gradient is c·(θ + ρ·g/√13)."""
    theta = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    c = torch.tensor([3.0, 1.0])
    guard = Sam(config(guard="sam", sam_rho=0.1), None, [], None)
    (g,) = torch.autograd.grad((c * theta.square() / 2).sum(), theta)
    with guard.moved([theta], [g]):
        (c * theta.square() / 2).sum().backward()
    by = 0.1 / math.sqrt(13)
    assert theta.grad.tolist() == pytest.approx([3 * (1 + 3 * by), 1 * (2 + 2 * by)])
    assert theta.tolist() == [1.0, 2.0]
    with pytest.raises(RuntimeError, match="inside"), guard.moved([theta], [g]):
        raise RuntimeError("inside")
    assert theta.tolist() == [1.0, 2.0]


class Recorder(torch.optim.SGD):
    """Takes no step, and keeps the gradients it was given."""

    def __init__(self, model):
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        super().__init__([p for p in model.parameters() if p.requires_grad], lr=0.0)
        self.seen = []

    def step(self, closure=None):
        self.seen.append({n: p.grad.clone() for n, p in zip(self.names, self.param_groups[0]["params"], strict=True)})


@pytest.mark.parametrize("at_once", [None, 1])
def test_a_step_takes_the_forget_gradient_there_and_the_retain_gradient_here(
    at_once, made, short, tokenizer, monkeypatch
):
    monkeypatch.setattr(loop, "compute_precision", lambda device: "fp32")
    recorders = []
    monkeypatch.setattr(models, "optimizer_of", lambda model, _: recorders.append(Recorder(model)) or recorders[-1])
    settings = config(method="ga_gdr", guard="sam", sam_rho=0.05, weights="fp32", retain_weight=0.5)
    trained, history = unlearned(made, short, tokenizer, settings, at_once=at_once)

    by_hand, _ = models.load(made.target)
    by_hand.requires_grad_(True)
    for a, b in zip(trained.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(a, b)  # nothing was stepped, and what was moved is back
    forget, retain = first_rows(short, tokenizer, settings, made)
    parameters = dict(by_hand.named_parameters())
    at_start = -cross_entropy(by_hand, *forget)
    gradients = torch.autograd.grad(at_start, list(parameters.values()))
    norm = torch.sqrt(sum(g.double().square().sum() for g in gradients)).float()
    kept = torch.autograd.grad(cross_entropy(by_hand, *retain), list(parameters.values()))
    with torch.no_grad():
        for p, g in zip(parameters.values(), gradients, strict=True):
            p.add_(0.05 * g / norm)
    moved = -cross_entropy(by_hand, *forget)
    there = torch.autograd.grad(moved, list(parameters.values()))
    expected = torch.cat([(t + 0.5 * k).flatten() for t, k in zip(there, kept, strict=True)])
    plain = torch.cat([(g + 0.5 * k).flatten() for g, k in zip(gradients, kept, strict=True)])
    found = torch.cat([recorders[0].seen[0][name].flatten() for name in parameters])
    expected, plain, found = (v / v.norm() for v in (expected, plain, found))  # it was clipped
    assert (found - expected).norm() < 1e-3
    assert (plain - expected).norm() > 1e-2  # or the test could not tell them apart
    assert history[0]["forget"] == pytest.approx(at_start.item(), abs=1e-4)
    assert history[0]["guard"] == pytest.approx((moved - at_start).item(), abs=1e-4)
    assert history[0]["loss"] == pytest.approx(moved.item() + 0.5 * history[0]["retain"], abs=1e-4)


def test_what_stays_in_bf16_is_moved_in_fp32(made, short, tokenizer):
    """A move of a millionth would be nothing in bf16; the loss is seen to rise all the same, and weights stay bf16."""
    settings = config(method="ga", guard="sam", sam_rho=1e-3, learning_rate=1e-4)
    trained, history = unlearned(made, short, tokenizer, settings)
    assert all(row["guard"] > 0 for row in history)
    assert all(torch.equal(p, p.bfloat16().float()) for p in trained.parameters())


@pytest.mark.parametrize("adapter", ["lora", "delta", "sure"])
def test_it_moves_what_an_arm_trains_and_changes_its_result(adapter, made, short, tokenizer):
    models_made = []
    for guard in (None, "sam"):
        settings = config(method="npo_klr", adapter=adapter, guard=guard, lora_dropout=0.0)
        models_made.append(unlearned(made, short, tokenizer, settings)[0].state_dict())
    assert any(not torch.equal(models_made[0][name], models_made[1][name]) for name in models_made[0])
