"""What the scores say, in words and with intervals: did the forgotten come back?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from qru.config import stepped
from qru.metrics import paired_difference, recovered_share, recovers
from qru.records import Record
from qru.tables import by_forget_set

FORGOTTEN = {"verbmem": "text", "knowmem": "knowledge"}
LABELS = {"forget_accuracy": "labels"}  # of a classifier, in the place of FORGOTTEN
UNASKED = {"value": None, "ci": None, "defined": False, "reason": "the corpus has no examples of it"}
SETS = {"scal": "sets of growing size, each at once", "sust": "requests one after another"}


def forgotten(measured: Iterable[str]) -> dict[str, str]:
    """Metric -> word for what it says is forgotten: of a language model or, by what was measured, of a classifier."""
    return LABELS if set(LABELS) & set(measured) else FORGOTTEN


def recovered(scores: dict[str, Any]) -> dict[str, Any]:
    """Share of what was forgotten that quantization brings back.

    Args:
        scores: ``scores[model][precision][metric]`` as in a record.

    Returns:
        ``[precision][metric]`` -> ``{"value", "ci", "defined", "reason"}`` in percent for VerbMem and KnowMem, or for
        a classifier's forget accuracy, and ``[precision]["recovers"]``: the rule of ``qru.metrics.recovers``.
    """
    unlearned, target = scores["unlearned"], scores["target"]
    words = forgotten(unlearned["bf16"])
    out = {}
    for precision in unlearned:
        if precision == "bf16":
            continue
        there = [metric for metric in words if metric in unlearned["bf16"]]
        before = {metric: unlearned["bf16"][metric]["per_example"] for metric in there}
        after = {metric: unlearned[precision][metric]["per_example"] for metric in there}
        shares = dict.fromkeys(words, UNASKED) | {
            metric: recovered_share(before[metric], after[metric], target[precision][metric]["per_example"])
            for metric in there
        }
        rule = recovers(before, after) if there else {"metrics": {}}
        # Where nothing was forgotten a rise is noise or the quantizer's own doing, and no recovery.
        rule["recovers"] = any(rule["metrics"][m]["recovers"] for m in there if shares[m]["defined"])
        out[precision] = shares | {"recovers": rule}
    return out


ARMS = {"full": "full fine-tuning", "lora": "LoRA", "delta": "a difference from zero", "sure": "SURE"}


def sentences(scores: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """The verdict: one line on what was forgotten, one line a quantizer."""
    unlearned, target = scores["unlearned"]["bf16"], scores["target"]["bf16"]
    words = forgotten(unlearned)
    told = words | ({"retain_accuracy": "labels to keep", "f1": "F1"} if words is LABELS else {"utility": "utility"})
    if words is LABELS:
        told["forget_accuracy"] = "labels to forget"
    what = {metric: word for metric, word in told.items() if metric in unlearned}
    changes = [f"{word} {target[m]['value']:.0f} → {unlearned[m]['value']:.0f}" for m, word in what.items()]
    arm = ARMS[config["adapter"]]
    how = stepped(config).removeprefix(config["weights"])
    part = f" {name}," if (name := config.get("forget_set", "all")) != "all" else ""
    lines = [
        f"{config['method']}, {arm}, {config['weights']} weights{how},{part} in bf16 (percent): "
        f"{', '.join(changes) or 'the corpus has no examples to measure forgetting with'}."
    ]
    for precision, shares in recovered(scores).items():
        lost = {metric: word for metric, word in words.items() if shares[metric]["defined"]}
        kept = [word for metric, word in words.items() if metric in what and metric not in lost]
        if not lost:
            lines.append(f"under {precision}: nothing measurable was forgotten, so nothing can come back.")
            continue
        parts = [f"{_regained(shares[metric])} of the forgotten {word}" for metric, word in lost.items()]
        if shares["recovers"]["recovers"]:
            back = "it comes back"
        elif any(round(shares[metric]["ci"][0]) > 0 for metric in lost):  # in whole percent, as it is printed
            back = "a little comes back, less than what counts as recovery"
        else:
            back = "it does not come back"
        note = f" (no measurable {kept[0]} was forgotten)" if kept else ""
        lines.append(f"under {precision} the model regains {' and '.join(parts)}{note}: {back}.")
    return lines


def _regained(share: dict[str, Any]) -> str:
    value, low, high = (round(x) + 0 if abs(x) < 1e9 else x for x in (share["value"], *share["ci"]))
    return f"{'none' if value < 0 else f'{value:.0f} %'} [{low:.0f}, {high:.0f}]"


def over_forget_sets(records: Sequence[Record]) -> dict[str, list[str]]:
    """What runs over nested or successive forget sets say of utility, of forgotten and other text, and of recovery.

    Args:
        records: of one corpus and scale, each of a forget set such as ``"scal_1"``.

    Returns:
        Heading (arm and kind) -> sentences.
    """
    told = {}
    for arm, kinds in by_forget_set(*records).items():
        for kind, found in kinds.items():
            told[f"{arm}: {SETS[kind]}"] = _growth(list(found.values()))
        last = [found[max(found)] for found in kinds.values()]
        if len(last) == 2 and len({run.extra["forget_set"]["documents"] for run in last}) == 1:
            told[f"{arm}: the same documents at once, or one request after another"] = _utility_change(*last)
    return told


def _growth(runs: Sequence[Record]) -> list[str]:
    """The sentences of one arm and kind; ``runs`` in order."""
    lines = []
    if has_utility := all("utility" in run.scores["unlearned"]["bf16"] for run in runs):
        before, never = (runs[0].scores[model]["bf16"]["utility"]["value"] for model in ("target", "retrained"))
        values = [f"{run.scores['unlearned']['bf16']['utility']['value']:.0f}" for run in runs]
        sizes = _series(str(run.extra["forget_set"]["documents"]) for run in runs)
        lines.append(
            f"after {sizes} documents, utility in bf16 is {_series(values)} percent (target {before:.0f}, "
            f"retrained {never:.0f})."
        )
    for part, words in {"forgotten": "the text to be forgotten", "remaining": "the text not yet asked for"}.items():
        parts = [run.extra["parts"] for run in runs if part in run.extra["parts"]["unlearned"]["bf16"]]
        if parts:
            values, known = (
                _series(f"{found[model]['bf16'][part]['value']:.0f}" for found in parts)
                for model in ("unlearned", "target")
            )
            lines.append(f"VerbMem of {words} is {values} percent (target {known}).")
    for precision in runs[0].extra["recovered"]:
        found = {run.config["forget_set"]: run.extra["recovered"][precision] for run in runs}
        back = [name for name, shares in found.items() if shares["recovers"]["recovers"]]
        if not any(shares[metric]["defined"] for shares in found.values() for metric in FORGOTTEN):
            lines.append(f"under {precision}: nothing measurable was forgotten, so nothing can come back.")
        else:
            lines.append(f"under {precision} it comes back after {_series(back) if back else 'none of them'}.")
    if has_utility and len(runs) > 1:
        lines += [f"from the first to the last, {line}" for line in _utility_change(runs[0], runs[-1])]
    return lines


def _series(values: Iterable[str]) -> str:
    """``a, b and c``; one value alone where all are the same."""
    values = list(values)
    if len(set(values)) == 1:
        return values[0]
    return f"{', '.join(values[:-1])} and {values[-1]}"


def _utility_change(first: Record, second: Record) -> list[str]:
    """How utility differs between two runs, on the same questions; one sentence a precision."""
    lines = []
    for precision in first.scores["unlearned"]:
        both = [run.scores["unlearned"].get(precision, {}).get("utility") for run in (first, second)]
        if None in both:
            continue
        change, low, high = (100 * x for x in paired_difference(*(score["per_example"] for score in both)))
        change_told, low_told, high_told = (f"{x:+.1f}".replace("-", "−") for x in (change, low, high))
        doubt = ", no more than noise" if low <= 0 <= high else ""
        lines.append(f"utility in {precision} changes by {change_told} [{low_told}, {high_told}] points{doubt}.")
    return lines
