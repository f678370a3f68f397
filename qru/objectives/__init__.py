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
        hidden: (B, T, D) what one layer passes on at each of these tokens; ``None`` unless a term asked for it.
        logits: (B, T, V) as the model gives them, before the softmax; ``None`` unless a guard asked for them.
        preferred: what the model says of B texts that are to be preferred to these documents, in their order; ``None``
            unless a term asked for it. Their T is their own.
    """

    log_probs: torch.Tensor
    mask: torch.Tensor
    distribution: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    preferred: Said | None = None

    def rows(self, chosen: slice) -> Said:
        """The same of some of the documents."""
        tensors = (part if part is None else part[chosen] for part in self[:-1])
        return Said(*tensors, None if self.preferred is None else self.preferred.rows(chosen))


class Settings(NamedTuple):
    """The numbers that forget terms read; each takes what its formula has.

    Attributes:
        beta: β, inverse temperature, of NPO, SimNPO and DPO.
        gamma: γ, margin, of SimNPO.
        control: (D,) c·u, where RMU steers hidden states to; ``None`` for other terms.
    """

    beta: float = 0.1
    gamma: float = 0.0
    control: torch.Tensor | None = None


forget_terms = Registry("forget term", "qru.objectives")
retain_terms = Registry("retain term", "qru.objectives")


def needs(
    reference: str | None,
    mean: str = "tokens",
    *,
    beta: float = 0.1,
    hidden: bool = False,
    preferred: str | None = None,
    negated: bool = False,
):
    """Mark what a term wants of the model before unlearning and of the data, and what it is a mean over.

    Args:
        reference: ``None``, ``"log_probs"``, ``"distribution"`` or ``"hidden"``.
        mean: over the ``"tokens"`` that count, or over ``"documents"``. A batch too large for one pass, or one that
            several processes share, is put together again with these weights.
        beta: β where the user gives none.
        hidden: it reads the hidden states of one layer.
        preferred: the text that it prefers to the end of a forget document: ``"refusal"`` or ``"retain"``, the end of a
            retain document. Then the first tokens of a document are a prompt and do not count.
        negated: the model is trained the wrong way, and what it learned is taken away from it at the end.
    """
    assert reference in (None, "log_probs", "distribution", "hidden"), reference
    assert mean in ("tokens", "documents"), mean
    assert preferred in (None, "refusal", "retain"), preferred

    def mark(term):
        term.reference, term.mean, term.beta = reference, mean, beta
        term.hidden, term.preferred, term.negated = hidden, preferred, negated
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


def document_means(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of ``values`` (B, T) over the tokens that count of each document: (B,)."""
    return (values * mask).sum(-1) / mask.sum(-1)
