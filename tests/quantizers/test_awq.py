"""AWQ against its equations, written out over the inputs themselves."""

import pytest
import torch

from qru.ops import QuantSpec
from qru.ops.grid import dequantize, quantize_ref
from qru.quantizers import Update, awq, load_quantizer
from tests.quantizers.test_gptq import drawn, inputs_of


def few_large_channels(**sizes):
    weight, x = drawn(**sizes)
    x[:, ::8] *= 12.0
    return weight, x


def output_error(weight, x, alpha, spec):
    """‖Q(W·diag(s)) diag(s)⁻¹ X − W X‖², a mean over tokens, in float64 (the paper's equation 4)."""
    s = x.double().abs().mean(0).pow(alpha).float()
    codes = quantize_ref(weight * s, spec)
    return ((dequantize(*codes, spec) / s - weight).double() @ x.double().T).square().sum().item() / len(x)


@pytest.mark.parametrize("spec", [QuantSpec(4, 16), QuantSpec(3, -1), QuantSpec(4, "tensor", symmetric=False)], ids=str)
def test_the_chosen_alpha_has_the_least_error_of_all(spec):
    weight, x = few_large_channels()
    errors = {alpha: output_error(weight, x, alpha, spec) for alpha in awq.ALPHAS}
    chosen = awq.best_alpha([weight], inputs_of(x), spec)
    assert chosen == min(errors, key=errors.get)
    assert chosen > 0
    assert errors[chosen] < errors[0.0]
    some = awq.rounded(weight, awq.channel_scales(inputs_of(x), 0.3), spec).values
    assert awq.output_error(weight, some, inputs_of(x)) == pytest.approx(errors[0.3], rel=1e-4)


def test_the_grid_of_alpha_is_the_papers():
    assert (awq.ALPHAS[0], awq.ALPHAS[-1], len(awq.ALPHAS)) == (0.0, 1.0, 21)


@pytest.mark.parametrize("name", ["int4-g16", "int3-row", "int4-tensor", "int4-g16-asym", "int8-g16-sym-2^(N-1)-1"])
def test_alpha_zero_is_round_to_nearest(name, monkeypatch):
    monkeypatch.setattr(awq, "ALPHAS", (0.0,))
    weight, x = few_large_channels()
    after = weight + 0.002 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    values, stats = load_quantizer(f"awq-{name}")({"layer": (weight, Update(new_weight=after))}, inputs_of(x))["layer"]
    expected, counted = load_quantizer(f"rtn-{name}")(weight, Update(new_weight=after), "layer")
    assert torch.equal(values, expected)
    for key in ("weights", "moved", "crossed", "changed", "steps_moved", "zero_groups", "histogram"):
        assert stats[key] == counted[key], key
    for key in ("predicted", "sum_dw2", "sum_q_dw", "sum_q2"):
        assert stats[key] == pytest.approx(counted[key], rel=1e-5), key


def test_layers_that_read_the_same_share_their_scales():
    weight, x = few_large_channels()
    other = 5 * drawn(seed=4)[0]
    spec, inputs = QuantSpec(4, 16), inputs_of(x)
    found = load_quantizer("awq-int4-g16")(
        {"q": (weight, Update(new_weight=weight)), "k": (other, Update(new_weight=other))}, inputs
    )
    errors = {a: output_error(weight, x, a, spec) + output_error(other, x, a, spec) for a in awq.ALPHAS}
    s = x.double().abs().mean(0).pow(min(errors, key=errors.get)).float()
    for name, w in (("q", weight), ("k", other)):
        codes = quantize_ref(w * s, spec)
        torch.testing.assert_close(found[name][0], dequantize(*codes, spec) / s, rtol=1e-5, atol=1e-7)
        assert found[name][1]["crossed"] == found[name][1]["changed"] == 0


def test_crossings_are_on_the_scales_and_steps_of_the_base():
    weight, x = few_large_channels()
    after = weight + 0.003 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    inputs, spec = inputs_of(x), QuantSpec(4, 16)
    _, stats = load_quantizer("awq-int4-g16")({"layer": (weight, Update(new_weight=after))}, inputs)["layer"]
    s = awq.channel_scales(inputs, awq.best_alpha([weight], inputs, spec))
    steps = ((weight * s).view(10, 3, 16).abs().amax(-1) / 8).repeat_interleave(16, 1)
    codes = [torch.round(w * s / steps).clamp(-8, 7) for w in (weight, after)]
    assert stats["crossed"] == int((codes[0] != codes[1]).sum()) > 0
    expected = ((after - weight).abs() * s / steps).clamp(max=1).sum().item()
    assert stats["predicted"] == pytest.approx(expected, rel=1e-5)


def test_a_channel_that_is_never_used_has_a_finite_scale():
    weight, x = drawn()
    x[:, 3] = 0.0
    values, _ = load_quantizer("awq-int4-g16")({"layer": (weight, Update(new_weight=weight))}, inputs_of(x))["layer"]
    assert values.isfinite().all()
