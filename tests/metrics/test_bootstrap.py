"""Intervals: the coverage they promise, pairing, and when a share or a recovery is not defined."""

import numpy as np
import pytest

from qru.metrics import mean_ci, paired_difference, privleak_ci, recovered_share, recovers
from qru.metrics.bootstrap import resamples


def test_resamples_draw_n_of_n():
    counts = resamples(7, n_boot=500)
    assert counts.shape == (500, 7)
    assert (counts.sum(1) == 7).all()
    assert counts.mean() == pytest.approx(1)
    assert (resamples(7, 500) == counts).all()
    assert not (resamples(7, 500, seed=1) == counts).all()


def test_mean_ci_by_hand():
    assert mean_ci([0.5]) == (0.5, 0.5, 0.5)
    assert mean_ci([1.0] * 20) == (1.0, 1.0, 1.0)
    mean, low, high = mean_ci([0.0, 1.0] * 50)
    assert mean == 0.5
    assert high - low == pytest.approx(2 * 1.96 * 0.05, abs=0.025)


def test_mean_ci_covers_as_often_as_it_says():
    """95 % of intervals hold the true mean, give or take the noise of 400 trials."""
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        _, low, high = mean_ci(generator.beta(0.5, 1.0, size=100), n_boot=400)
        held += low <= 1 / 3 <= high
    assert 0.91 <= held / 400 <= 0.98


def test_share_and_privleak_cover_as_often_as_they_say():
    generator = np.random.default_rng(2)
    shares, leaks = 0, 0
    for _ in range(200):
        bf16 = generator.beta(1, 4, 60)
        gap = generator.beta(4, 2, 60) * (1 - bf16)  # what the target has more; 2/3 · 4/5 on average
        quantized = bf16 + 0.5 * gap + generator.normal(0, 0.1, 60)
        low, high = recovered_share(bf16, quantized, bf16 + gap, n_boot=400)["ci"]
        shares += low <= 50 <= high
        texts = generator.normal(0, 1, (2, 60))  # how odd each text is, to the judged and the retrained model alike
        judged, retrained = (texts + generator.normal(0, 0.5, (2, 60)) for _ in range(2))
        low, high = privleak_ci(*judged, *retrained, n_boot=400)
        leaks += low <= 0 <= high
    assert 0.88 <= shares / 200 <= 0.99
    assert 0.88 <= leaks / 200 <= 0.99


def test_paired_difference_uses_the_pairs():
    generator = np.random.default_rng(0)
    before = generator.random(100)
    after = before + 0.02 + 0.01 * generator.random(100)
    difference, low, high = paired_difference(before, after)
    assert 0.02 < low <= difference <= high < 0.03
    shuffled = paired_difference(before, generator.permutation(after))
    assert shuffled[0] == pytest.approx(difference)
    assert shuffled[1] < 0 < shuffled[2]  # without the pairs the same difference is lost in noise


def test_recovered_share_by_hand():
    bf16, target = np.full(50, 0.1), np.full(50, 0.9)
    share = recovered_share(bf16, np.full(50, 0.5), target)
    assert share["value"] == pytest.approx(50)
    assert share["ci"] == pytest.approx((50, 50))
    assert share["defined"]
    assert share["reason"] is None
    assert recovered_share(bf16, bf16, target)["value"] == 0
    assert recovered_share(bf16, target, target)["value"] == pytest.approx(100)
    assert recovered_share(bf16, np.zeros(50), target)["value"] == pytest.approx(-12.5)  # it forgot even more


def test_recovered_share_interval_holds_the_value():
    generator = np.random.default_rng(0)
    bf16 = generator.uniform(0, 0.4, 100)
    target = generator.uniform(0.6, 1.0, 100)
    quantized = bf16 + 0.62 * (target - bf16) + generator.normal(0, 0.1, 100)
    share = recovered_share(bf16, quantized, target)
    low, high = share["ci"]
    assert low < share["value"] < high
    assert share["value"] == pytest.approx(62, abs=5)
    assert 1 < high - low < 15


@pytest.mark.parametrize(("target", "words"), [(0.5, "cannot be told from"), (0.2, "is below")])
def test_recovered_share_is_undefined_when_nothing_was_forgotten(target, words):
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.05, 100)
    share = recovered_share(np.full(100, 0.5), np.full(100, 0.7), target + noise)
    assert share["value"] is None
    assert share["ci"] is None
    assert not share["defined"]
    assert words in share["reason"]


def test_recovered_share_near_the_edge_of_definition_stays_finite():
    generator = np.random.default_rng(3)
    bf16 = generator.random(100)
    for gap in np.linspace(0.02, 0.2, 10):
        target = bf16 + gap + generator.normal(0, 0.6, 100)
        share = recovered_share(bf16, bf16 + 0.05, target)
        if share["defined"]:
            assert np.isfinite(share["ci"]).all()


def test_recovery_rule():
    flat = [0.2] * 30
    ten, five, less = [0.3] * 30, [0.25] * 30, [0.249] * 30
    assert recovers({"verbmem": flat, "knowmem": flat}, {"verbmem": ten, "knowmem": flat})["recovers"]
    assert recovers({"verbmem": flat, "knowmem": flat}, {"verbmem": five, "knowmem": five})["recovers"]
    found = recovers({"verbmem": flat, "knowmem": flat}, {"verbmem": five, "knowmem": less})
    assert not found["recovers"]
    assert found["metrics"]["verbmem"]["rise"] == pytest.approx(5)
    assert found["metrics"]["verbmem"]["threshold"] == 10
    # A rise of 20 points that one example of eight carries alone is not above noise.
    lucky = {"verbmem": [0.0] * 5}, {"verbmem": [1.0] + [0.0] * 4}
    assert recovers(*lucky)["metrics"]["verbmem"]["rise"] == pytest.approx(20)
    assert not recovers(*lucky)["recovers"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_ci([]), "at least one"),
        (lambda: mean_ci([[0.1]]), "flat list"),
        (lambda: mean_ci([0.1, float("nan")]), "nan at 1"),
        (lambda: paired_difference([0.1, 0.2], [0.1]), "a 2, b 1"),
        (lambda: recovered_share([0.1], [0.1], [0.1, 0.2]), "target_quantized 2"),
        (lambda: recovers({"verbmem": [0.1]}, {"knowmem": [0.1]}), "same metrics"),
        (lambda: recovers({"utility": [0.1]}, {"utility": [0.1]}), "same metrics"),
        (lambda: recovers({}, {}), "same metrics"),
    ],
)
def test_bad_lists_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
