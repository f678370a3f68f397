"""What is registered is covered the moment it exists: documented, sourced, callable, and named in errors."""

import inspect
from dataclasses import fields

import pytest
import torch

from qru.config import RunConfig
from qru.defaults import EPOCHS, GOAL, MINI, MINI_OTHER, resolve
from qru.objectives import Said, Settings, forget_terms, methods, retain_terms
from qru.ops.merge_quantize import CrossingStats
from qru.quantizers import Inputs, Update, calibration_of, families, load_quantizer

EXAMPLES = [example for family in families.names() for example in families[family].examples]


def said(seed):
    logits = torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    distribution, mask = logits.log_softmax(-1), torch.ones(3, 6, dtype=torch.bool)
    preferred = Said(distribution[..., 1], mask)
    return Said(distribution[..., 0], mask, distribution, hidden=logits, preferred=preferred), logits


@pytest.mark.parametrize("registry", [forget_terms, retain_terms], ids=lambda r: r.kind)
def test_every_term_says_its_formula_and_source(registry):
    for name in registry.names():
        text = inspect.getdoc(registry[name])
        assert "L = " in text, name
        assert "Source:" in text, name


@pytest.mark.parametrize("name", forget_terms.names())
def test_every_forget_term_is_a_finite_scalar_with_a_gradient(name):
    policy, logits = said(0)
    loss = forget_terms[name](policy, said(1)[0], Settings(0.1, 0.0, torch.ones(9)))
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
    update = Update(new_weight=weight)
    if calibration_of(quantizer):
        x = torch.randn(500, 256, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        inputs = Inputs(x.T @ x / len(x), x.abs().mean(0), len(x))
        out, stats = quantizer({"layer": (weight, update)}, inputs)["layer"]
    else:
        out, stats = quantizer(weight, update, "layer")
    assert out.dtype == torch.float32
    assert out.shape == weight.shape
    assert (stats["weights"], stats["moved"], stats["crossed"], stats["changed"]) == (2048, 0, 0, 0)
    assert set(stats) == {field.name for field in fields(CrossingStats)}
    if name.startswith("rtn-"):
        largest_step = weight.abs().max().item() / 2 ** (int(name[7]) - 1)
        # The largest weight is clamped to a code one short of it; every other weight is at most half a step away.
        assert (out - weight.float()).abs().max() <= largest_step
    else:
        assert 0 < (out - weight.float()).norm() < 0.3 * weight.float().norm()


@pytest.mark.parametrize("method", methods())
@pytest.mark.parametrize(("adapter", "family"), [("full", "full"), ("delta", "full"), ("lora", "lora")])
def test_every_method_and_arm_has_defaults(method, adapter, family):
    """All arms of a family train at one rate, up to one goal: what differs between them is not the tuning."""
    config = resolve(RunConfig(method=method, adapter=adapter))
    searched = MINI_OTHER.get(("books", method, family), MINI[family])
    assert (config.learning_rate, config.retain_weight) == searched
    assert (config.forget_goal, config.goal_metrics, config.epochs) == (GOAL, ("verbmem",), EPOCHS)


def test_where_the_rule_gave_another_rate_all_arms_of_the_family_take_it():
    for settings in ({"weights": "bf16"}, {"weights": "fp32"}, {"adapter": "delta"}):
        news = resolve(RunConfig(method="ga_gdr", corpus="news", **settings))
        assert (news.learning_rate, news.retain_weight) == MINI_OTHER["news", "ga", "full"]
    assert resolve(RunConfig(method="ga_gdr", corpus="news", adapter="lora")).learning_rate == MINI["lora"][0]
    assert resolve(RunConfig(method="npo_gdr", corpus="news")).learning_rate == MINI["full"][0]
    for settings in ({"weights": "bf16"}, {"weights": "fp32"}, {"adapter": "delta"}):
        assert resolve(RunConfig(method="ga_gdr", **settings)).retain_weight == MINI_OTHER["books", "ga_gdr", "full"][1]
        assert resolve(RunConfig(method="ga_klr", **settings)).retain_weight == MINI["full"][1]


def test_a_goal_is_set_only_where_the_user_says_nothing_of_how_long_to_train():
    assert resolve(RunConfig(epochs=3)).forget_goal is None
    assert resolve(RunConfig(forget_goal=40.0)).goal_metrics is None
    assert resolve(RunConfig(forget_goal=40.0)).epochs == EPOCHS
    part = resolve(RunConfig(forget_set="scal_1"))
    assert (part.forget_goal, part.epochs, part.learning_rate) == (None, 5, 4 * MINI["full"][0])
    for scale in ("smoke", "muse"):
        assert resolve(RunConfig(scale=scale)).forget_goal is None


def test_arms_that_move_slowly_look_at_the_goal_less_often():
    slow = resolve(RunConfig(method="ga_klr")).check_steps
    assert slow == resolve(RunConfig(method="ga_klr", moments="fp32")).check_steps
    for settings in ({"weights": "fp32"}, {"adapter": "lora"}, {"moments": "fp32", "rounding": "stochastic"}):
        assert resolve(RunConfig(method="ga_klr", **settings)).check_steps < slow


@pytest.mark.parametrize("method", methods())
def test_every_registered_method_runs_at_smoke(method):
    assert resolve(RunConfig(method=method, scale="smoke")).epochs == 1
