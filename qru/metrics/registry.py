"""Where metrics are filed: one decorated function ``f(model, tokenizer, corpus, context) -> Score`` per metric."""

from __future__ import annotations

from collections.abc import Callable

from qru.metrics.score import Better
from qru.registry import Registry

registry = Registry("metric", "qru.metrics")


def metric(
    name: str, better: Better, sets: Callable[[object, object], dict[str, list]], check: Callable | None = None
) -> Callable[[Callable], Callable]:
    """File a metric under a name, with its direction: the one place where a direction is written down.

    Args:
        name: what ``evaluate`` and records call it.
        better: which way is better for an unlearned model.
        sets: (corpus, options) -> what is scored there, by the name it has in messages; of the first set ``examples``
            choose positions, the others are always whole.
        check: ``check(model, tokenizer, corpus, context)`` raises a ValueError for what would stop the metric half way;
            called before any work, when no set is empty.
    """

    def keep(function: Callable) -> Callable:
        function.better = better
        function.sets = sets
        function.check = check
        return registry.register(name)(function)

    return keep


def direction(name: str) -> Better:
    """Which way a metric is better: "lower", "higher", "towards zero" or "towards retrained" (that model's value).

    Raises:
        ValueError: no metric has that name.
    """
    return registry[name].better
