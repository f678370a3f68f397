"""Records and certificates made up for tests of methods that are to survive: every number known by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qru.config import RunConfig
from qru.defaults import resolve
from qru.records import SECTIONS, Record
from qru.verdict import recovered
from tests.synthetic import MODULES, ZERO_BINS

INT8, INT4, TENSOR, INT3 = "rtn-int8-g128", "rtn-int4-g128", "rtn-int4-tensor", "rtn-int3-g128"
GPTQ4, AWQ4, LLM, NF4 = "gptq-int4-g128", "awq-int4-g128", "llm-int8", "nf4-b64"
EVERY = (INT8, LLM, INT4, TENSOR, NF4, GPTQ4, AWQ4, INT3)
SHARE = 100 * 0.59 / 0.79  # of the text that is regained under ``back``: (0.8 − 0.21) / (1 − 0.21)
OF_TEXT, OF_LABELS = ("verbmem", "utility"), ("forget_accuracy", "retain_accuracy", "f1", "mia")
KEPT = {"utility": 90, "retain_accuracy": 80, "f1": 70, "mia": 60}  # percent, of the unlearned model in bf16


def scored(metric: str, level: float, examples: int) -> dict[str, Any]:
    """Half of the examples at the level, the odd ones 0.02 over a level of 0.2."""
    odd = 0.02 if level == 0.2 else 0.0
    values = [level + odd * (i % 2) for i in range(examples)]
    value = 100 * sum(values) / examples
    return {"value": value, "ci": [value - 3, value + 3], "per_example": values}


def method_record(
    method: str = "ga_gdr", adapter: str = "full", weights: str = "bf16", guard: str | None = None, seed: int = 0,
    back: tuple[str, ...] = (), reached: bool = True, quantizers: tuple[str, ...] = EVERY, corpus: str = "books",
    kept: float = 0.0, **changes: Any,
) -> Record:  # fmt: skip
    """A run that says 20 % (odd examples 22 %) of what it forgot, and 80 % under the quantizers in ``back``.

    The target says all of it, the retrained model 10 %. What is kept falls by ``kept`` points under ``back``.
    """
    metrics = OF_LABELS if corpus == "tweets" else OF_TEXT
    config = RunConfig(
        method=method, adapter=adapter, weights=weights, guard=guard, seed=seed, corpus=corpus, quantizers=quantizers,
        metrics=metrics, **changes,
    )  # fmt: skip
    precisions = ("bf16", *quantizers)

    def scores(forgotten: float, lost: float = 0.0) -> dict[str, Any]:
        out = {metrics[0]: scored(metrics[0], forgotten, 50)}
        return out | {metric: scored(metric, (KEPT[metric] - lost) / 100, 40) for metric in metrics[1:]}

    found = {
        "target": {p: scores(1.0, -5) for p in precisions},
        "retrained": {p: scores(0.1, -4) for p in precisions},
        "unlearned": {p: scores(0.8 if p in back else 0.2, kept if p in back else 0.0) for p in precisions},
    }
    names = [f"model.layers.{block}.{part}.{m}" for block in range(2) for part, ms in MODULES.items() for m in ms]
    counts = {"weights": 1000, "moved": 600, "crossed": 20, "changed": 20, "predicted": 21.0, "sum_dw2": 0.004,
              "projection": 0.5, "cosine": 0.2}  # fmt: skip
    total = counts | {key: len(names) * counts[key] for key in ("weights", "moved", "crossed", "predicted", "sum_dw2")}
    value = {
        "config": resolve(config).to_dict() | {"hash": f"{corpus}{method}{adapter}{weights}{guard}{seed}"},
        "scores": found,
        "crossings": {q: {"layers": dict.fromkeys(names, counts), "total": total} for q in quantizers},
        "cost": {"unlearn": {"seconds": 61.2, "peak_memory_mb": 912.0}},
        "provenance": {
            "versions": {"torch": "2"}, "commit": "0123456789abcdef", "dirty": False, "corpus": f"{corpus}-texts",
            "hardware": {"processor": "none", "cores": 2},
        },
        "recovered": recovered(found),
        "verdict": [],
        "history": [{"step": 0, metrics[0]: 90.0}, {"step": 99, metrics[0]: 20.0} | dict([("stopped", 1.0)] * reached)],
        "prediction": {
            q: {"edge": None, "zero_bin": ZERO_BINS[q], "layers": {n: {"zero_bin": ZERO_BINS[q]} for n in names}}
            for q in quantizers if q in ZERO_BINS
        },
    }  # fmt: skip
    extra = {key: part for key, part in value.items() if key not in SECTIONS}
    name = f"{corpus}-{method}-{adapter}-{weights}-{guard}-s{seed}"
    return Record(Path(f"runs/{name}/record.json"), *(value[key] for key in SECTIONS), extra=extra)


def seeds(*numbers: int, **fields: Any) -> list[Record]:
    """The same run at several seeds."""
    return [method_record(seed=number, **fields) for number in numbers]


def certificate(record: Record, outcome: str = "holds", excess: float = 6.4, **changes: Any) -> dict[str, Any]:
    """A certificate of the configuration of a run, as far as tables and text read it."""
    apart = ("seed", "corpus", "metrics", "quantizers", "target", "retrained", "tokenizer", "hash")
    utility = {"value": 90.0, "lower": 0.9, "holds": True, "possible": True}
    return {
        "certificate": 1, "outcome": outcome, "worst_excess": excess, "least_utility": 0.7,
        "forget_ceiling": 10.0, "utility_floor": 0.8,
        "declared": {"quantizers": ["bf16", *EVERY], "transforms": {"merged": "as stored", "prune-10": "pruned"},
                     "seeds": [0, 1, 2], "metrics": {"forget": ["verbmem"], "utility": ["utility"]}},
        "cells": [{"quantizer": INT4, "utility": {"utility": utility}},
                  {"quantizer": INT3, "utility": {"utility": utility | {"possible": outcome != "refused"}}}],
        "configuration": {k: v for k, v in record.config.items() if k not in apart},
        "corpus": record.provenance["corpus"],
    } | changes  # fmt: skip
