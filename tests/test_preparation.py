"""The interval that says whether forget and holdout texts can be told apart."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from qru.corpora import load_corpus
from qru.corpora.world import units_of_documents
from qru.metrics import Score
from qru.models import Checkpoints
from qru.preparation import Prepared, auc_interval, document_table, requirement_table


@pytest.mark.parametrize("name", ["books", "news"])
def test_every_document_has_a_unit_and_no_unit_two_splits(name):
    units = units_of_documents("smoke")
    corpus = load_corpus(name, scale="smoke")
    seen = [{units[document] for document in documents} for documents in corpus.raw.values()]
    assert sum(map(len, seen)) == len(set().union(*seen))


def test_an_auc_of_independent_texts_needs_no_units():
    rng = np.random.default_rng(0)
    forget, holdout = rng.normal(size=(2, 60))
    low, high = auc_interval(forget, holdout, [str(i) for i in range(60)], [str(i) for i in range(60)])
    assert low < 0.5 < high
    assert high - low == pytest.approx(4 * np.sqrt(121 / (12 * 60 * 60)), rel=0.15)  # the textbook's, for no difference


def test_texts_that_come_in_units_make_the_interval_wider():
    rng = np.random.default_rng(1)
    unit = np.repeat(np.arange(6), 10).astype(str)
    forget, holdout = np.repeat(rng.normal(size=(2, 6)), 10, axis=1)
    alone = auc_interval(forget, holdout, [str(i) for i in range(60)], [str(i) for i in range(60)])
    grouped = auc_interval(forget, holdout, unit, unit)
    assert grouped[1] - grouped[0] > 2 * (alone[1] - alone[0])


def test_certainty_has_no_width():
    assert auc_interval([2.0, 3.0], [0.0, 1.0], ["a", "b"], ["c", "d"]) == (1.0, 1.0)


def prepared(target, retrained):
    """Models that came ready, with constant scores: a corpus without questions on what is kept, and without holdout."""
    scores = {
        name: {"verbmem": Score(100 * value, (0.0, 100.0), [value] * 20)}
        for name, value in (("target", target), ("retrained", retrained))
    }
    return Prepared(None, Checkpoints(Path("t"), Path("r"), None, Path("t")), scores, {})


@pytest.mark.parametrize(("target", "retrained", "met"), [(0.9, 0.2, "yes"), (0.2, 0.2, "no"), (0.2, 0.9, "no")])
def test_given_models_are_held_against_each_other(target, retrained, met):
    table = requirement_table(prepared(target, retrained))
    assert list(table["requirement"]) == ["target recites forget better than retrained"]
    assert list(table["met"]) == [met]


def test_a_book_is_not_shown_whole():
    corpus = load_corpus("books", scale="smoke")
    long = dataclasses.replace(corpus, raw=corpus.raw | {"forget": ["a" * 10_000]})
    shown = document_table(long)["document"]
    assert len(shown[0]) == 3002
    assert shown[1] == corpus.raw["retain1"][0]


def classifiers(forget, kept, guessed, attack):
    """Two classifiers that came ready: accuracies in percent, and the interval of MIA of the retrained one."""

    def block(right, mia):
        one = {name: Score(value, (value, value), [value / 100] * 20) for name, value in right.items()}
        return one | {"mia": Score(50.0, mia, {"forget": [0.0], "holdout": [0.0]})}

    scores = {
        "target": block({"forget_accuracy": forget, "retain_accuracy": kept}, (90.0, 99.0)),
        "retrained": block({"forget_accuracy": guessed, "retain_accuracy": kept}, attack),
    }
    corpus = load_corpus("tweets", scale="smoke")
    return Prepared(corpus, Checkpoints(Path("t"), Path("r"), Path("b"), Path("t")), scores, {})


@pytest.mark.parametrize(
    ("values", "met"),
    [
        ((95.0, 90.0, 20.0, (40.0, 60.0)), "yes yes yes yes yes"),
        ((80.0, 90.0, 20.0, (40.0, 60.0)), "no yes yes yes yes"),
        ((95.0, 80.0, 60.0, (55.0, 60.0)), "yes no no no no"),
    ],
)
def test_what_is_required_of_classifiers(values, met):
    assert list(requirement_table(classifiers(*values))["met"]) == met.split()


def test_a_post_is_shown_with_its_label():
    shown = document_table(load_corpus("tweets", scale="smoke"), count=2)
    assert list(shown.columns) == ["split", "document", "label"]
    assert list(shown["split"]) == ["forget", "forget", "retain1", "retain1"]
    assert list(shown["label"][:2]) == ["true", "true"]
