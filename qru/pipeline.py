"""One run, start to end: prepare, unlearn, merge, quantize, count, score, record."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from qru import compress, models, paths, records, verdict
from qru.config import RunConfig, digest
from qru.corpora import Corpus, load_corpus
from qru.defaults import resolve
from qru.loop import compute_precision
from qru.metrics import METRICS, Score, evaluate, mean_ci, retrained_scores
from qru.quantizers import load_quantizer
from qru.records import Record
from qru.unlearn import unlearn


def say(text: str) -> None:
    """A line for the person at the terminal; papermill captures a notebook's own stdout and stderr."""
    print(text, file=sys.__stderr__, flush=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``path`` for this process, so that two runs side by side never make the same thing twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that holds {path.name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class Clock:
    """Seconds and peak memory of each stage."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.stages[name] = {"seconds": round(time.monotonic() - started, 3), "peak_memory_mb": round(peak, 1)}


def halves(count: int) -> tuple[list[int], list[int]]:
    """Positions of the stopping half and of the reported half: even and odd."""
    return list(range(0, count, 2)), list(range(1, count, 2))


def _reported(corpus: Corpus, config: RunConfig) -> dict[str, list[int]] | None:
    """Which forget examples are reported: all, or the half that no stopping rule has looked at."""
    if config.forget_goal is None:
        return None
    return {
        "verbmem": halves(len(corpus.verbmem))[1],
        "knowmem": halves(len(corpus.knowmem["forget_qa"]))[1],
    }


def _scores(file: Path, compute) -> dict[str, Any]:
    """Scores of one model at one precision, read back where they were computed before."""
    if not file.is_file():
        records.write_json(file, {name: score.to_dict() for name, score in compute().items()})
    return records.read_json(file)


def _without_responses(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: {k: v for k, v in score.items() if k != "responses"} for name, score in scores.items()}


def run(config: RunConfig | None = None, **parameters: Any) -> Record:
    """Unlearn, quantize and measure; reuse a complete record of the same configuration.

    Args:
        config: what to run; or give its fields as keyword arguments (``run(method="npo_gdr", adapter="lora")``).

    Returns:
        The record, also on disk at ``runs/<id>/record.json``.

    Raises:
        ValueError: an unknown or impossible parameter, before any work.
    """
    if config is not None and parameters:
        raise TypeError("run() takes a RunConfig or keyword arguments, not both.")
    config = resolve(config or RunConfig.from_dict(parameters))
    quantizers = [load_quantizer(name) for name in config.quantizers]
    corpus = load_corpus(config.corpus, scale=config.scale)

    with locked(paths.cache_dir() / "models" / f"{corpus.name}-{config.scale}.lock"):
        made = models.prepare(corpus, config.scale)
    shaped_by = [made.target.name, made.retrained.name, corpus.fingerprint, compute_precision(torch.device("cpu"))]
    key = digest([config.to_dict(), shaped_by])
    arm = f"{config.adapter}-{config.weights}"
    folder = paths.runs_dir() / f"{config.corpus}-{config.scale}-{config.method}-{arm}-s{config.seed}-{key[:10]}"
    with locked(folder / ".lock"):
        if (folder / "record.json").is_file():
            try:
                record = records.load_record(folder)
                say(f"reusing {record.path}")
                return record
            except ValueError as error:
                say(f"{error} Running it again.")
                (folder / "record.json").unlink()
        return _run(config, corpus, quantizers, made, folder, key)


def _run(config: RunConfig, corpus: Corpus, quantizers, made: models.Checkpoints, folder: Path, key: str) -> Record:
    clock = Clock()
    label = f"{config.method} {config.adapter} {config.weights}"
    reported = _reported(corpus, config)
    score = functools.partial(_evaluate, corpus, config, examples=reported)

    target, tokenizer = models.load(made.target)
    baselines = paths.cache_dir() / "scores"
    with clock.stage("target and retrained"):
        scores = {
            name: _baseline(getattr(made, name), corpus, config, quantizers, baselines, made.retrained)
            for name in ("target", "retrained")
        }
    reference = scores["retrained"]["bf16"]["privleak"]["per_example"]

    with clock.stage("unlearn"):
        history = _unlearn(config, corpus, tokenizer, made, folder, label)
    unlearned, _ = models.load(folder / "model")
    found = _updates(target, config, folder)

    part = folder / "partial"
    scores["unlearned"], crossings = {}, {}
    with clock.stage("score bf16"):
        scores["unlearned"]["bf16"] = _scores(
            part / "bf16.json", lambda: score(unlearned, tokenizer, reference, f"{label}: bf16")
        )
    for quantizer in quantizers:
        with clock.stage(f"quantize {quantizer.name}"):
            quantized, crossings[quantizer.name] = compress.quantized_model(target, unlearned, found, quantizer)
        with clock.stage(f"score {quantizer.name}"):
            scores["unlearned"][quantizer.name] = _scores(
                part / f"{quantizer.name}.json",
                functools.partial(score, quantized, tokenizer, reference, f"{label}: {quantizer.name}"),
            )
    if reported:
        scores = {m: {p: _half(s, reported) for p, s in by.items()} for m, by in scores.items()}

    responses = {
        model: {
            precision: {metric: value["responses"] for metric, value in by.items() if "responses" in value}
            for precision, by in precisions.items()
        }
        for model, precisions in scores.items()
    }
    records.write_json(folder / "responses.json", responses)
    scores = {m: {p: _without_responses(s) for p, s in by.items()} for m, by in scores.items()}
    records.write_json(
        folder / "record.json",
        {
            "config": config.to_dict() | {"hash": key},
            "scores": scores,
            "crossings": crossings,
            "cost": clock.stages,
            "provenance": records.provenance()
            | {
                "compute": compute_precision(torch.device("cpu")),
                "threads": torch.get_num_threads(),
                "corpus": corpus.fingerprint,
                "models": {name: getattr(made, name).name for name in ("base", "target", "retrained")},
            },
            "recovered": verdict.recovered(scores),
            "verdict": verdict.sentences(scores, config.to_dict()),
            "history": history,
        },
    )
    shutil.rmtree(part, ignore_errors=True)
    record = records.load_record(folder)
    say("\n".join(record.extra["verdict"]))
    say(f"record: {record.path}")
    return record


def _evaluate(corpus, config, model, tokenizer, reference, label, *, examples=None, metrics=METRICS) -> dict[str, Score]:
    say(f"scoring {label}")
    return evaluate(model, tokenizer, corpus, retrained=reference, examples=examples, metrics=metrics, progress=False)


def _baseline(checkpoint: Path, corpus, config, quantizers, home: Path, retrained: Path) -> dict[str, Any]:
    """Scores of target or retrained at every precision, on all examples; computed once and shared by all runs."""
    folder = home / digest([checkpoint.name, retrained.name, corpus.fingerprint])[:16]
    model, tokenizer = None, None
    scores = {}
    with locked(folder / ".lock"):
        for quantizer in (None, *quantizers):
            precision = quantizer.name if quantizer else "bf16"
            file = folder / f"{precision}.json"
            if not file.is_file():
                if model is None:
                    model, tokenizer = models.load(checkpoint)
                    reference = _privleak_reference(retrained, corpus, home)
                scored = model
                if quantizer:
                    same = compress.updates(model, model)
                    scored, _ = compress.quantized_model(model, model, same, quantizer)
                label = f"{checkpoint.name.partition('-')[0]}: {precision}"
                records.write_json(
                    file,
                    {n: s.to_dict() for n, s in _evaluate(corpus, config, scored, tokenizer, reference, label).items()},
                )
            scores[precision] = records.read_json(file)
    return scores


def _privleak_reference(retrained: Path, corpus: Corpus, home: Path) -> dict[str, list[float]]:
    """Min-K scores of the retrained model in bf16, PrivLeak's reference at every precision."""
    file = home / f"{digest([retrained.name, corpus.fingerprint])[:16]}.reference.json"
    if not file.is_file():
        model, tokenizer = models.load(retrained)
        records.write_json(file, retrained_scores(model, tokenizer, corpus))
    return records.read_json(file)


def _unlearn(config, corpus, tokenizer, made: models.Checkpoints, folder: Path, label: str) -> list[dict[str, float]]:
    """Train one arm and save its result in bf16 as ``folder/model`` (and ``folder/adapter``), unless it is there."""
    if not (folder / "model").is_dir():
        target, _ = models.load(made.target)
        trained, _ = models.load(made.target)
        stopping = {"verbmem": halves(len(corpus.verbmem))[0], "knowmem": halves(len(corpus.knowmem["forget_qa"]))[0]}

        def forget_score(model: torch.nn.Module) -> dict[str, float]:
            found = evaluate(
                model, tokenizer, corpus, metrics=("verbmem", "knowmem"), examples=stopping, progress=False
            )
            return {name: score.value for name, score in found.items()}

        trained, history = unlearn(
            trained,
            tokenizer,
            corpus,
            config,
            frozen=lambda: models.load(made.target)[0],
            forget_score=forget_score,
            checkpoint=folder / "training.pt",
            label=label,
        )
        records.write_json(folder / "history.json", history)
        if config.adapter == "lora":
            trained.save_pretrained(folder / "adapter")
        models.save(compress.merged_model(target, trained), tokenizer, folder / "model")
        (folder / "training.pt").unlink(missing_ok=True)
    return records.read_json(folder / "history.json")


def _updates(target: torch.nn.Module, config: RunConfig, folder: Path) -> dict:
    """The update of every linear layer, from what ``_unlearn`` saved."""
    trained, _ = models.load(folder / "model")
    if config.adapter == "lora":
        trained = PeftModel.from_pretrained(models.load(folder / "model")[0], folder / "adapter")
    return compress.updates(target, trained)


def _half(scores: dict[str, Any], reported: dict[str, list[int]]) -> dict[str, Any]:
    """Restrict ROUGE scores to the reported examples; a score already restricted is left as it is."""
    out = dict(scores)
    for name, chosen in reported.items():
        values = scores[name]["per_example"]
        if len(values) != len(chosen):
            kept = [values[i] for i in chosen]
            mean, low, high = mean_ci(kept)
            out[name] = scores[name] | {"value": 100 * mean, "ci": [100 * low, 100 * high], "per_example": kept}
            if "responses" in scores[name]:
                out[name]["responses"] = [scores[name]["responses"][i] for i in chosen]
    return out
