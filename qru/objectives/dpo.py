"""Preferring another text to the forget documents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from qru.objectives import Said, Settings, forget_terms, needs

# Tokens of a document that stand for the question; ours. MUSE's documents have none, and VerbMem prompts likewise.
PROMPT = 32


@forget_terms.register("dpo")
@needs(reference="log_probs", mean="documents", preferred="retain")
def dpo(policy: Said, reference: Said, settings: Settings) -> torch.Tensor:
    """DPO: after the opening of a forget document, prefer the end of a retain document to the document's own.

        L = −(2/β) E_x log σ(β log[P_θ(y_w|x) / P_ref(y_w|x)] − β log[P_θ(y_l|x) / P_ref(y_l|x)])

    x is the document's opening (``opening``), y_l how it goes on, y_w how one of the retain documents goes on after its
    own opening; a document keeps its y_w throughout a run. Log-ratios are sums over the tokens of y, never of x. That
    pair is ours: the literature has questions, and prefers a refusal (``idkdpo``) or another answer to them. The factor
    is NPO's, which is this term without y_w; DPO itself has none.

    Args:
        policy: what the model being unlearned says; log_probs (B, T), natural log, with a mask that is true on y_l, and
            ``preferred`` likewise on y_w.
        reference: the same of the model before unlearning.
        settings: ``beta``, β, inverse temperature; 0.1.

    Returns:
        The term, a scalar ≥ 0; (2/β) log 2 where policy and reference agree.

    Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; as a baseline of unlearning Zhang et al. 2024 (arXiv
    2404.05868).
    """
    beta = settings.beta
    margin = _log_ratio(policy.preferred, reference.preferred) - _log_ratio(policy, reference)  # (B,)
    return -(2 / beta) * F.logsigmoid(beta * margin).mean()


def _log_ratio(policy: Said, reference: Said) -> torch.Tensor:
    """log P_θ(y|x) / P_ref(y|x) of each document, a sum over the tokens that count: (B,)."""
    return ((policy.log_probs - reference.log_probs) * policy.mask).sum(-1)


def opening(row: torch.Tensor) -> int:
    """How many tokens of a training row stand for the question: ``PROMPT``, or half of a row that is short."""
    return min(PROMPT, len(row) // 2)


def preferred_rows(
    forget: Sequence[torch.Tensor], answers: Sequence[torch.Tensor], context: int, seed: int
) -> list[torch.Tensor]:
    """The opening of each forget row with an answer behind it, drawn once for each row.

    Args:
        forget: token rows (T,).
        answers: tokens (T,) of what is to be preferred; each is taken once before one is taken again.
        context: longest row, in tokens.
        seed: of the run.
    """
    drawn = torch.randperm(len(answers), generator=torch.Generator().manual_seed(seed)).tolist()
    return [torch.cat([row[: opening(row)], answers[drawn[i % len(drawn)]]])[:context] for i, row in enumerate(forget)]


def endings(rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What follows the opening of each row."""
    return [row[opening(row) :] for row in rows]
