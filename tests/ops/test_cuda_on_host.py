"""The CUDA kernels' own source, compiled for the CPU (cuda_on_host.h) and run against the specification.

Warps, barriers, shared memory and tensor-core fragments are imitated, arrays lie between unreadable pages, and threads
run in an order drawn from a seed; so indices, races and arithmetic are tested where there is no GPU. Speed is not.
"""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from qru.ops import QuantSpec, dequantize, merge_dequantize_ref, merge_quantize_ref, quantize_ref, unpack
from qru.ops.kernel import COUNTS, SUMS, _outputs, problem_of
from tests.ops.matrices import DTYPES, KINDS, near, weights

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("cuda_on_host.cpp")
COMPILER = next(
    (found for name in (os.environ.get("CXX"), "g++", "c++") if name and (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

INT64, INT32, FLOAT, ADDRESS = ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


class Params(ctypes.Structure):
    """MergeQuantizeParams of csrc/merge_quantize.h; GridRule is its four fields in place."""

    _fields_ = [
        *[(name, INT64) for name in ("rows", "columns", "rank", "group")],
        *[("per_tensor", INT32), ("bits", INT32), ("symmetric", INT32), ("denominator", FLOAT)],
        *[("scale_dtype", INT32), ("scaling", FLOAT)],
        *[(name, INT32) for name in ("weight_dtype", "a_dtype", "b_dtype")],
        *[(name, ADDRESS) for name in ("weight", "lora_A", "lora_B", "new_weight", "packed")],
        ("packed_stride", INT64),
        *[(name, ADDRESS) for name in ("scales", "zeros", "merged", "counts", "sums", "dequantized")],
        ("precision", INT32),
    ]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The compiled kernels."""
    library = tmp_path_factory.mktemp("cuda_on_host") / "kernels.so"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-w", "-I", "csrc"]
    subprocess.run([COMPILER, *flags, str(SOURCE), "-o", str(library)], cwd=ROOT, check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.run_on_host.restype = ctypes.c_char_p
    return loaded


def run(kernels, problem, seed):
    """Launch; returns the two fault rows, -1 for none."""
    faults = (ctypes.c_uint64 * 2)(2**64 - 1, 2**64 - 1)
    error = kernels.run_on_host(ctypes.byref(Params(**problem)), faults, seed)
    assert error is None, error
    return [ctypes.c_int64(row).value for row in faults]


def quantized(kernels, weight, update, spec, precision="exact", seed=1):
    """What merge_quantize would return: packed, scales, zeros, merged, counts, sums, faults."""
    packed, scales, zeros, merged, counts, sums = _outputs(weight, spec, True)
    outputs = {
        "packed": packed.fill_(-1).data_ptr(),
        "packed_stride": packed.stride(0) * packed.element_size(),
        "scales": scales.data_ptr(),
        "zeros": zeros.data_ptr() if zeros.numel() else 0,
        "merged": merged.data_ptr(),
        "counts": counts.data_ptr(),
        "sums": sums.data_ptr(),
    }
    arguments = [update.get(name) for name in ("lora_A", "lora_B", "new_weight")]
    problem = problem_of(weight, *arguments, update.get("scaling", 1.0), spec, precision, outputs)
    faults = run(kernels, problem, seed)
    return packed, scales, zeros, merged, counts[:-2].tolist(), sums.tolist(), faults


def dequantized(kernels, weight, update, spec, precision="exact", seed=1):
    values = torch.full_like(weight, float("nan"))
    arguments = [update.get(name) for name in ("lora_A", "lora_B", "new_weight")]
    outputs = {"dequantized": values.data_ptr()}
    problem = problem_of(weight, *arguments, update.get("scaling", 1.0), spec, precision, outputs)
    return values, run(kernels, problem, seed)


def assert_equals(got, want, spec, weight):
    packed, scales, zeros, merged, counts, sums, faults = got
    assert faults == [-1, -1]
    assert torch.equal(merged, want.merged)
    assert torch.equal(scales, want.scales)
    assert spec.symmetric or torch.equal(zeros, want.zeros)
    assert torch.equal(packed, want.packed)
    expected = [getattr(want.stats, name) for name in COUNTS] + list(want.stats.histogram)
    assert counts == expected
    if float(weight.float().abs().max()) < 1e15:  # above, squares overflow float32
        dw2, q2 = want.stats.sum_dw2, want.stats.sum_q2
        for name, value in zip(SUMS, sums, strict=True):
            size = (dw2 * q2) ** 0.5 if name == "sum_q_dw" else getattr(want.stats, name)
            assert value == pytest.approx(getattr(want.stats, name), rel=0, abs=1e-5 * size + 1e-30), name


def adapter(weight, rank, seed, dtype=torch.float32, size=0.1):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = weight.shape
    scale = min(float(weight.float().abs().max()) * size, 1e30) / rank**0.5
    return {
        "lora_A": torch.randn(rank, columns, generator=generator).to(dtype),
        "lora_B": (torch.randn(rows, rank, generator=generator) * scale).to(dtype),
        "scaling": -1.7,
    }


# Fused: a warp's tile is 8 x 256, a block's 64 x 256; ragged both ways.
FUSED = [
    ((9, 264), QuantSpec(group_size=8)),
    ((9, 272), QuantSpec(bits=2, group_size=16, step="2^(N-1)-1")),
    ((70, 288), QuantSpec(bits=8, group_size=32, symmetric=False)),
    ((3, 320), QuantSpec(bits=3, group_size=64, scale_dtype="float16")),
    ((67, 384), QuantSpec(group_size=128)),
    ((5, 384), QuantSpec(group_size=128, symmetric=False, scale_dtype="bfloat16")),
    ((2, 512), QuantSpec(bits=8, group_size=256, step="2^(N-1)-1/2")),
    ((6, 8), QuantSpec(bits=2, group_size=8, symmetric=False)),
]
OTHER = [
    ((5, 300), QuantSpec(group_size=-1)),
    ((5, 72), QuantSpec(bits=2, group_size=24)),
    ((9, 35), QuantSpec(bits=8, group_size=7, symmetric=False, scale_dtype="bfloat16")),
    ((66, 261), QuantSpec(bits=3, group_size="tensor")),
    ((4, 130), QuantSpec(bits=4, group_size="tensor", symmetric=False)),
    ((1, 700), QuantSpec(bits=8, group_size=-1)),
]


@pytest.mark.parametrize(("shape", "spec"), FUSED + OTHER, ids=lambda x: getattr(x, "full_name", None))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference(kernels, shape, spec, dtype):
    for i, kind in enumerate(KINDS):
        weight = weights(kind, shape, dtype, i)
        update = [
            {},
            {"new_weight": near(weight, i)},
            adapter(weight, 3, i, dtype),
            adapter(weight, 37, i),
        ][i % 4]
        try:
            want = merge_quantize_ref(weight, spec=spec, merged=True, **update)
        except ValueError:  # a step that overflows, or a merge
            faults = quantized(kernels, weight, update, spec)[-1]
            assert max(faults) >= 0
            continue
        assert_equals(quantized(kernels, weight, update, spec, seed=i), want, spec, weight)
        values, faults = dequantized(kernels, weight, update, spec, seed=i)
        assert faults == [-1, -1]
        assert torch.equal(values, merge_dequantize_ref(weight, spec=spec, **update))


@pytest.mark.parametrize(("shape", "spec"), [FUSED[4], FUSED[2], OTHER[0], OTHER[3]], ids=lambda x: str(x))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [1, 16, 45])
def test_tensor_core_path(kernels, shape, spec, dtype, rank):
    """dW to 1e-6 of sum |b||a|; everything after it exact for the merged weight it got."""
    weight = weights("normal", shape, dtype, 0)
    update = adapter(weight, rank, rank)
    packed, scales, zeros, merged, *rest = quantized(kernels, weight, update, spec, "tensor-core")
    want = merge_quantize_ref(weight, new_weight=merged, spec=spec, merged=True)
    assert_equals((packed, scales, zeros, merged, *rest), want, spec, weight)
    a, b = update["lora_A"].double(), update["lora_B"].double()
    exact = weight.double() + update["scaling"] * (b @ a)
    spacing = torch.finfo(dtype).eps * exact.abs()
    allowed = 1.7 * 1e-6 * (b.abs() @ a.abs()) + 0.51 * spacing + torch.finfo(dtype).smallest_normal
    assert ((merged.double() - exact).abs() <= allowed).all()
    values, _ = dequantized(kernels, weight, update, spec, "tensor-core")
    codes, scales, zeros = quantize_ref(merged, spec)
    assert torch.equal(values, dequantize(codes, scales, zeros, spec).to(dtype))
    assert torch.equal(unpack(packed, spec.bits, shape[1]), codes)


@pytest.mark.parametrize("extreme", [1e-30, 1e30, float("inf")])
def test_operands_that_do_not_split_take_the_exact_path(kernels, extreme):
    weight, spec = weights("normal", (66, 264), torch.float32, 0), QuantSpec(group_size=8)
    update = adapter(weight, 40, 1)
    update["lora_A"][39, 263] = extreme
    update["lora_B"][:, 39] = 0.0 if extreme > 1 else 1.0
    got = quantized(kernels, weight, update, spec, "tensor-core")
    if extreme == float("inf"):
        assert got[-1] == [0, -1]
        return
    want = merge_quantize_ref(weight, spec=spec, merged=True, **update)
    tile = slice(0, 66), slice(256, 264)  # the block that has the element; the others need not equal
    assert torch.equal(got[3][tile], want.merged[tile])


@pytest.mark.parametrize("group_size", [64, -1, "tensor"])
def test_faults_name_the_first_row(kernels, group_size):
    spec = QuantSpec(group_size=group_size, scale_dtype="float16")
    weight = weights("normal", (70, 320), torch.float32, 0)
    for value, which in ((float("nan"), 0), (float("-inf"), 0), (3e38, 1)):
        for name in ("weight", "new_weight"):
            bad = weight.clone()
            bad[33, 7] = bad[69, 319] = value
            given = (bad, {"new_weight": weight}) if name == "weight" else (weight, {"new_weight": bad})
            faults = quantized(kernels, *given, spec)[-1]
            assert faults[which] == (0 if which == 1 and group_size == "tensor" else 33)
            if which == 0 or name == "new_weight":
                assert max(dequantized(kernels, *given, spec)[1]) >= 0


def test_results_do_not_depend_on_the_order_of_threads(kernels):
    weight = weights("normal", (67, 520), torch.bfloat16, 0)
    update = adapter(weight, 33, 1)
    for precision in ("exact", "tensor-core"):
        for spec in (QuantSpec(group_size=8), QuantSpec(bits=8, group_size=-1)):
            first, *others = (quantized(kernels, weight, update, spec, precision, seed) for seed in (1, 2, 3))
            for other in others:
                assert torch.equal(first[0], other[0])
                assert first[4:] == other[4:]  # the float sums too
