"""The kernel as torch operators, ``torch.ops.qru.merge_quantize`` and ``merge_dequantize``, so that torch.compile and
meta tensors work.

This layer allocates and passes addresses; checks are made before it and statistics read after it.
"""

import os

import torch
from torch import Tensor

from qru.ops.extension import extension
from qru.ops.grid import SCALE_DTYPES, QuantSpec, group_width
from qru.ops.pack import codes_per_word, packed_width

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/grid.h: Dtype
# The kernels' outputs, in the order of csrc/merge_quantize.h. `counts` ends with the histogram and the two fault rows.
COUNTS = ("crossed", "changed", "moved", "steps_moved", "zero_groups")
SUMS = ("predicted", "sum_dw2", "sum_q_dw", "sum_q2")
FAULTS = ("non_finite_row", "step_overflow_row")  # -1: none
OUTPUTS = ("packed", "packed_stride", "scales", "zeros", "merged", "counts", "sums", "dequantized")
MOST_THREADS = 4 * (os.cpu_count() or 1)  # OpenMP ends the process when the system refuses it a thread
PRECISIONS = {"exact": 0, "tensor-core": 1}  # csrc/merge_quantize.h: Precision


def serves(device: torch.device) -> bool:
    """Whether the compiled kernel runs on this device."""
    if device.type == "meta":
        return True  # shapes need no kernel
    module = extension()
    return module is not None and (device.type == "cpu" or (device.type == "cuda" and module.build_info()["cuda"]))


@torch.library.custom_op("qru::merge_quantize", mutates_args=())
def merge_quantize_op(
    weight: Tensor,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    new_weight: Tensor | None,
    scaling: float,
    spec: str,
    merged: bool,
    precision: str,
    threads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One launch on contiguous, checked tensors; ``spec`` is a ``QuantSpec.full_name``.

    Returns:
        packed, scales, zeros (empty when symmetric), merged (empty unless asked for), counts int64 (COUNTS, histogram,
        FAULTS), sums float64 (SUMS).
    """
    weight, new_weight = _aligned(weight), _aligned(new_weight)
    grid = QuantSpec.parse(spec)
    packed, scales, zeros, after, counts, sums = _outputs(weight, grid, merged)
    outputs = {
        "packed": packed.data_ptr(),
        "packed_stride": packed.stride(0) * packed.element_size(),
        "scales": scales.data_ptr(),
        "zeros": zeros.data_ptr() if zeros.numel() else 0,
        "merged": after.data_ptr() if merged else 0,
        "counts": counts.data_ptr(),
        "sums": sums.data_ptr(),
    }
    _launch(
        problem_of(weight, lora_A, lora_B, new_weight, scaling, grid, precision, outputs), weight, threads, counts[-2:]
    )
    return packed, scales, zeros, after, counts, sums


@merge_quantize_op.register_fake
def _(weight, lora_A, lora_B, new_weight, scaling, spec, merged, precision, threads):
    return _outputs(weight, QuantSpec.parse(spec), merged)


@torch.library.custom_op("qru::merge_dequantize", mutates_args=())
def merge_dequantize_op(
    weight: Tensor,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    scaling: float,
    spec: str,
    precision: str,
    threads: int,
) -> tuple[Tensor, Tensor]:
    """As ``merge_quantize_op``, for the quantized weight's values and nothing else.

    Returns:
        dequantized (out, in) in the weight's dtype, faults int64 (FAULTS).
    """
    weight = _aligned(weight)
    dequantized, faults = torch.empty_like(weight), weight.new_zeros(len(FAULTS), dtype=torch.int64)
    grid, outputs = QuantSpec.parse(spec), {"dequantized": dequantized.data_ptr()}
    _launch(problem_of(weight, lora_A, lora_B, None, scaling, grid, precision, outputs), weight, threads, faults)
    return dequantized, faults


@merge_dequantize_op.register_fake
def _(weight, lora_A, lora_B, scaling, spec, precision, threads):
    return torch.empty_like(weight), weight.new_empty(len(FAULTS), dtype=torch.int64)


def problem_of(weight, lora_A, lora_B, new_weight, scaling, grid, precision, outputs) -> dict:
    """The launch as csrc/merge_quantize.h has it: sizes, types and addresses; 0 for an output that is not wanted."""
    return {
        "rows": weight.shape[0],
        "columns": weight.shape[1],
        "rank": 0 if lora_A is None else lora_A.shape[0],
        "group": group_width(tuple(weight.shape), grid),
        "per_tensor": grid.group_size == "tensor",
        "bits": grid.bits,
        "symmetric": grid.symmetric,
        "denominator": grid.denominator,
        "scale_dtype": DTYPE_CODES[SCALE_DTYPES[grid.scale_dtype]],
        "scaling": scaling,
        "weight_dtype": DTYPE_CODES[weight.dtype],
        "a_dtype": 0 if lora_A is None else DTYPE_CODES[lora_A.dtype],
        "b_dtype": 0 if lora_B is None else DTYPE_CODES[lora_B.dtype],
        "weight": weight.data_ptr(),
        "lora_A": _address(lora_A),
        "lora_B": _address(lora_B),
        "new_weight": _address(new_weight),
        "precision": PRECISIONS[precision],
        **dict.fromkeys(OUTPUTS, 0),
        **outputs,
    }


def _launch(problem, weight, threads, faults):
    """Fill the problem's outputs, and ``faults`` (2,)."""
    if weight.device.type == "cuda":
        _launch_cuda(problem, weight, faults)
        return
    scratch = None  # alive until the launch is over
    if problem["per_tensor"] and problem["rank"] and not problem["merged"]:
        # One grid per matrix needs two passes: the first leaves the merged weight for the second.
        scratch = torch.empty_like(weight)
        problem["merged"] = scratch.data_ptr()
    isa = os.environ.get("QRU_ISA", "auto")
    threads = min(threads or torch.get_num_threads(), MOST_THREADS)
    found = extension().merge_quantize_cpu(problem, threads, isa)
    del scratch
    faults[:] = torch.tensor(found)


def _outputs(weight: Tensor, spec: QuantSpec, merged: bool):
    rows, columns = weight.shape
    grids = (1, 1) if spec.group_size == "tensor" else (rows, columns // group_width((rows, columns), spec))
    stored = torch.int8 if codes_per_word(spec.bits) is None else torch.int32
    return (
        weight.new_empty((rows, packed_width(columns, spec.bits)), dtype=stored),
        weight.new_empty(grids, dtype=torch.float32),
        weight.new_empty((0,) if spec.symmetric else grids, dtype=torch.float32),
        weight.new_empty((rows, columns) if merged else (0,)),
        weight.new_zeros(len(COUNTS) + 2**spec.bits + len(FAULTS), dtype=torch.int64),
        weight.new_zeros(len(SUMS), dtype=torch.float64),
    )


def _launch_cuda(problem, weight, faults):
    module = extension()
    fused, blocks = module.plan_cuda(problem)
    with torch.cuda.device(weight.device):
        # Scratch lives until the launches are enqueued; torch's allocator orders its reuse on the stream.
        partials = weight.new_empty((blocks if problem["counts"] else 0, len(SUMS)), dtype=torch.float64)
        ranges = weight.new_zeros(4, dtype=torch.int32)
        faults[:] = -1  # as unsigned, larger than any row
        unpacked, codes = None, 0
        if not fused and problem["packed"]:
            if codes_per_word(problem["bits"]) is None:
                codes = problem["packed"]
            else:
                unpacked = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
                codes = unpacked.data_ptr()
        between = None
        if not fused and problem["rank"] and not problem["merged"]:
            between = torch.empty_like(weight)
            problem["merged"] = between.data_ptr()
        module.merge_quantize_cuda(
            problem,
            partials=partials.data_ptr(),
            faults=faults.data_ptr(),
            range=ranges.data_ptr(),
            codes=codes,
            stream=torch.cuda.current_stream().cuda_stream,
        )
        del partials, ranges, unpacked, between


def _aligned(tensor: Tensor | None) -> Tensor | None:
    """The tensor, or a copy where a view starts off the 16 bytes that vector loads on a GPU need."""
    fits = tensor is None or tensor.device.type != "cuda" or tensor.data_ptr() % 16 == 0
    return tensor if fits else tensor.clone()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
