"""Utility: does the model still answer questions about what it should keep?"""

from __future__ import annotations

from qru.metrics.knowmem import answer_questions, question_metric
from qru.metrics.score import Context, Score


@question_metric("utility", better="higher", subject="retain")
def utility(model, tokenizer, corpus, context: Context) -> Score:
    """Answers to questions about the retain set, with KnowMem's protocol."""
    return answer_questions(model, tokenizer, corpus, "retain", context)
