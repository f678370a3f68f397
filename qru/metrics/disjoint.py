"""Disjoint: does the model still answer questions about knowledge that neither set contains?"""

from __future__ import annotations

from qru.metrics.knowmem import answer_questions
from qru.metrics.registry import metric
from qru.metrics.score import Context, Score


@metric("disjoint", better="higher", scores=lambda corpus: len(corpus.knowmem.get("disjoint_qa", [])))
def disjoint(model, tokenizer, corpus, context: Context) -> Score:
    """Answers to questions about facts of the base text, with KnowMem's protocol; not one of MUSE's metrics."""
    return answer_questions(model, tokenizer, corpus, "disjoint", context)
