"""The methods' losses: values worked out by hand, and the formulas once more in float64 from the definitions."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp

from qru.objectives import Said, Settings, forget_terms, methods, parse_method, retain_terms


def said(log_probs, mask, distribution=None, hidden=None, preferred=None):
    as_tensor = lambda x: None if x is None else torch.tensor(x, dtype=torch.float32)  # noqa: E731
    known = {"distribution": as_tensor(distribution), "hidden": as_tensor(hidden), "preferred": preferred}
    return Said(as_tensor(log_probs), torch.tensor(mask), **known)


def test_ga_is_the_mean_log_probability_by_hand():
    # Tokens of probability 1/2, 1/4 and 1/8; the fourth is padding and must not count.
    policy = said([[math.log(0.5), math.log(0.25)], [math.log(0.125), 123.0]], [[True, True], [True, False]])
    assert forget_terms["ga"](policy, None, Settings(0.1)).item() == pytest.approx(-2 * math.log(2), rel=1e-6)


def test_npo_by_hand():
    # Document 1: log-ratio 0 -> log σ(0) = −log 2. Document 2: sum of log-ratios = −10, β = 0.1 -> log σ(1).
    policy = said([[-1.0, -2.0], [-6.0, -7.0]], [[True, True], [True, True]])
    reference = said([[-1.0, -2.0], [-1.0, -2.0]], [[True, True], [True, True]])
    expected = -(2 / 0.1) * (-math.log(2) - math.log1p(math.exp(-1))) / 2
    assert forget_terms["npo"](policy, reference, Settings(0.1)).item() == pytest.approx(expected, rel=1e-6)


def test_npo_sums_over_tokens_and_ignores_padding():
    policy = said([[-3.0, -3.0, 55.0]], [[True, True, False]])
    reference = said([[-1.0, -1.0, -99.0]], [[True, True, False]])
    expected = 2 / 0.1 * math.log1p(math.exp(0.1 * -4.0))
    assert forget_terms["npo"](policy, reference, Settings(0.1)).item() == pytest.approx(expected, rel=1e-6)


def test_npo_tends_to_ga_as_beta_vanishes():
    """(2/β) log 2 + E log-ratio is the expansion at β → 0: up to a constant, gradient ascent on documents."""
    policy = said([[-3.0, -4.0], [-1.0, -1.5]], [[True, True], [True, True]])
    reference = said([[-1.0, -1.0], [-1.0, -1.0]], [[True, True], [True, True]])
    beta = 1e-3
    ratio_mean = ((-7.0 + 2.0) + (-2.5 + 2.0)) / 2
    assert forget_terms["npo"](policy, reference, Settings(beta)).item() - 2 / beta * math.log(2) == pytest.approx(
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


def test_simnpo_by_hand():
    # Means a token: −1 and −3 (the padded token must not count); β = 2, γ = 0.5 -> log σ(2 − 0.5), log σ(6 − 0.5).
    policy = said([[-0.5, -1.5], [-3.0, 77.0]], [[True, True], [True, False]])
    expected = (2 / 2) * (math.log1p(math.exp(-1.5)) + math.log1p(math.exp(-5.5))) / 2
    assert forget_terms["simnpo"](policy, None, Settings(2.0, 0.5)).item() == pytest.approx(expected, rel=1e-6)


def test_simnpo_does_not_depend_on_the_length_of_a_document():
    short, long = (said([[-1.25] * n], [[True] * n]) for n in (2, 40))
    values = [forget_terms["simnpo"](policy, None, Settings(2.5)).item() for policy in (short, long)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_rmu_by_hand():
    # To (3, 4): from (3, 2) it is 4/2, from (0, 4) 9/2, and the third is padding. Document 2: (3, 4) itself, 0.
    # Mean of the documents' means: (2 + 4.5)/2 and 0.
    hidden = [[[3.0, 2.0], [0.0, 4.0], [99.0, 99.0]], [[3.0, 4.0], [88.0, 88.0], [77.0, 77.0]]]
    policy = said([[0.0] * 3] * 2, [[True, True, False], [True, False, False]], hidden=hidden)
    settings = Settings(control=torch.tensor([3.0, 4.0]))
    assert forget_terms["rmu"](policy, None, settings).item() == pytest.approx(3.25 / 2, rel=1e-6)


def test_actr_by_hand():
    # Distances squared over the width: (1 + 9)/2 and 0 in document 1; 8/2 in document 2, whose second token is padding.
    mask = [[True, True], [True, False]]
    policy = said([[0.0] * 2] * 2, mask, hidden=[[[1.0, 3.0], [5.0, 5.0]], [[2.0, 2.0], [9.0, 9.0]]])
    reference = said([[0.0] * 2] * 2, mask, hidden=[[[0.0, 0.0], [5.0, 5.0]], [[0.0, 0.0], [1.0, 1.0]]])
    assert retain_terms["actr"](policy, reference).item() == pytest.approx((2.5 + 4.0) / 2, rel=1e-6)


@pytest.mark.parametrize("name", ["dpo", "idkdpo"])
def test_dpo_by_hand(name):
    """The opening and padding are masked; log-ratios are sums over the answers, the preferred with a T of its own."""
    # Document 1: rejected −4, preferred +2 -> margin 6. Document 2: rejected 0, preferred −1 -> margin −1. β = 0.5.
    mask, short = [[False, True, True], [False, True, False]], [[False, True], [False, True]]
    policy = said([[9.0, -3.0, -3.0], [9.0, -1.0, 9.0]], mask, preferred=said([[8.0, -1.0], [8.0, -4.0]], short))
    reference = said([[0.0, -1.0, -1.0], [0.0, -1.0, 0.0]], mask, preferred=said([[0.0, -3.0], [0.0, -3.0]], short))
    expected = (2 / 0.5) * (math.log1p(math.exp(-3.0)) + math.log1p(math.exp(0.5))) / 2
    assert forget_terms[name](policy, reference, Settings(0.5)).item() == pytest.approx(expected, rel=1e-6)


def test_dpo_without_a_change_in_the_preferred_text_is_npo():
    log_probs, mask = [[-3.0, -4.0], [-1.0, -1.5]], [[True, True], [True, True]]
    same = said([[-2.0], [-5.0]], [[True], [True]])
    policy = said(log_probs, mask, preferred=same)
    reference = said([[-1.0, -1.0], [-1.0, -1.0]], mask, preferred=same)
    values = [forget_terms[name](policy, reference, Settings(0.1)).item() for name in ("dpo", "npo")]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_dpo_raises_what_it_prefers():
    log_probs, other = (torch.full((2, 4), -0.1, requires_grad=True) for _ in range(2))
    mask = torch.ones(2, 4, dtype=torch.bool)
    now = Said(log_probs, mask, preferred=Said(other, mask))
    before = Said(log_probs.detach(), mask, preferred=Said(other.detach(), mask))
    forget_terms["idkdpo"](now, before, Settings(0.1)).backward()
    assert (log_probs.grad > 0).all()
    assert (other.grad < 0).all()


def test_the_task_vector_learns_the_documents_first():
    policy = said([[math.log(0.5), math.log(0.25)]], [[True, True]])
    assert forget_terms["taskvector"](policy, None, Settings()).item() == pytest.approx(1.5 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_terms_against_float64_from_logits(seed):
    """From raw logits, everything once more in numpy float64: guards against losses computed on raw logits."""
    rng = np.random.default_rng(seed)
    batch, tokens, vocabulary = 3, 7, 11
    now, before = 3 * rng.normal(size=(2, batch, tokens, vocabulary))
    labels = rng.integers(vocabulary, size=(batch, tokens))
    mask = rng.random((batch, tokens)) < 0.8
    mask[:, 0] = True
    beta, gamma, width = 0.3, 0.7, 4
    states, states_before = rng.normal(size=(2, batch, tokens, width))
    point = rng.normal(size=width)
    other, other_before = rng.normal(size=(2, batch, 5))
    lengths = mask.sum(-1)

    def squares(difference):
        return np.mean([(difference[i][mask[i]] ** 2).mean() for i in range(batch)])

    p, q = log_softmax(now, -1), log_softmax(before, -1)
    chosen = np.take_along_axis(p, labels[..., None], -1)[..., 0]
    chosen_before = np.take_along_axis(q, labels[..., None], -1)[..., 0]
    ratio = ((chosen - chosen_before) * mask).sum(-1)
    margin = (other - other_before).sum(-1) - ratio
    preference = (2 / beta) * np.log1p(np.exp(-beta * margin)).mean()
    expected = {
        "simnpo": (2 / beta) * np.log1p(np.exp(beta * (chosen * mask).sum(-1) / lengths + gamma)).mean(),
        "rmu": squares(states - point),
        "actr": squares(states - states_before),
        "dpo": preference,
        "idkdpo": preference,
        "taskvector": -chosen[mask].mean(),
        "ga": chosen[mask].mean(),
        "npo": (2 / beta) * logsumexp(np.stack([np.zeros(batch), beta * ratio]), axis=0).mean(),
        "gdr": -chosen[mask].mean(),
        "klr": (np.exp(q) * (q - p)).sum(-1)[mask].mean(),
    }
    settings = Settings(beta, gamma, torch.tensor(point, dtype=torch.float32))
    whole = np.ones((batch, 5), dtype=bool).tolist()
    policy = said(chosen, mask.tolist(), p, states, said(other, whole))
    reference = said(chosen_before, mask.tolist(), q, states_before, said(other_before, whole))
    for name in forget_terms.names():
        assert forget_terms[name](policy, reference, settings).item() == pytest.approx(expected[name], rel=1e-5)
    for name in retain_terms.names():
        assert retain_terms[name](policy, reference).item() == pytest.approx(expected[name], rel=1e-5)


@pytest.mark.parametrize("term", [name for name in forget_terms.names() if not forget_terms[name].hidden])
def test_forget_terms_push_the_likelihood_down(term):
    log_probs = torch.full((2, 4), -0.1, requires_grad=True)
    mask = torch.ones(2, 4, dtype=torch.bool)
    other = Said(log_probs.detach(), mask)
    policy, reference = (Said(values, mask, preferred=other) for values in (log_probs, log_probs.detach()))
    forget_terms[term](policy, reference, Settings(0.1)).backward()
    # Minimising lowers the log-probability of every forget token; of a vector that is taken away at the end, raises it.
    assert ((-log_probs.grad if forget_terms[term].negated else log_probs.grad) > 0).all()


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
