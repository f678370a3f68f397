"""QuantSpec, its names, and the grids worked out by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qru.ops import QuantSpec, dequantize, merge_quantize, merge_quantize_ref, quantize_ref
from qru.ops.grid import BITS, group_width
from tests.ops.matrices import DTYPES, KINDS, specs, weights


def test_papers_step_by_hand():
    weight = torch.tensor([[1.0, -0.5, 0.0625, 0.0624, 0.1875, -1.0, 0.9375, 0.93]])
    codes, scales, zeros = quantize_ref(weight, QuantSpec(bits=4, group_size=-1))
    assert scales.tolist() == [[0.125]]
    assert zeros is None
    # 0.0625 / s is exactly 0.5 and rounds to the even 0; 0.1875 / s = 1.5 rounds to 2; 1 / s = 8 is clamped to 7.
    assert codes.tolist() == [[7, -4, 0, 0, 2, -8, 7, 7]]


@pytest.mark.parametrize(("step", "scale"), [("2^(N-1)", 7 / 8), ("2^(N-1)-1", 1.0), ("2^(N-1)-1/2", 7 / 7.5)])
def test_step_rules(step, scale):
    spec = QuantSpec(step=step, group_size=-1)
    _, scales, _ = quantize_ref(torch.tensor([[7.0, -3.0]]), spec)
    assert scales.item() == torch.tensor(scale, dtype=torch.float32).item()


def test_asymmetric_by_hand():
    weight = torch.tensor([[0.0, 1.0, 2.0, 15.0]])
    spec = QuantSpec(symmetric=False, group_size=-1)
    codes, scales, zeros = quantize_ref(weight, spec)
    assert (scales.item(), zeros.item()) == (1.0, -8.0)
    assert codes.tolist() == [[-8, -7, -6, 7]]
    assert torch.equal(dequantize(codes, scales, zeros, spec), weight)


def test_scale_is_rounded_before_codes():
    weight = torch.tensor([[1.0, 0.0625 * (1 + 2**-9)]])  # on the float32 step 1/8, 0.501: code 1
    wide = torch.tensor([[1.0 + 2**-7, 0.0625 * (1 + 2**-9)]])
    spec = QuantSpec(group_size=-1, scale_dtype="bfloat16", step="2^(N-1)-1")
    codes, scales, _ = quantize_ref(wide, spec)
    assert scales.item() == ((1 + 2**-7) / torch.tensor(7.0)).bfloat16().item()
    assert torch.equal(codes.float(), torch.round(wide / scales))
    assert quantize_ref(weight, QuantSpec(group_size=-1))[0].tolist() == [[7, 1]]


@given(st.data())
def test_quantizing_is_a_projection(data):
    """Codes lie in range, and no weight inside the range is further from its code than half a step."""
    columns = data.draw(st.sampled_from([8, 24, 32]))
    spec = data.draw(specs(columns))
    kind, dtype = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(DTYPES))
    weight = weights(kind, (4, columns), dtype, data.draw(st.integers(0, 1000)))
    try:
        codes, scales, zeros = quantize_ref(weight, spec)
    except ValueError as error:
        assert "overflows" in str(error)  # noqa: PT017
        return
    assert int(codes.min()) >= spec.qmin
    assert int(codes.max()) <= spec.qmax
    error = (dequantize(codes, scales, zeros, spec) - weight.float()).abs()
    steps = scales.repeat_interleave(weight.numel() // scales.numel()).view(weight.shape)
    inside = (codes > spec.qmin) & (codes < spec.qmax) & (steps > 0)  # a tiny step may round to zero in its type
    # 1e-4: float32 products of large codes; the denormal floor: a step of one unit in the last place
    assert bool((error <= steps * (0.5 + 1e-4) + 1e-44)[inside].all())


@given(spec=specs(64))
def test_names_read_back(spec):
    for name in (spec.name, spec.full_name):
        again = QuantSpec.parse(name)
        assert again.name == spec.name
        assert (again.bits, again.group_size, again.symmetric) == (spec.bits, spec.group_size, spec.symmetric)


def test_short_names():
    assert QuantSpec().name == "rtn-int4-g128"
    assert QuantSpec.parse("rtn-int4-g128") == QuantSpec.parse("rtn-int4-g128-sym-2^(N-1)") == QuantSpec()
    assert QuantSpec.parse("rtn-int3-row") == QuantSpec(bits=3, group_size=-1)
    assert QuantSpec.parse("rtn-int8-tensor-asym") == QuantSpec(bits=8, group_size="tensor", symmetric=False)
    assert QuantSpec(step="2^(N-1)-1/2", scale_dtype="float16").name == "rtn-int4-g128-sym-2^(N-1)-1/2-float16"


@pytest.mark.parametrize(
    "name", ["rtn-int4", "rtn-int4-g", "int4-g128", "rtn-int4-g0", "rtn-int5-g8", "rtn-int4-g8-odd"]
)
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=r"int|bits|group_size"):
        QuantSpec.parse(name)


@pytest.mark.parametrize(
    "wrong",
    [{"bits": 5}, {"bits": True}, {"group_size": 0}, {"group_size": "row"}, {"step": "max"}, {"scale_dtype": "fp8"},
     {"symmetric": 1}, {"group_size": 2.0}],
)  # fmt: skip
def test_bad_specs_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QuantSpec(**wrong)


def test_group_that_does_not_divide_names_those_that_do():
    with pytest.raises(ValueError, match=r"model\.q_proj.*group_size 128.*row of 96.*96"):
        group_width((4, 96), QuantSpec(), "model.q_proj")
    for run in (merge_quantize, merge_quantize_ref):
        with pytest.raises(ValueError, match="does not divide"):
            run(torch.zeros(4, 96))


@pytest.mark.parametrize("bits", BITS)
def test_ranges(bits):
    spec = QuantSpec(bits=bits)
    assert spec.qmax - spec.qmin == 2**bits - 1
    assert spec.denominator == 2 ** (bits - 1)
