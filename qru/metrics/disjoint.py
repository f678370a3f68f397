"""Disjoint: does the model still answer questions about knowledge that neither set contains?"""

from __future__ import annotations

from qru.metrics.knowmem import answer_questions, question_metric
from qru.metrics.score import Context, Score


@question_metric("disjoint", better="higher", subject="disjoint")
def disjoint(model, tokenizer, corpus, context: Context) -> Score:
    """Answers to questions about facts of the base text, with KnowMem's protocol; not one of MUSE's metrics."""
    return answer_questions(model, tokenizer, corpus, "disjoint", context)
