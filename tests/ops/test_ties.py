"""Weights laid exactly on, and one ulp beside, the boundaries between codes: where a reciprocal would go wrong."""

import pytest
import torch

from qru.ops import QuantSpec, build_info, merge_quantize, merge_quantize_ref
from qru.ops.grid import BITS, STEP_RULES
from tests.ops.matrices import DTYPES

ISAS = build_info().get("isas", [])
pytestmark = pytest.mark.skipif(not ISAS, reason="the kernel is not built")


def on_boundaries(spec: QuantSpec, dtype: torch.dtype, rows: int, seed: int) -> torch.Tensor:
    """(rows, 64): a row's largest weight is drawn at random, the rest are (k + 1/2) steps, moved by -1, 0 or 1 ulp."""
    generator = torch.Generator().manual_seed(seed)
    top = (torch.rand(rows, 1, generator=generator) + 0.5).to(dtype)
    step = top.float() / spec.denominator
    halves = torch.randint(spec.qmin, spec.qmax, (rows, 64), generator=generator) + 0.5
    x = (halves * step).clamp(-top.float(), top.float()).to(dtype)
    bits = x.view({2: torch.int16, 4: torch.int32}[x.element_size()])
    x = (bits + torch.randint(-1, 2, bits.shape, generator=generator, dtype=bits.dtype)).view(dtype)
    x = torch.where(x.abs() > top, top, x)
    x[:, 7] = top[:, 0]
    return x


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("step", STEP_RULES)
def test_boundaries(isa, dtype, bits, step, monkeypatch):
    monkeypatch.setenv("QRU_ISA", isa)
    for scale_dtype, symmetric in (("float32", True), ("bfloat16", True), ("float32", False)):
        spec = QuantSpec(bits=bits, group_size=-1, step=step, scale_dtype=scale_dtype, symmetric=symmetric)
        weight, new = on_boundaries(spec, dtype, 300, 0), on_boundaries(spec, dtype, 300, 1)
        got, want = (
            merge_quantize(weight, new_weight=new, spec=spec),
            merge_quantize_ref(weight, new_weight=new, spec=spec),
        )
        assert torch.equal(got.packed, want.packed)
        assert (got.stats.crossed, got.stats.histogram) == (want.stats.crossed, want.stats.histogram)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_steps_that_are_denormal_halves(isa, symmetric, monkeypatch):
    """Such a step may be a third too small, so that weights on their own grid need clamping on both sides."""
    monkeypatch.setenv("QRU_ISA", isa)
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randint(-40, 41, (64, 128), generator=generator) * 2.0**-20).half()
    for bits in BITS:
        spec = QuantSpec(bits=bits, group_size=4, symmetric=symmetric, scale_dtype="float16")
        got = merge_quantize(weight, new_weight=weight.flip(1), spec=spec)
        want = merge_quantize_ref(weight, new_weight=weight.flip(1), spec=spec)
        assert torch.equal(got.packed, want.packed)
        assert (got.stats.crossed, got.stats.histogram) == (want.stats.crossed, want.stats.histogram)
