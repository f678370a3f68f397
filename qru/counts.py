"""What is made of the counts of single layers: their sum, and how much of an update survives."""

from __future__ import annotations

import math


def survival(stats: dict) -> dict[str, float | None]:
    """How much of the update ΔW is left in δ = Q(W0+ΔW) − Q(W0).

    Returns:
        ``projection`` = Σδ·ΔW / Σ ΔW² and ``cosine`` = Σδ·ΔW / √(Σδ² ΣΔW²); ``None`` where a norm is zero.
    """
    dw2, q_dw, q2 = stats["sum_dw2"], stats["sum_q_dw"], stats["sum_q2"]
    return {
        "projection": q_dw / dw2 if dw2 > 0 else None,
        "cosine": q_dw / math.sqrt(dw2 * q2) if dw2 > 0 and q2 > 0 else None,
    }


def total(counts: dict[str, dict]) -> dict:
    """Counts of all layers together; the histogram bin by bin."""
    rows = list(counts.values())
    summed = {}
    for key in rows[0]:
        if key in ("projection", "cosine"):
            continue
        values = [row[key] for row in rows]
        if isinstance(values[0], list):
            width = max(map(len, values))
            summed[key] = [sum(v[i] if i < len(v) else 0 for v in values) for i in range(width)]
        else:
            summed[key] = sum(values)
    return summed | survival(summed)
