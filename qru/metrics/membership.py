"""PrivLeak of a model on a corpus, and the same comparison with other scores; the arithmetic is in privleak.py."""

from __future__ import annotations

from collections.abc import Callable

import torch

from qru.metrics.checks import encode
from qru.metrics.logprobs import check_texts_fit, standardized_log_probs, token_log_probs
from qru.metrics.options import Options
from qru.metrics.privleak import (
    MISSING_REFERENCE,
    check_share,
    loss_score,
    min_k_plus_score,
    min_k_score,
    privleak,
    privleak_ci,
    zlib_score,
)
from qru.metrics.registry import metric, registry
from qru.metrics.score import Context, Score

# metric -> score of one text, from (its numbers, one a token; its characters; k)
OF_TEXT: dict[str, Callable[[torch.Tensor, str, float], float]] = {
    "privleak": lambda log_probs, text, k: min_k_score(log_probs, k),
    "privleak_ppl": lambda log_probs, text, k: loss_score(log_probs),
    "privleak_zlib": lambda log_probs, text, k: zlib_score(log_probs, text),
    "privleak_min_k++": lambda standardized, text, k: min_k_plus_score(standardized, k),
}
WITH_K = ("privleak", "privleak_min_k++")  # the others average all tokens


def texts_of(corpus, options: Options) -> dict[str, list[str]]:
    """The forget texts, and those they are compared with."""
    return {f"privleak[{side!r}] of corpus {corpus.name!r}": corpus.privleak.get(side, []) for side in options.sides}


def _k(name: str, options: Options) -> float:
    return options.k if name in WITH_K else 1.0  # the mean over all tokens needs one


def _check(name: str) -> Callable:
    def check(model, tokenizer, corpus, context: Context) -> None:
        for what, texts in texts_of(corpus, context.options).items():
            rows = encode(tokenizer, list(texts))
            for i, row in enumerate(rows):
                try:
                    check_share(len(row) - 1, _k(name, context.options))
                except ValueError as error:
                    raise ValueError(f"text {i} of {what} ({texts[i][:40]!r}): {error}") from None
            check_texts_fit(model, tokenizer, rows, what)

    return check


def text_scores(name: str, model, tokenizer, texts: list[str], context: Context) -> list[float]:
    """The score of each text: positive for a likely one as for an unlikely one, and higher for the unlikely.

    Args:
        name: of the metric that compares them.
        model, tokenizer, texts: as in ``token_log_probs``.
        context: batch size, progress, k.
    """
    measure = standardized_log_probs if name == "privleak_min_k++" else token_log_probs
    found = measure(model, tokenizer, texts, context.batch_size, context.advance)
    return [OF_TEXT[name](values, text, context.options.k) for values, text in zip(found, texts, strict=True)]


def retrained_scores(
    model,
    tokenizer,
    corpus,
    batch_size: int = 32,
    advance=None,
    *,
    metric: str = "privleak",
    options: Options | None = None,
) -> dict[str, list[float]]:
    """The reference PrivLeak needs: scores of the corpus's forget and holdout texts under the retrained model.

    Args:
        model: the model trained without the forget set, in bf16 values.
        tokenizer: its tokenizer.
        corpus: holds ``privleak["forget"]`` and ``privleak["holdout"]``.
        batch_size: texts per forward pass.
        advance: called with the number of texts just finished.
        metric: "privleak" (Min-40 % scores), "privleak_ppl", "privleak_zlib" or "privleak_min_k++".
        options: as will be passed to ``evaluate``.

    Returns:
        ``{"forget": [...], "holdout": [...]}``, in the order of the corpus; compute once, pass to every ``evaluate``.
        With another k than 0.4 it also holds ``"k"``, so that it is not taken for MUSE's.

    Raises:
        ValueError: a side is empty, or a text too short or too long.
    """
    if metric not in OF_TEXT:
        raise ValueError(f"metric {metric!r} has no retrained reference; {', '.join(OF_TEXT)} have")
    context = Context(batch_size=batch_size, advance=advance, options=options or Options())
    sets = texts_of(corpus, context.options)
    sides = dict(zip(context.options.sides, context.chosen(sets), strict=True))
    registry[metric].check(model, tokenizer, corpus, context)
    out = {side: text_scores(metric, model, tokenizer, texts, context) for side, texts in sides.items()}
    return out | reference_mark(metric, context.options)


def reference_mark(name: str, options: Options) -> dict[str, float]:
    """What a stored reference carries beside its scores."""
    return {"k": options.k} if name in WITH_K and options.k != Options().k else {}


def leakage(name: str, model, tokenizer, corpus, context: Context) -> Score:
    """100 (AUC − AUC_retrain) / AUC_retrain for one kind of score; ``examples`` choose forget texts only."""
    if context.retrained is None or name not in context.retrained:
        raise ValueError(MISSING_REFERENCE)
    sides = context.options.sides
    texts = context.chosen(texts_of(corpus, context.options))
    reference = context.chosen({f"retrained[{side!r}]": context.retrained[name][side] for side in sides})
    scores = [text_scores(name, model, tokenizer, those, context) for those in texts]
    lists = (*scores, *reference)
    return Score(privleak(*lists), privleak_ci(*lists), dict(zip(sides, scores, strict=True)))


def _leakage_metric(name: str):
    return metric(name, better="towards zero", sets=texts_of, check=_check(name))


@_leakage_metric("privleak")
def privacy_leakage(model, tokenizer, corpus, context: Context) -> Score:
    """PrivLeak against the retrained model; ``examples`` choose forget texts, the holdout side is always whole."""
    return leakage("privleak", model, tokenizer, corpus, context)


@_leakage_metric("privleak_ppl")
def privacy_leakage_by_loss(model, tokenizer, corpus, context: Context) -> Score:
    """PrivLeak with the mean token loss, which orders texts as perplexity does, in place of Min-K %."""
    return leakage("privleak_ppl", model, tokenizer, corpus, context)


@_leakage_metric("privleak_zlib")
def privacy_leakage_by_zlib(model, tokenizer, corpus, context: Context) -> Score:
    """PrivLeak with the mean token loss over the text's compressed size (arXiv 2012.07805) in place of Min-K %."""
    return leakage("privleak_zlib", model, tokenizer, corpus, context)


@_leakage_metric("privleak_min_k++")
def privacy_leakage_by_min_k_plus(model, tokenizer, corpus, context: Context) -> Score:
    """PrivLeak with Min-K++ (arXiv 2404.02936) in place of Min-K %."""
    return leakage("privleak_min_k++", model, tokenizer, corpus, context)
