"""AdamW that leaves every weight a bf16 number: what is lost, and the three ways not to lose it.

A bf16 number in [2^k, 2^(k+1)) is 2^(k−7) from the next one, so a step under 2^(k−8) is rounded away: weights above
some size never move. Which size, ``movable_below`` says. Three things mend it, each alone: an fp32 master copy (plain
``torch.optim.AdamW``), stochastic rounding, and stepping the difference ΔW, which starts at zero where bf16 is fine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

BETA1 = 0.9  # AdamW's default, in every arm


def largest_step(beta2: float) -> float:
    """Upper bound of |u|, the step of Adam in units of the learning rate, over all gradients.

    With m = (1−β₁) Σ β₁^i g_i and v = (1−β₂) Σ β₂^i g_i², the Cauchy–Schwarz inequality gives
    |m|/√v ≤ (1−β₁)/√(1−β₂) · (1 − β₁²/β₂)^(−1/2): 1.17 at β₂ = 0.95, 7.3 at 0.999. The factors that correct the bias
    of the first steps tend to 1 and are left out. Moments in bf16 are rounded and
    were seen 1.3 % over it, at β₂ = 0.95.

    Args:
        beta2: of the second moment; larger than β₁².
    """
    if not BETA1**2 < beta2 < 1:
        raise ValueError(f"adam_beta2 is {beta2!r}; it must be between {BETA1**2:g} and 1.")
    return (1 - BETA1) / math.sqrt(1 - beta2) / math.sqrt(1 - BETA1**2 / beta2)


def movable_below(step: float) -> float:
    """The size under which a bf16 weight is moved by a step: a power of two, 256 to 512 times the step.

    A weight in [2^k, 2^(k+1)) moves if the step is more than half its spacing, 2^(k−8).
    At the size itself, one number alone, a weight moves towards zero, where the spacing is half, and never away.

    Args:
        step: the largest that the optimizer takes, |u| times the learning rate.
    """
    if not step > 0:
        raise ValueError(f"step is {step!r}; it must be positive.")
    fraction, exponent = math.frexp(step)  # step = fraction · 2^exponent, 1/2 ≤ fraction < 1
    if fraction == 0.5:  # a tie: rounded to the even neighbour, half of the weights stay
        exponent -= 1
    return math.ldexp(1.0, exponent + 8)


def stochastically_rounded(values: torch.Tensor) -> torch.Tensor:
    """fp32 values rounded to bf16 numbers, up or down with probabilities that make the mean exact; still fp32.

    Args:
        values: finite, fp32. Draws from torch's generator of their device.
    """
    bits = values.view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=values.device)
    # Sign and magnitude: adding to the low half carries into the magnitude, whatever the sign.
    return ((bits + noise) & -(1 << 16)).view(torch.float32)


class StoredBf16AdamW(torch.optim.AdamW):
    """AdamW that steps bf16 tensors for fp32 parameters that mirror their values.

    This is what public unlearning code does when it loads a model in bf16 and hands it to AdamW. Computing the gradient
    in another precision does not change it, so a CPU can take the gradient in fp32 and still store what a GPU would.

    Parameters that are bf16 themselves, as on a GPU, are not mirrored: they are the stored tensors.

    Args:
        mirrors: parameters that the model computes with.
        lr: learning rate.
        beta2: of the second moment.
        moments: ``"bf16"``, as AdamW keeps them beside bf16 tensors, or ``"fp32"``. A step of 1 − β₂ = 0.001 is lost
            in a second moment of bf16, which then cannot decay.
        rounding: of the stepped weight to bf16: ``"nearest"`` or ``"stochastic"`` (with moments in fp32, since with
            bf16 ones AdamW rounds the weight itself).
        from_zero: what is stored and stepped is the difference to the values at the start.
    """

    def __init__(
        self,
        mirrors: Iterable[torch.Tensor],
        lr: float,
        beta2: float = 0.999,
        moments: str = "bf16",
        rounding: str = "nearest",
        from_zero: bool = False,
    ) -> None:
        self.mirrors = list(mirrors)
        self.rounding = rounding
        # A stored tensor with fp32 moments is held in fp32 and rounded to bf16 numbers after every step.
        dtype = torch.bfloat16 if moments == "bf16" else torch.float32
        values = [p.detach().to(torch.bfloat16).to(dtype) for p in self.mirrors]
        self.start = [p.detach().clone() for p in self.mirrors] if from_zero else None
        # foreach and fused kernels may keep fp32 inside a step; plain tensor operations round each result to bf16.
        super().__init__(
            [torch.zeros_like(value) for value in values] if from_zero else values,
            lr=lr, betas=(BETA1, beta2), weight_decay=0.0, foreach=False, fused=False,
        )  # fmt: skip

    @property
    def stored(self) -> list[torch.Tensor]:
        return self.param_groups[0]["params"]

    @torch.no_grad()
    def step(self, closure=None):
        for stored, mirror in zip(self.stored, self.mirrors, strict=True):
            stored.grad = None if mirror.grad is None else mirror.grad.to(torch.bfloat16).to(stored.dtype)
        loss = super().step(closure)
        for stored in self.stored:
            stored.grad = None
            if stored.dtype == torch.float32:
                stored.copy_(stochastically_rounded(stored) if self.rounding == "stochastic" else stored.bfloat16())
            if self.start is not None and stored in self.state:
                self.state[stored]["difference"] = stored  # saved: it cannot be told from start + difference in fp32
        self._mirror()
        return loss

    def _mirror(self) -> None:
        for i, (stored, mirror) in enumerate(zip(self.stored, self.mirrors, strict=True)):
            mirror.copy_(stored if self.start is None else self.start[i] + stored)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for mirror in self.mirrors:
            mirror.grad = None

    @torch.no_grad()
    def load_state_dict(self, state_dict) -> None:
        super().load_state_dict(state_dict)
        if self.start is None:
            for stored, mirror in zip(self.stored, self.mirrors, strict=True):
                stored.copy_(mirror)
            return
        for stored in self.stored:
            if stored in self.state:
                stored.copy_(self.state[stored]["difference"])
        self._mirror()
