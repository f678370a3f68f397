"""All metrics of one model on one corpus."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tqdm.auto import tqdm

from qru.metrics.checks import check_tokenizer, check_weights
from qru.metrics.membership import SIDES, retrained_scores
from qru.metrics.privleak import MISSING_REFERENCE
from qru.metrics.registry import registry
from qru.metrics.score import Context, Score

METRICS = ("verbmem", "knowmem", "privleak", "utility", "disjoint")


def evaluate(
    model,
    tokenizer,
    corpus,
    *,
    retrained=None,
    metrics: Sequence[str] = METRICS,
    examples: Mapping[str, Sequence[int] | None] | None = None,
    batch_size: int = 50,
    progress: bool = True,
) -> dict[str, Score]:
    """Score a model on a corpus.

    Args:
        model: causal language model, scored in the arithmetic it is in; its train or eval mode is restored.
        tokenizer: the model's.
        corpus: a ``Corpus``.
        retrained: PrivLeak's reference: the retrained model in bf16 values, or its scores as ``retrained_scores``
            gives them (``{"forget": [...], "holdout": [...]}``). Other metrics do not need it.
        metrics: names, in the order wanted. Left alone, "disjoint" is skipped for a corpus without disjoint questions.
        examples: metric -> positions to score (None or absent: all). For PrivLeak they choose forget texts.
        batch_size: sequences per forward pass; changes speed and memory, not scores.
        progress: show a bar.

    Returns:
        metric -> Score.

    Raises:
        ValueError: unknown metric, tokenizer of another model, NaN in weights or logits, an empty set, a missing or
            mismatched retrained reference, a text longer than the model's positions.
    """
    if isinstance(metrics, str):
        metrics = (metrics,)
    functions = {name: registry[name] for name in metrics}
    if not functions:
        raise ValueError(f"metrics is empty; known: {', '.join(registry.names())}")
    if metrics is METRICS and not corpus.knowmem.get("disjoint_qa"):
        del functions["disjoint"]
    examples = dict(examples or {})
    if strange := sorted(set(examples) - set(functions)):
        raise ValueError(f"examples names {strange}, which is not among the metrics asked for: {list(functions)}")
    if empty := [name for name, function in functions.items() if function.scores(corpus) == 0]:
        raise ValueError(f"corpus {corpus.name!r} has no examples for {empty}; fill them, or leave them out of metrics")
    if "privleak" in functions and retrained is None:
        raise ValueError(MISSING_REFERENCE)
    check_tokenizer(model, tokenizer)
    check_weights(model)

    totals = {name: _total(function, corpus, examples.get(name), name) for name, function in functions.items()}
    work = sum(totals.values())
    if "privleak" in functions and not isinstance(retrained, Mapping):
        work += functions["privleak"].scores(corpus)
    scores, reference = {}, None
    with tqdm(total=work, unit="example", disable=not progress, leave=False) as bar:
        if "privleak" in functions:
            bar.set_description("retrained reference")
            reference = _reference(retrained, tokenizer, corpus, batch_size, bar.update)
        for name, function in functions.items():
            bar.set_description(name)
            context = Context(examples.get(name), reference, batch_size, bar.update)
            scores[name] = function(model, tokenizer, corpus, context)
    return scores


def _total(function, corpus, chosen: Sequence[int] | None, name: str) -> int:
    if chosen is None:
        return function.scores(corpus)
    return len(chosen) + (len(corpus.privleak["holdout"]) if name == "privleak" else 0)


def _reference(retrained, tokenizer, corpus, batch_size: int, advance: Callable[[int], None]) -> dict[str, list[float]]:
    """Stored scores after a check against the corpus, or a model's own."""
    if not isinstance(retrained, Mapping):
        if not hasattr(retrained, "get_input_embeddings"):
            raise ValueError(f"retrained must be a loaded model or its scores as a mapping, not {retrained!r}")
        check_tokenizer(retrained, tokenizer)
        check_weights(retrained)
        return retrained_scores(retrained, tokenizer, corpus, batch_size, advance)
    if set(retrained) != set(SIDES):
        raise ValueError(f"retrained scores need exactly the keys {list(SIDES)}, not {sorted(retrained)}")
    for side in SIDES:
        have, need = len(retrained[side]), len(corpus.privleak.get(side, []))
        if have != need:
            raise ValueError(
                f"retrained[{side!r}] has {have} scores, but corpus {corpus.name!r} has {need} such texts: they were "
                "computed on another corpus; compute them again with retrained_scores(retrained_model, ...)"
            )
    return {side: list(retrained[side]) for side in SIDES}
