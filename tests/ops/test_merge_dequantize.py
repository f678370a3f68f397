"""merge_dequantize against its specification, on every instruction set this machine has, and what it refuses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qru.ops import (
    QuantSpec,
    build_info,
    dequantize,
    merge_dequantize,
    merge_dequantize_ref,
    merge_quantize,
    quantize_ref,
)
from qru.ops.kernel import merge_dequantize_op
from tests.ops.matrices import DTYPES, problems, weights
from tests.ops.test_merge_quantize import outcome, same_bits

ISAS = build_info().get("isas", [])
built = pytest.mark.skipif(not ISAS, reason="the kernel is not built")


def quantized(weight, spec):
    """Values of a weight on its own grid."""
    return dequantize(*quantize_ref(weight, spec), spec)


def test_against_arithmetic_by_hand():
    # Steps 8 / 8 and 4 / 8. Ties go to even: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2 steps; the largest is clamped to 7 steps.
    weight = torch.tensor([[0.5, 1.5, 2.5, 8.0], [4.0, -4.0, 0.75, -0.26]])
    want = torch.tensor([[0.0, 2.0, 2.0, 7.0], [3.5, -4.0, 1.0, -0.5]])
    for run in (merge_dequantize, merge_dequantize_ref):
        assert torch.equal(run(weight, spec=QuantSpec(group_size=4)), want)
        update = torch.ones(1, 4), torch.tensor([[1.0], [0.0]])
        assert torch.equal(run(weight - update[1], *update, spec=QuantSpec(group_size=4)), want)
        assert torch.equal(run(weight * 3, new_weight=weight, spec=QuantSpec(group_size=4)), want)


def test_asymmetric_by_hand():
    # lo = -1, hi = 2: step 1 (2 bits), zero point round(1) - 2 = -1; codes minus zero point in [-1, 2].
    weight = torch.tensor([[-1.0, 2.0, 0.4, 0.6]]).bfloat16()
    spec = QuantSpec(bits=2, group_size=4, symmetric=False)
    for run in (merge_dequantize, merge_dequantize_ref):
        assert torch.equal(run(weight, spec=spec), torch.tensor([[-1.0, 2.0, 0.0, 1.0]]).bfloat16())


@built
@pytest.mark.nightly
@given(problem=problems(), isa=st.sampled_from(ISAS), threads=st.sampled_from([1, 2]))
def test_equals_the_reference(problem, isa, threads):
    weight, update, spec = problem
    want = outcome(merge_dequantize_ref, weight, spec=spec, **update)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QRU_ISA", isa)
        got = outcome(merge_dequantize, weight, spec=spec, threads=threads, **update)
    if isinstance(want, str):
        assert got == want
    else:
        assert same_bits(got, want)


@built
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_size", [128, -1, "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_equals_the_codes_of_the_quantizer(dtype, group_size, symmetric):
    """Also where a matrix has several panels and blocks."""
    weight, spec = weights("normal", (67, 640), dtype, 0), QuantSpec(group_size=group_size, symmetric=symmetric)
    generator = torch.Generator().manual_seed(1)
    lora_A, lora_B = torch.randn(20, 640, generator=generator), torch.randn(67, 20, generator=generator) * 1e-3
    want = merge_quantize(weight, lora_A, lora_B, 2.0, spec).dequantized(dtype)
    assert same_bits(merge_dequantize(weight, lora_A, lora_B, 2.0, spec), want)


@pytest.mark.parametrize("run", [merge_dequantize, merge_dequantize_ref])
@pytest.mark.parametrize("group_size", [32, "tensor"])
def test_what_it_refuses(run, group_size):
    spec = QuantSpec(group_size=group_size, scale_dtype="float16")
    weight, lora_A, lora_B = torch.randn(8, 128), torch.randn(4, 128), torch.randn(8, 4)
    bad = weight.clone()
    bad[3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"q_proj: weight is nan at row 3, column 2"):
        run(bad, spec=spec, name="q_proj")
    bad_B = lora_B.clone()
    bad_B[7, 1] = float("-inf")
    with pytest.raises(ValueError, match=r"lora_B is -inf at row 7, column 1"):
        run(weight, lora_A, bad_B, spec=spec)
    with pytest.raises(ValueError, match="new_weight is nan at row 3, column 2"):
        run(weight, new_weight=bad, spec=spec)
    with pytest.raises(ValueError, match="new_weight is nan at row 3, column 2"):
        run(bad.flip(0), new_weight=bad, spec=spec)  # what is replaced is not looked at
    huge_A, huge_B = torch.zeros(1, 128), torch.zeros(8, 1)
    huge_A[0, 5], huge_B[6, 0] = 300.0, 300.0
    with pytest.raises(ValueError, match="merged is inf at row 6, column 5"):
        run(weight.half(), huge_A, huge_B, spec=spec)
    with pytest.raises(ValueError, match="the step of row 0, group 0 overflows float16"):
        run(torch.full((1, 128), 3e38), spec=spec)
    with pytest.raises(ValueError, match="only one of"):
        run(weight, lora_A, spec=spec)


@pytest.mark.parametrize("run", [merge_dequantize, merge_dequantize_ref])
@pytest.mark.parametrize("group_size", [32, -1, "tensor"])
def test_only_the_merged_weight_must_be_sound(run, group_size):
    """What a new weight replaces is not read; nor does the grid of a weight before its merge matter."""
    spec, new = QuantSpec(group_size=group_size, scale_dtype="float16"), torch.randn(8, 128)
    want = quantized(new, spec)
    assert torch.equal(run(torch.full((8, 128), float("nan")), new_weight=new, spec=spec), want)
    assert torch.equal(run(torch.full((8, 128), 3e38), new_weight=new, spec=spec), want)
    huge, lora_A, lora_B = torch.full((8, 128), 2.0**20), torch.ones(1, 128), torch.full((8, 1), -(2.0**20))
    lora_A[0, ::2] += 2.0**-20
    merged = torch.zeros(8, 128)
    merged[:, ::2] = -1.0
    assert torch.equal(run(huge, lora_A, lora_B, spec=spec), quantized(merged, spec))
    with pytest.raises(ValueError, match="the step of row 0, group 0 overflows float16"):
        merge_quantize(huge, lora_A, lora_B, spec=spec)  # counting needs both grids


@built
@pytest.mark.parametrize("spec", [QuantSpec(group_size=32), QuantSpec(bits=8, group_size="tensor")])
def test_opcheck(spec):
    weight, lora_A, lora_B = torch.randn(6, 96).bfloat16(), torch.randn(4, 96), torch.randn(6, 4)
    for arguments in ((lora_A, lora_B), (None, None)):
        torch.library.opcheck(merge_dequantize_op, (weight, *arguments, 0.5, spec.full_name, "exact", 1))


@built
def test_meta_tensors_give_the_shape():
    weight = torch.empty(6, 96, dtype=torch.bfloat16, device="meta")
    got = merge_dequantize(weight, spec=QuantSpec(group_size=32))
    assert got.is_meta
    assert (got.shape, got.dtype) == (weight.shape, weight.dtype)
