"""Gradient descent on the retain documents."""

from __future__ import annotations

import torch

from qru.objectives import Said, needs, retain_terms, token_mean


@retain_terms.register("gdr")
@needs(reference=None)
def gdr(policy: Said, reference: None) -> torch.Tensor:
    """GDR: the cross-entropy of the retain tokens.

        L = CE(θ) = −E_t log P_θ(y_t | y_<t)

    Args:
        policy: what the model being unlearned says of the retain batch; log_probs (B, T), natural log.
        reference: not used.

    Returns:
        The term, a scalar in nats a token.

    Source: MUSE (arXiv 2407.06460), §4.
    """
    return -token_mean(policy.log_probs, policy.mask)
