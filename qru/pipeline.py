"""One run, start to end: prepare, unlearn, merge, quantize, count, score, record."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from qru import (
    calibration,
    cells,
    compress,
    forget_sets,
    inputs,
    launch,
    loop,
    models,
    paths,
    processes,
    records,
    scoring,
    verdict,
)
from qru.config import MEASURING, WHOLE, RunConfig, digest, later_defaults, stepped
from qru.corpora import Corpus
from qru.cost import Clock
from qru.defaults import note
from qru.loop import compute_precision
from qru.objectives import forget_terms, parse_method
from qru.parallel import side_by_side
from qru.prediction import predict
from qru.quantizers import load_quantizer
from qru.records import Record, locked, say
from qru.unlearn import unlearn


def run(config: RunConfig | None = None, **parameters: Any) -> Record:
    """Unlearn, quantize and measure; reuse a complete record of the same configuration.

    Args:
        config: what to run; or give its fields as keyword arguments (``run(method="npo_gdr", adapter="lora")``).

    Returns:
        The record, also on disk at ``runs/<id>/record.json``.

    Raises:
        ValueError: an unknown or impossible parameter, a corpus or model that cannot be found or used; before any work.
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
    notes = dict.fromkeys(filter(None, map(note, configs)))
    found = inputs.find(configs)
    for text in notes:
        say(text)
    for config, corpus, _ in found:
        for name in forget_sets.requests(config.forget_set):
            forget_sets.documents(corpus, name)  # raises before any work
        launch.wanted(config)
    folders: list[Path] = []
    chains: dict[Path, list[Job]] = {}
    for one in found:
        chain = _chain(one.config, one.corpus, one.models())
        folders.append(chain[-1].folder)
        if _missing(chain):
            chains[folders[-1]] = chain
    if chains:
        if compute_precision(loop.device()) == "fp32":
            say("this CPU has no bf16 arithmetic: gradients are computed in fp32, on the same bf16-stored weights")
        short = all(one.config.scale == "smoke" for one in found)
        for job in (chain[-1] for chain in chains.values()):
            _baselines(job, short)
        within = {job.folder for chain in chains.values() for job in chain[:-1]}
        apart = [(chain,) for folder, chain in chains.items() if folder not in within]
        alone = loop.device().type == "cuda" or any(launch.wanted(one.config) > 1 for one in found)
        side_by_side(_run_chain, sorted(apart, key=lambda job: -len(job[0])), short or alone)
    return [_here(records.load_record(folder), one.config) for folder, one in zip(folders, found, strict=True)]


def _here(record: Record, config: RunConfig) -> Record:
    """A record that may have been made when corpus and models lay elsewhere, with where they lie now."""
    lies = {name: getattr(config, name) for name in ("corpus", *models.ROLES) if name in record.config}
    return replace(record, config=record.config | lies)


def train(config: RunConfig) -> Path:
    """The training stage of a run, and of those it builds on, by every process that was started together.

    Returns:
        The run's folder, where ``run`` then finds ``model`` and goes on from it.
    """
    with processes.first_then_others():
        (one,) = inputs.find([config])
        launch.wanted(one.config)
        chain = _chain(*one[:2], one.models())
    for job in chain:
        label = f"{job.config.method} {job.config.adapter} {stepped(job.config.to_dict())}"
        _unlearn(job.config, job.corpus, job.made.tokenizer, job.start, job.folder, label)
    return chain[-1].folder


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
        # Not where corpus and models lie: what they are comes below, so a folder can be moved.
        settings = {key: value for key, value in one.identity().items() if key not in models.ROLES}
        settings["corpus"] = corpus.name
        parts = [settings, made.identity("target"), made.identity("retrained"), corpus.fingerprint, *made.beside()]
        label = f"{corpus.name}-{one.scale}-{one.method}-{one.adapter}-{one.weights}"
        label += f"-{one.guard}" if one.guard else ""
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


def _baselines(job: Job, short: bool) -> dict[str, dict[str, dict[str, Any]]]:
    config = job.config
    return scoring.baseline_scores(
        job.corpus, job.made, quantizers=config.quantizers, short=short, chat_template=config.chat_template
    )


def _run_chain(chain: Sequence[Job]) -> None:
    for job in chain:
        _run(job)


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
        label = f"{config.method} {config.adapter} {stepped(config.to_dict())}{part}"
        quantizers = [load_quantizer(name) for name in config.quantizers]
        reported = None if config.forget_goal is None else scoring.forget_halves(corpus)[1]
        if reported and config.metrics:
            reported = {name: chosen for name, chosen in reported.items() if name in config.metrics}
        reference = scoring.privleak_reference(made, corpus)
        scores = _baselines(job, short=True)
        trained_by = _reuse_training(job, clock, label)
        with clock.stage("unlearn"):
            history = _unlearn(config, corpus, made.tokenizer, start, folder, label)
        clock.stages["unlearn"]["seconds"] = round(sum(row["seconds"] for row in history), 3)  # of all attempts
        # One model is scored, with one quantizer after the other; what they start from waits in bf16 on the CPU.
        before, found = _before_and_updates(config, made.target, folder, start == made.target)
        model, tokenizer = models.load(folder / "model")
        # From the settings and the target alone, as it could be said before anything was trained.
        predictable = [name for name in config.quantizers if name.startswith("rtn-")]
        if forget_terms[parse_method(config.method)[0]].negated:
            predictable = []  # weights end where no step took them: what the optimizer can move does not say how far
        expected = {name: predict(config, before, name) for name in predictable}

        def score(model: torch.nn.Module, precision: str) -> dict[str, Any]:
            file = folder / "partial" / f"{paths.file_name(precision)}.json"
            if not file.is_file():
                with clock.stage(f"score {precision}"):
                    say(f"scoring {label}: {precision}")
                    answers = scoring.scored(
                        model, tokenizer, corpus, config.chat_template,
                        retrained=reference, metrics=config.metrics, examples=reported,
                    )  # fmt: skip
                    records.write_json(file, {name: answer.to_dict() for name, answer in answers.items()})
                # So that a certificate of this run does not measure it again.
                setting = cells.Setting(
                    corpus, made.tokenizer, config.scale, config.chat_template, reported or {}, [], []
                )
                cell = cells.Cell(folder / "model", "merged", precision, tuple(answers))
                per_example = {name: answer.per_example for name, answer in answers.items()}
                cells.keep(model, tokenizer, cell, setting, per_example)
            return records.read_json(file)

        scores["unlearned"] = {"bf16": score(model, "bf16")}
        crossings = {}
        for quantizer in quantizers:
            with clock.stage(f"quantize {quantizer.name}"):
                text = calibration.text_for(quantizer, corpus, model, tokenizer)
                crossings[quantizer.name] = compress.quantize_layers(model, before, found, quantizer, text)
            scores["unlearned"][quantizer.name] = score(model, quantizer.name)
        if config.metrics:  # of the baselines, too, which have all
            scores = {m: {p: {n: s[n] for n in config.metrics} for p, s in by.items()} for m, by in scores.items()}
        if reported:
            scores = {m: {p: scoring.half(s, reported) for p, s in by.items()} for m, by in scores.items()}

        scores = scoring.with_same_quantizer(scores)
        asked, judged = {}, scores
        if config.forget_set != WHOLE:
            about = forget_sets.section(corpus, config.forget_set)
            about["start"] = None if start == made.target else start.parent.name
            asked = {"forget_set": about, "parts": forget_sets.parts(scores, about["examples"])}
            judged = forget_sets.of_forgotten(scores, about["examples"])
        records.write_json(folder / "responses.json", scoring.nested(scores, lambda s: s.get("responses")))
        scores = scoring.nested(scores, lambda s: {k: v for k, v in s.items() if k != "responses"})
        record = {
            "config": config.to_dict() | {"hash": key},
            "scores": scores,
            "crossings": crossings,
            "cost": clock.stages,
            "provenance": records.provenance()
            | _origins(job)
            | ({"folders": {name: str(getattr(made, name)) for name in made.contents}} if made.contents else {})
            | ({"trained_by": trained_by} if trained_by else {}),
            "recovered": verdict.recovered(judged),
            "verdict": verdict.sentences(judged, config.to_dict()),
            "history": history,
            "prediction": expected,
        } | asked
        records.write_json(folder / "record.json", record)
        shutil.rmtree(folder / "partial", ignore_errors=True)
        say(f"record: {folder / 'record.json'}")


def _origins(job: Job) -> dict[str, Any]:
    """What a run was made from, as its provenance says it."""
    made = {name: job.made.identity(name) for name in ("base", "target", "retrained", "tokenizer")}
    return {"compute": loop.computed_as(), "corpus": job.corpus.fingerprint, "models": made}


def _trained_alike(job: Job) -> Record | None:
    """The record of a run that differs in nothing but what was measured, that trained its model, and still has it."""
    if job.config.forget_set != WHOLE:
        return None  # each request starts from the one before: they are told apart by their folders alone
    settings = {k: v for k, v in job.config.to_dict().items() if k not in {*MEASURING, *models.ROLES, "corpus"}}
    origins = _origins(job)
    alike = glob.escape(job.folder.name.removesuffix(job.key[:10]))  # a corpus may be called anything
    for folder in sorted(job.folder.parent.glob(f"{alike}*")):
        if folder == job.folder or not (folder / "record.json").is_file() or not (folder / "model").is_dir():
            continue
        with contextlib.suppress(ValueError):  # a damaged record is named where it is asked for
            record = records.load_record(folder)
            known = later_defaults() | record.config  # a record from before a field had its default
            same = all(name in known and known[name] == value for name, value in settings.items())
            if same and origins.items() <= record.provenance.items() and "trained_by" not in record.provenance:
                return record
    return None


def _reuse_training(job: Job, clock: Clock, label: str) -> dict[str, Any] | None:
    """Copy what training left in a run that differs only in what was measured, if there is one.

    ``model``, by which training is known to have ended, comes last and whole.

    Returns:
        Where the model came from: the ``run``, and the ``commit``, ``dirty`` flag and ``versions`` that trained it.
        ``None``: it is or will be this run's own.
    """
    folder = job.folder
    said = folder / "trained_by.json"
    if not (folder / "model").is_dir():
        if said.is_file():
            _clear_copy(folder, clock)
        if alike := _trained_alike(job):
            say(f"{label}: with the model of {alike.run}, which differs only in what was measured")
            came_from = {name: alike.provenance.get(name) for name in ("commit", "dirty", "versions")}
            records.write_json(said, {"run": alike.run} | came_from)  # first: it marks all that follows as copied
            clock.put("unlearn", alike.cost["unlearn"])
            loop.delete_checkpoint(folder / "training.pt")
            records.write_json(folder / "history.json", alike.extra["history"])
            for name in ("adapter", "model"):
                if (source := alike.path.parent / name).is_dir():
                    _copy(source, folder / name)
    return records.read_json(said) if said.is_file() else None


def _copy(source: Path, folder: Path) -> None:
    """Copy a folder of files; ``folder`` appears only when it is complete."""
    temporary = folder.with_name(f".{folder.name}.copy")
    for left in (temporary, folder):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(source, temporary)
    for file in temporary.iterdir():
        with open(file, "rb") as written:
            os.fsync(written.fileno())
    temporary.rename(folder)
    records.fsync_folder(folder.parent)


def _clear_copy(folder: Path, clock: Clock) -> None:
    """Remove what a killed copy left: the run that it was from may be gone, and then this one trains from the start."""
    for name in (".adapter.copy", ".model.copy", "adapter"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "history.json").unlink(missing_ok=True)
    clock.drop("unlearn")
    (folder / "trained_by.json").unlink()  # last: without it, what is left would pass for this run's own


def _unlearn(config, corpus, reader: Path, start: Path, folder: Path, label: str) -> list[dict[str, float]]:
    """Train one arm and save its result in bf16 as ``folder/model`` (and ``folder/adapter``), unless it is there.

    ``start`` is the checkpoint that is trained, and the reference of terms that need one; ``reader`` has its tokenizer.
    """
    if not processes.agreed((folder / "model").is_dir()) and launch.wanted(config) > processes.count():
        launch.train(config, folder)  # comes back here in each of the processes that it starts
    first = processes.rank() == 0
    with locked(folder / ".training.lock") if first else contextlib.nullcontext():
        if not processes.agreed((folder / "model").is_dir()):
            trained, tokenizer = models.load(start, reader)
            stopping, _ = scoring.forget_halves(corpus)

            def forget_score(model: torch.nn.Module) -> dict[str, float]:
                found = scoring.scored(
                    model, tokenizer, corpus, config.chat_template, metrics=tuple(stopping), examples=stopping
                )
                return {name: score.value for name, score in found.items()}

            trained, history = unlearn(
                trained,
                tokenizer,
                forget_sets.narrowed(corpus, config.forget_set),
                config,
                frozen=lambda: models.load(start, reader)[0],
                forget_score=forget_score,
                checkpoint=folder / "training.pt",
                label=label,
                **launch.memory(config),
            )
            state = processes.whole_state(trained) if config.adapter != "lora" else None
            if first:
                records.write_json(folder / "history.json", history)
                if config.adapter == "lora":
                    compress.save_adapter(trained, folder / "adapter")
                    trained = compress.merge(trained)
                else:
                    trained = models.load_weights(start)  # a model of ordinary tensors, whatever shards were trained
                    trained.load_state_dict(state)
                models.save(trained, tokenizer, folder / "model")
                loop.delete_checkpoint(folder / "training.pt")
    processes.agreed(None)  # the others leave when the model is there
    return records.read_json(folder / "history.json")


def _before_and_updates(config: RunConfig, target: Path, folder: Path, direct: bool) -> tuple[dict, dict]:
    """Every linear layer before unlearning, and its update from what ``_unlearn`` saved, in bf16 on the CPU.

    The adapter of a later request is one on the result of the request before: the way from the target to its result
    is no adapter, and is taken from the weights. ``direct``: the run started from the target.
    """
    model = models.load_weights(target, torch.bfloat16)
    if config.adapter == "lora" and direct:
        found = compress.updates(model, compress.with_adapter(model, folder / "adapter"))
    else:
        found = compress.updates(model, models.load_weights(folder / "model", torch.bfloat16))
    return compress.stored_layers(model), found
