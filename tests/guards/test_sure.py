"""SURE: what is salient by a gradient computed apart, and that nothing else moves by a bit."""

import pytest
import torch

from qru import loop, models
from qru.sure import saliencies, salient
from tests.guards.training import config, cross_entropy, killed_and_resumed, same_bits, unlearned


def test_the_mask_by_hand():
    found = {name: float(i) for i, name in enumerate("abcdefghijk")}  # 0 … 10: the 90th percentile is 9
    assert salient(found, 90) == ["j", "k"]
    assert salient(found, 99) == ["k"]
    assert salient(found, 0) == list(found)
    assert salient({"a": 2.0, "b": 2.0, "c": 1.0}, 90) == ["a", "b"]  # at or over it


def test_saliency_is_the_norm_of_the_summed_gradient():
    """L = 3·w₀ + 4·w₁ in two parts; the head has no saliency."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 1, bias=False)])
            self.head = torch.nn.Linear(2, 1, bias=False)

        def get_output_embeddings(self):
            return self.head

    model = Model()
    weight = model.layers[0].weight
    losses = (factor * weight[0, i] + 100 * model.head.weight.sum() for i, factor in enumerate((3.0, 4.0)))
    assert saliencies(model, losses) == {"layers.0": pytest.approx(5.0)}
    assert weight.grad is None
    assert model.head.weight.grad is None


def by_hand(made, short, tokenizer, settings) -> dict[str, float]:
    """Norm of the gradient of −CE, a mean over the batches of one epoch, of every linear layer of the target."""
    target, _ = models.load(made.target)
    target.requires_grad_(True)
    rows = models.rows(short.raw["forget"], tokenizer, 512)
    steps = -(-len(rows) // settings.batch_size)
    loss = 0.0
    for step in range(steps):
        chosen = loop.order(len(rows), settings.batch_size, step, settings.seed)
        loss = loss - cross_entropy(target, *loop.pad([rows[i] for i in chosen], tokenizer.pad_token_id)) / steps
    loss.backward()
    return {name: layer.weight.grad.norm().item() for name, layer in models.linear_layers(target).items()}


@pytest.mark.parametrize("weights", ["bf16", "fp32"])
@pytest.mark.parametrize("percentile", [50, 90])
def test_the_most_salient_layers_move_and_nothing_else_by_a_bit(
    weights, percentile, made, short, tokenizer, monkeypatch
):
    monkeypatch.setattr(loop, "compute_precision", lambda device: "fp32")
    settings = config(method="ga_gdr", adapter="sure", weights=weights, sure_percentile=percentile)
    known = by_hand(made, short, tokenizer, settings)
    count = sum(value >= sorted(known.values())[int(percentile / 100 * (len(known) - 1))] for value in known.values())
    expected = sorted(known, key=known.get)[-count:]
    expected = [f"{name}.weight" for name in expected if known[name] >= torch.quantile(
        torch.tensor(list(known.values())), percentile / 100)]  # fmt: skip
    assert len(expected) == {50: 7, 90: 2}[percentile]  # of 14
    trained, _ = unlearned(made, short, tokenizer, settings)
    target, _ = models.load(made.target)
    before = target.state_dict()
    moved = [name for name, value in trained.state_dict().items() if not torch.equal(value, before[name])]
    assert sorted(moved) == sorted(expected)


def test_a_forget_term_with_a_reference_has_a_saliency_too(made, short, tokenizer):
    """NPO's gradient at the reference is that of the sum of log-probabilities: the same order as GA's, not nothing."""
    settings = config(method="npo_klr", adapter="sure", sure_percentile=80)
    trained, history = unlearned(made, short, tokenizer, settings)
    target, _ = models.load(made.target)
    before = target.state_dict()
    moved = [name for name, value in trained.state_dict().items() if not torch.equal(value, before[name])]
    assert len(moved) == 3
    assert all("proj" in name for name in moved)
    assert history[-1]["forget"] < history[0]["forget"]


@pytest.mark.parametrize("weights", ["bf16", "fp32"])
def test_a_killed_run_resumes_to_the_same_bits(weights, made, short, tokenizer, tmp_path, monkeypatch):
    settings = config(method="npo_gdr", adapter="sure", weights=weights, epochs=2)
    whole, history = unlearned(made, short, tokenizer, settings)
    resumed, again = killed_and_resumed(made, short, tokenizer, settings, tmp_path / "t.pt", monkeypatch, at=4)
    assert [row["loss"] for row in again] == [row["loss"] for row in history]
    assert same_bits(whole, resumed)
