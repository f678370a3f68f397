"""Metrics of forgetting, privacy and utility, with intervals; MUSE's four (arXiv 2407.06460) and a disjoint QA set."""

from qru.metrics.bootstrap import mean_ci, paired_difference, recovered_share, recovers
from qru.metrics.evaluation import METRICS, evaluate
from qru.metrics.generation import greedy
from qru.metrics.logprobs import token_log_probs
from qru.metrics.membership import retrained_scores
from qru.metrics.privleak import auc, min_k_score, privleak, privleak_ci
from qru.metrics.registry import direction, registry
from qru.metrics.rouge import rouge_l
from qru.metrics.score import Score

__all__ = [
    "METRICS",
    "Score",
    "auc",
    "direction",
    "evaluate",
    "greedy",
    "mean_ci",
    "min_k_score",
    "paired_difference",
    "privleak",
    "privleak_ci",
    "recovered_share",
    "recovers",
    "registry",
    "retrained_scores",
    "rouge_l",
    "token_log_probs",
]
