"""Misdirecting the hidden states of the forget documents."""

from __future__ import annotations

import torch

from qru.objectives import Said, Settings, document_means, forget_terms, needs


@forget_terms.register("rmu")
@needs(reference=None, mean="documents", hidden=True)
def rmu(policy: Said, reference: None, settings: Settings) -> torch.Tensor:
    """RMU: steer what one layer passes on at every token of a forget document to a fixed random vector.

        L = E_x E_{t in x} ‖h_θ(t) − c·u‖² / D

    Divided by the width D, as in the authors' code (``mse_loss``), which their c and their weight of the retain term
    are for; the paper's formula is D times this. The token that opens a row is left out, here only: under a causal mask
    its state is the same for every document, so it would be steered away where it must also be retained.

    The authors train one matrix in each of three layers up to the one that is steered. Here the arm says what is
    trained (every weight, or the adapters of every layer), as for the other terms; layers above the steered one get no
    gradient from this term. Its retain term is ``actr``.

    Args:
        policy: what the model being unlearned says of the forget batch; hidden (B, T, D).
        reference: not used.
        settings: ``control``, c·u (D,), of ``control``.

    Returns:
        The term, a scalar ≥ 0; 0 where every state is c·u.

    Source: Li et al. 2024 (arXiv 2403.03218), §4, "Forget loss".
    """
    return document_means((policy.hidden - settings.control).square().mean(-1), policy.mask).mean()


def control(width: int, steering: float, seed: int) -> torch.Tensor:
    """c·u: entries of u are uniform in [0, 1), then u is of length one; the same throughout a run.

    Args:
        width: D, of the hidden states.
        steering: c.
        seed: of the run.

    Returns:
        (D,), fp32.

    Source: Li et al. 2024 (arXiv 2403.03218), §4.
    """
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return steering * drawn / drawn.norm()


def steered_layer(layers: int, chosen: int | None = None) -> int:
    """The decoder layer, from 0, whose output is steered.

    Args:
        layers: how many there are.
        chosen: by the user; ``None``: as deep as in the paper, which takes layer 7 of the 32 of Zephyr-7B, and the same
            share of another depth.

    Raises:
        ValueError: there is no such layer.
    """
    if chosen is not None and chosen >= layers:
        raise ValueError(f"hidden_layer is {chosen}, but the model has {layers} layers: give 0 to {layers - 1}.")
    return round(7 / 32 * layers) if chosen is None else chosen
