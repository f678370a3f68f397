"""The CUDA kernel against the CPU kernel: equal codes, scales and counts. Needs a GPU and a build with CUDA."""

import pytest
import torch

from qru.ops import QuantSpec, build_info, merge_dequantize, merge_quantize, merge_quantize_ref
from tests.ops.matrices import DTYPES, KINDS, near, weights

pytestmark = pytest.mark.gpu
if not (torch.cuda.is_available() and build_info().get("cuda", False)):
    pytest.skip("no GPU, or no CUDA in the build", allow_module_level=True)

SPECS = [
    QuantSpec(),
    QuantSpec(bits=2, group_size=8, step="2^(N-1)-1"),
    QuantSpec(bits=3, group_size=64, scale_dtype="float16"),
    QuantSpec(bits=8, group_size=256, symmetric=False),
    QuantSpec(bits=4, group_size=32, symmetric=False, scale_dtype="bfloat16"),
    QuantSpec(group_size=-1),
    QuantSpec(bits=2, group_size=24),
    QuantSpec(bits=8, group_size="tensor"),
    QuantSpec(bits=3, group_size="tensor", symmetric=False),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.full_name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["plain", "new_weight", "r1", "r33", "r64"])
def test_equals_the_cpu(spec, dtype, kind, mode):
    columns = {24: 744, 32: 736, 64: 704, 128: 640, 256: 768}.get(spec.group_size, 776)
    weight = weights(kind, (131, columns), dtype, 0)
    update = {}
    if mode == "new_weight":
        update = {"new_weight": near(weight, 1)}
    elif mode != "plain":
        rank, generator = int(mode[1:]), torch.Generator().manual_seed(2)
        size = float(weight.float().abs().max()) * 0.01
        update = {
            "lora_A": torch.randn(rank, columns, generator=generator),
            "lora_B": (torch.randn(131, rank, generator=generator) * size).to(dtype),
        }
    want = merge_quantize(weight, spec=spec, merged=True, **update)
    on_gpu = {name: tensor.cuda() for name, tensor in update.items()}
    got = merge_quantize(weight.cuda(), spec=spec, merged=True, **on_gpu)
    for field in ("packed", "scales", "zeros", "merged"):
        a, b = getattr(got, field), getattr(want, field)
        assert (a is None and b is None) or torch.equal(a.cpu(), b), field
    for field in ("moved", "crossed", "changed", "steps_moved", "zero_groups", "histogram"):
        assert getattr(got.stats, field) == getattr(want.stats, field), field
    values = merge_dequantize(weight.cuda(), spec=spec, **on_gpu)
    assert torch.equal(values.cpu(), want.dequantized(dtype))
    if float(weight.float().abs().max()) < 1e15:
        for field in ("predicted", "sum_dw2", "sum_q2"):
            assert getattr(got.stats, field) == pytest.approx(getattr(want.stats, field), rel=1e-5, abs=1e-30), field


@pytest.mark.parametrize("group_size", [128, -1, "tensor"])
def test_non_finite_is_named(group_size):
    weight = torch.randn(70, 512).cuda()
    weight[65, 3] = float("nan")
    with pytest.raises(ValueError, match="weight is nan at row 65, column 3"):
        merge_quantize(weight, spec=QuantSpec(group_size=group_size))


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.full_name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [1, 16, 33, 64, 128])
def test_tensor_core_path(spec, dtype, rank):
    """dW to 1e-6 of sum |b||a| against float64; everything after it exact for the merged weight it got."""
    columns = {24: 744, 32: 736, 64: 704, 128: 640, 256: 768}.get(spec.group_size, 776)
    weight, generator = weights("normal", (131, columns), dtype, 0), torch.Generator().manual_seed(rank)
    lora_A = torch.randn(rank, columns, generator=generator)
    lora_B = torch.randn(131, rank, generator=generator) * 1e-3
    on_gpu = [t.cuda() for t in (weight, lora_A, lora_B)]
    got = merge_quantize(*on_gpu, 2.0, spec, merged=True, precision="tensor-core")
    merged = got.merged.cpu()
    exact = weight.double() + 2.0 * (lora_B.double() @ lora_A.double())
    sizes = 2.0 * (lora_B.double().abs() @ lora_A.double().abs())
    allowed = 1e-6 * sizes + 0.51 * torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).smallest_normal
    assert ((merged.double() - exact).abs() <= allowed).all()
    want = merge_quantize_ref(weight, new_weight=merged, spec=spec)
    assert torch.equal(got.packed.cpu(), want.packed)
    assert torch.equal(got.scales.cpu(), want.scales)
    for field in ("moved", "crossed", "changed", "steps_moved", "zero_groups", "histogram"):
        assert getattr(got.stats, field) == getattr(want.stats, field), field
    values = merge_dequantize(*on_gpu, 2.0, spec, precision="tensor-core")
    assert torch.equal(values.cpu(), want.dequantized(dtype))


def test_operands_that_do_not_split_take_the_exact_path():
    weight, lora_B = weights("normal", (64, 256), torch.float32, 0).cuda(), torch.randn(64, 8).cuda()
    lora_A = torch.randn(8, 256).cuda() * 1e-25
    got = merge_quantize(weight, lora_A, lora_B, merged=True, precision="tensor-core")
    want = merge_quantize(weight, lora_A, lora_B, merged=True)
    assert torch.equal(got.merged, want.merged)
