"""Fused multiply-add in float32 by float64 arithmetic, rounded once, for references that must equal a kernel's FMA."""

import torch


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """float32 a * b + c with a single rounding, elementwise with broadcasting.

    The product of two float32 numbers is exact in float64. Their sum with c may round there, and rounding that again to
    float32 could land on the wrong side of a tie; so the float64 sum is rounded *to odd* instead (Boldo and Melquiond,
    2008), which no later rounding to fewer than 51 bits can notice.
    """
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    # Knuth's TwoSum: the exact error of that addition.
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)
    bits = total.view(torch.int64)
    toward = torch.where((error > 0) == (total > 0), 1, -1)  # one ulp towards the exact sum, on the integer pattern
    inexact_even = (error != 0) & (bits & 1 == 0) & error.isfinite()
    return torch.where(inexact_even, bits + toward, bits).view(torch.float64).float()


def merge_exact(weight: torch.Tensor, lora_A: torch.Tensor, lora_B: torch.Tensor, scaling: float) -> torch.Tensor:
    """weight + scaling * lora_B @ lora_A in float32 FMAs, k ascending, rounded once to the weight's type.

    Args:
        weight: (out, in). lora_A: (r, in). lora_B: (out, r). scaling: alpha / r, rounded to float32.
    Returns:
        (out, in) in the weight's dtype.
    """
    a, b = lora_A.float(), lora_B.float()
    acc = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    for k in range(a.shape[0]):
        acc = fma(b[:, k, None], a[k], acc)
    scale = torch.tensor(scaling, dtype=torch.float32, device=weight.device)
    return fma(scale, acc, weight.float()).to(weight.dtype)
