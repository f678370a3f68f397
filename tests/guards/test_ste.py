"""STE: the gradient of the dense straight-through estimator, and a forward pass through what will be deployed."""

import pytest
import torch

from qru import compress, loop, models
from qru.guards.ste import StraightThrough, drawn
from qru.ops import QuantSpec
from qru.quantizers import Update, load_quantizer
from tests.guards.training import config, cross_entropy, first_rows, unlearned


def test_gradients_are_those_of_the_dense_estimator():
    """Q(M) + (M − M.detach()) for M = W + s·B·A is the estimator spelled out; autograd forms its (out, in) gradient."""
    torch.manual_seed(0)
    weight, scaling = torch.randn(6, 8), 1.7
    a, b = torch.randn(3, 8, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    x = torch.randn(2, 5, 8, requires_grad=True)
    upstream = torch.randn(2, 5, 6)

    def quantized(matrix):
        return load_quantizer("rtn-int3-row")(matrix.detach(), Update(), "layer")[0]

    merged = weight + scaling * b @ a
    dense = (x @ (quantized(merged) + merged - merged.detach()).T * upstream).sum()
    expected = torch.autograd.grad(dense, (x, a, b))
    ours = (StraightThrough.apply(x, a, b, quantized(merged), scaling) * upstream).sum()
    assert ours.item() == pytest.approx(dense.item(), rel=1e-5)
    for found, known in zip(torch.autograd.grad(ours, (x, a, b)), expected, strict=True):
        torch.testing.assert_close(found, known, rtol=1e-5, atol=1e-5)


def test_the_draw_depends_on_step_and_seed_alone_and_takes_every_quantizer():
    specs = [QuantSpec.parse(name) for name in ("rtn-int8-g128", "rtn-int4-g128", "rtn-int3-g128")]
    first = [drawn(specs, step, seed=0) for step in range(300)]
    assert first == [drawn(specs, step, seed=0) for step in range(300)]
    assert first != [drawn(specs, step, seed=1) for step in range(300)]
    assert all(60 < first.count(spec) < 140 for spec in specs)


@pytest.fixture
def in_fp32(monkeypatch):
    monkeypatch.setattr(loop, "compute_precision", lambda device: "fp32")


def test_training_computes_on_the_quantized_model(made, short, tokenizer, in_fp32):
    """B is zero at the first step: its loss is that of the quantized target, with dropout off."""
    settings = config(
        method="ga_gdr", adapter="lora", guard="ste", ste_quantizers="rtn-int3-g128", lora_dropout=0.5
    )  # fmt: skip
    _, history = unlearned(made, short, tokenizer, settings)
    quantized, _ = models.load(made.target)
    before = compress.stored_layers(quantized)
    same = {name: Update(new_weight=weight) for name, weight in before.items()}
    compress.quantize_layers(quantized, before, same, load_quantizer("rtn-int3-g128"))
    with torch.no_grad():
        for layer in models.linear_layers(quantized).values():
            layer.weight.copy_(layer.weight.bfloat16())  # as it is held in training
    target, _ = models.load(made.target)
    forget, _ = first_rows(short, tokenizer, settings, made)
    with torch.no_grad():
        rounded, plain = (-cross_entropy(model, *forget).item() for model in (quantized, target))
    assert history[0]["forget"] == pytest.approx(rounded, abs=1e-4)
    assert abs(rounded - plain) > 1e-3  # or the test could not tell them apart


def test_outside_of_training_it_is_plain_lora(made, short, tokenizer):
    """What the goal is judged by has the bits of the trained model when nothing is attached any more."""
    seen = {}
    settings = config(adapter="lora", guard="ste", forget_goal=10.0, goal_metrics="verbmem", check_steps=3)
    (ids, _), _ = first_rows(short, tokenizer, settings, made)

    def forget_score(model):
        with torch.no_grad():
            for mode in (True, False):
                seen[mode] = model.train(mode)(input_ids=ids, use_cache=False).logits
        return {"verbmem": 50.0}

    trained, _ = unlearned(made, short, tokenizer, settings, forget_score=forget_score)
    with torch.no_grad():
        assert torch.equal(trained.eval()(input_ids=ids, use_cache=False).logits, seen[False])
    assert not torch.equal(seen[True], seen[False])


def test_both_adapters_learn_and_the_base_does_not(made, short, tokenizer):
    settings = config(
        method="npo_gdr", adapter="lora", guard="ste", epochs=2, ste_quantizers="rtn-int4-row,rtn-int8-row"
    )
    plain, _ = unlearned(made, short, tokenizer, config(method="npo_gdr", adapter="lora", epochs=2))
    trained, history = unlearned(made, short, tokenizer, settings)
    target, _ = models.load(made.target)
    layers = compress.layers_under(trained)
    for name, layer in models.linear_layers(target).items():
        assert torch.equal(layers[name].weight, layer.weight)
        assert layers[name].lora_B["default"].weight.abs().max() > 0, name
    assert any((a != b).any() for a, b in zip(plain.state_dict().values(), trained.state_dict().values(), strict=True))
    assert history[-1]["forget"] < history[0]["forget"]
