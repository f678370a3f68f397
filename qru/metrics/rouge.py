"""ROUGE-L F1 as MUSE (arXiv 2407.06460) computes it."""

from __future__ import annotations

from functools import cache

from rouge_score.rouge_scorer import RougeScorer


@cache
def _scorer(stemmer: bool) -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=stemmer)


def rouge_l(ground_truth: str, response: str, stemmer: bool = False) -> float:
    """ROUGE-L F1 between a ground truth and a response, without stemmer unless asked.

    Words are runs of a-z and 0-9 after lowercasing, as in the original ROUGE; everything else only separates them.

    Args:
        ground_truth: what the text says.
        response: what the model said.
        stemmer: compare Porter's stems of words longer than three letters. Not MUSE's protocol.

    Returns:
        F1 of the longest common subsequence of words, in [0, 1]; 0 when either has no word.
    """
    return float(_scorer(stemmer).score(ground_truth, response)["rougeL"].fmeasure)
