"""KnowMem: does the model answer questions about the forget set? And the same protocol for any other set."""

from __future__ import annotations

from qru.metrics.generation import greedy
from qru.metrics.registry import metric
from qru.metrics.score import Context, Score
from qru.metrics.verbmem import rouge_score

NEW_TOKENS = 32
STOPS = ("\n\n", "\nQuestion", "Question:")


def question_prompts(icl: list[dict], questions: list[str]) -> list[str]:
    """The in-context pairs, then one question with its answer left open; one prompt per question."""
    shown = "".join(f"Question: {pair['question']}\nAnswer: {pair['answer']}\n\n" for pair in icl)
    return [f"{shown}Question: {question}\nAnswer: " for question in questions]


def answer_questions(model, tokenizer, corpus, subject: str, context: Context) -> Score:
    """Greedy answers of at most 32 tokens, cut at the first sign of a next question, against the true ones; ROUGE-L F1.

    Args:
        model: causal language model.
        tokenizer: the model's.
        corpus: holds ``knowmem[subject_qa]`` and the in-context pairs ``knowmem[subject_qa_icl]``.
        subject: "forget", "retain" or "disjoint".
        context: which examples, batch size, progress.

    Raises:
        ValueError: no questions, or no in-context pairs.

    Source: MUSE, arXiv 2407.06460.
    """
    where = f"knowmem[{subject + '_qa'!r}] of corpus {corpus.name!r}"
    examples = context.pick(corpus.knowmem.get(f"{subject}_qa", []), where)
    icl = corpus.knowmem.get(f"{subject}_qa_icl", [])
    if not icl:
        raise ValueError(f"the in-context pairs {where.replace('_qa', '_qa_icl')} are empty; the protocol shows ten")
    responses = greedy(
        model,
        tokenizer,
        question_prompts(icl, [example["question"] for example in examples]),
        NEW_TOKENS,
        stop=STOPS,
        batch_size=context.batch_size,
        progress=context.advance,
    )
    return rouge_score([example["answer"] for example in examples], responses)


@metric("knowmem", better="lower", scores=lambda corpus: len(corpus.knowmem.get("forget_qa", [])))
def knowmem(model, tokenizer, corpus, context: Context) -> Score:
    """Answers to questions about the forget set."""
    return answer_questions(model, tokenizer, corpus, "forget", context)
