"""What the scores say, in words and with intervals: did the forgotten come back?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from qru.metrics import paired_difference, recovered_share, recovers
from qru.records import Record
from qru.tables import by_forget_set

FORGOTTEN = {"verbmem": "text", "knowmem": "knowledge"}
SETS = {"scal": "sets of growing size, each at once", "sust": "requests one after another"}


def recovered(scores: dict[str, Any]) -> dict[str, Any]:
    """Share of what was forgotten that quantization brings back.

    Args:
        scores: ``scores[model][precision][metric]`` as in a record.

    Returns:
        ``[precision][metric]`` -> ``{"value", "ci", "defined", "reason"}`` in percent for VerbMem and KnowMem, and
        ``[precision]["recovers"]``: the rule of ``qru.metrics.recovers``.
    """
    unlearned, target = scores["unlearned"], scores["target"]
    out = {}
    for precision in unlearned:
        if precision == "bf16":
            continue
        before = {metric: unlearned["bf16"][metric]["per_example"] for metric in FORGOTTEN}
        after = {metric: unlearned[precision][metric]["per_example"] for metric in FORGOTTEN}
        shares = {
            metric: recovered_share(before[metric], after[metric], target[precision][metric]["per_example"])
            for metric in FORGOTTEN
        }
        rule = recovers(before, after)
        # Where nothing was forgotten a rise is noise or the quantizer's own doing, and no recovery.
        rule["recovers"] = any(rule["metrics"][m]["recovers"] for m in FORGOTTEN if shares[m]["defined"])
        out[precision] = shares | {"recovers": rule}
    return out


def sentences(scores: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """The verdict: one line on what was forgotten, one line a quantizer."""
    unlearned, target = scores["unlearned"]["bf16"], scores["target"]["bf16"]
    what = {m: f"{word} {target[m]['value']:.0f} → {unlearned[m]['value']:.0f}" for m, word in FORGOTTEN.items()}
    utility = f"utility {target['utility']['value']:.0f} → {unlearned['utility']['value']:.0f}"
    arm = {"full": "full fine-tuning", "lora": "LoRA"}[config["adapter"]]
    part = f" {name}," if (name := config.get("forget_set", "all")) != "all" else ""
    lines = [
        f"{config['method']}, {arm}, {config['weights']} weights,{part} in bf16 (percent): "
        f"{what['verbmem']}, {what['knowmem']}, {utility}."
    ]
    for precision, shares in recovered(scores).items():
        lost = {metric: word for metric, word in FORGOTTEN.items() if shares[metric]["defined"]}
        kept = [word for metric, word in FORGOTTEN.items() if metric not in lost]
        if not lost:
            lines.append(f"under {precision}: nothing measurable was forgotten, so nothing can come back.")
            continue
        parts = [f"{_regained(shares[metric])} of the forgotten {word}" for metric, word in lost.items()]
        if shares["recovers"]["recovers"]:
            back = "it comes back"
        elif any(shares[metric]["ci"][0] > 0 for metric in lost):
            back = "a little comes back, less than what counts as recovery"
        else:
            back = "it does not come back"
        note = f" (no measurable {kept[0]} was forgotten)" if kept else ""
        lines.append(f"under {precision} the model regains {' and '.join(parts)}{note}: {back}.")
    return lines


def _regained(share: dict[str, Any]) -> str:
    value, low, high = (round(x) + 0 if abs(x) < 1e9 else x for x in (share["value"], *share["ci"]))
    return f"{'none' if value < 0 else f'{value:.0f} %'} [{low:.0f}, {high:.0f}]"


def over_forget_sets(records: Sequence[Record]) -> list[str]:
    """What runs over nested or successive forget sets say: one line each on utility, on forgotten and on other text,
    and on what quantizing brings back.

    Args:
        records: of one corpus and scale, each of a forget set such as ``"scal_1"``.
    """
    lines = []
    for arm, kinds in by_forget_set(*records).items():
        for kind, found in kinds.items():
            runs = list(found.values())
            lines += [f"{arm}, {SETS[kind]}: {line}" for line in _growth(runs, kind)]
        last = [found[max(found)] for found in kinds.values()]
        if len(last) == 2 and last[0].extra["forget_set"]["documents"] == last[1].extra["forget_set"]["documents"]:
            lines.append(f"{arm}, all of it at once or one after another: {_difference(*last, 'successive requests')}")
    return lines


def _growth(runs: Sequence[Record], kind: str) -> Iterator[str]:
    """The lines of one arm and kind; ``runs`` in order."""
    sizes = ", ".join(str(run.extra["forget_set"]["documents"]) for run in runs)
    before = runs[0].scores["target"]["bf16"]["utility"]["value"]
    utility = ", ".join(f"{run.scores['unlearned']['bf16']['utility']['value']:.0f}" for run in runs)
    change = f" ({_difference(runs[0], runs[-1], 'the last')})" if len(runs) > 1 else ""
    yield f"after {sizes} documents, utility in bf16 is {utility} percent, the target's {before:.0f}{change}."
    for part, words in {"forgotten": "the text to be forgotten", "remaining": "the text not yet asked for"}.items():
        shown = [run.extra["parts"] for run in runs if part in run.extra["parts"]["unlearned"]["bf16"]]
        if shown:
            values = ", ".join(f"{parts['unlearned']['bf16'][part]['value']:.0f}" for parts in shown)
            known = ", ".join(f"{parts['target']['bf16'][part]['value']:.0f}" for parts in shown)
            yield f"VerbMem of {words} is {values} percent, the target's {known}."
    for precision in runs[0].extra["recovered"]:
        back = [run.config["forget_set"] for run in runs if run.extra["recovered"][precision]["recovers"]["recovers"]]
        yield f"under {precision} " + (f"it comes back after {', '.join(back)}." if back else "it never comes back.")


def _difference(first: Record, second: Record, name: str) -> str:
    """Utility of two runs in bf16 on the same questions, as a phrase."""
    scores = [run.scores["unlearned"]["bf16"]["utility"]["per_example"] for run in (first, second)]
    change, low, high = (100 * x for x in paired_difference(*scores))
    told = f"{change:+.1f} [{low:+.1f}, {high:+.1f}] points".replace("-", "−")
    if low <= 0 <= high:
        return f"no difference in utility that can be told from none, {told}"
    return f"{name} {'costs' if change < 0 else 'gives'} utility, {told}"
