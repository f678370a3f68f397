"""Forget accuracy: does a classifier still give the forget texts the label it was trained to give them?"""

from __future__ import annotations

from qru.metrics.labels import accuracy, check_labelled, labelled
from qru.metrics.registry import metric
from qru.metrics.score import Context, Score


def _sets(corpus, options) -> dict[str, list]:
    return labelled(corpus, "forget")


@metric("forget_accuracy", better="lower", sets=_sets, check=check_labelled(_sets))
def forget_accuracy(model, tokenizer, corpus, context: Context) -> Score:
    """Share of forget texts that are given the label they were trained with, in percent; ``examples`` choose texts.

    Lower is forgotten, and as low as the retrained model's is what never having seen them means; further down it says
    that the model was turned against them.
    """
    (pairs,) = context.chosen(_sets(corpus, context.options))
    return accuracy(model, tokenizer, pairs, context)
