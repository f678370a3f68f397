"""One run, start to end: prepare, unlearn, merge, quantize, count, score, record."""

from __future__ import annotations

import contextlib
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qru import compress, models, paths, records, verdict
from qru.config import RunConfig, digest
from qru.corpora import Corpus, load_corpus
from qru.defaults import resolve
from qru.loop import compute_precision
from qru.metrics import evaluate, mean_ci, privleak, privleak_ci, retrained_scores
from qru.parallel import side_by_side, threads
from qru.quantizers import load_quantizer
from qru.records import Record, locked, say
from qru.unlearn import unlearn


class Clock:
    """Seconds and peak memory of each stage, kept in a file so that a resumed run still knows what was done before."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.stages: dict[str, dict[str, float]] = records.read_json(file) if file.is_file() else {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        _reset_peak()
        yield
        if name not in self.stages:  # else an earlier attempt did the work, and this one only read it back
            self.stages[name] = {"seconds": round(time.monotonic() - started, 3), "peak_memory_mb": round(_peak(), 1)}
            records.write_json(self.file, self.stages)


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # Linux only; elsewhere the peak is the process's so far
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Peak resident memory in MB since the last reset."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_halves(corpus: Corpus) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Positions of the forget examples that a stopping rule looks at (even), and of those then reported (odd).

    Returns:
        (stopping, reported), each metric -> positions, as ``evaluate`` takes them.
    """
    counts = {"verbmem": len(corpus.verbmem), "knowmem": len(corpus.knowmem["forget_qa"])}
    stopping, reported = ({name: list(range(at, n, 2)) for name, n in counts.items()} for at in (0, 1))
    return stopping, reported


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
    return run_all([config or RunConfig.from_dict(parameters)])[0]


def run_all(configs: Sequence[RunConfig]) -> list[Record]:
    """Several runs, side by side where there are cores for it; every one is checked before the first starts.

    Args:
        configs: what to run.

    Returns:
        One record a config, in order.
    """
    configs = [_checked(resolve(config)) for config in configs]
    corpora = {(c.corpus, c.scale): load_corpus(c.corpus, scale=c.scale) for c in configs}
    jobs, folders = [], []
    for config in configs:
        corpus = corpora[config.corpus, config.scale]
        made = models.prepare(corpus, config.scale)
        key = digest([config.to_dict(), made.target.name, made.retrained.name, corpus.fingerprint])
        arm = f"{config.method}-{config.adapter}-{config.weights}"
        folders.append(paths.runs_dir() / f"{corpus.name}-{config.scale}-{arm}-s{config.seed}-{key[:10]}")
        if _complete(folders[-1], key) is None:
            jobs.append((config, corpus, made, folders[-1], key))
    if jobs:
        if compute_precision(torch.device("cpu")) == "fp32":
            say("this CPU has no bf16 arithmetic: gradients are computed in fp32, on the same bf16-stored weights")
        short = all(config.scale == "smoke" for config in configs)
        for config, corpus, made, _, _ in jobs:
            baseline_scores(corpus, made, quantizers=config.quantizers, short=short)
        side_by_side(_run, jobs, short)
    return [records.load_record(folder) for folder in folders]


def _checked(config: RunConfig) -> RunConfig:
    """The config with quantizers under their exact names, each held against every layer it will meet."""
    quantizers = [load_quantizer(name) for name in config.quantizers]
    for name, shape in models.layer_shapes(config.scale).items():
        for quantizer in quantizers:
            quantizer.check(shape, name)
    return replace(config, quantizers=tuple(quantizer.name for quantizer in quantizers))


def _complete(folder: Path, key: str) -> Record | None:
    """The record of a run that has ended; a damaged one is named and removed, to be made again."""
    if not (folder / "record.json").is_file():
        return None
    try:
        record = records.load_record(folder)
        if record.config.get("hash") != key:
            raise ValueError(f"{record.path} is not of this configuration.")
    except ValueError as error:
        say(f"{error} Running it again.")
        (folder / "record.json").unlink()
        return None
    say(f"reusing {record.path}")
    return record


def _run(config: RunConfig, corpus: Corpus, made: models.Checkpoints, folder: Path, key: str) -> None:
    """One run into ``folder``; what an earlier, killed attempt has finished is not done again."""
    with locked(folder / ".lock"):
        if (folder / "record.json").is_file():
            return  # another process has made it meanwhile
        clock = Clock(folder / "partial" / "cost.json")
        label = f"{config.method} {config.adapter} {config.weights}"
        quantizers = [load_quantizer(name) for name in config.quantizers]
        reported = None if config.forget_goal is None else forget_halves(corpus)[1]
        reference = _privleak_reference(made, corpus)
        scores = baseline_scores(corpus, made, quantizers=config.quantizers, short=True)
        target, tokenizer = models.load(made.target)
        with clock.stage("unlearn"):
            history = _unlearn(config, corpus, tokenizer, made, folder, label)
        clock.stages["unlearn"]["seconds"] = round(sum(row["seconds"] for row in history), 3)  # of all attempts
        unlearned, _ = models.load(folder / "model")
        found = _updates(target, config, folder)

        def score(model: torch.nn.Module, precision: str) -> dict[str, Any]:
            file = folder / "partial" / f"{precision}.json"
            if not file.is_file():
                with clock.stage(f"score {precision}"):
                    say(f"scoring {label}: {precision}")
                    answers = evaluate(model, tokenizer, corpus, retrained=reference, examples=reported, progress=False)
                    records.write_json(file, {name: answer.to_dict() for name, answer in answers.items()})
            return records.read_json(file)

        scores["unlearned"] = {"bf16": score(unlearned, "bf16")}
        crossings = {}
        for quantizer in quantizers:
            with clock.stage(f"quantize {quantizer.name}"):
                quantized, crossings[quantizer.name] = compress.quantized_model(target, unlearned, found, quantizer)
            scores["unlearned"][quantizer.name] = score(quantized, quantizer.name)
        if reported:
            scores = {m: {p: _half(s, reported) for p, s in by.items()} for m, by in scores.items()}

        scores = _with_same_quantizer(scores)
        records.write_json(folder / "responses.json", _nested(scores, lambda s: s.get("responses")))
        scores = _nested(scores, lambda s: {k: v for k, v in s.items() if k != "responses"})
        record = {
            "config": config.to_dict() | {"hash": key},
            "scores": scores,
            "crossings": crossings,
            "cost": clock.stages,
            "provenance": records.provenance()
            | {
                "compute": compute_precision(torch.device("cpu")),
                "corpus": corpus.fingerprint,
                "models": {name: getattr(made, name).name for name in ("base", "target", "retrained")},
            },
            "recovered": verdict.recovered(scores),
            "verdict": verdict.sentences(scores, config.to_dict()),
            "history": history,
        }
        records.write_json(folder / "record.json", record)
        shutil.rmtree(folder / "partial", ignore_errors=True)
        say(f"record: {folder / 'record.json'}")


def _with_same_quantizer(scores: dict[str, Any]) -> dict[str, Any]:
    """Add to each PrivLeak the variant whose reference is the retrained model under the same quantizer."""
    for by_precision in scores.values():
        for precision, by_metric in by_precision.items():
            reference = scores["retrained"][precision]["privleak"]["per_example"]
            texts = by_metric["privleak"]["per_example"]
            sides = texts["forget"], texts["holdout"], reference["forget"], reference["holdout"]
            by_metric["privleak"]["same_quantizer"] = {"value": privleak(*sides), "ci": list(privleak_ci(*sides))}
    return scores


def _nested(scores: dict[str, Any], change) -> dict[str, Any]:
    """``scores[model][precision][metric]`` with every score changed."""
    return {m: {p: {n: change(s) for n, s in by.items()} for p, by in ps.items()} for m, ps in scores.items()}


def baseline_scores(
    corpus: Corpus,
    made: models.Checkpoints,
    names: Sequence[str] = ("target", "retrained"),
    quantizers: Sequence[str] = (),
    short: bool = False,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores on all examples of models that no unlearning has touched; computed once and shared by all runs.

    Args:
        corpus, made: a corpus and its models.
        names: out of ``base``, ``target`` and ``retrained``.
        quantizers: beside bf16.
        short: see ``side_by_side``.

    Returns:
        ``[name][precision][metric]`` -> a score as in a record.
    """
    cells = {
        (name, quantizer): (getattr(made, name), corpus, quantizer, made)
        for name in names
        for quantizer in (None, *quantizers)
    }
    files = {cell: _baseline_file(*job) for cell, job in cells.items()}
    with locked(next(iter(files.values())).parent / ".lock"):
        missing = [job for cell, job in cells.items() if not _intact(files[cell])]
        if missing:
            _privleak_reference(made, corpus)  # first, since every other score is measured against it
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


def _baseline_file(checkpoint: Path, corpus: Corpus, quantizer: str | None, made: models.Checkpoints) -> Path:
    """Where the scores of target or retrained at one precision are kept, for all runs."""
    folder = digest([checkpoint.name, made.retrained.name, corpus.fingerprint])[:16]
    return paths.cache_dir() / "scores" / folder / f"{quantizer or 'bf16'}.json"


def _score_baseline(checkpoint: Path, corpus: Corpus, quantizer: str | None, made: models.Checkpoints) -> None:
    model, tokenizer = models.load(checkpoint)
    if quantizer:
        model, _ = compress.quantized_model(model, model, compress.updates(model, model), load_quantizer(quantizer))
    say(f"scoring {checkpoint.name.partition('-')[0]}: {quantizer or 'bf16'}")
    scores = evaluate(model, tokenizer, corpus, retrained=_privleak_reference(made, corpus), progress=False)
    file = _baseline_file(checkpoint, corpus, quantizer, made)
    records.write_json(file, {name: score.to_dict() for name, score in scores.items()})


def _privleak_reference(made: models.Checkpoints, corpus: Corpus) -> dict[str, list[float]]:
    """Min-K scores of the retrained model in bf16, PrivLeak's reference at every precision."""
    file = _baseline_file(made.retrained, corpus, "reference", made)
    if not file.is_file():
        model, tokenizer = models.load(made.retrained)
        with threads(1):
            records.write_json(file, retrained_scores(model, tokenizer, corpus))
    return records.read_json(file)


def _unlearn(config, corpus, tokenizer, made: models.Checkpoints, folder: Path, label: str) -> list[dict[str, float]]:
    """Train one arm and save its result in bf16 as ``folder/model`` (and ``folder/adapter``), unless it is there."""
    if not (folder / "model").is_dir():
        target, _ = models.load(made.target)
        trained, _ = models.load(made.target)
        stopping, _ = forget_halves(corpus)

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
            compress.save_adapter(trained, target, folder / "adapter")
        models.save(compress.merged_model(target, trained), tokenizer, folder / "model")
        (folder / "training.pt").unlink(missing_ok=True)
    return records.read_json(folder / "history.json")


def _updates(target: torch.nn.Module, config: RunConfig, folder: Path) -> dict:
    """The update of every linear layer, from what ``_unlearn`` saved."""
    if config.adapter == "lora":
        return compress.updates(target, compress.with_adapter(target, folder / "adapter"))
    return compress.updates(target, models.load(folder / "model")[0])


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
