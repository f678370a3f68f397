"""VerbMem: does the model continue a passage of the forget set as the passage goes on?"""

from __future__ import annotations

from qru.metrics.bootstrap import mean_ci
from qru.metrics.checks import encode
from qru.metrics.generation import greedy
from qru.metrics.registry import metric
from qru.metrics.rouge import rouge_l
from qru.metrics.score import Context, Score

NEW_TOKENS = 128


def rouge_score(ground_truths: list[str], responses: list[str]) -> Score:
    """Mean ROUGE-L F1 of responses against ground truths, in percent, with its interval and both kept by example."""
    per_example = [rouge_l(truth, response) for truth, response in zip(ground_truths, responses, strict=True)]
    value, low, high = (100 * x for x in mean_ci(per_example))
    return Score(value, (low, high), per_example, responses)


@metric("verbmem", better="lower", scores=lambda corpus: len(corpus.verbmem))
def verbmem(model, tokenizer, corpus, context: Context) -> Score:
    """Greedy continuation of each prompt by 128 tokens against the passage's own, ROUGE-L F1.

    The ground truth is cut to its first 128 tokens, BOS among them, as MUSE's code does (arXiv 2407.06460).
    """
    examples = context.pick(corpus.verbmem, f"verbmem of corpus {corpus.name!r}")
    cut = [row[:NEW_TOKENS] for row in encode(tokenizer, [example["gt"] for example in examples])]
    truths = tokenizer.batch_decode(cut, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    responses = greedy(
        model,
        tokenizer,
        [example["prompt"] for example in examples],
        NEW_TOKENS,
        batch_size=context.batch_size,
        progress=context.advance,
    )
    return rouge_score(truths, responses)
