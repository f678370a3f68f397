"""Metrics of forgetting, privacy and utility, with intervals; MUSE's four (arXiv 2407.06460) and a disjoint QA set.

What runs a model is imported on first use, so that tables and figures can use the arithmetic without loading torch.
"""

import importlib
from typing import TYPE_CHECKING

from qru.metrics.bootstrap import mean_ci, paired_difference, recovered_share, recovers
from qru.metrics.options import Options
from qru.metrics.privleak import (
    auc,
    loss_score,
    min_k_plus_score,
    min_k_score,
    privleak,
    privleak_ci,
    zlib_score,
)
from qru.metrics.registry import direction, registry
from qru.metrics.rouge import rouge_l
from qru.metrics.score import Score

if TYPE_CHECKING:
    from qru.metrics.evaluation import METRICS, evaluate
    from qru.metrics.generation import greedy
    from qru.metrics.logprobs import standardized_log_probs, token_log_probs
    from qru.metrics.membership import retrained_scores

_RUN_A_MODEL = {
    "METRICS": "evaluation",
    "evaluate": "evaluation",
    "greedy": "generation",
    "retrained_scores": "membership",
    "standardized_log_probs": "logprobs",
    "token_log_probs": "logprobs",
}

__all__ = [
    "METRICS",
    "Options",
    "Score",
    "auc",
    "direction",
    "evaluate",
    "greedy",
    "loss_score",
    "mean_ci",
    "min_k_plus_score",
    "min_k_score",
    "paired_difference",
    "privleak",
    "privleak_ci",
    "recovered_share",
    "recovers",
    "registry",
    "retrained_scores",
    "rouge_l",
    "standardized_log_probs",
    "token_log_probs",
    "zlib_score",
]


def __getattr__(name: str):
    if name not in _RUN_A_MODEL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_RUN_A_MODEL[name]}"), name)
