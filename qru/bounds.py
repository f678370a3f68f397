"""One-sided bounds of a mean over few examples, for claims that must not be wrong more often than they say.

The ordinary percentile bootstrap fails where it matters most: if none of 50 examples leaks, every resample is zero and
so is its bound, though one example in twenty may leak and such a sample still come up. Here the Bayesian bootstrap
draws the weights, Dirichlet over the examples *and one more, which has the worst possible value*. That is Gaffke's
bound (2005), found again by Learned-Miller and Thomas (arXiv 1905.06208), who conjecture that it holds for every n and
every bounded distribution; for right-or-wrong examples it is Clopper and Pearson's, which is proven.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from qru.metrics.bootstrap import as_scores

LEVEL = 0.95
DRAWS, SEED = 50_000, 0


@functools.lru_cache(maxsize=4)
def _weights(n: int) -> np.ndarray:
    """Dirichlet(1, …, 1) weights of n examples and one more, (DRAWS, n + 1)."""
    drawn = np.random.default_rng(SEED).standard_exponential((DRAWS, n + 1))
    return drawn / drawn.sum(1, keepdims=True)


def _at(statistics: np.ndarray, level: float) -> float:
    return float(np.quantile(statistics, level, method="inverted_cdf"))


def upper_mean(values: Sequence[float], most: float = 1.0, level: float = LEVEL) -> float:
    """Upper bound of the mean of what the values are a sample of, in their unit.

    Args:
        values: one for each example; paired differences for a difference of means.
        most: the largest value there can be.
        level: how often the bound lies above that mean, at least.

    Raises:
        ValueError: no values, one that is not finite, or one above ``most``.
    """
    found = as_scores(values, "values")
    if found.max() > most:
        raise ValueError(f"values hold {found.max()}, which is more than the {most} that there can be.")
    return _at(_weights(found.size) @ np.append(found, most), level)


def lower_share(values: Sequence[float], of: Sequence[float], level: float = LEVEL) -> float:
    """Lower bound of mean(values) / mean(of), paired; the further example has 0 in the one and 1 in the other.

    Args:
        values, of: of the same examples in the same order, each in [0, 1].

    Raises:
        ValueError: lists of different length, a value outside of [0, 1], or ``of`` is 0 throughout.
    """
    first, second = as_scores(values, "values"), as_scores(of, "of")
    if first.size != second.size:
        raise ValueError(
            f"a share needs the same examples on both sides, but there are {first.size} and {second.size}."
        )
    if min(first.min(), second.min()) < 0 or max(first.max(), second.max()) > 1:
        raise ValueError("values of a share must lie in [0, 1].")
    if not second.any():
        raise ValueError("what the share is of is 0 in every example, so there is no share.")
    weights = _weights(first.size)
    return _at(weights @ np.append(first, 0.0) / (weights @ np.append(second, 1.0)), 1 - level)


def least_upper(n: int, level: float = LEVEL) -> float:
    """The bound of ``upper_mean`` where all of n values are 0 and could have been 1: 1 − (1 − level)^(1/n)."""
    return 1 - (1 - level) ** (1 / n)
