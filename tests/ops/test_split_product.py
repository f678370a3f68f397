"""The tensor-core path's arithmetic, emulated: float32 operands split into three bfloat16 parts, six products of nine.

The bound is the promise of ``precision="tensor-core"``: B A within 1e-6 of sum_k |b_k||a_k|. The kernel's own source is
run in test_cuda_on_host.py; here larger ranks and worse numbers, in torch.
"""

import pytest
import torch

SMALLEST, LARGEST = 2.0**-60, 2.0**60  # beyond these a block takes the exact path


def split(x: torch.Tensor) -> list[torch.Tensor]:
    """Three bfloat16 tensors that add up to a float32 one."""
    parts, rest = [], x
    for _ in range(3):
        parts.append(rest.bfloat16())
        rest = rest - parts[-1].float()
    assert torch.equal(rest, torch.zeros_like(rest))
    return parts


def truncated(x: torch.Tensor) -> torch.Tensor:
    """float64 to float32 toward zero, as tensor cores cut their sums."""
    near = x.float()
    return torch.where(near.double().abs() > x.abs(), torch.nextafter(near, torch.zeros_like(near)), near)


def split_product(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """(out, r) @ (r, in) as csrc/merge_quantize_cuda.cu's tensor_product adds it up."""
    total = torch.zeros(b.shape[0], a.shape[1])
    for k in range(0, a.shape[0], 16):
        b_parts, a_parts = split(b[:, k : k + 16]), split(a[k : k + 16])
        fresh = torch.zeros_like(total)
        for i, j in ((1, 1), (0, 2), (2, 0), (0, 1), (1, 0), (0, 0)):
            fresh = truncated(fresh.double() + b_parts[i].double() @ a_parts[j].double())
        total = total + fresh
    return total


def operands(kind: str, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    b, a = torch.randn(48, rank, generator=generator), torch.randn(rank, 64, generator=generator)
    if kind == "positive":
        b, a = b.abs(), a.abs()
    elif kind == "ill-scaled":
        exponents = torch.randint(-20, 20, (rank,), generator=generator).float()
        b, a = b * torch.exp2(exponents), a * torch.exp2(torch.randint(-20, 20, (rank, 1), generator=generator).float())
    elif kind == "cancelling" and rank > 1:
        half = rank // 2
        b[:, half : 2 * half] = b[:, :half]
        a[half : 2 * half] = -a[:half] * (1 + 2.0**-20)
    elif kind == "full significands":  # the worst case of what is left out: every part at its largest
        b, a = torch.full_like(b, 1 + 2.0**-8 - 2.0**-16 - 2.0**-23), torch.full_like(a, 1 + 2.0**-8 - 2.0**-16)
    elif kind == "smallest":
        b, a = (SMALLEST * (1 + x.abs()) for x in (b, a))
    elif kind == "largest":
        b, a = (LARGEST / (1 + x.abs()) for x in (b, a))
    return b, a


@pytest.mark.parametrize("rank", [1, 16, 33, 128, 512])
@pytest.mark.parametrize(
    "kind", ["normal", "positive", "ill-scaled", "cancelling", "full significands", "smallest", "largest"]
)
def test_within_a_millionth(kind, rank):
    b, a = operands(kind, rank)
    got = split_product(b, a).double()
    assert got.isfinite().all()
    error = (got - b.double() @ a.double()).abs() / (b.double().abs() @ a.double().abs())
    assert error.max() <= 1e-6


def test_two_parts_would_not_do():
    """What the third part is for: without it the promise breaks."""
    b, a = operands("full significands", 16)
    b_parts, a_parts = split(b), split(a)
    short = sum(b_parts[i].double() @ a_parts[j].double() for i, j in ((0, 0), (0, 1), (1, 0)))
    assert ((short - b.double() @ a.double()).abs() / (b.double().abs() @ a.double().abs())).max() > 1e-6


def test_splitting_is_exact_wherever_the_kernel_splits():
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2**23, (200_000,), generator=generator, dtype=torch.int32)
    exponents = torch.randint(-60, 60, (200_000,), generator=generator)
    x = torch.ldexp(1 + bits.float() * 2.0**-23, exponents)
    for values in (x, -x, torch.tensor([0.0, -0.0, SMALLEST, LARGEST, 1 + 2.0**-8, 2 - 2.0**-23])):
        high, middle, low = split(values)  # raises unless they add up
        assert (middle.float().abs() <= 2.0**-8 * values.abs()).all()
        assert (low.float().abs() <= 2.0**-16 * values.abs()).all()
        for part in (high, middle, low):
            size = part.float().abs()
            assert ((size == 0) | (size >= torch.finfo(torch.bfloat16).smallest_normal)).all()


@pytest.mark.parametrize("x", [3.4e38, 1e-39])
def test_why_larger_and_smaller_numbers_do_not_split(x):
    """bfloat16 overflows where float32 does not, and denormal remainders lose bits: the kernel tests for both."""
    values = torch.tensor([x])
    parts = [values.bfloat16()]
    parts.append((values - parts[0].float()).bfloat16())
    parts.append((values - parts[0].float() - parts[1].float()).bfloat16())
    total = sum(part.double() for part in parts)
    assert not torch.equal(total, values.double())
