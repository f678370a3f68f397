"""One run, start to end: prepare, unlearn, merge, quantize, count, score, record."""

from __future__ import annotations

import contextlib
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from qru import compress, forget_sets, models, paths, records, verdict
from qru.config import WHOLE, RunConfig, digest
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
    for config in configs:
        for name in forget_sets.requests(config.forget_set):
            forget_sets.documents(corpora[config.corpus, config.scale], name)  # raises before any work
    folders: list[Path] = []
    chains: dict[Path, list[Job]] = {}
    for config in configs:
        corpus = corpora[config.corpus, config.scale]
        chain = _chain(config, corpus, models.prepare(corpus, config.scale))
        folders.append(chain[-1].folder)
        if _missing(chain):
            chains[folders[-1]] = chain
    if chains:
        if compute_precision(torch.device("cpu")) == "fp32":
            say("this CPU has no bf16 arithmetic: gradients are computed in fp32, on the same bf16-stored weights")
        short = all(config.scale == "smoke" for config in configs)
        for job in (chain[-1] for chain in chains.values()):
            baseline_scores(job.corpus, job.made, quantizers=job.config.quantizers, short=short)
        within = {job.folder for chain in chains.values() for job in chain[:-1]}
        apart = [(chain,) for folder, chain in chains.items() if folder not in within]
        side_by_side(_run_chain, sorted(apart, key=lambda job: -len(job[0])), short)
    return [records.load_record(folder) for folder in folders]


class Job(NamedTuple):
    """One run: its settings, what they refer to, the model it starts from, and where its record goes.

    start: a checkpoint: the target, or the result of the request before.
    key: of the configuration and everything it refers to.
    """

    config: RunConfig
    corpus: Corpus
    made: models.Checkpoints
    start: Path
    folder: Path
    key: str


def _chain(config: RunConfig, corpus: Corpus, made: models.Checkpoints) -> list[Job]:
    """The run of a configuration, and before it those that it builds on."""
    jobs: list[Job] = []
    sets: list[str] = []
    for name in forget_sets.requests(config.forget_set):
        one = replace(config, forget_set=name)
        parts = [one.identity(), made.target.name, made.retrained.name, corpus.fingerprint]
        label = f"{corpus.name}-{one.scale}-{one.method}-{one.adapter}-{one.weights}"
        if name != WHOLE:  # the whole set is in the corpus's fingerprint, the others are not
            sets = [*sets, digest(forget_sets.documents(corpus, name))]
            parts.append(sets)
            label += f"-{name}"
        key = digest(parts)
        start = jobs[-1].folder / "model" if jobs else made.target
        jobs.append(Job(one, corpus, made, start, paths.runs_dir() / f"{label}-s{one.seed}-{key[:10]}", key))
    return jobs


def _missing(chain: Sequence[Job]) -> bool:
    """Whether anything of a chain is left to run. A record whose model is gone, and needed, is removed."""
    missing = False
    for job in reversed(chain):
        record = _complete(job.folder, job.key)
        if record and missing and not (job.folder / "model").is_dir():
            say(f"{job.folder / 'model'} is gone, and the next request starts from it: running it again.")
            record.path.unlink()
        missing = missing or record is None
    return missing


def _run_chain(chain: Sequence[Job]) -> None:
    for job in chain:
        _run(job)


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


def _run(job: Job) -> None:
    """One run into its folder; what an earlier, killed attempt has finished is not done again."""
    config, corpus, made, start, folder, key = job
    with locked(folder / ".lock"):
        if (folder / "record.json").is_file():
            return  # another process has made it meanwhile
        clock = Clock(folder / "partial" / "cost.json")
        part = "" if config.forget_set == WHOLE else f" {config.forget_set}"
        label = f"{config.method} {config.adapter} {config.weights}{part}"
        quantizers = [load_quantizer(name) for name in config.quantizers]
        reported = None if config.forget_goal is None else forget_halves(corpus)[1]
        reference = _privleak_reference(made, corpus)
        scores = baseline_scores(corpus, made, quantizers=config.quantizers, short=True)
        target, tokenizer = models.load(made.target)
        with clock.stage("unlearn"):
            history = _unlearn(config, corpus, tokenizer, start, folder, label)
        clock.stages["unlearn"]["seconds"] = round(sum(row["seconds"] for row in history), 3)  # of all attempts
        unlearned, _ = models.load(folder / "model")
        found = _updates(target, config, folder, start == made.target)

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
        asked, judged = {}, scores
        if config.forget_set != WHOLE:
            about = forget_sets.section(corpus, config.forget_set)
            about["start"] = None if start == made.target else start.parent.name
            asked = {"forget_set": about, "parts": forget_sets.parts(scores, about["examples"])}
            judged = forget_sets.of_forgotten(scores, about["examples"])
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
            "recovered": verdict.recovered(judged),
            "verdict": verdict.sentences(judged, config.to_dict()),
            "history": history,
        } | asked
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


def _unlearn(config, corpus, tokenizer, start: Path, folder: Path, label: str) -> list[dict[str, float]]:
    """Train one arm and save its result in bf16 as ``folder/model`` (and ``folder/adapter``), unless it is there.

    ``start`` is the checkpoint that is trained, and the reference of terms that need one.
    """
    if not (folder / "model").is_dir():
        before, _ = models.load(start)
        trained, _ = models.load(start)
        stopping, _ = forget_halves(corpus)

        def forget_score(model: torch.nn.Module) -> dict[str, float]:
            found = evaluate(
                model, tokenizer, corpus, metrics=("verbmem", "knowmem"), examples=stopping, progress=False
            )
            return {name: score.value for name, score in found.items()}

        trained, history = unlearn(
            trained,
            tokenizer,
            forget_sets.narrowed(corpus, config.forget_set),
            config,
            frozen=lambda: models.load(start)[0],
            forget_score=forget_score,
            checkpoint=folder / "training.pt",
            label=label,
        )
        records.write_json(folder / "history.json", history)
        if config.adapter == "lora":
            compress.save_adapter(trained, before, folder / "adapter")
        models.save(compress.merged_model(before, trained), tokenizer, folder / "model")
        (folder / "training.pt").unlink(missing_ok=True)
    return records.read_json(folder / "history.json")


def _updates(target: torch.nn.Module, config: RunConfig, folder: Path, direct: bool) -> dict:
    """The update of every linear layer, from what ``_unlearn`` saved; ``direct`` if it started from the target.

    The adapter of a later request is one on the result of the request before: the way from the target to its result
    is no adapter, and is taken from the weights.
    """
    if config.adapter == "lora" and direct:
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
