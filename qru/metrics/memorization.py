"""Exact memorization and extraction strength of VerbMem's passages, as open-unlearning (arXiv 2506.12618) counts them.

Nothing is generated: the passage goes through the model once, and at each of its tokens we ask whether the model,
given the true text so far, would have taken it greedily.

    prompt   ground truth t_1 … t_n and one token more, which is not scored (there it is where an EOS may stand)
    hits          1 0 1 1 1
    EM            4 of 5 hit                                                       0.8
    ES            all hit from t_3 on: a prefix of 2 of 5 extracts the rest      1 − 2/5 = 0.6

Neither is one of MUSE's metrics. EM is due to Tirumala et al. 2022 (arXiv 2205.10770), ES to Carlini et al. 2021.
"""

from __future__ import annotations

import torch

from qru.metrics.checks import check_tokenizer
from qru.metrics.logprobs import check_texts_fit, greedy_hits
from qru.metrics.registry import metric
from qru.metrics.score import Context, Score
from qru.metrics.verbmem import mean_score, passage_rows, passages

LONGEST = 2048  # tokens of a ground truth that are looked at, as there


def exact_memorization(hits: torch.Tensor) -> float:
    """Share of a ground truth's tokens (n,) that were hit."""
    return float(hits.double().mean())


def extraction_strength(hits: torch.Tensor) -> float:
    """1 − k/n for the shortest prefix of k of a ground truth's n tokens after which every token is hit.

    A missed last token counts as k = n − 1, as in open-unlearning's code, so nothing scores below 1/n.
    """
    missed = torch.nonzero(~hits).flatten()
    shortest = int(missed[-1]) + 1 if len(missed) else 0
    return 1 - min(shortest, len(hits) - 1) / len(hits)


def _scored(tokenizer, corpus, context: Context) -> tuple[list[list[int]], list[int]]:
    (examples,) = context.chosen(passages(corpus, context.options))
    rows, starts = passage_rows(tokenizer, examples)
    return [row[: start + LONGEST] for row, start in zip(rows, starts, strict=True)], starts


def _check(model, tokenizer, corpus, context: Context) -> None:
    rows, starts = _scored(tokenizer, corpus, context)
    what = f"verbmem of corpus {corpus.name!r}"
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        if len(row) - start < 2:
            raise ValueError(
                f"example {i} of {what} has a ground truth of {max(len(row) - start, 0)} tokens, and the last is not "
                "scored: it needs two at least. Lengthen it or leave it out."
            )
    check_texts_fit(model, tokenizer, rows, what)


def _hits(model, tokenizer, corpus, context: Context) -> list[torch.Tensor]:
    check_tokenizer(model, tokenizer)
    rows, starts = _scored(tokenizer, corpus, context)
    # The last token is left out: it need not be fed or predicted.
    found = greedy_hits(model, tokenizer, [row[:-1] for row in rows], context.batch_size, context.advance)
    return [hits[start - 1 :] for hits, start in zip(found, starts, strict=True)]


@metric("exact_memorization", better="lower", sets=passages, check=_check)
def exact_memorization_score(model, tokenizer, corpus, context: Context) -> Score:
    """Share of each passage's tokens that greedy choice hits when the true text so far is given."""
    return mean_score([exact_memorization(hits) for hits in _hits(model, tokenizer, corpus, context)])


@metric("extraction_strength", better="lower", sets=passages, check=_check)
def extraction_strength_score(model, tokenizer, corpus, context: Context) -> Score:
    """How short a prefix of each passage makes greedy choice hit all the rest: 1 = none needed."""
    return mean_score([extraction_strength(hits) for hits in _hits(model, tokenizer, corpus, context)])
