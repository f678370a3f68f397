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

from qru import compress, forget_sets, launch, loop, models, paths, processes, records, verdict
from qru.config import WHOLE, RunConfig, digest
from qru.corpora import REVISIONS, Corpus, load_corpus
from qru.corpora.corpus import registry
from qru.defaults import hub_corpus, note, resolve
from qru.loop import compute_precision
from qru.metrics import Options, evaluate, mean_ci, privleak, privleak_ci, retrained_scores
from qru.parallel import side_by_side, threads
from qru.quantizers import Update, load_quantizer
from qru.records import Record, locked, say
from qru.unlearn import unlearn

# Sequences of a model of billions of weights that are scored together: keys and values of 32 fit beside it on one GPU.
SCORED_AT_ONCE, BILLIONS = 32, 1e9


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
            if torch.cuda.is_initialized():
                self.stages[name]["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
            records.write_json(self.file, self.stages)


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # Linux only; elsewhere the peak is the process's so far
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


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
    counts = {"verbmem": len(corpus.verbmem), "knowmem": len(corpus.knowmem.get("forget_qa", []))}
    counts = {name: n for name, n in counts.items() if name in corpus.measurable}
    stopping, reported = ({name: list(range(at, n, 2)) for name, n in counts.items()} for at in (0, 1))
    return stopping, reported


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
    configs, corpora, came = _found(configs)
    for text in notes:
        say(text)
    for config in configs:
        for name in forget_sets.requests(config.forget_set):
            forget_sets.documents(corpora[config.corpus, config.scale], name)  # raises before any work
        launch.wanted(config)
    folders: list[Path] = []
    chains: dict[Path, list[Job]] = {}
    for config in configs:
        corpus = corpora[config.corpus, config.scale]
        chain = _chain(config, corpus, came.get(_names(config)) or models.prepare(corpus, config.scale))
        folders.append(chain[-1].folder)
        if _missing(chain):
            chains[folders[-1]] = chain
    if chains:
        if compute_precision(loop.device()) == "fp32":
            say("this CPU has no bf16 arithmetic: gradients are computed in fp32, on the same bf16-stored weights")
        short = all(config.scale == "smoke" for config in configs)
        for job in (chain[-1] for chain in chains.values()):
            _baselines(job, short)
        within = {job.folder for chain in chains.values() for job in chain[:-1]}
        apart = [(chain,) for folder, chain in chains.items() if folder not in within]
        alone = loop.device().type == "cuda" or any(launch.wanted(config) > 1 for config in configs)
        side_by_side(_run_chain, sorted(apart, key=lambda job: -len(job[0])), short or alone)
    return [records.load_record(folder) for folder in folders]


def train(config: RunConfig) -> Path:
    """The training stage of a run, and of those it builds on, by every process that was started together.

    Returns:
        The run's folder, where ``run`` then finds ``model`` and goes on from it.
    """
    with processes.first_then_others():
        config, corpus, made = prepared(config)
        launch.wanted(config)
        chain = _chain(config, corpus, made)
    for job in chain:
        label = f"{config.method} {config.adapter} {config.weights}"
        _unlearn(job.config, corpus, made.tokenizer, job.start, job.folder, label)
    return chain[-1].folder


def _names(config: RunConfig) -> tuple[str | None, str | None, str | None, bool]:
    return config.target, config.retrained, config.tokenizer, config.chat_template


def _found(configs: Sequence[RunConfig]) -> tuple[list[RunConfig], dict, dict]:
    """What configurations refer to, found and checked; nothing is trained and no model loaded.

    Returns:
        The configurations, resolved; (corpus, scale) -> ``Corpus``; and, for models that a user gives, their names ->
        ``models.Checkpoints``.
    """
    configs = [resolve(config) for config in configs]
    for config in configs:
        _check_has_models(config)
    configs = [_checked(config, None) for config in configs]  # what needs no corpus and no model comes first
    corpora = {(c.corpus, c.scale): corpus_of(c.corpus, c.scale) for c in configs}
    for corpus in corpora.values():
        if not corpus.measurable:
            raise ValueError(
                f"corpus {corpus.name!r} has nothing to measure with: give it verbmem/, knowmem/ or privleak/ (forget "
                "and holdout)."
            )
    for config in configs:
        _check_goal(config, corpora[config.corpus, config.scale])
    came = {_names(c): c for c in configs if c.target is not None}
    came = {names: models.given(*names) for names in came}
    return [_checked(config, came.get(_names(config))) for config in configs], corpora, came


def prepared(config: RunConfig) -> tuple[RunConfig, Corpus, models.Checkpoints]:
    """A configuration, resolved, with its corpus and its models; embedded ones are made if they are not there.

    Raises:
        ValueError: what it names cannot be found or used.
    """
    (config,), corpora, came = _found([config])
    corpus = corpora[config.corpus, config.scale]
    return config, corpus, came.get(_names(config)) or models.prepare(corpus, config.scale)


def _check_goal(config: RunConfig, corpus: Corpus) -> None:
    """Refuse a goal that there are no examples for, on the side that is watched or on the one that is reported."""
    stopping, reported = forget_halves(corpus)
    enough = bool(stopping) and all([*stopping.values(), *reported.values()])
    if config.forget_goal is not None and not enough:
        raise ValueError(
            f"forget_goal is {config.forget_goal!r}, and corpus {corpus.name!r} has too few examples to judge it by: "
            "it needs two of VerbMem or of questions on forget. Leave forget_goal out, and give epochs."
        )


def _check_has_models(config: RunConfig) -> None:
    """Refuse a corpus without embedded models where none are given, before it is loaded; some take long."""
    known = hub_corpus(config.corpus)
    if config.corpus not in registry and not known and not Path(config.corpus).expanduser().exists():
        load_corpus(config.corpus)  # raises, with the nearest name
    if config.target is None and (config.corpus not in registry or config.scale not in models.SIZES):
        hint = f" At scale 'muse' {known} brings its authors' models." if known and config.scale != "muse" else ""
        raise ValueError(
            f"corpus {config.corpus!r} at scale {config.scale!r} has no embedded models: give target and retrained, a "
            f"folder or Hub id each.{hint}"
        )


def corpus_of(name: str, scale: str) -> Corpus:
    """The corpus of a configuration: as ``load_corpus`` takes it, or ``"id@revision"`` of one on the Hub.

    An embedded one is at ``"muse"`` as large as at mini, which is as large as MUSE.
    """
    repository, _, revision = name.partition("@")
    if repository in REVISIONS:
        return load_corpus(repository, revision=revision or None)
    return load_corpus(name, scale=scale if scale in models.SIZES else "mini")


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
        parts = [settings, made.identity("target"), made.identity("retrained"), corpus.fingerprint]
        if "tokenizer" in made.contents:
            parts.append(made.contents["tokenizer"])
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


def _baselines(job: Job, short: bool) -> dict[str, dict[str, dict[str, Any]]]:
    config = job.config
    return baseline_scores(
        job.corpus, job.made, quantizers=config.quantizers, short=short, chat_template=config.chat_template
    )


def _run_chain(chain: Sequence[Job]) -> None:
    for job in chain:
        _run(job)


def _checked(config: RunConfig, made: models.Checkpoints | None) -> RunConfig:
    """The config with quantizers under their exact names, each held against every layer it will meet.

    Layers of models that a user gives are known only once these were found (``made``); until then names are checked.
    """
    quantizers = [load_quantizer(name) for name in config.quantizers]
    known = config.target is None or made is not None
    for name, shape in (models.layer_shapes(config.scale, made.target if made else None) if known else {}).items():
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
        scores = _baselines(job, short=True)
        with clock.stage("unlearn"):
            history = _unlearn(config, corpus, made.tokenizer, start, folder, label)
        clock.stages["unlearn"]["seconds"] = round(sum(row["seconds"] for row in history), 3)  # of all attempts
        # One model is scored, with one quantizer after the other; what they start from waits in bf16 on the CPU.
        before, found = _before_and_updates(config, made.target, folder, start == made.target)
        model, tokenizer = models.load(folder / "model")

        def score(model: torch.nn.Module, precision: str) -> dict[str, Any]:
            file = folder / "partial" / f"{precision}.json"
            if not file.is_file():
                with clock.stage(f"score {precision}"):
                    say(f"scoring {label}: {precision}")
                    answers = _evaluate(
                        model, tokenizer, corpus, config.chat_template,
                        retrained=reference, metrics=corpus.measurable, examples=reported,
                    )  # fmt: skip
                    records.write_json(file, {name: answer.to_dict() for name, answer in answers.items()})
            return records.read_json(file)

        scores["unlearned"] = {"bf16": score(model, "bf16")}
        crossings = {}
        for quantizer in quantizers:
            with clock.stage(f"quantize {quantizer.name}"):
                crossings[quantizer.name] = compress.quantize_layers(model, before, found, quantizer)
            scores["unlearned"][quantizer.name] = score(model, quantizer.name)
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
                "compute": compute_precision(loop.device()),
                "corpus": corpus.fingerprint,
                "models": {name: made.identity(name) for name in ("base", "target", "retrained", "tokenizer")},
            }
            | ({"folders": {name: str(getattr(made, name)) for name in made.contents}} if made.contents else {}),
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
            if "privleak" not in by_metric:
                continue
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


def _baseline_file(
    role: str, corpus: Corpus, quantizer: str | None, made: models.Checkpoints, chat_template: bool = False
) -> Path:
    """Where the scores of target or retrained at one precision are kept, for all runs."""
    parts = [made.identity(role), made.identity("retrained"), corpus.fingerprint]
    parts += [made.contents.get("tokenizer")] if "tokenizer" in made.contents else []
    folder = digest([*parts, "chat_template"] if chat_template else parts)[:16]
    return paths.cache_dir() / "scores" / folder / f"{quantizer or 'bf16'}.json"


def _score_baseline(
    role: str, corpus: Corpus, quantizer: str | None, made: models.Checkpoints, chat_template: bool
) -> None:
    model, tokenizer = models.load(getattr(made, role), made.tokenizer)
    if quantizer:
        before = compress.stored_layers(model)
        unchanged = {name: Update(new_weight=weight) for name, weight in before.items()}
        compress.quantize_layers(model, before, unchanged, load_quantizer(quantizer))
    say(f"scoring {role}: {quantizer or 'bf16'}")
    reference = _privleak_reference(made, corpus)
    scores = _evaluate(model, tokenizer, corpus, chat_template, retrained=reference, metrics=corpus.measurable)
    file = _baseline_file(role, corpus, quantizer, made, chat_template)
    records.write_json(file, {name: score.to_dict() for name, score in scores.items()})


def _evaluate(model, tokenizer, corpus: Corpus, chat_template: bool, **what) -> dict:
    """``evaluate`` as every stage of a run calls it; ``what``: its reference, metrics and examples."""
    if sum(parameter.numel() for parameter in model.parameters()) >= BILLIONS:
        what["batch_size"] = SCORED_AT_ONCE
    return evaluate(model, tokenizer, corpus, options=Options(chat_template=chat_template), progress=False, **what)


def _privleak_reference(made: models.Checkpoints, corpus: Corpus) -> dict[str, list[float]] | None:
    """Min-K scores of the retrained model in bf16, PrivLeak's reference at every precision; ``None`` without texts."""
    if "privleak" not in corpus.measurable:
        return None
    file = _baseline_file("retrained", corpus, "reference", made)
    if not file.is_file():
        model, tokenizer = models.load(made.retrained, made.tokenizer)
        with threads(1):
            records.write_json(file, retrained_scores(model, tokenizer, corpus))
    return records.read_json(file)


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
            stopping, _ = forget_halves(corpus)

            def forget_score(model: torch.nn.Module) -> dict[str, float]:
                found = _evaluate(
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
            state = processes.whole_state(trained) if config.adapter == "full" else None
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
