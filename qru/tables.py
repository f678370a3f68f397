"""Records -> tables. Nothing here computes a score: what is shown is what a record holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from qru.config import later_defaults, stepped
from qru.records import Record, examples_of

# Heading of each metric, with its better direction (held against qru.metrics.direction by a test).
METRICS = {
    "verbmem": "VerbMem ↓",
    "knowmem": "KnowMem ↓",
    "privleak": "PrivLeak → 0",
    "utility": "Utility ↑",
    "disjoint": "Disjoint QA ↑",
}
# The same of classifiers.
OF_CLASSIFIERS = {
    "forget_accuracy": "Forget accuracy ↓",
    "retain_accuracy": "Retain accuracy ↑",
    "f1": "F1 ↑",
    "mia": "MIA → retrained",
}
HEADINGS = METRICS | OF_CLASSIFIERS
FORGOTTEN = {"verbmem": "text regained", "knowmem": "knowledge regained"}
LABELS = {"forget_accuracy": "labels regained"}
# VerbMem of a run on a part of the forget set: of what it and the requests before it were to forget, and of the rest.
PARTS = {"forgotten": "VerbMem, to be forgotten ↓", "remaining": "VerbMem, not yet asked for"}
UNDEFINED = "not measurable"


def arm_label(record: Record) -> str:
    """``npo_gdr full bf16``: method, adapter and what was stepped."""
    config = record.config
    return f"{config['method']} {config['adapter']} {stepped(config)}"


def labelled(*records: Record) -> dict[str, Record]:
    """Records under the shortest labels that tell them apart: what all share is left out, what differs is named.

    Raises:
        ValueError: no record, or two of the same configuration.
    """
    if not records:
        raise ValueError("no record was given.")
    shown = [record.config for record in records]
    in_label = {"hash", "method", "adapter", "weights", "moments", "rounding", "guard"}
    shown = [config | {key: v for key, v in later_defaults().items() if key not in config} for config in shown]
    keys = dict.fromkeys(key for config in shown for key in config if key not in in_label)
    telling = [key for key in keys if any(config.get(key) != shown[0].get(key) for config in shown)]
    out: dict[str, Record] = {}
    bare = [arm_label(record) for record in records]
    for record, config, label in zip(records, shown, bare, strict=True):
        # Learning rate and the like differ between arms anyway; they are named only where the arm does not tell.
        if bare.count(label) > 1:
            label += "".join(f", {key} {config.get(key)}" for key in telling)
        if label in out:
            raise ValueError(f"{record.path} and {out[label].path} are records of the same configuration; give one.")
        out[label] = record
    return out


def models_of(records: Mapping[str, Record]) -> dict[str, dict[str, Any]]:
    """Model label -> scores by precision: the target, every unlearned arm, the retrained model.

    Target and retrained are taken from the first record; records put side by side share a corpus and a scale.

    Raises:
        ValueError: they do not.
    """
    first = next(iter(records.values()))
    for record in records.values():
        for key in ("corpus", "scale"):
            if record.config[key] != first.config[key]:
                raise ValueError(
                    f"records of different {key} ({first.config[key]!r}, {record.config[key]!r}) cannot stand in one "
                    "table: their target and retrained models differ."
                )
    unlearned = {label: record.scores["unlearned"] for label, record in records.items()}
    return {"target": first.scores["target"], **unlearned, "retrained": first.scores["retrained"]}


def score_frame(records: Mapping[str, Record]) -> pd.DataFrame:
    """Every score, one a row.

    Args:
        records: label -> record, as ``labelled`` gives them.

    Returns:
        Columns ``model`` (``target``, the labels, ``retrained``), ``precision``, ``metric``, ``value``, ``low``,
        ``high`` (percent; 95 % bootstrap interval over examples) and ``examples``.
    """
    rows = []
    for model, by_precision in models_of(records).items():
        for precision, scores in by_precision.items():
            for metric, score in scores.items():
                rows.append((model, precision, metric, score["value"], *score["ci"], examples_of(score)))
    return pd.DataFrame(rows, columns=["model", "precision", "metric", "value", "low", "high", "examples"])


def with_interval(value: float, low: float, high: float, digits: int = 1) -> str:
    """``62.3 [48.0, 75.1]``, with a true minus; what rounds to zero has none."""
    value, low, high = (number(x, digits) for x in (value, low, high))
    return f"{value} [{low}, {high}]"


def number(value: float, digits: int = 1) -> str:
    """``−62.3``, with a true minus; what rounds to zero has none."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def score_table(*records: Record) -> pd.DataFrame:
    """Scores over precisions: rows model × precision, a column a metric, ``value [95 % interval]`` in percent."""
    frame = score_frame(labelled(*records))
    frame["cell"] = [with_interval(*row) for row in frame[["value", "low", "high"]].to_numpy()]
    table = frame.pivot(index=["model", "precision"], columns="metric", values="cell")
    rows = list(dict.fromkeys(zip(frame["model"], frame["precision"], strict=True)))
    known = [metric for metric in HEADINGS if metric in table]
    table = table.reindex(pd.MultiIndex.from_tuples(rows, names=["model", "precision"]))[known]
    return table.rename(columns=HEADINGS).rename_axis(columns=None)


def recovered_table(*records: Record) -> pd.DataFrame:
    """What quantizing brings back: rows arm × quantizer, shares of the forgotten in percent, and the verdict."""
    rows = []
    for label, record in labelled(*records).items():
        for precision, found in record.extra["recovered"].items():
            row = {"model": label, "precision": precision}
            measured = {metric: heading for metric, heading in (FORGOTTEN | LABELS).items() if metric in found}
            for metric, heading in measured.items():
                share = found[metric]
                shown = with_interval(share["value"], *share["ci"], digits=0) if share["defined"] else UNDEFINED
                row[f"{heading} (%)"] = shown
            forgotten = any(found[metric]["defined"] for metric in measured)  # else there is nothing to come back
            row["comes back"] = ("yes" if found["recovers"]["recovers"] else "no") if forgotten else UNDEFINED
            rows.append(row)
    return pd.DataFrame(rows).set_index(["model", "precision"])


def crossing_frame(reports: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Crossing statistics of every linear layer, one a row.

    Args:
        reports: label -> quantizer -> what ``qru.audit`` gives; a record's ``crossings`` is one.

    Returns:
        Columns ``model``, ``precision``, ``layer`` (full name), ``block`` (number of the transformer block, −1 outside
        one), ``module`` (``q``, ``gate``, …), ``weights`` (count), and as shares of the layer's weights in percent
        ``moved`` (changed in the stored type), ``crossed`` (other code on the base's grid), ``changed`` (other code,
        each on its own grid), ``predicted`` (min(|ΔW|/s, 1), mean); ``projection`` and ``cosine`` of the update that
        survives.
    """
    rows = []
    for label, by_precision in reports.items():
        for precision, crossings in by_precision.items():
            for layer, counts in crossings["layers"].items():
                rows.append({"model": label, "precision": precision, **layer_name(layer), **shares(counts)})
    return pd.DataFrame(rows)


def layer_name(layer: str) -> dict[str, Any]:
    """``model.layers.3.mlp.gate_proj`` -> its ``layer``, ``block`` (3) and ``module`` (``gate``)."""
    parts = layer.split(".")
    numbers = [int(part) for part in parts if part.isdigit()]
    return {"layer": layer, "block": numbers[0] if numbers else -1, "module": parts[-1].removesuffix("_proj")}


def shares(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Counts of a layer, or of all layers, as percent of its weights."""
    parts = {key: 100 * counts[key] / counts["weights"] for key in ("moved", "crossed", "changed", "predicted")}
    return {"weights": counts["weights"], **parts, "projection": counts["projection"], "cosine": counts["cosine"]}


def crossing_table(*records: Record) -> pd.DataFrame:
    """Crossings of all layers together: rows arm × quantizer."""
    rows = []
    for label, record in labelled(*records).items():
        for precision, crossings in record.crossings.items():
            rows.append({"model": label, "precision": precision, **shares(crossings["total"])})
    return crossing_headings(pd.DataFrame(rows).set_index(["model", "precision"]))


def crossing_headings(table: pd.DataFrame) -> pd.DataFrame:
    """Columns of ``shares`` -> columns with units, rounded for reading."""
    shown = pd.DataFrame(index=table.index)
    shown["weights"] = table["weights"].map("{:,}".format)
    for key in ("moved", "crossed", "predicted"):
        shown[f"{key} (%)"] = table[key].map("{:.3g}".format)
    for key in ("projection", "cosine"):
        shown[key] = [UNDEFINED if pd.isna(value) else f"{value:.2f}" for value in table[key]]
    return shown


def weight_change_table(changes: pd.DataFrame) -> pd.DataFrame:
    """``qru.movement.weight_changes`` for reading: a row a layer, the whole model last."""
    shown = pd.DataFrame(index=changes["layer"])
    shown["weights"] = changes["weights"].map("{:,}".format).to_numpy()
    heads = {
        "moved": "moved (%)", "median_change": "median |ΔW|", "median_moved": "median |ΔW| of moved", "step": "step s",
        "ratio": "median / s",
    }  # fmt: skip
    for key, heading in heads.items():
        shown[heading] = [UNDEFINED if pd.isna(value) else f"{value:.3g}" for value in changes[key]]
    shown["bucket overlap (%)"] = changes["overlap"].map("{:.3f}".format).to_numpy()
    return shown


def cost_table(*records: Record) -> pd.DataFrame:
    """Wall time (s) and peak memory (MB) of every stage."""
    rows = {
        (label, stage): {"seconds": f"{cost['seconds']:.1f}", "peak memory (MB)": f"{cost['peak_memory_mb']:,.0f}"}
        for label, record in labelled(*records).items()
        for stage, cost in record.cost.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(rows, names=["model", "stage"])
    return table


def prose(table: pd.DataFrame) -> Styler:
    """A table of text for a notebook: wrapped, line breaks kept, read from the left, without the index."""
    cells = {"text-align": "left", "white-space": "pre-wrap", "vertical-align": "top"}
    heads = [{"selector": "th", "props": "text-align: left"}]
    return table.reset_index(drop=True).style.hide().set_properties(**cells).set_table_styles(heads)


def by_forget_set(*records: Record) -> dict[str, dict[str, dict[int, Record]]]:
    """Arm -> kind of forget set (``scal``, ``sust``) -> its number -> record; all sorted by number.

    Raises:
        ValueError: no record, one of the whole forget set, or two of the same configuration.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        if "forget_set" not in record.extra:
            raise ValueError(f"{record.path} is of the whole forget set; this compares forget sets such as 'scal_1'.")
        arm = {key: value for key, value in record.config.items() if key not in ("forget_set", "hash")}
        groups.setdefault(repr(arm), []).append(record)
    bare = [
        replace(found[0], config={k: v for k, v in found[0].config.items() if k != "forget_set"})
        for found in groups.values()
    ]
    out: dict[str, dict[str, dict[int, Record]]] = {}
    for label, found in zip(labelled(*bare), groups.values(), strict=True):
        for record in sorted(found, key=lambda record: record.extra["forget_set"]["number"]):
            kind, number = (record.extra["forget_set"][key] for key in ("kind", "number"))
            of_kind = out.setdefault(label, {}).setdefault(kind, {})
            if number in of_kind:
                raise ValueError(f"{record.path} and {of_kind[number].path} are of the same forget set; give one.")
            of_kind[number] = record
    return out


def forget_set_frame(*records: Record) -> pd.DataFrame:
    """Utility and VerbMem of forgotten and remaining text over forget sets, one value a row.

    Returns:
        Columns ``arm``, ``kind``, ``number``, ``documents`` (to be forgotten so far), ``model`` (``target``,
        ``unlearned``, ``retrained``), ``precision``, ``measure`` (``utility``, ``forgotten``, ``remaining``),
        ``value``, ``low``, ``high`` (percent; 95 % bootstrap interval over examples), ``examples``.
    """
    rows = []
    for arm, kinds in by_forget_set(*records).items():
        for kind, numbers in kinds.items():
            models_of({str(number): record for number, record in numbers.items()})  # of one corpus and scale
            for number, record in numbers.items():
                key = (arm, kind, number, record.extra["forget_set"]["documents"])
                for model, by_precision in record.scores.items():
                    for precision, scores in by_precision.items():
                        shown = dict(record.extra["parts"][model][precision])
                        if utility := scores.get("utility"):  # a corpus need not have one
                            shown = {"utility": utility | {"examples": examples_of(utility)}} | shown
                        for measure, score in shown.items():
                            values = score["value"], *score["ci"], score["examples"]
                            rows.append((*key, model, precision, measure, *values))
    columns = ["arm", "kind", "number", "documents", "model", "precision", "measure"]
    return pd.DataFrame(rows, columns=[*columns, "value", "low", "high", "examples"])


def forget_set_table(*records: Record) -> pd.DataFrame:
    """Forget sets as rows, with a row a precision: utility, VerbMem by part, and whether quantizing brings it back."""
    headings = {"utility": METRICS["utility"], **PARTS, "knowmem": METRICS["knowmem"]}
    rows = []
    for arm, kinds in by_forget_set(*records).items():
        for numbers in kinds.values():
            for record in numbers.values():
                for precision, scores in record.scores["unlearned"].items():
                    row = {
                        "arm": arm, "forget set": record.config["forget_set"], "precision": precision,
                        "documents": record.extra["forget_set"]["documents"],
                    }  # fmt: skip
                    shown = dict(scores) | record.extra["parts"]["unlearned"][precision]
                    for measure, heading in headings.items():
                        score = shown.get(measure)
                        row[heading] = with_interval(score["value"], *score["ci"]) if score else "–"
                    back = record.extra["recovered"].get(precision)
                    row["comes back"] = "" if back is None else "yes" if back["recovers"]["recovers"] else "no"
                    rows.append(row)
    return pd.DataFrame(rows).set_index(["arm", "forget set", "precision"])
