"""Sharpness-aware minimisation of the forget term."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from qru.guards import Guard, guards


def ascent(gradients: Sequence[torch.Tensor | None], rho: float) -> list[torch.Tensor | None]:
    """Where the loss rises fastest, at distance ρ: ρ·g/‖g‖₂, the norm over all tensors together; 0 where g is 0."""
    norm = torch.stack([g.float().square().sum() for g in gradients if g is not None]).sum().sqrt()
    length = torch.where(norm > 0, rho / norm, 0.0)
    return [None if g is None else length * g.float() for g in gradients]


@guards.register("sam")
class Sam(Guard):
    """SAM: the forget term is minimised where it is worst within ρ, so that it stays low around the weights.

        L = L_forget(θ + ρ·g/‖g‖₂) + λ·L_retain(θ),  g = ∇L_forget(θ)

    θ is what is trained: all weights, or the adapters of LoRA. The gradient is that of the first order: g is taken for
    a constant. Each step goes over the forget documents twice and over the retain documents once.

    The step to θ + ρ·g/‖g‖ is, a weight, far under the spacing of bf16: weights are moved in fp32, and what is computed
    there is computed in fp32, too. The retain term and g are computed as without a guard.

    Source: Foret et al. 2021 (arXiv 2010.01412), eq. 3; on the forget term: Fan et al. 2025 (arXiv 2502.05374), ρ 0.01.
    """

    options = {"sam_rho": 0.01}  # noqa: RUF012
    perturbs = True

    def __init__(self, config, model, rows, logits_of) -> None:
        self.rho = config.sam_rho

    @contextlib.contextmanager
    def moved(self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None]) -> Iterator[None]:
        """Within it the parameters are at θ + ρ·g/‖g‖; behind it they have the bits that they had before.

        Parameters are moved in place between two graphs: forward and backward passes both happen within, so that
        gradients are those of the moved weights, also where activations are computed again backwards.
        """
        before = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for parameter, by in zip(parameters, ascent(gradients, self.rho), strict=True):
                if by is not None:
                    parameter.add_(by)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)
