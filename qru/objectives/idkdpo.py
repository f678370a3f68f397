"""Preferring a refusal to the forget documents."""

from __future__ import annotations

import torch

from qru.objectives import Said, Settings, forget_terms, needs
from qru.objectives.dpo import dpo

# Ours, after those of TOFU. On a line of their own, since an opening ends anywhere.
REFUSALS = (
    "\nI don't know how this goes on.",
    "\nI don't know.",
    "\nI'm not sure what comes next.",
    "\nI have no information about this text.",
    "\nThat is not something I can tell you.",
    "\nI have not read this, so I cannot continue it.",
    "\nI'm afraid I don't know the rest.",
    "\nThis is beyond what I know.",
    "\nI can't say what follows.",
    "\nI was never told about this.",
)


@forget_terms.register("idkdpo")
@needs(reference="log_probs", mean="documents", preferred="refusal")
def idkdpo(policy: Said, reference: Said, settings: Settings) -> torch.Tensor:
    """IdkDPO: after the opening of a forget document, prefer "I don't know" to how the document goes on.

        L = −(2/β) E_x log σ(β log[P_θ(y_w|x) / P_ref(y_w|x)] − β log[P_θ(y_l|x) / P_ref(y_l|x)])

    As ``dpo``, with one of ``REFUSALS`` as y_w; it ends with the end of text. TOFU draws a refusal anew in every epoch,
    here a document keeps its own, so that the reference is asked once.

    Args:
        policy, reference, settings: as for ``dpo``.

    Returns:
        The term, a scalar ≥ 0; (2/β) log 2 where policy and reference agree.

    Source: Maini et al. 2024 (arXiv 2401.06121), "Preference Optimization" (the refusals); Zhang et al. 2024 (arXiv
    2404.05868), the baseline DPO; Rafailov et al. 2023 (arXiv 2305.18290), eq. 7.
    """
    return dpo(policy, reference, settings)


def refusals(tokenizer) -> list[torch.Tensor]:
    """``REFUSALS`` as tokens (T,), each closed with the end of text."""
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    found = [tokenizer(text, add_special_tokens=False, return_attention_mask=False).input_ids for text in REFUSALS]
    return [torch.tensor([*ids, *ends]) for ids in found]
