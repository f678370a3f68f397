"""F1: does a classifier still tell the labels of texts like the retained ones that no model has seen?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qru.metrics.bootstrap import interval, resamples
from qru.metrics.labels import check_labelled, labelled, said_labels
from qru.metrics.registry import metric
from qru.metrics.score import Context, Score


def macro_f1(labels: Sequence[str], said: Sequence[str], counts: np.ndarray | None = None) -> np.ndarray:
    """Macro F1: the mean over the classes that occur among the labels of 2 TP / (2 TP + FP + FN).

    Args:
        labels: the true label of each text, (n,).
        said: what a classifier says of each.
        counts: how often each text counts, (resamples, n); once, unless given.

    Returns:
        In [0, 1], (resamples,). A class that counts nowhere, neither as label nor as answer, has an F1 of 0.
    """
    labels, said = np.asarray(labels), np.asarray(said)
    counts = np.ones((1, labels.size)) if counts is None else counts
    each = []
    for name in np.unique(labels):
        hits = counts @ ((labels == name) & (said == name))
        either = counts @ ((labels == name).astype(float) + (said == name))  # 2 TP + FP + FN
        each.append(np.divide(2 * hits, either, out=np.zeros_like(either), where=either > 0))
    return np.mean(each, axis=0)


def _sets(corpus, options) -> dict[str, list]:
    return labelled(corpus, "test")


@metric("f1", better="higher", sets=_sets, check=check_labelled(_sets))
def f1(model, tokenizer, corpus, context: Context) -> Score:
    """Macro F1, in percent, on the test texts: like the retained ones, and never seen by any model.

    Not on retained texts, of which retain accuracy tells. ``per_example`` says whether each text was given its label;
    F1 is no mean of it.
    """
    (pairs,) = context.chosen(_sets(corpus, context.options))
    labels, said = [label for _, label in pairs], said_labels(model, tokenizer, pairs, context)
    low, high = interval(100 * macro_f1(labels, said, resamples(len(pairs))))
    right = [float(label == answer) for label, answer in zip(labels, said, strict=True)]
    return Score(100 * float(macro_f1(labels, said)[0]), (low, high), right, said)
