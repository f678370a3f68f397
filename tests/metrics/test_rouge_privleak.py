"""ROUGE-L, Min-K and PrivLeak against numbers worked out by hand and against MUSE's published ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from qru.metrics import auc, min_k_score, privleak, privleak_ci, rouge_l

GOLDEN = json.loads((Path(__file__).parent / "golden_muse_news_min40.json").read_text())


@pytest.mark.parametrize(
    ("truth", "response", "f1"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1.0),
        ("The CAT, sat-on the mat!", "the cat sat on the mat", 1.0),  # case and punctuation do not count
        ("a b c d", "a c d", 2 * 1.0 * 0.75 / 1.75),  # precision 3/3, recall 3/4
        ("a b c d", "d c b a", 0.25),  # one word in order
        ("a b", "a b a b", 2 * 0.5 * 1.0 / 1.5),  # precision 2/4, recall 2/2
        ("running", "run", 0.0),  # no stemmer: with one this would be 1
        ("one two", "three", 0.0),
        ("one", "", 0.0),
        ("", "one", 0.0),
        ("", "", 0.0),
        ("!?", "!?", 0.0),  # no words at all
    ],
)
def test_rouge_by_hand(truth, response, f1):
    assert rouge_l(truth, response) == pytest.approx(f1, abs=1e-12)


def test_min_k_by_hand():
    log_probs = [-0.1, -5.0, -0.2, -3.0, -1.0]
    assert min_k_score(log_probs) == pytest.approx(4.0)  # int(0.4 · 5) = 2: −5 and −3
    assert min_k_score(log_probs, k=1.0) == pytest.approx(9.3 / 5)
    assert min_k_score(log_probs, k=0.2) == pytest.approx(5.0)
    assert min_k_score([-1.0, -2.0, -4.0, -3.0]) == pytest.approx(4.0)  # int(1.6) = 1, cut and not rounded
    assert min_k_score(torch.tensor(log_probs)) == pytest.approx(4.0)
    assert min_k_score([0.0, 0.0, -0.0]) == 0.0


@given(st.lists(st.floats(-50, 0), min_size=3, max_size=60), st.floats(0.34, 1))
def test_min_k_is_a_sort(log_probs, k):
    assert min_k_score(log_probs, k) == pytest.approx(-np.mean(np.sort(log_probs)[: int(len(log_probs) * k)]))


@pytest.mark.parametrize(
    ("log_probs", "k", "message"),
    [
        ([-1.0, -2.0], 0.4, r"2 tokens is too short.*at least 3"),
        ([], 0.4, "0 tokens is too short"),
        ([-1.0] * 9, 0.1, "at least 10"),
        ([-1.0] * 9, 0.0, r"in \(0, 1\], not 0.0"),
        ([-1.0] * 9, 1.5, r"in \(0, 1\], not 1.5"),
        ([-1.0, float("nan"), -1.0], 0.4, "nan at 1"),
        ([-1.0, float("-inf"), -1.0], 0.4, "-inf at 1"),
        ([-1.0, 2.0, -1.0], 0.4, "at most 0"),
        ([[-1.0, -2.0], [-1.0, -2.0]], 0.4, "flat list"),
    ],
)
def test_min_k_refuses(log_probs, k, message):
    with pytest.raises(ValueError, match=message):
        min_k_score(log_probs, k)


def test_privleak_by_hand():
    # AUC: 2 > 1 counts, 2 = 2 counts half, 0 counts nothing: 1.5 of 4; reference 2 of 4.
    assert auc([2.0, 0.0], [1.0, 2.0]) == pytest.approx(1.5 / 4)
    assert privleak([2.0, 0.0], [1.0, 2.0], [3.0, 0.0], [1.0, 2.0]) == pytest.approx(100 * (1.5 - 2) / 2)
    assert privleak([0.0], [1.0], [2.0, 0.0], [1.0]) == pytest.approx(-100)  # memorised
    assert privleak([2.0], [1.0], [2.0, 0.0], [1.0]) == pytest.approx(100)  # forgotten beyond what was never seen


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=20), st.lists(st.integers(0, 6), min_size=1, max_size=20)
)  # fmt: skip
def test_auc_is_scikit_learns(forget, holdout):
    labels = [1] * len(forget) + [0] * len(holdout)
    assert auc(forget, holdout) == pytest.approx(roc_auc_score(labels, forget + holdout))


@pytest.mark.parametrize("model", sorted(GOLDEN["scores"]))
def test_published_privleak_of_muse_news(model):
    """The published numbers are rounded to 0.1, so ours must agree to half of that."""
    scores, reference = GOLDEN["scores"][model], GOLDEN["scores"]["retrain"]
    ours = privleak(scores["forget"], scores["holdout"], reference["forget"], reference["holdout"])
    assert ours == pytest.approx(GOLDEN["published_privleak"][model], abs=0.05)


def test_published_reference_auc_of_muse_news():
    reference = GOLDEN["scores"]["retrain"]
    assert auc(reference["forget"], reference["holdout"]) == pytest.approx(0.4772, abs=5e-5)


def test_interval_holds_the_value_and_is_as_wide_as_known():
    """At 100 texts a side the noise of PrivLeak is about 15 points each way."""
    reference, npo = GOLDEN["scores"]["retrain"], GOLDEN["scores"]["npo"]
    lists = (npo["forget"], npo["holdout"], reference["forget"], reference["holdout"])
    low, high = privleak_ci(*lists)
    assert low < privleak(*lists) < high
    assert 10 < high - low < 60
    assert privleak_ci(*lists) == (low, high)  # seeded
    own = (reference["forget"], reference["holdout"])
    assert privleak_ci(*own, *own) == (0.0, 0.0)


def test_interval_on_one_text_a_side():
    assert privleak_ci([1.0], [1.0], [1.0], [1.0]) == (0.0, 0.0)


@pytest.mark.parametrize("function", [privleak, privleak_ci])
def test_privleak_refuses(function):
    with pytest.raises(ValueError, match="retrained=MODEL"):
        function([1.0], [1.0], None, None)
    with pytest.raises(ValueError, match="retrained=MODEL"):
        function([1.0], [1.0], [1.0], None)
    with pytest.raises(ValueError, match="forget of the model"):
        function([], [1.0], [1.0], [1.0])
    with pytest.raises(ValueError, match="holdout of the retrained model"):
        function([1.0], [1.0], [1.0], [])
    with pytest.raises(ValueError, match="nan at 1"):
        function([1.0, float("nan")], [1.0], [1.0, 1.0], [1.0])
    with pytest.raises(ValueError, match="AUC is 0"):
        function([1.0], [2.0], [1.0], [2.0])


def test_interval_needs_the_same_texts():
    with pytest.raises(ValueError, match="1 forget and 2 holdout"):
        privleak_ci([1.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0])
