"""Runs put side by side: the arms of one method, and what their models answer to the same prompts."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from IPython.display import Markdown, clear_output

from qru import checkpoint, forget_sets, inputs, models, paths, pipeline, records, scoring
from qru.config import ADAPTERS, GUARD_OPTIONS, WEIGHTS, RunConfig, regime
from qru.defaults import MUSE_MODELS, hub_corpus, resolve
from qru.ops import QuantSpec
from qru.ops.grid import group_width
from qru.records import Record
from qru.registry import unknown
from qru.verdict import over_forget_sets

OWN_DEFAULTS = ("learning_rate", "epochs", "retain_weight")  # tuned per arm: one arm's value says nothing of another's
DRAWN = 48  # weights in the picture of a single row


def arm(name: str) -> dict[str, str | None]:
    """``"lora"`` or ``"full-fp32"`` -> the config fields ``adapter`` and ``weights`` (``None``: the adapter's own)."""
    known = [*ADAPTERS, *(f"{adapter}-{weights}" for adapter in ADAPTERS for weights in WEIGHTS)]
    if name not in known:
        raise unknown("arm", name, known)
    adapter, _, weights = name.partition("-")
    return {"adapter": adapter, "weights": weights or None}


def run_arms(beside: Sequence[str] = (), **parameters: Any) -> list[Record]:
    """Run one configuration and, for comparison, other arms of the same method; what is recorded already is reused.

    Args:
        beside: arms such as ``"lora"`` or ``"full-fp32"``. They share everything with the first run but learning
            rate, retain weight and, except at mini, epochs, which each arm takes from its own defaults, moments and
            rounding, and the guard and SURE's percentile: they stand beside it without.
        parameters: fields of ``RunConfig``.

    Returns:
        The records, the configuration asked for first.

    Raises:
        ValueError: an unknown or impossible parameter, before any work.
    """
    own = dict.fromkeys(OWN_DEFAULTS)
    if regime(parameters.get("scale", "mini")) == "mini":  # epochs in place of a goal, for all or for none
        own.pop("epochs")
    own |= {"moments": None, "rounding": "nearest"}  # of bf16 weights: no part of a name
    own |= dict.fromkeys(("guard", "guard_weight", "sure_percentile", *GUARD_OPTIONS))
    others = [parameters | own | arm(name) for name in beside]
    configs = [resolve(RunConfig.from_dict(values)) for values in (parameters, *others)]
    found = pipeline.run_all(list(dict.fromkeys(configs)))  # an arm named beside itself is run once
    tidy()
    return found


def run_forget_sets(kinds: Sequence[str] = forget_sets.KINDS, **parameters: Any) -> list[Record]:
    """Run one configuration over every forget set of a corpus; what is recorded already is reused.

    Args:
        kinds: ``"scal"`` (nested sets, each forgotten at once) and ``"sust"`` (one request after another).
        parameters: fields of ``RunConfig`` but ``forget_set``.

    Returns:
        The records, by kind and number.

    Raises:
        ValueError: an unknown or impossible parameter, or a corpus without sets of a kind, before any work.
    """
    config = RunConfig.from_dict(parameters)  # not resolved: defaults of a part are others than those of the whole set
    if not kinds:
        raise ValueError(f"kinds is empty; it names at least one of {', '.join(forget_sets.KINDS)}.")
    corpus = inputs.corpus_of(config.corpus, config.scale)
    names = []
    for kind in kinds:
        if kind not in forget_sets.KINDS:
            raise unknown("kind of forget sets", kind, forget_sets.KINDS)
        found = [name for name in forget_sets.there(corpus) if name.startswith(kind)]
        if not found:
            raise ValueError(
                f"corpus {corpus.name!r} has no forget sets {kind}_1, {kind}_2, …; it has "
                f"{', '.join(forget_sets.there(corpus))}. Leave {kind!r} out of kinds."
            )
        names += found
    found = pipeline.run_all([replace(config, forget_set=name) for name in dict.fromkeys(names)])
    tidy()
    return found


def forget_set_verdict(*found: Record) -> Markdown:
    """The verdict over forget sets, for a notebook and on the terminal."""
    told = over_forget_sets(found)
    records.say("\n".join(line for heading, lines in told.items() for line in ("", f"{heading}:", *lines)))
    parts = ["\n".join([f"**{heading}**", "", *(f"- {line}" for line in lines)]) for heading, lines in told.items()]
    return Markdown("\n\n".join(parts))


def tidy() -> None:
    """Take progress out of the notebook's cell once it has been shown there and on the terminal."""
    time.sleep(0.3)  # the kernel copies what the terminal got through a pipe, which must have run dry
    sys.stderr.flush()
    clear_output()


def stored_or_run(stored: Sequence[str] = (), **parameters: Any) -> list[Record]:
    """Records of runs by the names of their folders; if none is named, ``run_arms`` of the parameters.

    Raises:
        FileNotFoundError: no run has that name.
    """
    if stored:
        return [records.load_record(paths.runs_dir() / name) for name in stored]
    return run_arms(**parameters)


def check_grids(
    quantizer: str,
    bits: Sequence[int | str],
    groups: Sequence[str],
    stored: Sequence[str] = (),
    corpus: str = "books",
    scale: str = "mini",
    target: str | None = None,
) -> QuantSpec:
    """Hold the grids of a notebook against the layers that they will meet, before anything is trained.

    Args:
        quantizer: name of the grid whose weights are drawn one by one: symmetric, with groups wide enough for that.
        bits, groups: of the overview, as in quantizer names: 2, 3, 4 or 8, and ``"g64"``, ``"row"`` or ``"tensor"``.
        stored: runs to look at, by the names of their folders; none: runs of ``scale``.
        corpus, scale: of the runs if none is named.
        target: the model that they start from, if it is none that corpus and scale bring.

    Returns:
        The spec of ``quantizer``.

    Raises:
        ValueError: a grid that does not exist, does not divide a layer (names layer and sizes), or cannot be drawn.
        FileNotFoundError: no run has that name.
    """
    for name, values in (("bits", bits), ("groups", groups)):
        if not values:
            raise ValueError(f"{name} is empty; the overview needs at least one.")
    spec = QuantSpec.parse(quantizer)
    grids = [spec, *(QuantSpec.parse(f"rtn-int{n}-{group}") for n in bits for group in groups)]
    found = stored_or_run(stored) if stored else []
    if found:  # the result of a run has the layers of the target that it started from, wherever that is now
        runs = [(r.config["scale"], r.path.parent / "model" if r.config.get("target") else None) for r in found]
    else:
        brought = MUSE_MODELS.get(hub_corpus(corpus) or "", {}).get("target") if scale == "muse" else None
        named = target or brought
        runs = [(scale, checkpoint.located(named, "target") if named else None)]
    shapes = [shape for run in dict.fromkeys(runs) for shape in models.layer_shapes(*run).items()]
    for name, shape in shapes:
        for grid in grids:
            group_width(shape, grid, name)
        if not spec.symmetric or group_width(shape, spec, name) < DRAWN:
            raise ValueError(
                f"quantizer {quantizer!r} cannot be drawn: the picture shows {DRAWN} weights of one group on a grid "
                "around zero. Choose a symmetric one with larger groups, such as 'rtn-int4-g128'."
            )
    return spec


def announce(*found: Record) -> Markdown:
    """Say verdict and place of each record on the terminal, where papermill sends no output of the notebook itself.

    Returns:
        The places, for the notebook.
    """
    for record in found:
        records.say("\n".join(["", *record.extra["verdict"], f"record: {record.path}"]))
    tidy()
    return Markdown("\n".join(f"- `{record.path}`" for record in found))


def verdict(*found: Record) -> Markdown:
    """The verdicts in words, for a notebook."""
    parts = []
    for record in found:
        first, *rest = record.extra["verdict"]
        parts.append("\n".join([f"**{first}**", "", *(f"- {sentence}" for sentence in rest)]))
    return Markdown("\n\n".join(parts).replace("~", "\\~"))


def answers(record: Record, precision: str | None = None, metric: str = "knowmem", examples: int = 3) -> pd.DataFrame:
    """Prompts with what the target, the unlearned and the quantized unlearned model say.

    Args:
        record: of the run.
        precision: quantizer of the last column; the one under which the metric is highest unless given.
        metric: ``"knowmem"`` (questions on the forget set), ``"verbmem"`` (passages to continue) or
            ``"forget_accuracy"`` (texts, and the label that each was trained with).
        examples: how many. They are spread evenly over the rise of the score from bf16 to ``precision``, from the
            largest to the smallest, so that they show the range and not the best case alone.

    Returns:
        Columns ``prompt``, ``truth``, ``target``, ``unlearned``, ``unlearned, <precision>``; no row if the corpus has
        no examples of that metric.
    """
    unlearned = record.scores["unlearned"]
    if metric not in unlearned["bf16"]:
        return pd.DataFrame(columns=["prompt", "truth", "target", "unlearned"])
    if precision is None:
        precision = max((p for p in unlearned if p != "bf16"), key=lambda p: unlearned[p][metric]["value"])
    elif precision not in unlearned:
        raise unknown("precision of this record", precision, unlearned)
    said = records.read_json(record.path.parent / "responses.json")
    prompts = asked(record, metric)
    before, after = (unlearned[p][metric]["per_example"] for p in ("bf16", precision))
    by_rise = sorted(range(len(prompts)), key=lambda i: before[i] - after[i])
    count = min(examples, len(by_rise))
    chosen = [by_rise[round(i * (len(by_rise) - 1) / max(1, count - 1))] for i in range(count)]
    rows = [
        {
            "prompt": prompts[i][0],
            "truth": prompts[i][1],
            "target": said["target"]["bf16"][metric][i],
            "unlearned": said["unlearned"]["bf16"][metric][i],
            f"unlearned, {precision}": said["unlearned"][precision][metric][i],
        }
        for i in chosen
    ]
    return pd.DataFrame(rows)


def asked(record: Record, metric: str) -> list[tuple[str, str]]:
    """(prompt, truth) of every example that a record reports."""
    corpus = inputs.corpus_of(record.config["corpus"], record.config["scale"])
    if corpus.fingerprint != record.provenance["corpus"]:
        raise ValueError(
            f"corpus {corpus.name!r} is not the one that {record.path} was measured on; run the experiment again."
        )
    if metric == "verbmem":
        pairs = [(example["prompt"], example["gt"]) for example in corpus.verbmem]
    elif metric == "forget_accuracy":
        pairs = list(zip(corpus.raw["forget"], corpus.labels["forget"], strict=True))
    else:
        pairs = [(pair["question"], pair["answer"]) for pair in corpus.knowmem["forget_qa"]]
    if record.config["forget_goal"] is not None:  # only the half that no stopping rule has looked at is reported
        pairs = [pairs[i] for i in scoring.forget_halves(corpus)[1][metric]]
    return pairs
