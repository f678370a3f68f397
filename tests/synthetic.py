"""Records made up for tests of tables and figures: the shape of real ones, numbers like those of small models."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from qru.records import SECTIONS, Record
from qru.tables import OF_CLASSIFIERS

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


def classifier_record(adapter: str = "full") -> Record:
    """A record of a classifier on tweets: the numbers of ``synthetic_record`` under the names of its own metrics."""
    record = synthetic_record(adapter)
    names = dict(zip(("verbmem", "utility", "knowmem", "privleak"), OF_CLASSIFIERS, strict=True))
    scores = {
        model: {p: {names[m]: score for m, score in by.items() if m in names} for p, by in precisions.items()}
        for model, precisions in record.scores.items()
    }
    recovered = {
        precision: {"forget_accuracy": found["verbmem"], "recovers": found["recovers"]}
        for precision, found in record.extra["recovered"].items()
    }
    history = [
        {"forget_accuracy" if key == "verbmem" else key: value for key, value in row.items() if key != "knowmem"}
        for row in record.extra["history"]
    ]
    extra = record.extra | {"recovered": recovered, "history": history}
    return dataclasses.replace(record, config=record.config | {"corpus": "tweets"}, scores=scores, extra=extra)


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


# Half a quantization step, as of weights with a standard deviation of 0.02.
ZERO_BINS = {"rtn-int8-g128": 0.0002, "rtn-int4-g128": 0.0035, "rtn-int4-tensor": 0.0071, "rtn-int3-g128": 0.007}


# Of further grids that parts of the experiment ask for.
MORE_BINS = {"rtn-int4-g32": 0.0028, "rtn-int4-g64": 0.0031, "rtn-int4-row": 0.0042}


def why_record(
    arm: str, corpus: str = "books", method: str = "ga_klr", seed: int = 0, back: tuple[str, ...] = (),
    reached: bool = True, knowledge: bool = False, **changes,
) -> Record:  # fmt: skip
    """A run of the experiment in ``qru.why``, whose forgotten text returns under the quantizers in ``back``.

    In bf16 every example of text scores 0.2 (0.21 for odd ones), under a quantizer of ``back`` 0.8, the target 1.
    Knowledge scores 0.5 where the target has 1, and 1 again under ``back`` if ``knowledge``.
    """
    from qru import why
    from qru.verdict import recovered

    edge = 2.0**-8 if arm in ("bf16", "bf16, fp32 moments") else None
    rates = {"learning_rate": 1.3e-5, "retain_weight": 5.0}
    config = why.configuration(arm, method, corpus, seed, **rates | {"quantizers": tuple(ZERO_BINS)} | changes)
    rng = random.Random(f"{arm}{corpus}{method}{seed}")

    def scores(levels: dict[str, float]) -> dict:
        out = {}
        for metric, level in levels.items():
            more = 0.01 if metric == "verbmem" and level == 0.2 else 0.0
            per_example = [level + more * (i % 2) for i in range(50)]
            out[metric] = {"value": 100 * level, "ci": [100 * level - 3, 100 * level + 3], "per_example": per_example}
        return out

    beside = {"utility": 0.9, "disjoint": 0.8}
    forgot = {"verbmem": 0.2, "knowmem": 0.5} | beside
    returned = {"verbmem": 0.8, "knowmem": 1.0 if knowledge else 0.5} | beside
    found = {
        "target": {p: scores({"verbmem": 1.0, "knowmem": 1.0} | beside) for p in ("bf16", *config.quantizers)},
        "retrained": {p: scores({"verbmem": 0.2, "knowmem": 0.1} | beside) for p in ("bf16", *config.quantizers)},
        "unlearned": {p: scores(returned if p in back else forgot) for p in ("bf16", *config.quantizers)},
    }
    names = [
        f"model.layers.{block}.{part}.{module}"
        for block in range(4)
        for part, modules in MODULES.items()
        for module in modules
    ]
    layers = {
        quantizer: {
            name: counts(rng.uniform(1, 5), rng.uniform(1, 5), 0.02 if quantizer in back else 1.0)
            | {"sum_dw2": rng.random(), "sum_q_dw": rng.random(), "sum_q2": rng.random(), "histogram": [1] * 20}
            for name in names
        }
        for quantizer in config.quantizers
    }
    steps = [{"step": i, "forget": 9.123456789 - i / 100, "loss": 3.123456789, "seconds": 0.51} for i in range(400)]
    for row in steps[9::10]:
        row |= {"verbmem": 90.123456789 - row["step"] / 10, "knowmem": 60.0}
    if reached:
        steps[-1]["stopped"] = 1.0
    value = {
        "config": config.to_dict() | {"hash": f"{arm}{corpus}{method}{seed}"},
        "scores": found,
        "crossings": {
            quantizer: {
                "layers": by_layer,
                "total": {k: sum(c[k] for c in by_layer.values()) for k in ("weights", "moved", "crossed", "sum_dw2")}
                | {"predicted": 3.3333333333e4, "projection": 0.0212345678, "cosine": 0.0112345678, "histogram": [1]},
            }
            for quantizer, by_layer in layers.items()
        },
        "cost": {"unlearn": {"seconds": 61.2, "peak_memory_mb": 912.0}},
        "provenance": {"versions": {"torch": "2"}, "commit": "0" * 40, "folders": {"target": "/somewhere/target"}},
        "recovered": recovered(found),
        "verdict": [f"{method} forgot."],
        "history": steps,
        "prediction": {
            quantizer: {
                "edge": edge, "zero_bin": zero, "sigma": 0.02, "movable": 12.3456789, "projection": 1.0,
                "hidden": 100.0 * (edge is not None and edge <= zero), "recovers": edge is not None and edge <= zero,
                "layers": {},
            }
            for quantizer, zero in ((name, (ZERO_BINS | MORE_BINS)[name]) for name in config.quantizers)
        },
    }  # fmt: skip
    extra = {key: part for key, part in value.items() if key not in SECTIONS}
    name = f"{corpus}-{method}-{arm}-s{seed}".replace(" ", "_").replace(",", "")
    return Record(Path(f"runs/{name}/record.json"), *(value[k] for k in SECTIONS), extra=extra)
