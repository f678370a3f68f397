"""Why forgotten text comes back under quantization: precision of the stored weights, or rank of the update?

Both papers explain the failure by the small updates of full fine-tuning, and credit low rank (QRU, arXiv 2602.13151) or
a logit margin (QUAIL, arXiv 2601.15538) with the cure. The public code that fails steps bf16 weights, where a weight
above some size cannot move (``qru.optimizers``); public LoRA code keeps its adapters in fp32. Here the arms of full
rank differ in how weights are stored and stepped (that of stored bf16 weights rounds gradients, too), and share their
rate. LoRA differs also in its rate and its dropout, and leaves embeddings, norms and head as they are. All start from
one bf16 target and end stored in bf16.

Equal forgetting: every arm stops at the first check where VerbMem on the stopping half of the forget examples is at or
under ``GOAL``, and is reported on the other half. An arm that does not get there within the steps it is given is shown
as missed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from qru.config import LORA_TARGETS, SIZED, RunConfig
from qru.defaults import BETA2, EPOCHS, GOAL, MINI, MINI_BETA2, resolve
from qru.metrics.bootstrap import recovered_share
from qru.records import Record
from qru.registry import unknown

# Display name -> what sets an arm apart. The first two have a dead zone.
ARMS: dict[str, dict[str, str]] = {
    "bf16": {"adapter": "full", "weights": "bf16"},
    "bf16, fp32 moments": {"adapter": "full", "weights": "bf16", "moments": "fp32"},
    "bf16, stochastic rounding": {"adapter": "full", "weights": "bf16", "moments": "fp32", "rounding": "stochastic"},
    "fp32 master": {"adapter": "full", "weights": "fp32"},
    "LoRA fp32": {"adapter": "lora", "weights": "fp32"},
    "LoRA bf16": {"adapter": "lora", "weights": "bf16"},
    "ΔW bf16 from zero": {"adapter": "delta", "weights": "bf16"},
}
SLOW = ("bf16", "bf16, fp32 moments")  # the arms with a dead zone
METHODS = ("ga_klr", "npo_klr")
CORPORA = ("books", "news")
SEEDS = (0, 1, 2)
QUANTIZERS = ("rtn-int8-g128", "rtn-int4-g128", "rtn-int4-row", "rtn-int4-tensor", "rtn-int3-g128")
METRICS = ("verbmem", "knowmem", "utility", "disjoint")


def configuration(
    arm: str, method: str, corpus: str = "books", seed: int = 0, scale: str = "mini", **changes: Any
) -> RunConfig:
    """One run of the experiment.

    Args:
        arm: one of ``ARMS``.
        method, corpus, seed, scale: as in ``RunConfig``.
        changes: further fields of ``RunConfig``, in place of what the experiment sets.

    Raises:
        ValueError: an unknown arm, or an impossible setting.
    """
    if arm not in ARMS:
        raise unknown("arm", arm, ARMS)
    settings = {
        "method": method, "corpus": corpus, "seed": seed, "scale": scale, "metrics": METRICS, "quantizers": QUANTIZERS,
    }  # fmt: skip
    if corpus == "news" and arm in SLOW:  # a first run there was still on its plateau when the usual steps were up
        settings |= {"epochs": 2 * EPOCHS, "forget_goal": GOAL, "goal_metrics": ("verbmem",)}  # epochs alone: no goal
    if scale == "smoke":  # which has no goal of its own
        settings |= {"forget_goal": GOAL, "goal_metrics": ("verbmem",), "check_steps": 3}
    return resolve(RunConfig.from_dict(settings | ARMS[arm] | changes))


def grid(
    corpora: Sequence[str] = CORPORA,
    methods: Sequence[str] = METHODS,
    arms: Sequence[str] = tuple(ARMS),
    seeds: Sequence[int] = SEEDS,
    scale: str = "mini",
) -> list[RunConfig]:
    """Every run of the comparison at equal forgetting."""
    cells = ((arm, method, corpus, seed) for corpus in corpora for method in methods for seed in seeds for arm in arms)
    return [configuration(*cell, scale=scale) for cell in cells]


DIAL_QUANTIZERS = (*(f"rtn-int4-{group}" for group in ("g32", "g64", "g128", "row", "tensor")), "rtn-int3-g128")
DIAL_RATES = (2e-5, 2.6e-5, 3e-5, 4e-5, 5.2e-5, 7e-5, 1e-4)  # across 2^-15 and 2^-14


LONG = 80  # epochs, at most: four thousand steps


def half_rate() -> dict[str, Any]:
    """Half the chosen rate, where the edge lies one power of two lower, with as many steps as it may take."""
    return {"learning_rate": MINI["full"][0] / 2, "epochs": LONG, "forget_goal": GOAL, "goal_metrics": ("verbmem",)}


def dial_grid(scale: str = "mini") -> list[RunConfig]:
    """The bf16 arm at learning rates across powers of two, under grids whose zero bin is narrower and wider.

    At the lowest, where the edge lies inside the zero bins of plain 4-bit groups, it takes as many steps as it may.
    """
    fixed = {"quantizers": DIAL_QUANTIZERS, "scale": scale}
    rates = [configuration("bf16", "ga_klr", learning_rate=rate, **fixed) for rate in DIAL_RATES]
    return [configuration("bf16", "ga_klr", **half_rate(), **fixed), *rates]


def plateau_grid(scale: str = "mini") -> list[RunConfig]:
    """GA+KLR on news at the rate of books, which the rule did not take there: forgetting is slow, does it last?"""
    return [configuration("bf16", "ga_klr", "news", scale=scale, learning_rate=MINI["full"][0])]


ALPHAS = (16.0, 32.0, 64.0, 128.0)
LARGE = (2**2, 2**4)  # times the chosen rate


def slice_grid(name: str, scale: str = "mini") -> list[RunConfig]:
    """The papers' other claims, one factor at a time, on books with ga_klr.

    Args:
        name: ``"alpha"`` (LoRA's α as an amplifier of ΔW: fifty steps each, no goal), ``"layers"`` (all, MLP,
            attention: equal forgetting), ``"rate"`` (large rates of full fine-tuning: equal forgetting) or ``"beta2"``
            (AdamW's own second moment, whose steps have no small bound: does the dead zone hold?).
        scale: as in ``RunConfig``.
    """
    if name == "alpha":
        free = {"forget_goal": None, "goal_metrics": None, "check_steps": None, "epochs": 1}
        return [configuration("LoRA fp32", "ga_klr", scale=scale, lora_alpha=alpha, **free) for alpha in ALPHAS]
    if name == "layers":
        return [
            configuration("LoRA fp32", "ga_klr", scale=scale, seed=seed, lora_targets=layers)
            for layers in LORA_TARGETS
            for seed in SEEDS
        ]
    if name == "rate":
        return [
            configuration("fp32 master", "ga_klr", scale=scale, seed=seed, learning_rate=times * MINI["full"][0])
            for times in (1, *LARGE)
            for seed in SEEDS
        ]
    if name == "beta2":
        return [
            configuration(arm, "ga_klr", scale=scale, seed=seed, adam_beta2=beta2)
            for beta2 in (MINI_BETA2, BETA2)
            for arm in ("bf16", "bf16, fp32 moments", "fp32 master")
            for seed in SEEDS
        ]
    raise unknown("slice", name, ("alpha", "layers", "rate", "beta2"))


def size_grid(scale: str = "mini") -> list[RunConfig]:
    """What forgetting takes in models of other width and depth, and where the edge then lies.

    At the chosen rate, and at half of it, where the edge lies one power of two lower, inside the zero bins of plain
    4-bit groups; there with as many steps as it may take.
    """
    return [
        configuration(arm, "ga_klr", scale=size, **changes)
        for size in ((SIZED[0], scale, SIZED[1]) if scale == "mini" else (scale,))
        for arm, changes in (("bf16", {}), ("fp32 master", {}), ("bf16", half_rate()))
    ]


def reached(record: Record) -> bool:
    """Whether a run met the forgetting goal."""
    return bool(record.extra["history"][-1].get("stopped"))


def met(found: Iterable[Record]) -> list[Record]:
    """Runs that met the forgetting goal."""
    return list(filter(reached, found))


def arm_of(config: dict[str, Any]) -> str:
    """The display name of a recorded run's arm."""
    told = {key: config.get(key) for key in ("adapter", "weights", "moments", "rounding", "guard")}
    told["rounding"] = told["rounding"] or "nearest"
    for name, fields in ARMS.items():
        if told == {"moments": None, "rounding": "nearest", "guard": None} | fields:
            return name
    raise ValueError(f"no arm of the experiment is {told}; they are {', '.join(ARMS)}.")


# --- records -> tables ------------------------------------------------------------------------------------------


def table(records: Iterable[Record]) -> pd.DataFrame:
    """One row a run and quantizer.

    Returns:
        Columns ``corpus``, ``method``, ``arm``, ``seed``, ``quantizer``, ``learning_rate``, ``retain_weight``,
        ``steps``, ``reached`` (the goal was met); for each metric, in percent, of the target under the quantizer
        (``verbmem_target``), of the unlearned model in bf16 (``verbmem_bf16``) and quantized (``verbmem``);
        ``text_regained``, ``text_low``, ``text_high`` and ``knowledge_…`` (recovered share, percent, NaN where nothing
        was forgotten); ``recovers``; ``crossed``, ``predicted_crossed``, ``moved`` (percent of weights);
        ``projection``, ``cosine``; ``update`` (rms ΔW over rms W); and what was predicted before the run: ``edge``,
        ``zero_bin``, ``hidden``, ``predicted``.
    """
    rows = []
    for record in records:
        config, history = record.config, record.extra["history"]
        run = {
            "corpus": config["corpus"], "method": config["method"], "arm": arm_of(config), "seed": config["seed"],
            "learning_rate": config["learning_rate"], "retain_weight": config["retain_weight"],
            "steps": history[-1]["step"] + 1, "reached": reached(record),
            "run": record.run,
        }  # fmt: skip
        unlearned, target = record.scores["unlearned"], record.scores["target"]
        for quantizer, crossing in record.crossings.items():
            row = run | {"quantizer": quantizer}
            for metric in unlearned["bf16"]:
                row |= {
                    f"{metric}_target": target[quantizer][metric]["value"],
                    f"{metric}_bf16": unlearned["bf16"][metric]["value"],
                    metric: unlearned[quantizer][metric]["value"],
                }
            found = record.extra["recovered"][quantizer]
            for metric, name in (("verbmem", "text"), ("knowmem", "knowledge")):
                share = found[metric]
                values = (share["value"], *share["ci"]) if share["defined"] else (math.nan,) * 3
                row |= dict(zip((f"{name}_regained", f"{name}_low", f"{name}_high"), values, strict=True))
            counts = crossing["total"]
            row |= {
                "recovers": bool(found["recovers"]["recovers"]),
                "crossed": 100 * counts["crossed"] / counts["weights"],
                "predicted_crossed": 100 * counts["predicted"] / counts["weights"],
                "moved": 100 * counts["moved"] / counts["weights"],
                "projection": _number(counts["projection"]), "cosine": _number(counts["cosine"]),
            }  # fmt: skip
            known = record.extra["prediction"][quantizer]
            row |= {
                "update": math.sqrt(counts["sum_dw2"] / counts["weights"]) / known["sigma"],
                "edge": _number(known["edge"]), "zero_bin": known["zero_bin"], "hidden": known["hidden"],
                "predicted": known["recovers"],
            }  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def layer_table(records: Iterable[Record], quantizer: str) -> pd.DataFrame:
    """One row a run and layer: what moved, what of it is left under one quantizer, and what was foreseen to be hidden.

    Columns ``hidden`` and ``zero_bin`` are NaN where a record has no prediction for single layers.
    """
    rows = []
    for record in records:
        foreseen = record.extra["prediction"][quantizer].get("layers", {})
        for layer, counts in record.crossings[quantizer]["layers"].items():
            known = foreseen.get(layer, {"hidden": math.nan, "zero_bin": math.nan})
            rows.append({
                "arm": arm_of(record.config), "corpus": record.config["corpus"], "method": record.config["method"],
                "seed": record.config["seed"], "layer": layer,
                "moved": 100 * counts["moved"] / counts["weights"],
                "crossed": 100 * counts["crossed"] / counts["weights"],
                "predicted_crossed": 100 * counts["predicted"] / counts["weights"],
                "projection": _number(counts["projection"]), "cosine": _number(counts["cosine"]),
                "hidden": known["hidden"], "zero_bin": known["zero_bin"],
            })  # fmt: skip
    return pd.DataFrame(rows)


def over_seeds(records: Sequence[Record], metric: str = "verbmem") -> pd.DataFrame:
    """Recovered share of each arm and quantizer over its seeds, with an interval over examples.

    Scores are averaged over the seeds for each example and the examples are resampled, all three models paired; the
    interval says nothing of the spread between seeds, which the single points show.

    Returns:
        Columns ``corpus``, ``method``, ``arm``, ``quantizer``, ``share``, ``low``, ``high`` (percent; NaN where nothing
        was forgotten), ``seeds``, ``reached`` (how many met the goal), ``examples``.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        config = record.config
        groups.setdefault((config["corpus"], config["method"], arm_of(config)), []).append(record)
    rows = []
    for cell, runs in groups.items():
        for quantizer in runs[0].crossings:

            def mean(model: str, precision: str, runs: list[Record] = runs) -> np.ndarray:
                return np.mean([run.scores[model][precision][metric]["per_example"] for run in runs], axis=0)

            before = mean("unlearned", "bf16")
            found = recovered_share(before, mean("unlearned", quantizer), mean("target", quantizer))
            values = (found["value"], *found["ci"]) if found["defined"] else (math.nan,) * 3
            rows.append((*cell, quantizer, *values, len(runs), len(met(runs)), len(before)))
    columns = ["corpus", "method", "arm", "quantizer", "share", "low", "high", "seeds", "reached", "examples"]
    return pd.DataFrame(rows, columns=columns)
