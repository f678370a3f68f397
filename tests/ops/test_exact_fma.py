"""The reference's fused multiply-add, against exact rational arithmetic, and the merge against float64."""

import struct
from fractions import Fraction

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from qru.ops.exact_fma import fma, merge_exact
from tests.ops.matrices import DTYPES, weights

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def float32_nearest(x: Fraction) -> float:
    """Round an exact rational to float32, half to even, by trying the neighbours of a first guess."""
    guess = torch.tensor(float(x), dtype=torch.float64).float()
    infinity = torch.tensor(float("inf"))
    candidates = [guess, torch.nextafter(guess, infinity), torch.nextafter(guess, -infinity)]
    finite = [c.item() for c in candidates if c.isfinite()]

    def rank(c):
        mantissa_is_odd = struct.unpack("<I", struct.pack("<f", c))[0] & 1
        return abs(Fraction(c) - x), mantissa_is_odd

    return min(finite, key=rank)


@given(floats, floats, floats)
@example(1 + 2**-23, 1 + 2**-23, 2**-60)  # rounding twice would lose the last term's vote
@example(1 + 2**-12, 1 + 2**-12, -(2**-80))
@example(2**-75, 2**-75, 2**-149)
def test_rounds_once(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if abs(exact) > Fraction(torch.finfo(torch.float32).max):
        return
    got = fma(torch.tensor([a]), torch.tensor([b]), torch.tensor([c])).item()
    assert got == float32_nearest(exact)


@given(st.sampled_from(DTYPES), st.integers(1, 40), st.integers(0, 1000))
def test_merge_is_within_an_ulp_of_float64(dtype, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = weights("normal", (6, 40), dtype, seed)
    lora_A, lora_B = torch.randn(rank, 40, generator=generator) * 0.1, torch.randn(6, rank, generator=generator) * 0.1
    got = merge_exact(weight, lora_A, lora_B, 0.5).double()
    terms = (lora_B.double().abs() @ lora_A.double().abs()) * 0.5 + weight.double().abs()
    want = weight.double() + 0.5 * (lora_B.double() @ lora_A.double())
    ulp = torch.exp2(torch.floor(torch.log2(want.abs().clamp(min=1e-30)))) * torch.finfo(dtype).eps
    # the absolute term: r + 1 roundings of float32, each half an ulp of a partial sum, where the sum cancels
    assert bool(((got - want).abs() <= ulp + terms * (rank + 1) * 2.0**-24 + 2.0**-24).all())
