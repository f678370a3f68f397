"""Negative preference optimisation without a reference, on the forget documents."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from qru.objectives import Said, Settings, document_means, forget_terms, needs


@forget_terms.register("simnpo")
@needs(reference=None, mean="documents", beta=2.5)
def simnpo(policy: Said, reference: None, settings: Settings) -> torch.Tensor:
    """SimNPO: push each forget document's likelihood a token down, ever more weakly the less likely it is.

        L = −(2/β) E_x log σ(−(β/|x|) log P_θ(x) − γ)

    No reference, so that a document which was never likely is left alone, and a mean over the document's |x| tokens
    where NPO has their sum, so that long documents saturate as short ones do. Their β differ for that reason.

    Args:
        policy: what the model being unlearned says of the forget batch; log_probs (B, T), natural log.
        reference: not used.
        settings: ``beta``, β, inverse temperature: 2.5 here, as in the authors' code for TOFU's forget05 (4.5 for
            forget10); ``gamma``, γ, margin: 0, as there. Their code for MUSE (β 0.7 and γ 0 on books, 0.75 and 3 on
            news) reads raw logits in place of log-probabilities, so those numbers are not for this formula.

    Returns:
        The term, a scalar ≥ 0.

    Source: Fan et al. 2024 (arXiv 2410.07163), the loss called SimNPO; defaults: github.com/OPTML-Group/Unlearn-Simple.
    """
    beta, gamma = settings.beta, settings.gamma
    per_token = document_means(policy.log_probs, policy.mask)  # (B,)
    return -(2 / beta) * F.logsigmoid(-beta * per_token - gamma).mean()
