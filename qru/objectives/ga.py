"""Gradient ascent on the forget documents."""

from __future__ import annotations

import torch

from qru.objectives import Said, Settings, forget_terms, needs, token_mean


@forget_terms.register("ga")
@needs(reference=None)
def ga(policy: Said, reference: None, settings: Settings) -> torch.Tensor:
    """GA: minus the cross-entropy, the mean log-probability of the forget tokens; unbounded below.

        L = −CE(θ) = E_t log P_θ(y_t | y_<t)

    Args:
        policy: what the model being unlearned says of the forget batch; log_probs (B, T), natural log.
        reference, settings: not used.

    Returns:
        The term, a scalar in nats a token.

    Source: MUSE (arXiv 2407.06460), §4; QRU (arXiv 2602.13151), §III.
    """
    return token_mean(policy.log_probs, policy.mask)
