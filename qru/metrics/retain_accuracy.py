"""Retain accuracy: does a classifier still give the retained texts their label?"""

from __future__ import annotations

from qru.metrics.labels import accuracy, check_labelled, labelled
from qru.metrics.registry import metric
from qru.metrics.score import Context, Score


def _sets(corpus, options) -> dict[str, list]:
    # As utility asks about retain2 (MUSE, arXiv 2407.06460): unlearning trains on retain1, and would flatter itself.
    kept = getattr(corpus, "labels", {}).get("retain2")
    return labelled(corpus, "retain2" if kept else "retain1")


@metric("retain_accuracy", better="higher", sets=_sets, check=check_labelled(_sets))
def retain_accuracy(model, tokenizer, corpus, context: Context) -> Score:
    """Share of retained texts that are given their label, in percent: of retain2, or of retain1 where there is none."""
    (pairs,) = context.chosen(_sets(corpus, context.options))
    return accuracy(model, tokenizer, pairs, context)
