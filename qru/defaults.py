"""Hyperparameters per scale, method and arm, and the rule they were chosen by."""

from __future__ import annotations

from dataclasses import replace

from qru.config import RunConfig
from qru.objectives import parse_method

# (method, adapter, weights) -> learning_rate, epochs, retain_weight; chosen by the rule in qru/choose.py.
MINI: dict[tuple[str, str, str], tuple[float, int, float]] = {
    ("ga", "full", "bf16"): (5e-05, 4, 5.0),
    ("ga", "full", "fp32"): (2.5e-05, 4, 5.0),
    ("ga", "lora", "fp32"): (0.00025, 2, 5.0),
    ("ga_gdr", "full", "bf16"): (0.0001, 4, 5.0),
    ("ga_gdr", "full", "fp32"): (5e-05, 4, 5.0),
    ("ga_gdr", "lora", "fp32"): (0.00025, 4, 5.0),
    ("ga_klr", "full", "bf16"): (0.0001, 2, 5.0),
    ("ga_klr", "full", "fp32"): (2.5e-05, 4, 5.0),
    ("ga_klr", "lora", "fp32"): (0.00025, 2, 5.0),
    ("npo", "full", "bf16"): (0.0001, 2, 1.0),
    ("npo", "full", "fp32"): (2.5e-05, 4, 1.0),
    ("npo", "lora", "fp32"): (0.00025, 2, 1.0),
    ("npo_gdr", "full", "bf16"): (0.0002, 1, 1.0),
    ("npo_gdr", "full", "fp32"): (5e-05, 2, 1.0),
    ("npo_gdr", "lora", "fp32"): (0.00025, 2, 1.0),
    ("npo_klr", "full", "bf16"): (0.0001, 2, 1.0),
    ("npo_klr", "full", "fp32"): (5e-05, 2, 1.0),
    ("npo_klr", "lora", "fp32"): (0.00025, 2, 1.0),
}

SMOKE = (1e-4, 1, 1.0)
BATCH_SIZE = {"smoke": 4, "mini": 4}


def resolve(config: RunConfig) -> RunConfig:
    """Fill every field that was left at ``None`` with the default of the method and arm.

    Returns:
        A config that says everything a run depends on; only ``forget_goal`` may still be ``None``.
    """
    parse_method(config.method)
    weights = config.weights or ("bf16" if config.adapter == "full" else "fp32")
    # bf16 adapters take what was chosen for fp32 ones: a comparison of the two is one of precision alone.
    cell = config.method, config.adapter, "fp32" if config.adapter == "lora" else weights
    given = config.learning_rate, config.epochs, config.retain_weight
    if config.scale == "smoke":  # nothing is learned there; any method runs, also one that was added just now
        given = tuple(a if b is None else b for a, b in zip(SMOKE, given, strict=True))
    if config.scale == "mini" and cell not in MINI and None in given:
        raise ValueError(
            f"no defaults have been chosen for {' '.join(cell)}: give learning_rate, epochs and retain_weight, "
            f"or run python -m qru.choose {config.method} and put its line into qru/defaults.py."
        )
    rate, epochs, weight = MINI.get(cell, given) if config.scale == "mini" else given
    return replace(
        config,
        weights=weights,
        learning_rate=config.learning_rate or rate,
        epochs=config.epochs or epochs,
        retain_weight=weight if config.retain_weight is None else config.retain_weight,
        batch_size=config.batch_size or BATCH_SIZE[config.scale],
    )
