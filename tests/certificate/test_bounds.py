"""Bounds against values that are known without them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qru.bounds import least_upper, lower_share, upper_mean
from qru.metrics.bootstrap import resamples


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> float:
    """Upper bound of a proportion: the p at which so few successes have probability 1 − level; by bisection."""
    low, high = successes / n, 1.0
    for _ in range(60):
        p = (low + high) / 2
        few = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(successes + 1))
        low, high = (p, high) if few > 1 - level else (low, p)
    return p


@pytest.mark.parametrize(("successes", "n"), [(0, 50), (1, 50), (5, 50), (0, 12), (40, 100), (12, 12)])
def test_of_right_or_wrong_examples_it_is_clopper_and_pearsons(successes, n):
    values = [1.0] * successes + [0.0] * (n - successes)
    expected = 1.0 if successes == n else clopper_pearson(successes, n)
    assert upper_mean(values) == pytest.approx(expected, abs=0.003), "50,000 draws"


def test_where_nothing_leaks_the_bound_is_the_rule_of_three():
    # 0.95 of samples of 50 would show at least one of 5.8 % leaking examples: 1 − 0.05^(1/50) = 0.0582
    assert least_upper(50) == pytest.approx(0.0582, abs=5e-5)
    assert upper_mean([0.0] * 50) == pytest.approx(0.0582, abs=0.002)
    plain = np.quantile(resamples(50) @ np.zeros(50) / 50, 0.95)
    assert plain == 0, "which the ordinary bootstrap says is impossible"


def test_two_examples_by_hand():
    # Values 0 and 0, and 1 beside them: the weight of the third of Dirichlet(1, 1, 1) is Beta(1, 2), whose 95 %
    # quantile solves 1 − (1 − x)^2 = 0.95: x = 1 − sqrt(0.05) = 0.7764
    assert upper_mean([0.0, 0.0]) == pytest.approx(1 - math.sqrt(0.05), abs=0.005)
    # Differences of −1: all values a further 1 lower, but for the one beside them: 2 · 0.7764 − 1
    assert upper_mean([-1.0, -1.0]) == pytest.approx(2 * (1 - math.sqrt(0.05)) - 1, abs=0.01)


def test_a_share_by_hand():
    # Of utility 1 everywhere and kept everywhere the lower bound is that of the weight of n examples: 0.05^(1/n)
    assert lower_share([1.0] * 20, [1.0] * 20) == pytest.approx(0.05 ** (1 / 20), abs=0.004)
    assert lower_share([0.0] * 20, [1.0] * 20) == 0
    half = lower_share([0.5] * 1000, [1.0] * 1000)
    assert 0.49 < half < 0.5, "many examples leave little doubt"


def test_it_covers_the_mean_of_skewed_values_of_few_examples():
    # Four in a hundred examples leak wholly, the others not at all: the plain bootstrap of 30 misses in three of ten.
    generator = np.random.default_rng(1)
    samples = (generator.random((400, 30)) < 0.04).astype(float)
    found = {tuple(sorted(sample)): upper_mean(sample) for sample in {tuple(sorted(s)) for s in samples}}
    covered = np.mean([found[tuple(sorted(sample))] >= 0.04 for sample in samples])
    assert covered >= 0.95


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: upper_mean([]), "at least one number"),
        (lambda: upper_mean([0.0, math.nan]), "nan"),
        (lambda: upper_mean([1.5]), "more than the 1.0"),
        (lambda: lower_share([1.0], [1.0, 1.0]), "there are 1 and 2"),
        (lambda: lower_share([1.0, 2.0], [1.0, 1.0]), r"must lie in \[0, 1\]"),
        (lambda: lower_share([1.0], [0.0]), "there is no share"),
    ],
)
def test_what_has_no_bound_is_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call()
