"""Utility: does the model still answer questions about what it should keep?"""

from __future__ import annotations

from qru.metrics.knowmem import answer_questions
from qru.metrics.registry import metric
from qru.metrics.score import Context, Score


@metric("utility", better="higher", scores=lambda corpus: len(corpus.knowmem.get("retain_qa", [])))
def utility(model, tokenizer, corpus, context: Context) -> Score:
    """Answers to questions about the retain set, with KnowMem's protocol."""
    return answer_questions(model, tokenizer, corpus, "retain", context)
