"""Merge a low-rank update into a weight, quantize the result, pack it, and count what crossed a bin.

``merge_quantize`` is the fast one (one pass, compiled); ``merge_quantize_ref`` beside it is the specification, in plain
PyTorch. Both give the same merged weight, codes, scales and counts, bit for bit; sums of floats agree to 1e-5.
``merge_dequantize`` gives only the values that the codes stand for, as training through a quantizer needs them.
"""

import difflib
import numbers
from dataclasses import asdict, dataclass

import torch

from qru.ops.exact_fma import merge_exact
from qru.ops.extension import warn_not_built
from qru.ops.grid import QuantSpec, codes_on, dequantize, grid_of, group_width, quantize_ref
from qru.ops.kernel import COUNTS, PRECISIONS, SUMS, merge_dequantize_op, merge_quantize_op, serves
from qru.ops.pack import pack, unpack

DEFAULT_SPEC = QuantSpec()
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class CrossingStats:
    """What quantization did to an update dW = merged - weight, over one matrix.

    Here delta = Q(W0 + dW) - Q(W0) is the part of the update that survives, each side on its own grid, and s0 is the
    step of the unmerged weight.

    Attributes:
        weights: number of weights.
        moved: weights with dW != 0 in the stored type.
        crossed: weights whose code on the unmerged weight's grid differs from the unmerged code.
        changed: weights whose code differs, each weight on its own grid.
        predicted: sum of min(|dW| / s0, 1), the expected crossings for residuals uniform in their bins; groups with
            s0 = 0 left out.
        sum_dw2: sum of dW^2. sum_q_dw: sum of delta * dW. sum_q2: sum of delta^2.
        steps_moved: groups whose step differs before and after.
        zero_groups: groups with s0 = 0.
        histogram: how many codes changed by 0, 1, ..., 2^N - 1 (each on its own grid).
    """

    weights: int
    moved: int
    crossed: int
    changed: int
    predicted: float
    sum_dw2: float
    sum_q_dw: float
    sum_q2: float
    steps_moved: int
    zero_groups: int
    histogram: tuple[int, ...]

    @property
    def projection(self) -> float:
        """<delta, dW> / <dW, dW>: 1 when the update survives in full on average, 0 when it is lost; NaN when dW = 0."""
        return self.sum_q_dw / self.sum_dw2 if self.sum_dw2 else float("nan")

    @property
    def cosine(self) -> float:
        """Cosine between delta and dW; NaN when either is zero."""
        norm = (self.sum_dw2 * self.sum_q2) ** 0.5
        return self.sum_q_dw / norm if norm else float("nan")

    def as_dict(self) -> dict:
        """Plain numbers and lists, for a JSON record."""
        return {**asdict(self), "histogram": list(self.histogram)}


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantized weight matrix and what its quantization changed.

    Attributes:
        packed: int32 (out, ceil(in * bits / 32)) for 2, 4 and 8 bits; int8 (out, in) for 3.
        scales: float32 (out, in // g), (1, 1) for "tensor". zeros: likewise when asymmetric, else None.
        merged: (out, in) in the weight's dtype, or None unless asked for.
        stats: the counts (None for meta tensors, which hold no numbers). spec: the grid. shape: (out, in).
    """

    packed: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    merged: torch.Tensor | None
    stats: CrossingStats | None
    spec: QuantSpec
    shape: tuple[int, int]

    @property
    def codes(self) -> torch.Tensor:
        """Signed codes, int8 (out, in), unpacked at each access."""
        return unpack(self.packed, self.spec.bits, self.shape[1])

    def dequantized(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weights that are stored, (q - z) * s in float32 and then ``dtype``, (out, in)."""
        return dequantize(self.codes, self.scales, self.zeros, self.spec).to(dtype)


def merge_quantize(
    weight: torch.Tensor,
    lora_A: torch.Tensor | None = None,
    lora_B: torch.Tensor | None = None,
    scaling: float = 1.0,
    spec: QuantSpec = DEFAULT_SPEC,
    merged: bool = False,
    *,
    new_weight: torch.Tensor | None = None,
    name: str | None = None,
    threads: int | None = None,
    precision: str = "exact",
) -> QuantizedWeight:
    """Merge an update into a weight, quantize the merged weight, pack it and count crossings, in one pass.

    With ``lora_A`` and ``lora_B`` the merged weight is W + scaling * B A, accumulated in float32 and rounded once to
    W's dtype; with ``new_weight`` it is that tensor; with neither it is W itself. Non-contiguous tensors are copied.

    Args:
        weight: (out, in), float32, bfloat16 or float16: the weight before the update.
        lora_A: (r, in), float32 or the weight's dtype. lora_B: (out, r), likewise.
        scaling: alpha / r of the adapter.
        spec: the grid; 4 bits, symmetric, groups of 128 unless given.
        merged: also return the merged weight.
        new_weight: (out, in) in the weight's dtype, in place of an adapter: the weight after full fine-tuning.
        name: layer name, put in front of error messages.
        threads: CPU threads; ``torch.get_num_threads()`` when None. Results do not depend on it.
        precision: how B A is summed. ``"exact"``: float32 multiply-adds in the order of r, equal on every device.
            ``"tensor-core"``, on CUDA only: split into bfloat16 products, within 1e-6 of sum_k |B||A| (a bound up to
            r = 128); the merged weight may then round otherwise, and everything after it is exact for the one it got.
    Returns:
        QuantizedWeight with codes, scales, zero points, statistics and, if asked for, the merged weight.
    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, a group size that does not divide, an empty matrix,
            NaN or Inf (naming the tensor, row and column of the first), a step its storage type cannot hold, or a
            precision that is unknown or not for this device.
    Source: arXiv 2602.13151 (grid, merge before quantization), arXiv 2601.15538 (bucket overlap).
    """
    args = _checked(weight, lora_A, lora_B, scaling, spec, new_weight, name, threads, precision)
    if serves(weight.device):
        return _compiled(*args, spec, merged, name, threads, precision)
    warn_not_built(weight.device.type)
    return _reference(*args, spec, merged, name)


def merge_quantize_ref(
    weight: torch.Tensor,
    lora_A: torch.Tensor | None = None,
    lora_B: torch.Tensor | None = None,
    scaling: float = 1.0,
    spec: QuantSpec = DEFAULT_SPEC,
    merged: bool = False,
    *,
    new_weight: torch.Tensor | None = None,
    name: str | None = None,
    threads: int | None = None,
    precision: str = "exact",
) -> QuantizedWeight:
    """The specification of ``merge_quantize``: same arguments, same results, plain PyTorch on any device.

    Sums of floats are over float32 terms added in float64. ``threads`` and ``precision`` are checked and otherwise
    unused: the specification is always exact.
    """
    args = _checked(weight, lora_A, lora_B, scaling, spec, new_weight, name, threads, precision)
    return _reference(*args, spec, merged, name)


def merge_dequantize(
    weight: torch.Tensor,
    lora_A: torch.Tensor | None = None,
    lora_B: torch.Tensor | None = None,
    scaling: float = 1.0,
    spec: QuantSpec = DEFAULT_SPEC,
    *,
    new_weight: torch.Tensor | None = None,
    name: str | None = None,
    threads: int | None = None,
    precision: str = "exact",
) -> torch.Tensor:
    """What a merged and quantized weight is worth: ``merge_quantize(...).dequantized(weight.dtype)`` in one pass.

    Codes, scales and counts are neither written nor taken. For training through the quantizer: the forward pass uses
    this weight, the backward pass takes its derivative for one (straight-through). No gradient flows by itself.

    Args:
        weight, lora_A, lora_B, scaling, spec, new_weight, name, threads, precision: as for ``merge_quantize``; but as
            nothing is compared, the numbers in ``weight`` are not looked at where ``new_weight`` replaces them.
    Returns:
        (out, in) in the weight's dtype: (q - z) * s in float32, rounded once.
    Raises:
        ValueError: as ``merge_quantize``, for what the merged weight is made of.
    Source: Bengio, Leonard and Courville 2013, arXiv 1308.3432 (straight-through estimator).
    """
    args = _checked(weight, lora_A, lora_B, scaling, spec, new_weight, name, threads, precision)
    if not serves(weight.device):
        warn_not_built(weight.device.type)
        return _dequantized_reference(*args, spec, name)
    weight, lora_A, lora_B, scaling, new_weight = args
    before = weight if new_weight is None else new_weight
    values, faults = merge_dequantize_op(before, lora_A, lora_B, scaling, spec.full_name, precision, threads or 0)
    if not weight.is_meta and max(faults.tolist()) >= 0:
        _refuse_faults(*faults.tolist(), *args, spec, name, counting=False)
    return values


def merge_dequantize_ref(
    weight: torch.Tensor,
    lora_A: torch.Tensor | None = None,
    lora_B: torch.Tensor | None = None,
    scaling: float = 1.0,
    spec: QuantSpec = DEFAULT_SPEC,
    *,
    new_weight: torch.Tensor | None = None,
    name: str | None = None,
    threads: int | None = None,
    precision: str = "exact",
) -> torch.Tensor:
    """The specification of ``merge_dequantize``: same arguments, same result, plain PyTorch on any device."""
    args = _checked(weight, lora_A, lora_B, scaling, spec, new_weight, name, threads, precision)
    return _dequantized_reference(*args, spec, name)


def _merged_reference(weight, lora_A, lora_B, scaling, new_weight, name):
    _refuse_non_finite(name, weight=weight, lora_A=lora_A, lora_B=lora_B, new_weight=new_weight)
    if lora_A is None:
        return weight if new_weight is None else new_weight
    after = merge_exact(weight, lora_A, lora_B, scaling)
    _refuse_non_finite(name, merged=after)
    return after


def _dequantized_reference(weight, lora_A, lora_B, scaling, new_weight, spec, name):
    read = weight if new_weight is None else None
    after = _merged_reference(read, lora_A, lora_B, scaling, new_weight, name)
    codes, scales, zeros = quantize_ref(after, spec, name)
    return dequantize(codes, scales, zeros, spec).to(weight.dtype)


def _reference(weight, lora_A, lora_B, scaling, new_weight, spec, keep_merged, name):
    after = _merged_reference(weight, lora_A, lora_B, scaling, new_weight, name)
    scales0, zeros0 = grid_of(weight, spec, name)
    scales, zeros = grid_of(after, spec, name)
    before_codes = codes_on(weight, scales0, zeros0, spec, name)
    on_frozen_grid = codes_on(after, scales0, zeros0, spec, name)
    codes = codes_on(after, scales, zeros, spec, name)

    dw = after.float() - weight.float()
    delta = dequantize(codes, scales, zeros, spec) - dequantize(before_codes, scales0, zeros0, spec)
    steps = scales0.repeat_interleave(weight.numel() // scales0.numel()).view(weight.shape)
    expected = torch.where(steps > 0, (dw.abs() / steps).clamp(max=1.0), 0.0)
    jumps = (codes.short() - before_codes.short()).abs().flatten().long()
    stats = CrossingStats(
        weights=weight.numel(),
        moved=int((dw != 0).sum()),
        crossed=int((on_frozen_grid != before_codes).sum()),
        changed=int((codes != before_codes).sum()),
        predicted=expected.double().sum().item(),
        sum_dw2=(dw * dw).double().sum().item(),
        sum_q_dw=(delta * dw).double().sum().item(),
        sum_q2=(delta * delta).double().sum().item(),
        steps_moved=int((scales != scales0).sum()),
        zero_groups=int((scales0 == 0).sum()),
        histogram=tuple(torch.bincount(jumps, minlength=2**spec.bits).tolist()),
    )
    kept = after.clone() if keep_merged else None
    return QuantizedWeight(pack(codes, spec.bits), scales, zeros, kept, stats, spec, tuple(weight.shape))


def _compiled(weight, lora_A, lora_B, scaling, new_weight, spec, keep_merged, name, threads, precision):
    packed, scales, zeros, merged, counts, sums = merge_quantize_op(
        weight, lora_A, lora_B, new_weight, scaling, spec.full_name, keep_merged, precision, threads or 0
    )
    stats = None
    if not weight.is_meta:
        *count, non_finite_row, step_overflow_row = counts.tolist()
        if max(non_finite_row, step_overflow_row) >= 0:
            _refuse_faults(non_finite_row, step_overflow_row, weight, lora_A, lora_B, scaling, new_weight, spec, name)
        stats = CrossingStats(
            weights=weight.numel(),
            histogram=tuple(count[len(COUNTS) :]),
            **dict(zip(COUNTS, count, strict=False)),
            **dict(zip(SUMS, sums.tolist(), strict=True)),
        )
    zeros = None if spec.symmetric else zeros
    return QuantizedWeight(packed, scales, zeros, merged if keep_merged else None, stats, spec, tuple(weight.shape))


def _refuse_faults(
    non_finite_row, step_overflow_row, weight, lora_A, lora_B, scaling, new_weight, spec, name, counting=True
):
    """Raise what the reference raises; a merge that overflows is looked for in its own row only."""
    read = weight if counting or new_weight is None else None
    if non_finite_row >= 0:
        _refuse_non_finite(name, weight=read, lora_A=lora_A, lora_B=lora_B, new_weight=new_weight)
        row = slice(non_finite_row, non_finite_row + 1)
        merged = merge_exact(weight[row], lora_A, lora_B[row], scaling)
        _refuse_non_finite(name, first_row=non_finite_row, merged=merged)
    else:
        after = _merged_reference(read, lora_A, lora_B, scaling, new_weight, name)
        if counting:
            grid_of(weight, spec, name)
        grid_of(after, spec, name)
    raise AssertionError(
        f"{name or 'a layer'}: the kernel found NaN or Inf (row {non_finite_row}) or an overflowing step (row "
        f"{step_overflow_row}) where the reference finds nothing wrong"
    )


def _checked(weight, lora_A, lora_B, scaling, spec, new_weight, name, threads, precision):
    """Every check of shapes, types and devices; the tensors made contiguous."""
    where = f"{name}: " if name else ""
    if precision not in tuple(PRECISIONS):
        near = difflib.get_close_matches(str(precision), PRECISIONS, n=1, cutoff=0.0)
        raise ValueError(f"{where}precision is {precision!r}; choose one of {list(PRECISIONS)}, perhaps {near[0]!r}")
    if not isinstance(spec, QuantSpec):
        raise ValueError(f"{where}spec is {spec!r}; give a QuantSpec (QuantSpec.parse reads a name)")
    given = {"weight": weight, "lora_A": lora_A, "lora_B": lora_B, "new_weight": new_weight}
    for label, tensor in given.items():
        if tensor is None and label != "weight":
            continue
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            kind = getattr(tensor, "layout", type(tensor).__name__)
            raise ValueError(f"{where}{label} is {kind}; give a dense torch.Tensor")
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"{where}weight has shape {tuple(weight.shape)}; it must be (out, in) and not empty")
    if weight.dtype not in WEIGHT_DTYPES:
        raise ValueError(f"{where}weight is {weight.dtype}; it must be one of {WEIGHT_DTYPES}")
    if (lora_A is None) != (lora_B is None):
        raise ValueError(f"{where}only one of lora_A and lora_B is given; give both or neither")
    if lora_A is not None and new_weight is not None:
        raise ValueError(f"{where}both an adapter and new_weight are given; give one of them")
    if precision == "tensor-core" and weight.device.type == "cpu":
        raise ValueError(
            f'{where}precision is "tensor-core" and the weight is on the CPU; use "exact", or move it to CUDA'
        )
    if threads is not None and not (isinstance(threads, int) and threads >= 1):
        raise ValueError(f"{where}threads is {threads}; give at least 1, or None for torch.get_num_threads()")
    rows, columns = weight.shape
    if lora_A is not None:
        rank = lora_A.shape[0] if lora_A.dim() == 2 else 0
        if rank == 0 or lora_A.shape != (rank, columns) or lora_B.shape != (rows, rank):
            raise ValueError(
                f"{where}lora_A has shape {tuple(lora_A.shape)} and lora_B {tuple(lora_B.shape)}; for a weight of "
                f"{(rows, columns)} they must be (r, {columns}) and ({rows}, r) with r >= 1"
            )
        for label, tensor in (("lora_A", lora_A), ("lora_B", lora_B)):
            if tensor.dtype not in (torch.float32, weight.dtype):
                raise ValueError(f"{where}{label} is {tensor.dtype}; it must be float32 or the weight's {weight.dtype}")
    if not isinstance(scaling, numbers.Real):
        raise ValueError(f"{where}scaling is {scaling!r}; it must be a number, alpha / r of the adapter")
    if not torch.isfinite(torch.tensor(float(scaling), dtype=torch.float32)):
        raise ValueError(f"{where}scaling is {scaling}; it must be finite in float32")
    if new_weight is not None and (new_weight.shape != weight.shape or new_weight.dtype != weight.dtype):
        raise ValueError(
            f"{where}new_weight is {tuple(new_weight.shape)} {new_weight.dtype}; the weight is {(rows, columns)} "
            f"{weight.dtype}, and both must agree"
        )
    for label, tensor in (("lora_A", lora_A), ("lora_B", lora_B), ("new_weight", new_weight)):
        if tensor is not None and tensor.device != weight.device:
            raise ValueError(f"{where}{label} is on {tensor.device}, the weight on {weight.device}; move it there")
    group_width((rows, columns), spec, name)
    tensors = [None if t is None else t.detach().contiguous() for t in (weight, lora_A, lora_B, new_weight)]
    return tensors[0], tensors[1], tensors[2], float(scaling), tensors[3]


def _refuse_non_finite(name: str | None, first_row: int = 0, **tensors: torch.Tensor | None) -> None:
    """Raise at the first NaN or Inf, naming layer, tensor, row and column."""
    where = f"{name}: " if name else ""
    for label, tensor in tensors.items():
        if tensor is not None and not tensor.isfinite().all():
            row, column = (~tensor.isfinite()).nonzero()[0].tolist()
            value = tensor[row, column].item()
            cause = (
                f"it overflows {tensor.dtype}: lower scaling or the adapter's size"
                if label == "merged"
                else "mend the checkpoint before quantizing it"
            )
            raise ValueError(
                f"{where}{label} is {value} at row {first_row + row}, column {column} (the first such); {cause}"
            )
