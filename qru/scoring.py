"""Scores of a run's models: those that no unlearning touched, made once for all runs, and what is made of scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from qru import calibration, compress, models, paths, records
from qru.config import digest
from qru.corpora import Corpus
from qru.forget_sets import restricted
from qru.metrics import Options, Score, evaluate, privleak, privleak_ci, retrained_scores
from qru.parallel import side_by_side, threads
from qru.quantizers import Update, calibration_of, load_quantizer
from qru.records import locked, say

# Sequences of a model of billions of weights that are scored together: keys and values of 32 fit beside it on one GPU.
SCORED_AT_ONCE, BILLIONS = 32, 1e9


def forget_halves(corpus: Corpus) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Positions of the forget examples that a stopping rule looks at (even), and of those then reported (odd).

    Returns:
        (stopping, reported), each metric -> positions, as ``evaluate`` takes them.
    """
    counts = {"verbmem": len(corpus.verbmem), "knowmem": len(corpus.knowmem.get("forget_qa", []))}
    counts["forget_accuracy"] = len(corpus.labels.get("forget", []))
    counts = {name: n for name, n in counts.items() if name in corpus.measurable}
    stopping, reported = ({name: list(range(at, n, 2)) for name, n in counts.items()} for at in (0, 1))
    return stopping, reported


def half(scores: dict[str, Any], reported: dict[str, list[int]]) -> dict[str, Any]:
    """Restrict scores to the reported examples; a score already restricted is left as it is."""
    out = dict(scores)
    for name, chosen in reported.items():
        if (score := scores.get(name)) is None:
            continue  # not asked for
        if len(score["per_example"]) != len(chosen):
            out[name] = score | restricted(score, chosen)
            if "responses" in score:
                out[name]["responses"] = [score["responses"][i] for i in chosen]
    return out


def with_same_quantizer(scores: dict[str, Any]) -> dict[str, Any]:
    """Add to each PrivLeak the variant whose reference is the retrained model under the same quantizer."""
    for by_precision in scores.values():
        for precision, by_metric in by_precision.items():
            if "privleak" not in by_metric:
                continue
            reference = scores["retrained"][precision]["privleak"]["per_example"]
            texts = by_metric["privleak"]["per_example"]
            sides = texts["forget"], texts["holdout"], reference["forget"], reference["holdout"]
            by_metric["privleak"]["same_quantizer"] = {"value": privleak(*sides), "ci": list(privleak_ci(*sides))}
    return scores


def nested(scores: dict[str, Any], change: Callable[[dict], Any]) -> dict[str, Any]:
    """``scores[model][precision][metric]`` with every score changed."""
    return {m: {p: {n: change(s) for n, s in by.items()} for p, by in ps.items()} for m, ps in scores.items()}


def baseline_scores(
    corpus: Corpus,
    made: models.Checkpoints,
    names: Sequence[str] = ("target", "retrained"),
    quantizers: Sequence[str] = (),
    short: bool = False,
    chat_template: bool = False,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores on all examples of models that no unlearning has touched; computed once and shared by all runs.

    Args:
        corpus, made: a corpus and its models.
        names: out of ``base``, ``target`` and ``retrained``.
        quantizers: beside bf16.
        short: see ``side_by_side``.
        chat_template: see ``RunConfig``.

    Returns:
        ``[name][precision][metric]`` -> a score as in a record.
    """
    cells = {
        (name, quantizer): (name, corpus, quantizer, made, chat_template)
        for name in names
        for quantizer in (None, *quantizers)
    }
    files = {cell: _baseline_file(*job) for cell, job in cells.items()}
    with locked(next(iter(files.values())).parent / ".lock"):
        missing = [job for cell, job in cells.items() if not _intact(files[cell])]
        if missing:
            privleak_reference(made, corpus)  # first, since every other score is measured against it
            side_by_side(_score_baseline, missing, short)
    return {
        name: {quantizer or "bf16": records.read_json(files[name, quantizer]) for quantizer in (None, *quantizers)}
        for name in names
    }


def _intact(file: Path) -> bool:
    """Whether scores can be read back; a damaged file is named and removed, to be made again."""
    if not file.is_file():
        return False
    try:
        whole = all("value" in score for score in records.read_json(file).values())
    except (ValueError, AttributeError, TypeError):
        whole = False
    if not whole:
        say(f"{file} is damaged: scoring again")
        file.unlink()
    return whole


def _baseline_file(
    role: str, corpus: Corpus, quantizer: str | None, made: models.Checkpoints, chat_template: bool = False
) -> Path:
    """Where the scores of target or retrained at one precision are kept, for all runs."""
    parts = [made.identity(role), made.identity("retrained"), corpus.fingerprint, *made.beside()]
    folder = digest([*parts, "chat_template"] if chat_template else parts)[:16]
    return paths.cache_dir() / "scores" / folder / f"{paths.file_name(_measured_as(quantizer))}.json"


def _measured_as(quantizer: str | None) -> str:
    """What scores at one precision are called, with a digest of what else they depend on where a name does not say."""
    if quantizer in (None, "reference"):
        return quantizer or "bf16"
    if calibration_of(load_quantizer(quantizer)):
        return f"{quantizer}-{digest(calibration.RECIPE)[:8]}"
    return quantizer


def _score_baseline(
    role: str, corpus: Corpus, quantizer: str | None, made: models.Checkpoints, chat_template: bool
) -> None:
    model, tokenizer = models.load(getattr(made, role), made.tokenizer)
    if quantizer:
        before = compress.stored_layers(model)
        unchanged = {name: Update(new_weight=weight) for name, weight in before.items()}
        loaded = load_quantizer(quantizer)
        text = calibration.text_for(loaded, corpus, model, tokenizer)
        compress.quantize_layers(model, before, unchanged, loaded, text)
    say(f"scoring {role}: {quantizer or 'bf16'}")
    reference = privleak_reference(made, corpus)
    scores = scored(model, tokenizer, corpus, chat_template, retrained=reference)
    file = _baseline_file(role, corpus, quantizer, made, chat_template)
    records.write_json(file, {name: score.to_dict() for name, score in scores.items()})


def scored(
    model: torch.nn.Module,
    tokenizer,
    corpus: Corpus,
    chat_template: bool,
    retrained: dict[str, list[float]] | None = None,
    metrics: Sequence[str] | None = None,
    examples: dict[str, list[int]] | None = None,
) -> dict[str, Score]:
    """``evaluate`` as every stage of a run calls it; ``metrics``: those the corpus has data for, unless others."""
    large = sum(parameter.numel() for parameter in model.parameters()) >= BILLIONS
    return evaluate(
        model, tokenizer, corpus, retrained=retrained, metrics=metrics or corpus.measurable, examples=examples,
        batch_size=SCORED_AT_ONCE if large else 100, options=Options(chat_template=chat_template), progress=False,
    )  # fmt: skip


def privleak_reference(made: models.Checkpoints, corpus: Corpus) -> dict[str, list[float]] | None:
    """Min-K scores of the retrained model in bf16, PrivLeak's reference at every precision; ``None`` without texts."""
    if "privleak" not in corpus.measurable:
        return None
    file = _baseline_file("retrained", corpus, "reference", made)
    if not file.is_file():
        model, tokenizer = models.load(made.retrained, made.tokenizer)
        with threads(1):
            records.write_json(file, retrained_scores(model, tokenizer, corpus))
    return records.read_json(file)
