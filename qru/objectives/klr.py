"""Staying close to the reference on the retain documents."""

from __future__ import annotations

import torch

from qru.objectives import Said, needs, retain_terms, token_mean


@retain_terms.register("klr")
@needs(reference="distribution")
def klr(policy: Said, reference: Said) -> torch.Tensor:
    """KLR: Kullback–Leibler divergence of the model from the reference on the retain tokens.

        L = E_t KL(P_ref(· | y_<t) ‖ P_θ(· | y_<t))

    Both sides are log-softmax outputs: on raw logits the expression is no divergence, and public code has made that
    mistake.

    Args:
        policy: distribution (B, T, V), log-softmax of the model being unlearned.
        reference: the same of the model before unlearning.

    Returns:
        The term, a scalar ≥ 0 in nats a token; 0 where both agree.

    Source: MUSE (arXiv 2407.06460), §4; QRU (arXiv 2602.13151), §III.
    """
    divergence = (reference.distribution.exp() * (reference.distribution - policy.distribution)).sum(-1)  # (B, T)
    return token_mean(divergence, policy.mask)
