"""Quantization grids: the integer range, the step rule, the grouping and the rounding, each written once.

A group of weights W_g shares one step s. Symmetric codes are q = clamp(round_half_even(w / s)) and stand for q * s;
asymmetric codes carry a zero point z and stand for (q - z) * s. The fast kernels (``csrc/grid.h``) repeat this
arithmetic operation by operation and are tested for equality with it.
"""

import difflib
import re
from dataclasses import dataclass, replace

import torch

# Denominator of max|W_g| in the symmetric step, by the name each rule has in the papers and in other tools.
STEP_RULES = {
    "2^(N-1)": lambda bits: 2.0 ** (bits - 1),  # QRU and SURE
    "2^(N-1)-1": lambda bits: 2.0 ** (bits - 1) - 1,  # textbook symmetric RTN
    "2^(N-1)-1/2": lambda bits: 2.0 ** (bits - 1) - 0.5,  # compressed-tensors, GPTQ- and AWQ-style packers
}
SCALE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BITS = (2, 3, 4, 8)

_NAME = re.compile(
    r"rtn-int(?P<bits>\d+)-(?P<group>g\d+|row|tensor)(?:-(?P<sign>sym|asym))?"
    r"(?:-(?P<step>2\^\(N-1\)(?:-1/2|-1)?))?(?:-(?P<scale>float32|bfloat16|float16))?"
)


@dataclass(frozen=True)
class QuantSpec:
    """How a weight matrix is rounded to integers (round to nearest, RTN).

    Args:
        bits: 2, 3, 4 or 8 bits per code.
        group_size: weights along the input dimension that share a step; -1 for one group per row, ``"tensor"`` for one
            group per matrix.
        symmetric: True for codes around zero, False for a zero point per group.
        step: symmetric step rule, a key of ``STEP_RULES``: s = max|W_g| / denominator. The papers use ``"2^(N-1)"``.
            Asymmetric grids have one rule, s = (hi - lo) / (2^N - 1), and leave this alone.
        scale_dtype: the type a step is stored in; it is rounded to it before any code is computed.
    Raises:
        ValueError: for a value outside these, naming it.
    """

    bits: int = 4
    group_size: int | str = 128
    symmetric: bool = True
    step: str = "2^(N-1)"
    scale_dtype: str = "float32"

    def __post_init__(self):
        if isinstance(self.bits, bool) or self.bits not in BITS:
            raise ValueError(f"bits is {self.bits!r}; choose one of {BITS}")
        group = self.group_size
        whole = isinstance(group, int) and not isinstance(group, bool)
        if group != "tensor" and not (whole and (group == -1 or group > 0)):
            raise ValueError(f"group_size is {group!r}; give a positive int, -1 (one group per row) or 'tensor'")
        if not isinstance(self.symmetric, bool):
            raise ValueError(f"symmetric is {self.symmetric!r}; give True or False")
        for field, value, known in (
            ("step", self.step, STEP_RULES),
            ("scale_dtype", self.scale_dtype, SCALE_DTYPES),
        ):
            if value not in known:
                raise ValueError(f"{field} is {value!r}; choose one of {list(known)}")

    @property
    def qmin(self) -> int:
        """Smallest code, -2^(N-1)."""
        return -(2 ** (self.bits - 1))

    @property
    def qmax(self) -> int:
        """Largest code, 2^(N-1) - 1."""
        return 2 ** (self.bits - 1) - 1

    @property
    def denominator(self) -> float:
        """What max|W_g| (symmetric) or hi - lo (asymmetric) is divided by to give the step."""
        return STEP_RULES[self.step](self.bits) if self.symmetric else 2.0**self.bits - 1

    @property
    def name(self) -> str:
        """The quantizer's name with default parts left out, such as ``rtn-int4-g128`` or ``rtn-int3-row-asym``."""
        group = {-1: "row", "tensor": "tensor"}.get(self.group_size, f"g{self.group_size}")
        parts = [f"rtn-int{self.bits}", group]
        if not self.symmetric:
            parts.append("asym")
        elif self.step != "2^(N-1)":
            parts += ["sym", self.step]
        if self.scale_dtype != "float32":
            parts.append(self.scale_dtype)
        return "-".join(parts)

    @property
    def full_name(self) -> str:
        """The name with nothing left out, such as ``rtn-int4-g128-sym-2^(N-1)-float32``."""
        short = replace(self, symmetric=True, step="2^(N-1)", scale_dtype="float32").name
        return "-".join([short, *(["sym", self.step] if self.symmetric else ["asym"]), self.scale_dtype])

    @classmethod
    def parse(cls, name: str) -> "QuantSpec":
        """The spec a quantizer name stands for: ``rtn-int4-g128``, ``rtn-int8-row``, ``rtn-int4-g64-sym-2^(N-1)-1/2``.

        Args:
            name: ``rtn-int{bits}-{g128|row|tensor}[-sym|-asym][-step rule][-scale dtype]``.
        Raises:
            ValueError: if the name does not read so, or names a value that does not exist.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            near = difflib.get_close_matches(
                name, ["rtn-int4-g128", "rtn-int8-row", "rtn-int4-tensor"], n=1, cutoff=0.3
            )
            hint = f"; the nearest known form is {near[0]!r}" if near else ""
            form = "rtn-int{2|3|4|8}-{g<size>|row|tensor}[-sym|-asym][-<step rule>][-<scale dtype>]"
            raise ValueError(f"{name!r} is not a quantizer name{hint}. It reads {form}, step rules {list(STEP_RULES)}")
        group = match["group"]
        if match["sign"] == "asym" and match["step"]:
            raise ValueError(f"{name!r}: asymmetric grids have one step rule; drop -{match['step']}")
        return cls(
            bits=int(match["bits"]),
            group_size={"row": -1, "tensor": "tensor"}.get(group) or int(group[1:]),
            symmetric=match["sign"] != "asym",
            step=match["step"] or "2^(N-1)",
            scale_dtype=match["scale"] or "float32",
        )


def group_width(shape: tuple[int, int], spec: QuantSpec, name: str | None = None) -> int:
    """How many weights along the input dimension share a step; the whole row for -1 and ``"tensor"``.

    Args:
        shape: (out, in) of the weight.
        spec: the grid.
        name: layer name for the message.
    Raises:
        ValueError: if the group size does not divide the row, with the sizes near it that do.
    """
    columns = shape[1]
    if spec.group_size in (-1, "tensor"):
        return columns
    if columns % spec.group_size:
        divisors = [d for d in range(1, columns + 1) if columns % d == 0]
        fitting = sorted(sorted(divisors, key=lambda d: abs(d - spec.group_size))[:6])
        raise ValueError(
            f"{_where(name)}group_size {spec.group_size} does not divide a row of {columns}; sizes that do include "
            f"{fitting}, and -1 makes the row one group"
        )
    return spec.group_size


def to_groups(x: torch.Tensor, spec: QuantSpec, name: str | None = None) -> torch.Tensor:
    """View (out, in) as (rows, groups, width), the last dimension sharing one step; (1, 1, out * in) for "tensor"."""
    width = group_width(tuple(x.shape), spec, name)
    if spec.group_size == "tensor":
        return x.reshape(1, 1, -1)
    return x.reshape(x.shape[0], x.shape[1] // width, width)


def grid_of(weight: torch.Tensor, spec: QuantSpec, name: str | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Steps and zero points of a weight's groups.

    Args:
        weight: (out, in), finite, fp32, bf16 or fp16.
        spec: the grid.
        name: layer name for messages.
    Returns:
        scales: float32 (out, in // g), or (1, 1) for "tensor"; zero where a group holds only zeros (or where the step
            rounds to zero). zeros: likewise, integers in float32, or None when symmetric.
    Raises:
        ValueError: if a step is too large for ``scale_dtype``.
    """
    groups = to_groups(weight.float(), spec, name)
    if spec.symmetric:
        scales = groups.abs().amax(-1) / spec.denominator
    else:
        lo, hi = groups.amin(-1).clamp(max=0.0), groups.amax(-1).clamp(min=0.0)
        scales = (hi - lo + 0.0) / spec.denominator  # + 0.0: a step is never -0
    scales = scales.to(SCALE_DTYPES[spec.scale_dtype]).float()
    if not scales.isfinite().all():
        row, group = (~scales.isfinite()).nonzero()[0].tolist()
        raise ValueError(scale_overflow(spec, row, group, name))
    if spec.symmetric:
        return scales, None
    # Not clamped to the code range: a step rounded down to bf16 may put the zero point one past its end.
    zeros = torch.where(scales > 0, torch.round(-lo / scales) + spec.qmin, 0.0)
    return scales, zeros


def codes_on(
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, spec: QuantSpec, name: str | None = None
) -> torch.Tensor:
    """Codes of a weight on a given grid, its own or another weight's: int8 (out, in), 0 where the step is 0."""
    q = torch.round(to_groups(weight.float(), spec, name) / scales[..., None])
    if zeros is not None:
        q = q + zeros[..., None]
    q = torch.where(scales[..., None] > 0, q.clamp(spec.qmin, spec.qmax), 0.0)
    return q.to(torch.int8).reshape(weight.shape)


def quantize_ref(
    weight: torch.Tensor, spec: QuantSpec, name: str | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Round a weight to its own grid: codes int8 (out, in), scales and zeros as ``grid_of`` gives them."""
    scales, zeros = grid_of(weight, spec, name)
    return codes_on(weight, scales, zeros, spec, name), scales, zeros


def dequantize(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, spec: QuantSpec) -> torch.Tensor:
    """The weights that codes stand for, (q - z) * s in float32, (out, in)."""
    q = to_groups(codes.float(), spec)
    if zeros is not None:
        q = q - zeros[..., None]
    return (q * scales[..., None]).reshape(codes.shape)


def scale_overflow(spec: QuantSpec, row: int, group: int, name: str | None) -> str:
    """The message for a step that its storage type cannot hold."""
    return (
        f"{_where(name)}the step of row {row}, group {group} overflows {spec.scale_dtype}; "
        'use scale_dtype="float32", or look for weights that are far too large'
    )


def _where(name: str | None) -> str:
    return f"{name}: " if name else ""
