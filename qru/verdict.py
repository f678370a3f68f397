"""What the scores say, in words and with intervals: did the forgotten come back?"""

from __future__ import annotations

from typing import Any

from qru.metrics import recovered_share, recovers

FORGOTTEN = {"verbmem": "text", "knowmem": "knowledge"}


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
    lines = [
        f"{config['method']}, {arm}, {config['weights']} weights, in bf16 (percent): "
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
