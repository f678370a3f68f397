"""Hyperparameters per scale, method and arm, and the rule they were chosen by."""

from __future__ import annotations

from dataclasses import replace

from qru.config import RunConfig
from qru.objectives import parse_method

# (method, adapter, weights) -> learning_rate, epochs, retain_weight
MINI: dict[tuple[str, str, str], tuple[float, int, float]] = {}

BATCH_SIZE = {"smoke": 4, "mini": 4, "muse": 16}


def resolve(config: RunConfig) -> RunConfig:
    """Fill every field that was left at ``None`` with the default of the method and arm.

    Returns:
        A config that says everything a run depends on; only ``forget_goal`` may still be ``None``.
    """
    parse_method(config.method)
    weights = config.weights or ("bf16" if config.adapter == "full" else "fp32")
    rate, epochs, weight = MINI.get((config.method, config.adapter, weights), (1e-4, 5, 1.0))
    return replace(
        config,
        weights=weights,
        learning_rate=config.learning_rate or rate,
        epochs=config.epochs or (1 if config.scale == "smoke" else epochs),
        retain_weight=weight if config.retain_weight is None else config.retain_weight,
        batch_size=config.batch_size or BATCH_SIZE[config.scale],
    )
