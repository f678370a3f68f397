"""Keeping the hidden states of the retain documents."""

from __future__ import annotations

import torch

from qru.objectives import Said, document_means, needs, retain_terms


@retain_terms.register("actr")
@needs(reference="hidden", mean="documents", hidden=True)
def actr(policy: Said, reference: Said) -> torch.Tensor:
    """ACTR: RMU's retain term, the distance of a layer's activations on the retain documents from the reference's.

        L = E_x E_{t in x} ‖h_θ(t) − h_ref(t)‖² / D

    The name is ours, after GDR and KLR. Divided by the width D, as ``rmu`` is, and of the same layer.

    Args:
        policy: hidden (B, T, D) of the model being unlearned.
        reference: the same of the model before unlearning.

    Returns:
        The term, a scalar ≥ 0; 0 where both agree.

    Source: Li et al. 2024 (arXiv 2403.03218), §4, "Retain loss".
    """
    return document_means((policy.hidden - reference.hidden).square().mean(-1), policy.mask).mean()
