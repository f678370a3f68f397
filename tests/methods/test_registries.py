"""What is registered is covered the moment it exists: documented, sourced, callable, and named in errors."""

import inspect

import pytest
import torch

from qru.config import RunConfig
from qru.defaults import MINI, resolve
from qru.objectives import Said, forget_terms, methods, retain_terms
from qru.quantizers import Update, families, load_quantizer

EXAMPLES = [example for family in families.names() for example in families[family].examples]


def said(seed):
    logits = torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    distribution = logits.log_softmax(-1)
    return Said(distribution[..., 0], torch.ones(3, 6, dtype=torch.bool), distribution), logits


@pytest.mark.parametrize("registry", [forget_terms, retain_terms], ids=lambda r: r.kind)
def test_every_term_says_its_formula_and_source(registry):
    for name in registry.names():
        text = inspect.getdoc(registry[name])
        assert "L = " in text, name
        assert "Source:" in text, name


@pytest.mark.parametrize("name", forget_terms.names())
def test_every_forget_term_is_a_finite_scalar_with_a_gradient(name):
    policy, logits = said(0)
    loss = forget_terms[name](policy, said(1)[0], 0.1)
    loss.backward()
    assert loss.shape == ()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("name", retain_terms.names())
def test_every_retain_term_is_a_finite_scalar_with_a_gradient(name):
    policy, logits = said(0)
    loss = retain_terms[name](policy, said(1)[0])
    loss.backward()
    assert loss.shape == ()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_quantizer_keeps_its_name_and_quantizes(name):
    quantizer = load_quantizer(name)
    assert quantizer.name == name
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    quantizer.check(tuple(weight.shape), "layer")
    out, stats = quantizer(weight, Update(new_weight=weight), "layer")
    assert out.dtype == torch.float32
    assert out.shape == weight.shape
    assert stats["crossed"] == 0
    largest_step = weight.abs().max().item() / 2 ** (int(name[7]) - 1)
    # The largest weight is clamped to a code one short of it; every other weight is at most half a step away.
    assert (out - weight.float()).abs().max() <= largest_step


@pytest.mark.parametrize("method", ["ga", "npo", "ga_gdr", "ga_klr", "npo_gdr", "npo_klr"])
@pytest.mark.parametrize(("adapter", "weights"), [("full", "bf16"), ("full", "fp32"), ("lora", "fp32")])
def test_every_method_and_arm_has_defaults(method, adapter, weights):
    rate, epochs, weight = MINI[method, adapter, weights]
    config = resolve(RunConfig(method=method, adapter=adapter, weights=weights))
    assert (config.learning_rate, config.epochs, config.retain_weight) == (rate, epochs, weight)


@pytest.mark.parametrize("method", methods())
def test_every_registered_method_runs_at_smoke(method):
    assert resolve(RunConfig(method=method, scale="smoke")).epochs == 1
