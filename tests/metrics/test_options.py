"""Departures from the protocol: each does what its name says, and none happens unasked."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qru.metrics import Options, evaluate, retrained_scores, rouge_l

from .conftest import llama

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }} "
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def small(corpus):
    """The first texts, so that every score of every pair can be worked out here."""
    return SimpleNamespace(
        name="small",
        verbmem=corpus.verbmem[:3],
        knowmem={key: pairs[:3] for key, pairs in corpus.knowmem.items()},
        privleak={
            "forget": corpus.privleak["forget"][:4],
            "holdout": corpus.privleak["holdout"][:5],
            "retain": corpus.privleak["holdout"][5:11],
        },
    )


def log_probs(model, tokenizer, text):
    ids = torch.tensor([[1, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        table = torch.log_softmax(model(ids).logits[0, :-1].double(), dim=-1)
    return np.array([table[place, token].item() for place, token in enumerate(ids[0, 1:])])


def by_hand(model, retrained, tokenizer, corpus, against, k):
    def area(judged):
        def score(text):
            values = log_probs(judged, tokenizer, text)
            return -np.sort(values)[: int(k * len(values))].mean()

        forget, other = ([score(text) for text in corpus.privleak[side]] for side in ("forget", against))
        return np.mean([(f > o) + 0.5 * (f == o) for f in forget for o in other])

    return 100 * (area(model) / area(retrained) - 1)


@pytest.mark.parametrize("against", ["holdout", "retain"])
@pytest.mark.parametrize("k", [0.4, 0.1, 1.0])
def test_share_and_other_side(against, k, random_model, tokenizer, small):
    torch.manual_seed(1)
    retrained = llama(len(tokenizer), initializer_range=0.2)
    expected = by_hand(random_model, retrained, tokenizer, small, against, k)
    options = Options(k=k, privleak_against=against)
    settings = {"metrics": ("privleak",), "progress": False, "options": options}
    found = evaluate(random_model, tokenizer, small, retrained=retrained, **settings)["privleak"]
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert set(found.per_example) == {"forget", against}
    stored = retrained_scores(retrained, tokenizer, small, options=options)
    assert evaluate(random_model, tokenizer, small, retrained=stored, **settings)["privleak"] == found


def test_a_reference_made_with_other_options_is_refused(random_model, tokenizer, small):
    def ask(stored, **options):
        evaluate(random_model, tokenizer, small, retrained=stored, metrics="privleak", progress=False,
                 options=Options(**options))  # fmt: skip

    usual = retrained_scores(random_model, tokenizer, small)
    assert set(usual) == {"forget", "holdout"}
    fifth = retrained_scores(random_model, tokenizer, small, options=Options(k=0.2))
    with pytest.raises(ValueError, match=r"computed with k=0.4, and privleak is asked for with k=0.2"):
        ask(usual, k=0.2)
    with pytest.raises(ValueError, match=r"computed with k=0.2, and privleak is asked for with k=0.4"):
        ask(fifth)
    with pytest.raises(ValueError, match=r"exactly the keys \['forget', 'retain'\]"):
        ask(usual, privleak_against="retain")


def test_stemmer_by_hand():
    truth, response = "the runner was running", "the runners run"
    assert rouge_l(truth, response) == pytest.approx(2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4))  # the
    # runner and runners, running and run: three words in common
    assert rouge_l(truth, response, stemmer=True) == pytest.approx(2 * 1.0 * 0.75 / 1.75)


def test_stemmer_reaches_every_rouge(trained_model, tokenizer, small):
    names = ("verbmem", "knowmem", "utility", "disjoint")
    found = evaluate(trained_model, tokenizer, small, metrics=names, progress=False, options=Options(stemmer=True))
    truths = {"knowmem": "forget_qa", "utility": "retain_qa", "disjoint": "disjoint_qa"}
    for name, subject in truths.items():
        pairs = zip(small.knowmem[subject], found[name].responses, strict=True)
        assert found[name].per_example == [rouge_l(qa["answer"], said, stemmer=True) for qa, said in pairs]
    plain = evaluate(trained_model, tokenizer, small, metrics="verbmem", progress=False)["verbmem"]
    assert found["verbmem"].responses == plain.responses


def test_chat_template_opens_the_assistants_turn(random_model, tokenizer, small):
    chatting = copy.deepcopy(tokenizer)
    chatting.chat_template = TEMPLATE
    seen = []
    handle = random_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    settings = {"batch_size": 1, "progress": False, "options": Options(chat_template=True)}
    try:
        passage = SimpleNamespace(**{**vars(small), "verbmem": small.verbmem[:1]})
        evaluate(random_model, chatting, passage, metrics="verbmem", **settings)
        continued = tokenizer.decode(seen[0][0])
        seen.clear()
        one = SimpleNamespace(
            **{**vars(small), "knowmem": {**small.knowmem, "forget_qa": small.knowmem["forget_qa"][:1]}}
        )
        evaluate(random_model, chatting, one, metrics="knowmem", **settings)
    finally:
        handle.remove()
    assert continued.startswith(f"<s>[user] {small.verbmem[0]['prompt']} [assistant]")
    asked = tokenizer.decode(seen[0][0])
    question = one.knowmem["forget_qa"][0]["question"]
    assert asked.startswith("<s>[user] Question: ")
    assert asked.endswith(f"Question: {question}\nAnswer:  [assistant]")
    assert asked.count("[user]") == 1


def test_chat_template_that_is_not_there(random_model, tokenizer, small):
    for name in ("verbmem", "knowmem"):
        with pytest.raises(ValueError, match="the tokenizer has none"):
            evaluate(random_model, tokenizer, small, metrics=name, progress=False, options=Options(chat_template=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k is the share"),
        ({"k": 1.5}, "k is the share"),
        ({"k": "0.4"}, "k is the share"),
        ({"k": True}, "k is the share"),
        ({"stemmer": 1}, "stemmer is 1"),
        ({"chat_template": "yes"}, "chat_template is 'yes'"),
        ({"privleak_against": "retrain"}, "privleak_against is 'retrain'"),
    ],
)
def test_bad_options(settings, message):
    with pytest.raises(ValueError, match=message):
        Options(**settings)


def test_unknown_options(random_model, tokenizer, small):
    with pytest.raises(TypeError, match="stemer"):
        Options(stemer=True)
    with pytest.raises(ValueError, match="must be an Options"):
        evaluate(random_model, tokenizer, small, metrics="verbmem", options={"stemmer": True})
