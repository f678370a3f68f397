"""The kernel as a torch operator: opcheck, meta tensors, torch.compile."""

import pytest
import torch

from qru.ops import QuantSpec, build_info, merge_quantize
from qru.ops.kernel import merge_quantize_op

pytestmark = pytest.mark.skipif(not build_info()["built"], reason="the kernel is not built")

SPECS = [
    QuantSpec(group_size=32),
    QuantSpec(bits=3, group_size=-1, symmetric=False),
    QuantSpec(bits=8, group_size="tensor", scale_dtype="bfloat16"),
]


def inputs(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 96, generator=generator).bfloat16()
    lora_A, lora_B = torch.randn(4, 96, generator=generator), torch.randn(6, 4, generator=generator)
    return [t.to(device) for t in (weight, lora_A, lora_B)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
@pytest.mark.parametrize("merged", [False, True])
def test_opcheck(spec, merged):
    weight, lora_A, lora_B = inputs()
    torch.library.opcheck(merge_quantize_op, (weight, lora_A, lora_B, None, 0.5, spec.full_name, merged, "exact", 1))
    torch.library.opcheck(merge_quantize_op, (weight, None, None, weight * 2, 1.0, spec.full_name, merged, "exact", 1))


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_meta_tensors_give_the_shapes(spec):
    real = merge_quantize(*inputs(), spec=spec, merged=True)
    meta = merge_quantize(*inputs("meta"), spec=spec, merged=True)
    assert meta.stats is None
    for field in ("packed", "scales", "zeros", "merged"):
        a, b = getattr(real, field), getattr(meta, field)
        assert (a is None and b is None) or (a.shape == b.shape and a.dtype == b.dtype and b.is_meta)


def test_inside_torch_compile():
    def function(weight, lora_A, lora_B):
        spec = QuantSpec(group_size=32).full_name
        outputs = merge_quantize_op(weight * 1, lora_A, lora_B, None, 0.5, spec, False, "exact", 1)
        return outputs[0] + 0, outputs[4]

    want = function(*inputs())
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs())
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
