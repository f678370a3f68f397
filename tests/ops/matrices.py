"""Weights that make quantizers go wrong: zero groups, denormals, signed zeros, exact ties, huge and tiny scales."""

import torch
from hypothesis import strategies as st

from qru.ops import QuantSpec
from qru.ops.grid import BITS, SCALE_DTYPES, STEP_RULES, grid_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ("normal", "ties", "sparse", "denormal", "wide", "large", "constant")


def spec_of(pick, columns: int) -> QuantSpec:
    """Any grid for rows of this length; ``pick`` chooses one of several."""
    return QuantSpec(
        bits=pick(BITS),
        group_size=pick([d for d in range(1, columns + 1) if columns % d == 0] + [-1, "tensor"]),
        symmetric=pick([True, False]),
        step=pick(list(STEP_RULES)),
        scale_dtype=pick(list(SCALE_DTYPES)),
    )


def problem_of(pick) -> tuple[torch.Tensor, dict, QuantSpec]:
    """Any weight, update (arguments of merge_quantize) and grid."""
    rows, columns = pick(range(1, 16)), pick(pick([range(1, 151), (256, 384, 512, 1088)]))
    dtype, kind, seed, spec = pick(DTYPES), pick(KINDS), pick(range(2**31)), spec_of(pick, columns)
    weight = weights(kind, (rows, columns), dtype, seed, spec)
    mode = pick(["adapter", "adapter", "new_weight", "plain"])
    if mode == "new_weight":
        return weight, {"new_weight": near(weight, seed + 1)}, spec
    if mode == "plain":
        return weight, {}, spec
    rank = pick(pick([range(1, 10), (16, 33)]))
    generator = torch.Generator().manual_seed(seed + 2)
    size = min(float(weight.float().abs().max()) * pick([1e-3, 0.1, 2.0, 0.0]), 1e30)
    update = {
        "lora_A": torch.randn(rank, columns, generator=generator).to(pick([torch.float32, dtype])),
        "lora_B": (torch.randn(rows, rank, generator=generator) * size).to(pick([torch.float32, dtype])),
        "scaling": pick([1.0, 2.0, 0.3, -1.7]),
    }
    return weight, update, spec


def drawn(draw):
    """A ``pick`` that hypothesis searches and shrinks."""
    return lambda options: draw(
        st.integers(options[0], options[-1]) if isinstance(options, range) else st.sampled_from(options)
    )


@st.composite
def specs(draw, columns: int):
    return spec_of(drawn(draw), columns)


@st.composite
def problems(draw):
    return problem_of(drawn(draw))


def weights(
    kind: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    seed: int,
    spec: QuantSpec = QuantSpec(),  # noqa: B008
) -> torch.Tensor:
    """A finite weight of the given kind, (out, in); the grid decides where its ties are."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=generator) * 0.02
    if kind == "normal":
        x = normal
    elif kind == "ties":  # whole and half steps: the largest is the row's first, every other group's may be smaller
        largest = round(2 * spec.denominator)
        x = torch.randint(-largest, largest + 1, shape, generator=generator) * 2.0**-6
        x[:, 0] = largest * 2.0**-6
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


def features(weight: torch.Tensor, update: dict[str, torch.Tensor], spec: QuantSpec) -> set[str]:
    """What is special about a problem, in words: to be counted, so that no kind of it goes missing unnoticed."""
    scales, _ = grid_of(weight, spec)
    steps = scales.double().repeat_interleave(weight.numel() // scales.numel()).view(weight.shape)
    halves = (2 * weight.double() / steps).nan_to_num(0, 0, 0).round()
    ties = (halves % 2 != 0) & (halves * steps == 2 * weight.double()) & (halves.abs() < 2 * spec.qmax)
    small = (weight != 0) & (weight.abs().double() < torch.finfo(weight.dtype).smallest_normal)
    zero = weight == 0
    negative = weight.view({2: torch.int16, 4: torch.int32}[weight.element_size()]) < 0
    rank = update["lora_A"].shape[0] if "lora_A" in update else None
    holds = {
        str(weight.dtype): True,
        f"{spec.bits} bits": True,
        "symmetric" if spec.symmetric else "asymmetric": True,
        f"step {spec.step}": spec.symmetric,
        f"scales in {spec.scale_dtype}": True,
        {-1: "a group a row", "tensor": "a group a matrix"}.get(spec.group_size, "groups"): True,
        "groups of one": spec.group_size == 1,
        "groups that no vector fits": isinstance(spec.group_size, int)
        and spec.group_size > 1
        and spec.group_size % 8 > 0,
        "exact ties": bool(ties.any()),
        "exact ties, 8 bits": bool(ties.any()) and spec.bits == 8,
        "zero groups": bool((scales == 0).any()),
        "zero group beside others": bool((scales == 0).any() and (scales > 0).any()),
        "denormal weights": bool(small.any()),
        "denormal steps": bool(((scales > 0) & (scales < torch.finfo(torch.float32).smallest_normal)).any()),
        "+0": bool((zero & ~negative).any()),
        "-0": bool((zero & negative).any()),
        "huge steps": bool((scales > 1e30).any()),
        "tiny steps": bool(((scales > 0) & (scales < 1e-30)).any()),
        "adapter": rank is not None,
        "rank 1": rank == 1,
        "rank 16 and more": rank is not None and rank >= 16,
        "adapter in the weight's 16 bits": rank is not None and update["lora_A"].dtype != torch.float32,
        "new weight": "new_weight" in update,
        "no update": not update,
    }
    return {name for name, held in holds.items() if held}


# Every feature that there is, so that tests can ask for all of them.
FEATURES = frozenset(
    [str(dtype) for dtype in DTYPES]
    + [f"{bits} bits" for bits in BITS]
    + [f"step {rule}" for rule in STEP_RULES]
    + [f"scales in {name}" for name in SCALE_DTYPES]
    + ["symmetric", "asymmetric", "groups", "a group a row", "a group a matrix", "groups of one"]
    + ["groups that no vector fits", "exact ties", "exact ties, 8 bits", "zero groups", "zero group beside others"]
    + ["denormal weights", "denormal steps", "+0", "-0", "huge steps", "tiny steps"]
    + ["adapter", "rank 1", "rank 16 and more", "adapter in the weight's 16 bits", "new weight", "no update"]
)
