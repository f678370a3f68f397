"""The six methods' losses: values worked out by hand, and the formulas once more in float64 from the definitions."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp

from qru.objectives import Said, forget_terms, methods, parse_method, retain_terms


def said(log_probs, mask, distribution=None):
    as_tensor = lambda x: None if x is None else torch.tensor(x, dtype=torch.float32)  # noqa: E731
    return Said(as_tensor(log_probs), torch.tensor(mask), as_tensor(distribution))


def test_ga_is_the_mean_log_probability_by_hand():
    # Tokens of probability 1/2, 1/4 and 1/8; the fourth is padding and must not count.
    policy = said([[math.log(0.5), math.log(0.25)], [math.log(0.125), 123.0]], [[True, True], [True, False]])
    assert forget_terms["ga"](policy, None, 0.1).item() == pytest.approx(-2 * math.log(2), rel=1e-6)


def test_npo_by_hand():
    # Document 1: log-ratio 0 -> log σ(0) = −log 2. Document 2: sum of log-ratios = −10, β = 0.1 -> log σ(1).
    policy = said([[-1.0, -2.0], [-6.0, -7.0]], [[True, True], [True, True]])
    reference = said([[-1.0, -2.0], [-1.0, -2.0]], [[True, True], [True, True]])
    expected = -(2 / 0.1) * (-math.log(2) - math.log1p(math.exp(-1))) / 2
    assert forget_terms["npo"](policy, reference, 0.1).item() == pytest.approx(expected, rel=1e-6)


def test_npo_sums_over_tokens_and_ignores_padding():
    policy = said([[-3.0, -3.0, 55.0]], [[True, True, False]])
    reference = said([[-1.0, -1.0, -99.0]], [[True, True, False]])
    expected = 2 / 0.1 * math.log1p(math.exp(0.1 * -4.0))
    assert forget_terms["npo"](policy, reference, 0.1).item() == pytest.approx(expected, rel=1e-6)


def test_npo_tends_to_ga_as_beta_vanishes():
    """(2/β) log 2 + E log-ratio is the expansion at β → 0: up to a constant, gradient ascent on documents."""
    policy = said([[-3.0, -4.0], [-1.0, -1.5]], [[True, True], [True, True]])
    reference = said([[-1.0, -1.0], [-1.0, -1.0]], [[True, True], [True, True]])
    beta = 1e-3
    ratio_mean = ((-7.0 + 2.0) + (-2.5 + 2.0)) / 2
    assert forget_terms["npo"](policy, reference, beta).item() - 2 / beta * math.log(2) == pytest.approx(
        ratio_mean, abs=0.01
    )


def test_gdr_by_hand():
    policy = said([[math.log(0.5), math.log(0.25)]], [[True, True]])
    assert retain_terms["gdr"](policy, None).item() == pytest.approx(1.5 * math.log(2), rel=1e-6)


def test_klr_by_hand():
    # KL((1/2, 1/2) ‖ (1/4, 3/4)) = ½ log 2 + ½ log(2/3); the second token is padding with a wild distribution.
    reference = said([[0.0, 0.0]], [[True, False]], np.log([[[0.5, 0.5], [0.9, 0.1]]]))
    policy = said([[0.0, 0.0]], [[True, False]], np.log([[[0.25, 0.75], [0.001, 0.999]]]))
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert retain_terms["klr"](policy, reference).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_terms_against_float64_from_logits(seed):
    """From raw logits, everything once more in numpy float64: guards against losses computed on raw logits."""
    rng = np.random.default_rng(seed)
    batch, tokens, vocabulary = 3, 7, 11
    now, before = 3 * rng.normal(size=(2, batch, tokens, vocabulary))
    labels = rng.integers(vocabulary, size=(batch, tokens))
    mask = rng.random((batch, tokens)) < 0.8
    mask[:, 0] = True
    beta = 0.3

    p, q = log_softmax(now, -1), log_softmax(before, -1)
    chosen = np.take_along_axis(p, labels[..., None], -1)[..., 0]
    chosen_before = np.take_along_axis(q, labels[..., None], -1)[..., 0]
    ratio = ((chosen - chosen_before) * mask).sum(-1)
    expected = {
        "ga": chosen[mask].mean(),
        "npo": (2 / beta) * logsumexp(np.stack([np.zeros(batch), beta * ratio]), axis=0).mean(),
        "gdr": -chosen[mask].mean(),
        "klr": (np.exp(q) * (q - p)).sum(-1)[mask].mean(),
    }
    policy = said(chosen, mask.tolist(), p)
    reference = said(chosen_before, mask.tolist(), q)
    for name in forget_terms.names():
        assert forget_terms[name](policy, reference, beta).item() == pytest.approx(expected[name], rel=1e-5)
    for name in retain_terms.names():
        assert retain_terms[name](policy, reference).item() == pytest.approx(expected[name], rel=1e-5)


@pytest.mark.parametrize("term", forget_terms.names())
def test_forget_terms_push_the_likelihood_down(term):
    log_probs = torch.full((2, 4), -0.1, requires_grad=True)
    policy = Said(log_probs, torch.ones(2, 4, dtype=torch.bool))
    forget_terms[term](policy, Said(log_probs.detach(), policy.mask), 0.1).backward()
    assert (log_probs.grad > 0).all()  # minimising lowers the log-probability of every forget token


def test_klr_is_zero_and_flat_at_the_reference():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    log_softmax_ = logits.log_softmax(-1)
    mask = torch.ones(2, 3, dtype=torch.bool)
    loss = retain_terms["klr"](Said(mask, mask, log_softmax_), Said(mask, mask, log_softmax_.detach()))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.abs().max() < 1e-6


def test_parse_method_knows_the_papers_six():
    assert {"ga", "npo", "ga_gdr", "ga_klr", "npo_gdr", "npo_klr"} <= set(methods())
    assert parse_method("npo_gdr") == ("npo", "gdr")
    assert parse_method("ga") == ("ga", None)


@pytest.mark.parametrize("name", ["npo_gd", "gdr_npo", "", "NPO_GDR", "npo_", None])
def test_unknown_methods_name_the_known_ones(name):
    with pytest.raises(ValueError, match=r"unknown method.*npo_gdr"):
        parse_method(name)
