"""PrivLeak of a model on a corpus; the arithmetic is in privleak.py."""

from __future__ import annotations

from qru.metrics.logprobs import token_log_probs
from qru.metrics.privleak import MISSING_REFERENCE, min_k_score, privleak, privleak_ci
from qru.metrics.registry import metric
from qru.metrics.score import Context, Score

SIDES = ("forget", "holdout")


def min_k_scores(model, tokenizer, texts: list[str], what: str, context: Context) -> list[float]:
    """The Min-40 % score of each text.

    Raises:
        ValueError: a text is too short to have a lowest 40 %.
    """
    scores = []
    log_probs = token_log_probs(model, tokenizer, texts, context.batch_size, context.advance)
    for i, tokens in enumerate(log_probs):
        try:
            scores.append(min_k_score(tokens))
        except ValueError as error:
            raise ValueError(f"text {i} of {what} ({texts[i][:40]!r}): {error}") from None
    return scores


def retrained_scores(model, tokenizer, corpus, batch_size: int = 32, advance=None) -> dict[str, list[float]]:
    """The reference PrivLeak needs: Min-40 % scores of the corpus's forget and holdout texts under the retrained model.

    Args:
        model: the model trained without the forget set, in bf16 values.
        tokenizer: its tokenizer.
        corpus: holds ``privleak["forget"]`` and ``privleak["holdout"]``.
        batch_size: texts per forward pass.
        advance: called with the number of texts just finished.

    Returns:
        ``{"forget": [...], "holdout": [...]}``, in the order of the corpus; compute once, pass to every ``evaluate``.

    Raises:
        ValueError: a side is empty or a text too short.
    """
    context = Context(batch_size=batch_size, advance=advance)
    out = {}
    for side in SIDES:
        what = f"privleak[{side!r}] of corpus {corpus.name!r}"
        out[side] = min_k_scores(model, tokenizer, context.pick(corpus.privleak.get(side, []), what), what, context)
    return out


@metric(
    "privleak", better="towards zero", scores=lambda corpus: sum(len(corpus.privleak.get(side, [])) for side in SIDES)
)
def privacy_leakage(model, tokenizer, corpus, context: Context) -> Score:
    """PrivLeak against the retrained model; ``examples`` choose forget texts, the holdout side is always whole."""
    if context.retrained is None:
        raise ValueError(MISSING_REFERENCE)
    scores, reference = {}, {}
    for side in SIDES:
        what = f"privleak[{side!r}] of corpus {corpus.name!r}"
        chosen = context if side == "forget" else Context(batch_size=context.batch_size, advance=context.advance)
        texts = chosen.pick(corpus.privleak.get(side, []), what)
        reference[side] = chosen.pick(context.retrained[side], f"retrained[{side!r}]")
        scores[side] = min_k_scores(model, tokenizer, texts, what, context)
    lists = (scores["forget"], scores["holdout"], reference["forget"], reference["holdout"])
    return Score(privleak(*lists), privleak_ci(*lists), scores)
