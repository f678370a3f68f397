"""VerbMem: does the model continue a passage of the forget set as the passage goes on?"""

from __future__ import annotations

from qru.metrics.bootstrap import mean_ci
from qru.metrics.checks import encode
from qru.metrics.generation import as_turn, check_prompts_fit, decoded, greedy
from qru.metrics.registry import metric
from qru.metrics.rouge import rouge_l
from qru.metrics.score import Context, Score

NEW_TOKENS = 128


def passages(corpus, options) -> dict[str, list]:
    """What VerbMem and its kin score."""
    return {f"verbmem of corpus {corpus.name!r}": corpus.verbmem}


def rouge_score(ground_truths: list[str], responses: list[str], stemmer: bool = False) -> Score:
    """Mean ROUGE-L F1 of responses against ground truths, in percent, with its interval and both kept by example."""
    pairs = zip(ground_truths, responses, strict=True)
    return mean_score([rouge_l(truth, response, stemmer) for truth, response in pairs], responses)


def mean_score(per_example: list[float], responses: list[str] | None = None) -> Score:
    """The mean of numbers in [0, 1], in percent, with its interval."""
    value, low, high = (100 * x for x in mean_ci(per_example))
    return Score(value, (low, high), per_example, responses)


def passage_rows(tokenizer, examples: list[dict]) -> tuple[list[list[int]], list[int]]:
    """Prompt and ground truth as one text, and where the ground truth begins.

    MUSE's passages leave out the space between the two, and open-unlearning puts it back; a passage that has it keeps
    the one it has.

    Returns:
        Token ids with BOS, and the number of tokens of each prompt, BOS among them.
    """
    prompts = [example["prompt"] for example in examples]
    joined = []
    for example in examples:
        touching = example["prompt"][-1:].isspace() or example["gt"][:1].isspace()
        joined.append(example["prompt"] + ("" if touching else " ") + example["gt"])
    starts = [len(row) for row in encode(tokenizer, prompts)]
    return encode(tokenizer, joined), starts


def _prompts(tokenizer, corpus, context: Context) -> list[str]:
    (items,) = context.chosen(passages(corpus, context.options))
    prompts = [example["prompt"] for example in items]
    return as_turn(tokenizer, prompts) if context.options.chat_template else prompts


def _check(model, tokenizer, corpus, context: Context) -> None:
    check_prompts_fit(model, tokenizer, _prompts(tokenizer, corpus, context), NEW_TOKENS, "verbmem")


@metric("verbmem", better="lower", sets=passages, check=_check)
def verbmem(model, tokenizer, corpus, context: Context) -> Score:
    """Greedy continuation of each prompt by 128 tokens against the passage's own, ROUGE-L F1.

    The ground truth is cut to its first 128 tokens, BOS among them, as MUSE's code does (arXiv 2407.06460).
    """
    (items,) = context.chosen(passages(corpus, context.options))
    cut = [row[:NEW_TOKENS] for row in encode(tokenizer, [example["gt"] for example in items])]
    truths = [decoded(tokenizer, row) for row in cut]
    rows, starts = passage_rows(tokenizer, items)
    responses = greedy(
        model,
        tokenizer,
        _prompts(tokenizer, corpus, context),
        NEW_TOKENS,
        batch_size=context.batch_size,
        progress=context.advance,
        drafts=[row[start : start + NEW_TOKENS] for row, start in zip(rows, starts, strict=True)],
    )
    return rouge_score(truths, responses, context.options.stemmer)
