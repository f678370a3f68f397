"""KnowMem: does the model answer questions about the forget set? And the same protocol for any other set."""

from __future__ import annotations

from qru.metrics.generation import as_turn, check_prompts_fit, greedy
from qru.metrics.registry import metric
from qru.metrics.score import Context, Score
from qru.metrics.verbmem import rouge_score

NEW_TOKENS = 32
STOPS = ("\n\n", "\nQuestion", "Question:")


def question_prompts(icl: list[dict], questions: list[str]) -> list[str]:
    """The in-context pairs, then one question with its answer left open; one prompt per question."""
    shown = "".join(f"Question: {pair['question']}\nAnswer: {pair['answer']}\n\n" for pair in icl)
    return [f"{shown}Question: {question}\nAnswer: " for question in questions]


def question_metric(name: str, better: str, subject: str):
    """Decorator that files a metric which asks the questions ``knowmem[subject_qa]``."""

    def check(model, tokenizer, corpus, context: Context) -> None:
        prompts = _prompts(tokenizer, corpus, subject, context)
        check_prompts_fit(model, tokenizer, prompts, NEW_TOKENS, _where(corpus, subject))

    return metric(name, better, lambda corpus, options: _questions(corpus, subject), check)


def _where(corpus, subject: str, what: str = "qa") -> str:
    return f"knowmem[{subject + '_' + what!r}] of corpus {corpus.name!r}"


def _questions(corpus, subject: str) -> dict[str, list]:
    return {_where(corpus, subject): corpus.knowmem.get(f"{subject}_qa", [])}


def _prompts(tokenizer, corpus, subject: str, context: Context) -> list[str]:
    (examples,) = context.chosen(_questions(corpus, subject))
    icl = corpus.knowmem.get(f"{subject}_qa_icl", [])
    if not icl:
        raise ValueError(f"the in-context pairs {_where(corpus, subject, 'qa_icl')} are empty; the protocol shows ten")
    prompts = question_prompts(icl, [example["question"] for example in examples])
    return as_turn(tokenizer, prompts) if context.options.chat_template else prompts


def answer_questions(model, tokenizer, corpus, subject: str, context: Context) -> Score:
    """Greedy answers of at most 32 tokens, cut at the first sign of a next question, against the true ones; ROUGE-L F1.

    Args:
        model: causal language model.
        tokenizer: the model's.
        corpus: holds ``knowmem[subject_qa]`` and the in-context pairs ``knowmem[subject_qa_icl]``.
        subject: "forget", "retain" or "disjoint".
        context: which examples, batch size, progress, options.

    Raises:
        ValueError: no questions, or no in-context pairs.

    Source: MUSE, arXiv 2407.06460.
    """
    (examples,) = context.chosen(_questions(corpus, subject))
    responses = greedy(
        model,
        tokenizer,
        _prompts(tokenizer, corpus, subject, context),
        NEW_TOKENS,
        stop=STOPS,
        batch_size=context.batch_size,
        progress=context.advance,
    )
    return rouge_score([example["answer"] for example in examples], responses, context.options.stemmer)


@question_metric("knowmem", better="lower", subject="forget")
def knowmem(model, tokenizer, corpus, context: Context) -> Score:
    """Answers to questions about the forget set."""
    return answer_questions(model, tokenizer, corpus, "forget", context)
