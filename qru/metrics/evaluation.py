"""All metrics of one model on one corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tqdm.auto import tqdm

from qru.metrics.checks import check_tokenizer, check_weights
from qru.metrics.membership import OF_TEXT, reference_mark, retrained_scores
from qru.metrics.options import Options
from qru.metrics.privleak import MISSING_REFERENCE
from qru.metrics.registry import registry
from qru.metrics.score import Context, Score
from qru.models import classifies

METRICS = ("verbmem", "knowmem", "privleak", "utility", "disjoint")
OF_CLASSIFIERS = ("forget_accuracy", "retain_accuracy", "f1", "mia")


def evaluate(
    model,
    tokenizer,
    corpus,
    *,
    retrained=None,
    metrics: Sequence[str] = METRICS,
    examples: Mapping[str, Sequence[int] | None] | None = None,
    batch_size: int = 100,
    progress: bool = True,
    options: Options | None = None,
) -> dict[str, Score]:
    """Score a model on a corpus.

    Args:
        model: causal language model, or a classifier for a corpus with labels; scored in the arithmetic and on the
            device it is in; its train or eval mode is restored.
        tokenizer: the model's.
        corpus: a ``Corpus``.
        retrained: PrivLeak's reference: the retrained model in bf16 values, or its scores as ``retrained_scores``
            gives them (``{"forget": [...], "holdout": [...]}``; by metric where several of PrivLeak's kind are asked
            for). Other metrics do not need it.
        metrics: names, in the order wanted. Left alone, "disjoint" is skipped for a corpus without disjoint questions,
            and a corpus with labels has its own: ``OF_CLASSIFIERS``, as far as it has data for them.
            Beside these there are "exact_memorization", "extraction_strength", "privleak_ppl", "privleak_zlib" and
            "privleak_min_k++".
        examples: metric -> positions to score (None or absent: all). For PrivLeak they choose forget texts.
        batch_size: sequences per forward pass; changes speed and memory, not scores.
        progress: show a bar.
        options: departures from MUSE's protocol; none by default.

    Returns:
        metric -> Score.

    Raises:
        ValueError: unknown metric, tokenizer of another model, NaN in weights or logits, an empty set, a missing or
            mismatched retrained reference, a text longer than the model's positions or too short for Min-K. All but
            NaN in logits are found before anything is scored.
    """
    if isinstance(metrics, str):
        metrics = (metrics,)
    options = options or Options()
    if not isinstance(options, Options):
        raise ValueError(f"options must be an Options, not {options!r}")
    if metrics is METRICS and getattr(corpus, "labels", None):
        metrics = corpus.measurable
    functions = {name: registry[name] for name in metrics}
    if not functions:
        raise ValueError(f"metrics is empty; known: {', '.join(registry.names())}")
    if metrics is METRICS and not corpus.knowmem.get("disjoint_qa"):
        del functions["disjoint"]
    examples = dict(examples or {})
    if strange := sorted(set(examples) - set(functions)):
        raise ValueError(f"examples names {strange}, which is not among the metrics asked for: {list(functions)}")
    sets = {name: function.sets(corpus, options) for name, function in functions.items()}
    if empty := [name for name, those in sets.items() if not any(those.values())]:
        raise ValueError(f"corpus {corpus.name!r} has no examples for {empty}; fill them, or leave them out of metrics")
    compared = [name for name in functions if name in OF_TEXT]
    if compared and retrained is None:
        raise ValueError(MISSING_REFERENCE)
    check_kind(model, list(functions))
    check_tokenizer(model, tokenizer)
    stored = _stored(retrained, tokenizer, corpus, compared, options) if compared else None
    work = 0
    for name, function in functions.items():
        context = Context(examples.get(name), options=options)
        scored = sum(len(items) for items in context.chosen(sets[name]))
        work += scored
        if name in compared and stored is None:
            work += sum(map(len, sets[name].values()))
            function.check(retrained, tokenizer, corpus, context)
        if function.check is not None:
            function.check(model, tokenizer, corpus, context)
    check_weights(model)
    if compared and stored is None:
        check_weights(retrained)

    scores, reference = {}, stored or {}
    with tqdm(total=work, unit="example", disable=not progress, leave=False) as bar:
        for name, function in functions.items():
            if name in compared and stored is None:
                bar.set_description("retrained reference")
                reference[name] = retrained_scores(
                    retrained, tokenizer, corpus, batch_size, bar.update, metric=name, options=options
                )
            bar.set_description(name)
            context = Context(examples.get(name), reference, batch_size, bar.update, options)
            scores[name] = function(model, tokenizer, corpus, context)
    return scores


def check_texts(model, tokenizer, corpus, metrics: Sequence[str], options: Options | None = None) -> None:
    """Refuse a corpus that a model cannot be scored on; reads shapes and settings of the model, no weights.

    Args:
        model: may be without values (on the meta device).
        tokenizer, corpus, metrics, options: as for ``evaluate``.

    Raises:
        ValueError: tokenizer of another model, a text longer than the model's positions or too short for Min-K.
    """
    check_kind(model, metrics)
    check_tokenizer(model, tokenizer)
    for name in metrics:
        if (check := registry[name].check) is not None:
            check(model, tokenizer, corpus, Context(None, options=options or Options()))


def check_kind(model, metrics: Sequence[str]) -> None:
    """Refuse a language model for what is asked of classifiers, and a classifier for what is asked of language models.

    Raises:
        ValueError: naming the first such metric, and the model's class.
    """
    classifier = classifies(model)
    for name in metrics:
        if (name in OF_CLASSIFIERS) != classifier:
            needed = "a classifier, such as LlamaForSequenceClassification"
            needed = needed if name in OF_CLASSIFIERS else "a language model, such as LlamaForCausalLM"
            raise ValueError(f"{name} is measured on {needed}, and the model is a {type(model).__name__}.")


def _stored(retrained, tokenizer, corpus, metrics: list[str], options: Options) -> dict[str, dict] | None:
    """Stored scores by metric after a check against the corpus, or None where the retrained model itself is given."""
    if not isinstance(retrained, Mapping):
        if not hasattr(retrained, "get_input_embeddings"):
            raise ValueError(f"retrained must be a loaded model or its scores as a mapping, not {retrained!r}")
        try:
            check_tokenizer(retrained, tokenizer)
        except ValueError as error:
            raise ValueError(f"the retrained model cannot be the reference: {error}") from None
        return None
    if not set(retrained) & set(registry.names()):
        if len(metrics) > 1:
            raise ValueError(
                f"retrained scores of one kind cannot serve {metrics}: give them by metric, "
                '{"privleak": {"forget": [...], "holdout": [...]}, ...}, or the retrained model'
            )
        retrained = {metrics[0]: retrained}
    if missing := [name for name in metrics if name not in retrained]:
        raise ValueError(f"retrained holds scores for {sorted(retrained)}, but {missing} need theirs too")
    for name in metrics:
        _check_reference(retrained[name], corpus, name, options)
    return {name: retrained[name] for name in metrics}


def _check_reference(stored: Mapping, corpus, name: str, options: Options) -> None:
    mark, sides = reference_mark(name, options), options.sides
    if set(stored) - {"k"} != set(sides):
        raise ValueError(f"retrained scores need exactly the keys {list(sides)}, not {sorted(stored)}")
    if (had := {key: stored[key] for key in stored if key == "k"}) != mark:
        raise ValueError(
            f"retrained scores were computed with k={had.get('k', Options().k)}, and {name} is asked for with "
            f"k={mark.get('k', Options().k)}; compute them again with retrained_scores(retrained_model, ..., "
            "options=options)"
        )
    for side in sides:
        have, need = len(stored[side]), len(corpus.privleak.get(side, []))
        if have != need:
            raise ValueError(
                f"retrained[{side!r}] has {have} scores, but corpus {corpus.name!r} has {need} such texts: they were "
                "computed on another corpus; compute them again with retrained_scores(retrained_model, ...)"
            )
