"""What is measured of classifiers, against scikit-learn and against each text alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from transformers import LlamaConfig, LlamaForSequenceClassification

from qru.metrics import direction, evaluate
from qru.metrics.evaluation import OF_CLASSIFIERS
from qru.metrics.f1 import macro_f1
from qru.metrics.labels import label_log_probs
from qru.metrics.mia import member_auc_ci
from qru.metrics.score import Score

CLASSES = ("doubtful", "false", "true")


@pytest.fixture(scope="module")
def classifier(tokenizer):
    torch.manual_seed(3)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.2,
        id2label=dict(enumerate(CLASSES)), label2id={name: i for i, name in enumerate(CLASSES)},
    )  # fmt: skip
    return LlamaForSequenceClassification(shape).eval()


@pytest.fixture(scope="module")
def posts(corpus):
    """Labelled texts of many lengths."""
    texts = [text[: 20 + 23 * i] for i, text in enumerate(corpus.privleak["forget"] + corpus.privleak["holdout"])]
    rng = np.random.default_rng(0)
    raw = {"forget": texts[:8], "retain1": texts[8:12], "holdout": texts[12:18], "test": texts[18:] + texts[2:9]}
    labels = {split: rng.choice(CLASSES, len(those)).tolist() for split, those in raw.items()}
    return SimpleNamespace(
        name="posts", raw=raw, labels=labels, verbmem=[], knowmem={}, privleak={}, measurable=OF_CLASSIFIERS
    )


def alone(model, tokenizer, text):
    """What the model says of one text, with nothing beside it: softmax over classes, from its last token."""
    ids = torch.tensor([[1, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        hidden = model.model(input_ids=ids).last_hidden_state[0, -1]
    return torch.softmax(model.score.weight.detach() @ hidden, 0)


@pytest.fixture(scope="module")
def plain(classifier, tokenizer, posts):
    return {
        split: torch.stack([alone(classifier, tokenizer, text) for text in posts.raw[split]]) for split in posts.raw
    }


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_what_a_text_is_said_to_be_does_not_depend_on_those_beside_it(batch_size, classifier, tokenizer, posts, plain):
    pairs = list(zip(posts.raw["test"], posts.labels["test"], strict=True))
    found, labels = label_log_probs(classifier, tokenizer, pairs, batch_size)
    assert torch.allclose(found.exp(), plain["test"], atol=1e-5)
    assert [CLASSES[i] for i in labels] == posts.labels["test"]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1)).tolist()
    again, _ = label_log_probs(classifier, tokenizer, [pairs[i] for i in order], batch_size)
    assert torch.allclose(again, found[order], atol=1e-5)


def test_scores_are_scikit_learns(classifier, tokenizer, posts, plain):
    scores = evaluate(classifier, tokenizer, posts, progress=False)
    assert tuple(scores) == OF_CLASSIFIERS
    said = {split: [CLASSES[i] for i in found.argmax(-1)] for split, found in plain.items()}
    assert len(set(said["test"])) > 1
    truth = posts.labels
    for metric, split in (("forget_accuracy", "forget"), ("retain_accuracy", "retain1")):
        assert scores[metric].value == pytest.approx(100 * accuracy_score(truth[split], said[split]))
        assert scores[metric].responses == said[split]
        low, high = scores[metric].ci
        assert low <= scores[metric].value <= high
    names = sorted(set(truth["test"]))
    expected = f1_score(truth["test"], said["test"], average="macro", labels=names, zero_division=0)
    assert scores["f1"].value == pytest.approx(100 * expected)
    assert scores["f1"].per_example == [float(a == b) for a, b in zip(truth["test"], said["test"], strict=True)]

    def losses(split):
        index = torch.tensor([CLASSES.index(label) for label in truth[split]])
        return (-plain[split].log().gather(1, index[:, None])[:, 0]).tolist()

    members = [1] * len(truth["forget"]) + [0] * len(truth["holdout"])
    attack = roc_auc_score(members, [-loss for loss in losses("forget") + losses("holdout")])
    assert scores["mia"].value == pytest.approx(100 * attack)
    assert scores["mia"].per_example["forget"] == pytest.approx(losses("forget"), abs=1e-4)
    assert scores["mia"].n == 14


def test_examples_choose_texts(classifier, tokenizer, posts):
    chosen = {"forget_accuracy": [5, 1], "mia": [0, 3]}
    whole = evaluate(classifier, tokenizer, posts, progress=False, metrics=tuple(chosen))
    some = evaluate(classifier, tokenizer, posts, progress=False, metrics=tuple(chosen), examples=chosen)
    every = whole["forget_accuracy"]
    assert some["forget_accuracy"].per_example == [every.per_example[i] for i in (5, 1)]
    assert some["forget_accuracy"].responses == [every.responses[i] for i in (5, 1)]
    sides = some["mia"].per_example
    assert sides["forget"] == pytest.approx([whole["mia"].per_example["forget"][i] for i in (0, 3)], abs=1e-5)
    assert sides["holdout"] == pytest.approx(whole["mia"].per_example["holdout"], abs=1e-5)


def test_macro_f1_of_resamples_is_scikit_learns_of_repeated_texts():
    rng = np.random.default_rng(1)
    labels, said = rng.choice(CLASSES[:2], 20), rng.choice(CLASSES, 20)
    counts = rng.integers(0, 3, size=(5, 20))
    found = macro_f1(labels, said, counts.astype(float))
    for i, row in enumerate(counts):
        repeated = np.repeat(labels, row), np.repeat(said, row)
        expected = f1_score(*repeated, average="macro", labels=CLASSES[:2], zero_division=0)
        assert found[i] == pytest.approx(expected)


def test_the_attack_is_higher_for_members():
    assert member_auc_ci([0.1, 0.2], [1.0, 2.0]) == (1.0, 1.0)
    low, high = member_auc_ci([1.0] * 30, [1.0] * 30)
    assert low == pytest.approx(0.5)
    assert high == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    low, high = member_auc_ci(rng.normal(size=60), rng.normal(size=60))
    assert low < 0.5 < high
    assert high - low == pytest.approx(4 * np.sqrt(121 / (12 * 60 * 60)), rel=0.15)  # the textbook's, for no difference


def test_directions():
    assert [direction(name) for name in OF_CLASSIFIERS] == ["lower", "higher", "higher", "towards retrained"]


def test_a_mode_is_left_as_it_was(classifier, tokenizer, posts):
    classifier.train()
    try:
        evaluate(classifier, tokenizer, posts, progress=False, metrics="forget_accuracy")
        assert all(module.training for module in classifier.modules())
    finally:
        classifier.eval()


def test_the_other_kind_of_model_is_refused(classifier, random_model, tokenizer, corpus, posts):
    with pytest.raises(ValueError, match=r"forget_accuracy is measured on a classifier.* is a LlamaForCausalLM"):
        evaluate(random_model, tokenizer, posts, progress=False)
    with pytest.raises(ValueError, match=r"verbmem is measured on a language model.*a LlamaForSequenceClass"):
        evaluate(classifier, tokenizer, corpus, progress=False, metrics="verbmem")
    with pytest.raises(ValueError, match=r"no examples for \['f1'\]"):
        evaluate(random_model, tokenizer, corpus, progress=False, metrics="f1")


@pytest.mark.parametrize(
    ("split", "text", "label", "message"),
    [
        ("forget", "x", "tru", "label 'tru' is no class of the model; its classes are doubtful, false, true"),
        ("test", "word " * 600, "true", "a text has .* tokens, more than 512; it begins 'word word"),
        ("holdout", "", "true", "a text has no tokens"),
        ("retain1", "it ends <pad>", "true", "ends in the one that fills up batches"),
    ],
)
def test_what_cannot_be_scored_is_refused(split, text, label, message, classifier, tokenizer, posts):
    raw = posts.raw | {split: [*posts.raw[split], text]}
    labels = posts.labels | {split: [*posts.labels[split], label]}
    broken = SimpleNamespace(**vars(posts) | {"raw": raw, "labels": labels})
    with pytest.raises(ValueError, match=message):
        evaluate(classifier, tokenizer, broken, progress=False)


def test_a_score_survives_being_stored(classifier, tokenizer, posts):
    for score in evaluate(classifier, tokenizer, posts, progress=False).values():
        assert Score.from_dict(score.to_dict()) == score
