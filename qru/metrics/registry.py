"""Where metrics are filed: one decorated function ``f(model, tokenizer, corpus, context) -> Score`` per metric."""

from __future__ import annotations

from collections.abc import Callable

from qru.metrics.score import Better
from qru.registry import Registry

registry = Registry("metric", "qru.metrics")


def metric(name: str, better: Better, scores: Callable[[object], int]) -> Callable[[Callable], Callable]:
    """File a metric under a name, with its direction: the one place where a direction is written down.

    Args:
        name: what ``evaluate`` and records call it.
        better: which way is better for an unlearned model.
        scores: corpus -> how many examples the metric has there; 0 where the corpus has none.
    """

    def keep(function: Callable) -> Callable:
        function.better = better
        function.scores = scores
        return registry.register(name)(function)

    return keep


def direction(name: str) -> Better:
    """Which way a metric is better: "lower", "higher" or "towards zero".

    Raises:
        ValueError: no metric has that name.
    """
    return registry[name].better
