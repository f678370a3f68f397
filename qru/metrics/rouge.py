"""ROUGE-L F1 as MUSE (arXiv 2407.06460) computes it."""

from __future__ import annotations

from functools import cache

from rouge_score.rouge_scorer import RougeScorer


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=False)


def rouge_l(ground_truth: str, response: str) -> float:
    """ROUGE-L F1 between a ground truth and a response, without stemmer.

    Words are runs of a-z and 0-9 after lowercasing, as in the original ROUGE; everything else only separates them.

    Args:
        ground_truth: what the text says.
        response: what the model said.

    Returns:
        F1 of the longest common subsequence of words, in [0, 1]; 0 when either has no word.
    """
    return float(_scorer().score(ground_truth, response)["rougeL"].fmeasure)
