"""Records made up for tests of tables and figures: the shape of real ones, numbers like those of small models."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from qru.records import SECTIONS, Record

PRECISIONS = ("bf16", "rtn-int8-g128", "rtn-int4-g128", "rtn-int4-tensor", "rtn-int3-g128")
MODULES = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
# percent over PRECISIONS: verbmem, knowmem, privleak, utility, disjoint
LEVELS = {
    "target": ([99, 99, 97, 88, 80], [97, 97, 95, 84, 70], [-99, -99, -98, -97, -95], [98, 98, 96, 85, 72]),
    "retrained": ([16, 16, 17, 16, 15], [9, 9, 8, 10, 9], [0, 0.4, -1, 2, -2], [97, 97, 95, 84, 70]),
    "full": ([18, 18, 31, 86, 75], [21, 21, 30, 79, 61], [-60, -60, -70, -95, -93], [92, 92, 91, 83, 70]),
    "lora": ([17, 17, 18, 20, 19], [20, 20, 21, 23, 22], [-58, -58, -59, -57, -60], [93, 93, 90, 80, 66]),
}
CROSSED = {  # percent crossed and predicted over the quantizers, projection
    "full": ([41, 5.8, 0.43, 0.03], [42, 5.9, 0.9, 0.4], [1.0, 1.0, 0.07, 0.01]),
    "lora": ([77, 9.4, 5.2, 4.0], [78, 9.3, 5.3, 4.1], [1.0, 1.0, 0.99, 0.97]),
}


def score(rng: random.Random, value: float, metric: str, examples: int = 100) -> dict:
    spread = 9 if metric == "privleak" else 5
    per_example = [min(1.0, max(0.0, rng.gauss(value / 100, 0.2))) for _ in range(examples)]
    if metric == "privleak":
        per_example = {"forget": per_example, "holdout": per_example}
    return {"value": float(value), "ci": [value - spread, value + spread], "per_example": per_example}


def scores_of(name: str, rng: random.Random) -> dict:
    verbmem, knowmem, privleak, utility = LEVELS[name]
    columns = {"verbmem": verbmem, "knowmem": knowmem, "privleak": privleak, "utility": utility, "disjoint": utility}
    return {
        precision: {metric: score(rng, values[i], metric) for metric, values in columns.items()}
        for i, precision in enumerate(PRECISIONS)
    }


def crossings_of(adapter: str, rng: random.Random, blocks: int) -> dict:
    out = {}
    for precision, crossed, predicted, projection in zip(PRECISIONS[1:], *CROSSED[adapter], strict=True):
        layers = {}
        for block in range(blocks):
            for part, modules in MODULES.items():
                for module in modules:
                    layers[f"model.layers.{block}.{part}.{module}"] = counts(
                        rng.uniform(0.5, 1.5) * crossed, predicted * rng.uniform(0.6, 1.4), projection
                    )
        total = {
            key: sum(layer[key] for layer in layers.values()) for key in ("weights", "moved", "crossed", "changed")
        }
        total["predicted"] = sum(layer["predicted"] for layer in layers.values())
        total |= {"projection": projection, "cosine": projection / 2}
        out[precision] = {"layers": layers, "total": total}
    return out


def counts(crossed: float, predicted: float, projection: float) -> dict:
    weights = 65536
    moved = int(weights * 0.6)
    crossed = int(weights * min(crossed, 99) / 100)
    return {
        "weights": weights, "moved": moved, "crossed": crossed, "changed": crossed,
        "predicted": weights * min(predicted, 99) / 100, "projection": projection, "cosine": projection / 2,
    }  # fmt: skip


def history(adapter: str, rng: random.Random) -> list[dict]:
    out = []
    for step in range(60):
        entry = {"step": step, "forget": 14 * 0.95**step + rng.uniform(0, 0.6), "retain": 0.05 + 0.3 * rng.random()}
        entry |= {"loss": entry["forget"] + entry["retain"], "seconds": 0.5}
        if step % 6 == 5:
            entry |= {"verbmem": 99 * 0.96**step, "knowmem": 97 * 0.97**step}
        out.append(entry)
    return out


def synthetic_record(adapter: str = "full", weights: str | None = None, *, seed: int = 0, blocks: int = 4) -> Record:
    """A record of ``npo_gdr`` on books at mini, of one arm."""
    rng = random.Random(f"{adapter}{seed}")
    weights = weights or {"full": "bf16", "lora": "fp32"}[adapter]
    share = {"value": 62.0, "ci": [48.0, 75.0], "defined": True, "reason": None}
    lost = {"value": None, "ci": None, "defined": False, "reason": "nothing was removed"}
    back = adapter == "full"
    value = {
        "config": {
            "method": "npo_gdr", "adapter": adapter, "weights": weights, "corpus": "books", "scale": "mini",
            "seed": seed, "quantizers": list(PRECISIONS[1:]), "hash": f"{adapter}{weights}{seed}",
        },
        "scores": {
            "target": scores_of("target", rng),
            "retrained": scores_of("retrained", rng),
            "unlearned": scores_of(adapter, rng),
        },
        "crossings": crossings_of(adapter, rng, blocks),
        "cost": {"unlearn": {"seconds": 61.2, "peak_memory_mb": 912.0}},
        "provenance": {"models": {"target": "target-mini-0", "retrained": "retrained-mini-0"}},
        "recovered": {
            precision: {"verbmem": share if back else lost, "knowmem": share, "recovers": {"recovers": back}}
            for precision in PRECISIONS[1:]
        },
        "verdict": ["npo_gdr forgot.", "under rtn-int4-g128 the model regains 62 % [48, 75] of the forgotten text."],
        "history": history(adapter, rng),
    }  # fmt: skip
    extra = {key: part for key, part in value.items() if key not in SECTIONS}
    return Record(Path(f"runs/{adapter}-{weights}-s{seed}/record.json"), *(value[k] for k in SECTIONS), extra=extra)


def forget_set_records(kind: str, adapter: str = "full") -> list[Record]:
    """Four runs over forget sets of 20, 50, 70 and 100 documents: utility falls, and rounding brings a little back."""
    out = []
    for number, documents in enumerate((20, 50, 70, 100), start=1):
        record = synthetic_record(adapter)
        parts = {"forgotten": documents, "remaining": 100 - documents}
        levels = {"target": (97.0, 97.0), "retrained": (16.0, 16.0)}
        levels["unlearned"] = 12.0 + 3 * number, 95.0 - 9 * number
        found = {
            model: {
                precision: {
                    part: {"value": value + 4 * (precision != "bf16"), "ci": [value - 6, value + 9], "examples": count}
                    for (part, count), value in zip(parts.items(), levels[model], strict=True)
                    if count
                }
                for precision in PRECISIONS
            }
            for model in levels
        }
        for precision in PRECISIONS:
            record.scores["unlearned"][precision]["utility"] = score(random.Random(number), 97 - 5 * number, "utility")
        name = f"{kind}_{number}"
        about = {"kind": kind, "number": number, "documents": documents}
        out.append(
            dataclasses.replace(
                record,
                path=Path(f"runs/{adapter}-{name}/record.json"),
                config=record.config | {"forget_set": name, "hash": f"{adapter}{name}"},
                extra=record.extra | {"forget_set": about, "parts": found},
            )
        )
    return out
