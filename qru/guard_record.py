"""What each guard costs: the time of a training step beside that of its plain arm, in one command.

python -m qru.guard_record             # minutes; writes runs/guards/<processor>-<n>-threads.json
python -m qru.guard_record --keep      # the same to paper/records/guards, which paper and README tell of
python -m qru.guard_record --smoke     # seconds: toy sizes, to keep this file honest

Once a round every arm trains a few steps: from the same target, on the same documents in the same order, with its
defaults. The order of the arms is drawn anew for each round, so that a busy machine slows all alike, and each round has
a seed and so documents of its own. The first steps of a training do not count, nor does the first round: a CPU compiles
its bf16 kernels once a shape. The ratio is of the medians over steps, in each round.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from qru import loop, models, parallel, paths
from qru.config import GUARD_OPTIONS, RunConfig, choice
from qru.corpora import Corpus, load_corpus
from qru.defaults import resolve
from qru.evaluation_sheet import seconds as told_seconds
from qru.method_tables import GUARDS
from qru.ops import build_info
from qru.paper_tables import counted, listed
from qru.records import provenance, read_json, rounded, say, write_json
from qru.registry import unknown
from qru.tables import number
from qru.typeset import method_title
from qru.unlearn import unlearn

KIND = "guard-cost"
KEPT = Path(__file__).resolve().parent.parent / "paper" / "records" / "guards"
MAKE = "Make one: python -m qru.guard_record --keep"
CORPUS, METHOD = "books", "ga_gdr"
SIZES = {  # rounds that count, steps of a training, and the first of them that do not count
    "smoke": {"rounds": 1, "steps": 4, "left_out": 1},
    "mini": {"rounds": 5, "steps": 12, "left_out": 4},
}
PLAIN = {"full": {"adapter": "full", "weights": "bf16"}, "lora": {"adapter": "lora"}}
# A guard, or SURE, which is an arm -> the plain arm that it stands beside, and what it has in place of that.
COMPARED: dict[str, tuple[str, dict[str, str]]] = {
    "quail": ("full", {"guard": "quail"}),
    "bin_margin": ("full", {"guard": "bin_margin"}),
    "sam": ("full", {"guard": "sam"}),
    "sure": ("full", {"adapter": "sure"}),
    "ste": ("lora", {"guard": "ste"}),
}
AIMS = {"ste": 1.5}  # times as long at most, on a CPU; ours
TITLES = {"full": "plain full bf16", "lora": "plain LoRA", "sure": "SURE", **GUARDS}
CONFIG = (
    "adapter", "weights", "learning_rate", "retain_weight", "adam_beta2", "batch_size", "guard", "guard_weight",
    "sure_percentile", *GUARD_OPTIONS,
)  # fmt: skip


# --- measuring ------------------------------------------------------------------------------------------------------


def config_of(arm: str, scale: str, seed: int, steps: int, documents: int) -> RunConfig:
    """An arm at its defaults, to end after a number of steps.

    Args:
        arm: a plain one or one of ``COMPARED``.
        documents: that are to be forgotten.

    Returns:
        Resolved. Its goal is first looked at after ``steps`` steps and met by any model: nothing else is as cheap a way
        to stop on the whole corpus, and what is computed from all of it at the start is what a real run computes.
    """
    beside, changed = COMPARED.get(arm, (arm, {}))
    settings = {"method": METHOD, "corpus": CORPUS, "scale": scale, "seed": seed, **PLAIN[beside], **changed}
    goal = {"forget_goal": 100.0, "goal_metrics": ("verbmem",), "check_steps": steps}
    config = resolve(RunConfig(**settings, **goal, epochs=1))
    return replace(config, epochs=math.ceil(steps / math.ceil(documents / config.batch_size)))


def timed(target: Path, corpus: Corpus, config: RunConfig, label: str) -> dict[str, Any]:
    """Train as ``config`` says.

    Returns:
        ``seconds``: of each step. ``start``: seconds before the first of them, loading the target left out.
    """
    model, tokenizer = models.load(target)
    began = time.monotonic()
    _, history = unlearn(
        model, tokenizer, corpus, config, frozen=lambda: models.load(target)[0],
        forget_score=lambda _: {"verbmem": 0.0}, label=label,
    )  # fmt: skip
    seconds = [row["seconds"] for row in history]
    return {"seconds": seconds, "start": time.monotonic() - began - sum(seconds)}


def medians(found: Mapping[str, Sequence[float]], left_out: int) -> dict[str, float]:
    """Arm -> the median over those of its steps that count, seconds.

    Args:
        found: arm -> seconds of each step of one round.
        left_out: the first steps, which do not count.
    """
    return {arm: statistics.median(seconds[left_out:]) for arm, seconds in found.items()}


def ratios(found: Mapping[str, float]) -> dict[str, float]:
    """Guard -> the seconds of its step over those of its plain arm, from those of every arm in one round."""
    return {name: found[name] / found[beside] for name, (beside, _) in COMPARED.items() if name in found}


def over_rounds(found: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Guard -> ``ratio``, the median of its ratios in each round, and the ``least`` and ``greatest`` of them."""
    return {
        name: {
            "ratio": statistics.median(one[name] for one in found),
            "least": min(one[name] for one in found),
            "greatest": max(one[name] for one in found),
        }
        for name in found[0]
    }


def measure(
    scale: str = "mini",
    rounds: int | None = None,
    steps: int | None = None,
    threads: int | None = None,
    guards: Sequence[str] = tuple(COMPARED),
) -> dict[str, Any]:
    """Time training steps on the CPU, with each guard and with the plain arms; makes the models where they are missing.

    Args:
        scale: ``"smoke"`` or ``"mini"``: also what holds for all that is not given (``SIZES``).
        rounds: that count, after one that does not. steps: of each training.
        threads: torch's own number unless given.
        guards: of ``COMPARED``; the plain arms beside them are measured, too.

    Returns:
        A record: ``kind``, ``config`` (with the settings of every arm), ``rounds`` (of each the ``seed``, of every arm
        ``seconds`` of all steps, their ``median`` and the ``start``, and ``ratios``), ``costs`` (``over_rounds``, with
        the plain arm ``beside`` each) and ``provenance``; plain JSON.

    Raises:
        ValueError: for a name or number that makes no sense, or a device that is no CPU.
    """
    choice("scale", scale, SIZES)
    size = SIZES[scale]
    rounds = size["rounds"] if rounds is None else rounds
    steps = size["steps"] if steps is None else steps
    left_out = size["left_out"]
    for label, value, least in (("rounds", rounds, 1), ("steps", steps, left_out + 1), ("threads", threads, 1)):
        if value is not None and value < least:
            why = f", as the first {left_out} do not count" if label == "steps" else ""
            raise ValueError(f"{label} is {value}; give at least {least}{why}.")
    for name in guards:
        if name not in COMPARED:
            raise unknown("guard", name, COMPARED)
    if loop.device().type != "cpu":
        raise ValueError(f"steps would be timed on {loop.device().type}, the aim is of a CPU: set QRU_DEVICE=cpu.")
    corpus = load_corpus(CORPUS, scale=scale)
    target = models.prepare(corpus, scale).target
    documents = len(corpus.raw["forget"])
    arms = list(dict.fromkeys([*(COMPARED[name][0] for name in guards), *guards]))
    load = os.getloadavg()[0]
    out = []
    with (
        parallel.threads(threads or torch.get_num_threads()),
        tqdm(total=(rounds + 1) * len(arms), desc="all trainings", file=sys.__stderr__) as bar,
    ):
        used = torch.get_num_threads()
        for round_ in range(rounds + 1):
            found = {}
            for arm in random.Random(round_).sample(arms, len(arms)):
                config = config_of(arm, scale, round_, steps, documents)
                found[arm] = timed(target, corpus, config, f"round {round_} of {rounds}, {arm}, {steps} steps")
                bar.update()
            if round_ == 0:
                continue
            middle = medians({arm: one["seconds"] for arm, one in found.items()}, left_out)
            told = {arm: {"median": middle[arm], **found[arm]} for arm in arms}
            out.append({"seed": round_, "arms": told, "ratios": ratios(middle)})
    settings = {arm: config_of(arm, scale, 0, steps, documents).to_dict() for arm in arms}
    config = {"corpus": CORPUS, "scale": scale, "method": METHOD, "threads": used, "computed_as": loop.computed_as()}
    config |= {"rounds": rounds, "steps": steps, "left_out": left_out}
    config["arms"] = {arm: {key: one[key] for key in CONFIG if one[key] is not None} for arm, one in settings.items()}
    costs = over_rounds([one["ratios"] for one in out])
    return {
        "kind": KIND,
        "config": config,
        "rounds": rounded(out),
        "costs": {name: {"beside": COMPARED[name][0], **rounded(cost)} for name, cost in costs.items()},
        # The load: runnable processes, averaged over the minute before: near 0 on a quiet machine.
        "provenance": provenance() | {"kernel": build_info(), "load_before": load},
    }


# --- telling --------------------------------------------------------------------------------------------------------


def load_guard_costs(folder: Path = KEPT) -> list[dict[str, Any]]:
    """What ``measure`` has kept.

    Args:
        folder: of committed records.

    Returns:
        All of them, those of fewer threads first; none where there is none.

    Raises:
        ValueError: one is something else (names it).
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        record = read_json(path)
        if not isinstance(record, dict) or record.get("kind") != KIND:
            raise ValueError(f"{path} is no record of what guards cost. {MAKE}")
        found.append(record)
    return sorted(found, key=lambda record: record["config"]["threads"])


def guard_cost_words(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a training step costs with each guard, whichever way it came out, and where it was measured."""
    return [sentence for record in records for sentence in _words(record)]


def _words(record: Mapping[str, Any]) -> list[str]:
    config, costs, rounds, origin = (record[key] for key in ("config", "costs", "rounds", "provenance"))
    out = []
    for plain in PLAIN:
        guarded = [name for name, cost in costs.items() if cost["beside"] == plain]
        if guarded:
            first, *others = (_cost(name, record) for name in guarded)
            took = told_seconds(statistics.median(one["arms"][plain]["median"] for one in rounds))
            told = listed([" times as long with ".join(first), *(" with ".join(one) for one in others)])
            out.append(f"A training step of {TITLES[plain]} takes {took} s, and {told}.")
    starts = listed([f"{_start(arm, rounds)} s with {TITLES.get(arm, arm)}" for arm in config["arms"]])
    out.append(f"What comes once, before the first step, takes {starts}.")
    out.append(
        f"Medians of {counted(len(rounds), 'interleaved round')}, with the least and the greatest in brackets, each of "
        f"{counted(config['steps'], 'step')} less the first {config['left_out']}; {method_title(config['method'])} on "
        f"{config['corpus']} at {config['scale']}, {counted(config['threads'], 'thread')} of "
        f"{origin['hardware']['processor']}, computed in {config['computed_as']}"
        f"{'' if origin['kernel']['built'] else ', without the compiled kernel'}, load before "
        f"{origin['load_before']:.1f} on {counted(origin['hardware']['cores'], 'core')}."
    )
    return out


def _start(arm: str, rounds: Sequence[Mapping[str, Any]]) -> str:
    return told_seconds(statistics.median(one["arms"][arm]["start"] for one in rounds))


def _cost(name: str, record: Mapping[str, Any]) -> tuple[str, str]:
    """``1.32 [1.28, 1.40]`` and ``STE (our aim: at most 1.5; met)``."""
    cost = record["costs"][name]
    ratio, least, greatest = (number(cost[key], 2) for key in ("ratio", "least", "greatest"))
    told, title = f"{ratio} [{least}, {greatest}]", TITLES.get(name, name)
    if name not in AIMS:
        return told, title
    met = [one["ratios"][name] <= AIMS[name] for one in record["rounds"]]
    outcome = "met" if cost["ratio"] <= AIMS[name] else "missed"
    if 0 < sum(met) < len(met):
        outcome += f" by the median, and met in {sum(met)} of {len(met)} rounds"
    return told, f"{title} (our aim: at most {AIMS[name]:g}; {outcome})"


# --- the command ----------------------------------------------------------------------------------------------------


def name_of(record: Mapping[str, Any]) -> str:
    """What a record's file is called: ``amd-epyc-2-threads``."""
    processor = re.sub(r"[^a-z0-9]+", "-", record["provenance"]["hardware"]["processor"].lower()).strip("-")
    return f"{processor}-{counted(record['config']['threads'], 'thread').replace(' ', '-')}"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Command line: what was found, in words, and a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, help=f"that count; {SIZES['mini']['rounds']} unless given")
    parser.add_argument("--steps", type=int, help=f"of each training; {SIZES['mini']['steps']} unless given")
    parser.add_argument("--threads", type=int, help="of every arm; torch's own number unless given")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, one round")
    parser.add_argument("--keep", action="store_true", help="write the record where committed ones lie")
    given = parser.parse_args(argv)
    if given.keep and given.smoke:
        parser.error("--keep is for the record that the paper tells of, and --smoke measures toy sizes: leave one out")
    try:
        record = measure("smoke" if given.smoke else "mini", given.rounds, given.steps, given.threads)
    except ValueError as error:
        parser.error(str(error))
    for sentence in guard_cost_words([record]):
        say(sentence)
    path = (KEPT if given.keep else paths.runs_dir() / "guards") / f"{name_of(record)}.json"
    write_json(path, record)
    say(f"record: {path}")
    return record


if __name__ == "__main__":
    main()
