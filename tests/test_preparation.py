"""The interval that says whether forget and holdout texts can be told apart."""

import numpy as np
import pytest

from qru.corpora import load_corpus
from qru.corpora.world import units_of_documents
from qru.preparation import auc_interval


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
