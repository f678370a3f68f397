"""Negative preference optimisation on the forget documents."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from qru.objectives import Said, Settings, forget_terms, needs


@forget_terms.register("npo")
@needs(reference="log_probs", mean="documents")
def npo(policy: Said, reference: Said, settings: Settings) -> torch.Tensor:
    """NPO: push each forget document's likelihood under the reference's, ever more weakly once it is there.

        L = −(2/β) E_x log σ(−β log[P_θ(x) / P_ref(x)])

    The log-ratio is the sum over the tokens of a document, so a long document saturates sooner. β → 0 gives GA up
    to a constant.

    Args:
        policy: what the model being unlearned says; log_probs (B, T), natural log.
        reference: the same of the model before unlearning.
        settings: ``beta``, β, inverse temperature; 0.1 in the papers.

    Returns:
        The term, a scalar ≥ 0; (2/β) log 2 where policy and reference agree.

    Source: Zhang et al. 2024 (arXiv 2404.05868), eq. 3.
    """
    log_ratio = ((policy.log_probs - reference.log_probs) * policy.mask).sum(-1)  # (B,)
    beta = settings.beta
    return -(2 / beta) * F.logsigmoid(-beta * log_ratio).mean()
