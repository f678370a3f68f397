"""Exact memorization and extraction strength: by hand, and against a loop over one passage at a time."""

from types import SimpleNamespace

import pytest
import torch

from qru.metrics import evaluate
from qru.metrics.memorization import exact_memorization, extraction_strength
from qru.metrics.verbmem import passage_rows

from .conftest import llama


@pytest.mark.parametrize(
    ("hits", "em", "es"),
    [
        ("10111", 4 / 5, 3 / 5),  # all is hit after a prefix of two
        ("11111", 1.0, 1.0),  # none needed
        ("01111", 4 / 5, 4 / 5),
        ("11110", 4 / 5, 1 / 5),  # never below 1/n
        ("00001", 1 / 5, 1 / 5),
        ("00000", 0.0, 1 / 5),
        ("1", 1.0, 1.0),
        ("0", 0.0, 1.0),  # k = n − 1 = 0
    ],
)
def test_by_hand(hits, em, es):
    hits = torch.tensor([mark == "1" for mark in hits])
    assert exact_memorization(hits) == pytest.approx(em)
    assert extraction_strength(hits) == pytest.approx(es)


def plain(model, tokenizer, prompt, truth):
    """One passage at a time, one prediction at a time."""
    given = [1, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    whole = [1, *tokenizer(prompt + truth, add_special_tokens=False)["input_ids"]]
    hits = []
    for place in range(len(given), len(whole) - 1):
        with torch.no_grad():
            logits = model(torch.tensor([whole[:place]])).logits[0, -1]
        hits.append(int(logits.argmax()) == whole[place])
    for prefix in range(len(hits)):
        if all(hits[prefix:]):
            break
    return sum(hits) / len(hits), 1 - prefix / len(hits)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("which", ["random_model", "trained_model"])
def test_batches_give_what_one_passage_gives(which, batch_size, tokenizer, corpus, request):
    model = request.getfixturevalue(which)
    few = SimpleNamespace(name="few", verbmem=corpus.verbmem[:6], knowmem={}, privleak={})
    expected = [plain(model, tokenizer, example["prompt"], example["gt"]) for example in few.verbmem]
    found = evaluate(
        model, tokenizer, few, metrics=("exact_memorization", "extraction_strength"), batch_size=batch_size,
        progress=False,
    )  # fmt: skip
    assert found["exact_memorization"].per_example == pytest.approx([em for em, _ in expected])
    assert found["extraction_strength"].per_example == pytest.approx([es for _, es in expected])
    assert found["exact_memorization"].value == pytest.approx(100 * sum(em for em, _ in expected) / 6)
    assert found["exact_memorization"].ci[0] <= found["exact_memorization"].value <= found["exact_memorization"].ci[1]


def test_the_trained_model_remembers(trained_model, random_model, tokenizer, corpus):
    name = "exact_memorization"
    knows, does_not = (
        evaluate(model, tokenizer, corpus, metrics=name, progress=False)[name].value
        for model in (trained_model, random_model)
    )
    assert knows > 60 > 20 > does_not


def test_a_missing_space_is_put_back_once(tokenizer):
    apart = {"prompt": "Adela of Saltby", "gt": "was a cooper"}
    spaced = {"prompt": "Adela of Saltby", "gt": " was a cooper"}
    behind = {"prompt": "Adela of Saltby ", "gt": "was a cooper"}
    rows, _ = passage_rows(tokenizer, [apart, spaced, behind])
    assert {tokenizer.decode(row[1:]) for row in rows} == {"Adela of Saltby was a cooper"}


def test_ties_take_the_lowest_id(tokenizer, corpus):
    """All logits equal: greedy choice is token 0, which no passage holds."""
    model = llama(len(tokenizer))
    torch.nn.init.zeros_(model.lm_head.weight)
    for batch_size in (1, 5):
        found = evaluate(model, tokenizer, corpus, metrics="exact_memorization", batch_size=batch_size, progress=False)
        assert found["exact_memorization"].per_example == [0.0] * 12
