"""What is refused, and that the message names the culprit; kernel and reference alike."""

import pytest
import torch

from qru.ops import QuantSpec, merge_quantize, merge_quantize_ref

pytestmark = pytest.mark.parametrize("run", [merge_quantize, merge_quantize_ref])


def adapter(rows=8, columns=128, rank=4):
    return torch.randn(rank, columns), torch.randn(rows, rank)


@pytest.mark.parametrize("tensor", ["weight", "lora_A", "lora_B"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("group_size", [32, "tensor"])
def test_non_finite_is_named(run, tensor, value, group_size):
    lora_A, lora_B = adapter()
    given = {"weight": torch.randn(8, 128), "lora_A": lora_A, "lora_B": lora_B}
    given[tensor][3, 2] = value
    given[tensor][3, 3] = value
    with pytest.raises(ValueError, match=rf"layers\.3\.q_proj: {tensor} is .* at row 3, column 2 \(the first such\)"):
        run(**given, spec=QuantSpec(group_size=group_size), name="layers.3.q_proj")


def test_non_finite_new_weight_is_named(run):
    new = torch.randn(8, 128, dtype=torch.bfloat16)
    new[7, 127] = float("nan")
    with pytest.raises(ValueError, match="new_weight is nan at row 7, column 127"):
        run(torch.randn(8, 128, dtype=torch.bfloat16), new_weight=new)


@pytest.mark.parametrize("group_size", [128, "tensor"])
def test_a_merge_that_overflows_is_named(run, group_size):
    lora_A, lora_B = torch.zeros(1, 128), torch.zeros(8, 1)
    lora_A[0, 5], lora_B[6, 0] = 300.0, 300.0
    with pytest.raises(ValueError, match=r"merged is inf at row 6, column 5 .*overflows torch\.float16"):
        run(torch.zeros(8, 128, dtype=torch.float16), lora_A, lora_B, spec=QuantSpec(group_size=group_size))


@pytest.mark.parametrize("group_size", [128, "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_step_that_overflows_is_named(run, group_size, symmetric):
    weight = torch.ones(4, 128)
    weight[0, 7] = 3e38
    spec = QuantSpec(group_size=group_size, symmetric=symmetric, scale_dtype="float16")
    with pytest.raises(ValueError, match="the step of row 0, group 0 overflows float16"):
        run(weight, spec=spec)


def test_shapes_and_types(run):
    weight = torch.randn(8, 128)
    lora_A, lora_B = adapter()
    cases = [
        ({"weight": torch.randn(8)}, r"weight has shape \(8,\)"),
        ({"weight": torch.empty(0, 128)}, "not empty"),
        ({"weight": torch.empty(8, 0)}, "not empty"),
        ({"weight": weight.double()}, "weight is torch.float64"),
        ({"weight": weight.to(torch.int8)}, "weight is torch.int8"),
        ({"weight": weight, "lora_A": lora_A}, "only one of"),
        ({"weight": weight, "lora_A": lora_A[:, :64], "lora_B": lora_B}, r"must be \(r, 128\) and \(8, r\)"),
        ({"weight": weight, "lora_A": lora_A, "lora_B": lora_B.T}, "must be"),
        ({"weight": weight, "lora_A": lora_A[:0], "lora_B": lora_B[:, :0]}, "r >= 1"),
        ({"weight": weight, "lora_A": lora_A.half(), "lora_B": lora_B}, "lora_A is torch.float16"),
        ({"weight": weight, "lora_A": lora_A, "lora_B": lora_B, "new_weight": weight}, "both an adapter"),
        ({"weight": weight, "new_weight": weight.bfloat16()}, "both must agree"),
        ({"weight": weight, "lora_A": lora_A, "lora_B": lora_B, "scaling": float("nan")}, "scaling is nan"),
        ({"weight": weight, "threads": 0}, "threads is 0"),
        ({"weight": weight, "threads": 2.5}, "threads is 2.5"),
        ({"weight": weight, "lora_A": lora_A, "lora_B": lora_B, "scaling": 1e39}, "must be finite"),  # Inf in float32
        ({"weight": weight, "lora_A": lora_A, "lora_B": lora_B, "scaling": None}, "scaling is None"),
        ({"weight": weight, "lora_A": lora_A, "lora_B": lora_B, "scaling": "2"}, "scaling is '2'"),
        ({"weight": weight, "lora_A": lora_A, "lora_B": lora_B, "scaling": [2.0]}, r"scaling is \[2.0\]"),
        ({"weight": weight, "scaling": None}, "scaling is None"),
        ({"weight": None}, "weight is NoneType; give a dense"),
        ({"weight": weight.numpy()}, "weight is ndarray; give a dense"),
        ({"weight": weight.to_sparse()}, "weight is torch.sparse_coo; give a dense"),
        ({"weight": weight, "lora_A": lora_A, "lora_B": lora_B.tolist()}, "lora_B is list; give a dense"),
        ({"weight": weight, "spec": "rtn-int4-g128"}, "give a QuantSpec"),
        ({"weight": weight, "new_weight": weight.to("meta")}, "is on meta"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            run(**arguments)


def test_strided_tensors_are_copied(run):
    lora_A, lora_B = adapter()
    weight = torch.randn(8, 128)
    want = run(weight, lora_A, lora_B, merged=True)
    got = run(weight.T.contiguous().T, lora_A.T.contiguous().T, lora_B.T.contiguous().T, merged=True)
    assert torch.equal(got.packed, want.packed)
    assert torch.equal(got.merged, want.merged)


def test_inputs_are_left_alone(run):
    lora_A, lora_B = adapter()
    weight = torch.randn(8, 128)
    before = weight.clone()
    out = run(weight, lora_A, lora_B, merged=True)
    assert torch.equal(weight, before)
    plain = run(weight, merged=True)
    plain.merged.zero_()
    assert torch.equal(weight, before)
    assert not torch.equal(out.merged, before)


def test_more_threads_than_any_system_has(run):
    weight = torch.randn(64, 128)
    assert torch.equal(run(weight, threads=2**40).packed, run(weight, threads=1).packed)


def test_precision(run):
    weight = torch.randn(8, 128)
    with pytest.raises(ValueError, match=r"k_proj: precision is 'tensor_core'; .*perhaps 'tensor-core'"):
        run(weight, precision="tensor_core", name="k_proj")
    with pytest.raises(ValueError, match="precision is None"):
        run(weight, precision=None)
    with pytest.raises(ValueError, match=r'"tensor-core" and the weight is on the CPU; use "exact"'):
        run(weight, *adapter(), precision="tensor-core")
