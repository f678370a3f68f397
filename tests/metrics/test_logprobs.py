"""Token log-probabilities: padded batches give what one text alone gives, and that is log-softmax."""

import pytest
import torch

from qru.metrics import logprobs, token_log_probs
from qru.metrics.checks import encode

from .conftest import llama


def by_hand(model, tokenizer, text):
    """Text by text, token by token, as MUSE's code does it."""
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        table = torch.log_softmax(model(ids).logits[0, :-1].double(), dim=-1)
    return [table[place, token].item() for place, token in enumerate(ids[0, 1:])]


@pytest.mark.parametrize("which", ["random_model", "trained_model"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batches_give_what_one_text_gives(which, batch_size, tokenizer, corpus, request):
    model = request.getfixturevalue(which)
    texts = [*corpus.privleak["forget"], "A", "", *corpus.privleak["holdout"]]
    found = token_log_probs(model, tokenizer, texts, batch_size=batch_size)
    for text, log_probs in zip(texts, found, strict=True):
        assert log_probs.dtype == torch.float32
        assert log_probs.tolist() == pytest.approx(by_hand(model, tokenizer, text), abs=1e-5)


def test_memory_limit_changes_batches_not_numbers(trained_model, tokenizer, corpus, monkeypatch):
    texts = corpus.privleak["forget"]
    expected = token_log_probs(trained_model, tokenizer, texts)
    monkeypatch.setattr(logprobs, "MAX_LOGITS_BYTES", {"cpu": 1})
    counted = []
    found = token_log_probs(trained_model, tokenizer, texts, progress=counted.append)
    assert counted == [1] * len(texts)
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=0)


def test_bf16_weights_give_float32_log_probs(broken, tokenizer):
    (found,) = token_log_probs(broken.bfloat16(), tokenizer, ["Adela of Saltby was a weaver"])
    assert found.dtype == torch.float32
    assert bool((found <= 0).all())


def test_bos_comes_once_and_is_not_scored(random_model, tokenizer, tokenizer_adding_bos):
    (plain,) = token_log_probs(random_model, tokenizer, ["Adela of Saltby"])
    (added,) = token_log_probs(random_model, tokenizer_adding_bos, ["Adela of Saltby"])
    assert torch.equal(plain, added)
    assert len(plain) == len(tokenizer("Adela of Saltby", add_special_tokens=False)["input_ids"])


def test_a_text_longer_than_the_model_is_refused_not_cut(tokenizer):
    model = llama(len(tokenizer), max_position_embeddings=16)
    text = "Adela of Saltby was a cooper; the quiet river when morning came over stone and grass"
    needed = len(encode(tokenizer, [text])[0]) - 1  # the last token is predicted, never fed
    assert needed > 16
    with pytest.raises(ValueError, match=rf"needs {needed} positions.*max_position_embeddings=16"):
        token_log_probs(model, tokenizer, [text])


def test_no_texts_and_bad_batch_size(random_model, tokenizer):
    assert token_log_probs(random_model, tokenizer, []) == []
    with pytest.raises(ValueError, match="batch_size"):
        token_log_probs(random_model, tokenizer, ["a"], batch_size=0)


def test_overflow_is_refused(broken, tokenizer):
    broken.model.norm.weight.data[3] = float("inf")
    with pytest.raises(ValueError, match=r"text 0 are NaN or Inf"):
        token_log_probs(broken, tokenizer, ["Adela of Saltby"])
