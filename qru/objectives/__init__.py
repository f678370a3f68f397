"""What is minimised: a forget term plus λ times a retain term.

A term is a pure function of what a model says about a batch, so its value can be checked by hand. ``forget`` terms
see the forget documents, ``retain`` terms the retain documents. A method's name is the two names joined:
``npo_gdr`` is ``forget="npo"``, ``retain="gdr"``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from qru.registry import Registry, unknown


class Said(NamedTuple):
    """What a model says about a batch of B documents, each of T predicted tokens.

    Attributes:
        log_probs: (B, T) natural log-probability of each token of the documents.
        mask: (B, T) true where a token counts, false on padding.
        distribution: (B, T, V) log-softmax over the vocabulary; ``None`` unless a term asked for it.
    """

    log_probs: torch.Tensor
    mask: torch.Tensor
    distribution: torch.Tensor | None = None


forget_terms = Registry("forget term", "qru.objectives")
retain_terms = Registry("retain term", "qru.objectives")


def needs(reference: str | None, mean: str = "tokens"):
    """Mark what a term wants of the model before unlearning, and what it is a mean over.

    Args:
        reference: ``None``, ``"log_probs"`` or ``"distribution"``.
        mean: over the ``"tokens"`` that count, or over ``"documents"``. A batch too large for one pass, or one that
            several processes share, is put together again with these weights.
    """
    assert reference in (None, "log_probs", "distribution"), reference
    assert mean in ("tokens", "documents"), mean

    def mark(term):
        term.reference, term.mean = reference, mean
        return term

    return mark


def methods() -> list[str]:
    """Every method there is: each forget term alone and with each retain term."""
    return [
        name for forget in forget_terms.names() for name in (forget, *(f"{forget}_{r}" for r in retain_terms.names()))
    ]


def parse_method(method: str) -> tuple[str, str | None]:
    """``"npo_gdr"`` -> ``("npo", "gdr")``; ``"ga"`` -> ``("ga", None)``; anything else raises with the list."""
    if method not in methods():
        raise unknown("method", method, methods())
    forget, _, retain = method.partition("_")
    return forget, retain or None


def token_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of ``values`` (B, T) over the tokens that count, as cross-entropy in every trainer is reduced."""
    return (values * mask).sum() / mask.sum()
