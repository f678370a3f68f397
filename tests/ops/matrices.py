"""Weights that make quantizers go wrong: zero groups, denormals, signed zeros, exact ties, huge and tiny scales."""

import torch
from hypothesis import strategies as st

from qru.ops import QuantSpec
from qru.ops.grid import BITS, SCALE_DTYPES, STEP_RULES

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ("normal", "ties", "sparse", "denormal", "wide", "large", "constant")


def specs(columns: int):
    """Any grid for rows of this length."""
    groups = [d for d in range(1, columns + 1) if columns % d == 0] + [-1, "tensor"]
    return st.builds(
        QuantSpec,
        bits=st.sampled_from(BITS),
        group_size=st.sampled_from(groups),
        symmetric=st.booleans(),
        step=st.sampled_from(list(STEP_RULES)),
        scale_dtype=st.sampled_from(list(SCALE_DTYPES)),
    )


def weights(kind: str, shape: tuple[int, int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """A finite weight of the given kind, (out, in)."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=generator) * 0.02
    if kind == "normal":
        x = normal
    elif kind == "ties":  # multiples of half a step of a power of two
        x = torch.randint(-32, 33, shape, generator=generator) * 2.0**-6
    elif kind == "sparse":  # mostly signed zeros, whole groups of them
        keep = torch.rand(shape, generator=generator) < 0.05
        x = torch.where(keep, normal, torch.where(normal > 0, 0.0, -0.0))
    elif kind == "denormal":
        x = torch.randint(-40, 41, shape, generator=generator) * torch.finfo(dtype).smallest_normal / 64
    elif kind == "wide":  # many orders of magnitude in one group
        exponents = torch.randint(-24, 12, shape, generator=generator).float()
        x = normal.sign() * torch.exp2(exponents)
    elif kind == "large":
        x = normal / normal.abs().max() * (torch.finfo(dtype).max / 64)
    else:
        x = torch.full(shape, -0.75)
    return x.to(dtype)


def near(weight: torch.Tensor, seed: int) -> torch.Tensor:
    """A weight a few of whose entries moved by a few ulps: what fine-tuning in bf16 leaves."""
    generator = torch.Generator().manual_seed(seed)
    moved = torch.rand(weight.shape, generator=generator) < 0.2
    factor = 1 + torch.randn(weight.shape, generator=generator) * 2.0**-6
    return torch.where(moved, (weight.float() * factor).to(weight.dtype), weight)
