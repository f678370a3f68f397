"""The other scores of a text: numbers worked out by hand, and what they are compared with."""

import math
import zlib

import numpy as np
import pytest
import torch

from qru.metrics import evaluate, loss_score, min_k_plus_score, retrained_scores, zlib_score
from qru.metrics.logprobs import _standardized, standardized_log_probs

KINDS = ("privleak_ppl", "privleak_zlib", "privleak_min_k++")


def test_scores_by_hand():
    log_probs = [-1.0, -2.0, -6.0]
    assert loss_score(log_probs) == pytest.approx(3.0)
    text = "abc" * 40
    assert len(zlib.compress(text.encode())) == 14  # 120 bytes of one pattern
    assert zlib_score(log_probs, text) == pytest.approx(3.0 / 14)
    assert min_k_plus_score([0.5, -1.0, -3.0, 2.0, 1.0]) == pytest.approx(2.0)  # −3 and −1
    assert min_k_plus_score([0.5, 1.5], k=0.5) == pytest.approx(-0.5)  # may be negative: likelier than expected


@pytest.mark.parametrize("function", [loss_score, lambda values: zlib_score(values, "a")])
def test_scores_refuse(function):
    for values, message in ([], "at least one"), ([0.5], "at most 0"), ([math.nan], "nan at 0"):
        with pytest.raises(ValueError, match=message):
            function(values)


def test_standardized_by_hand():
    """p = (1/2, 1/4, 1/4): μ = −1.5 ln 2, σ = ln 2 / 2, so the first token stands at +1 and the others at −1."""
    logits = torch.tensor([[[0.5, 0.25, 0.25]] * 3]).log()
    assert _standardized(logits, torch.tensor([[0, 1, 2]]))[0].tolist() == pytest.approx([1, -1, -1], abs=1e-5)
    certain = torch.tensor([[[0.0, -math.inf, -math.inf]]])
    assert _standardized(certain, torch.tensor([[0]])).tolist() == [[0.0]]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_standardized_in_batches(batch_size, trained_model, tokenizer, corpus):
    texts = corpus.privleak["holdout"][:6]
    found = standardized_log_probs(trained_model, tokenizer, texts, batch_size=batch_size)
    for text, values in zip(texts, found, strict=True):
        ids = torch.tensor([[1, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            table = torch.log_softmax(trained_model(ids).logits[0, :-1].double(), dim=-1).numpy()
        p = np.exp(table)
        mean = (p * table).sum(-1)
        deviation = np.sqrt((p * table**2).sum(-1) - mean**2)
        came = table[np.arange(len(table)), ids[0, 1:].numpy()]
        assert values.tolist() == pytest.approx((came - mean) / deviation, abs=2e-3, rel=1e-4)


def test_each_kind_is_its_own_comparison(trained_model, random_model, tokenizer, corpus):
    found = evaluate(
        trained_model, tokenizer, corpus, retrained=random_model, metrics=("privleak", *KINDS), progress=False
    )
    for name in KINDS:
        assert found[name].value == pytest.approx(-100)  # memorised: every forget text is likelier
        assert found[name].ci[1] <= 0
        assert found[name].per_example != found["privleak"].per_example
    forget = corpus.privleak["forget"][3]
    ids = torch.tensor([[1, *tokenizer(forget, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        loss = trained_model(ids, labels=ids).loss.item()
    assert found["privleak_ppl"].per_example["forget"][3] == pytest.approx(loss, abs=1e-5)
    size = len(zlib.compress(forget.encode()))
    assert found["privleak_zlib"].per_example["forget"][3] == pytest.approx(loss / size, abs=1e-7)


def test_references_by_kind(trained_model, random_model, tokenizer, corpus):
    stored = {name: retrained_scores(random_model, tokenizer, corpus, metric=name) for name in KINDS}
    settings = {"metrics": KINDS, "progress": False}
    found = evaluate(trained_model, tokenizer, corpus, retrained=stored, **settings)
    assert found == evaluate(trained_model, tokenizer, corpus, retrained=random_model, **settings)
    one = evaluate(trained_model, tokenizer, corpus, retrained=stored[KINDS[0]], metrics=KINDS[0], progress=False)
    assert one[KINDS[0]] == found[KINDS[0]]
    with pytest.raises(ValueError, match="give them by metric"):
        evaluate(trained_model, tokenizer, corpus, retrained=stored[KINDS[0]], **settings)
    with pytest.raises(ValueError, match=r"\['privleak'\] need theirs too"):
        evaluate(trained_model, tokenizer, corpus, retrained=stored, metrics=("privleak", *KINDS), progress=False)
    with pytest.raises(ValueError, match="'verbmem' has no retrained reference"):
        retrained_scores(random_model, tokenizer, corpus, metric="verbmem")
