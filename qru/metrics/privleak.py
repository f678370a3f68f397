"""PrivLeak: is a forget text as unlikely to the model as to one that never saw it? The arithmetic, without torch.

A text's score is *minus* the mean of its lowest 40 % token log-probabilities (Min-K %): positive, higher = less
likely; so is every other score here. A model that memorised the forget set scores it lower than unseen text, so
AUC = P(forget > holdout) is near 0 before unlearning, near the retrained model's value after unlearning well, and
above it after too much. MUSE (arXiv 2407.06460) compares forget with *holdout* in every published number, and so does
this.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from qru.metrics.bootstrap import as_scores, interval, resamples

MISSING_REFERENCE = (
    "PrivLeak is defined relative to the retrained model, and there is none here: pass retrained=MODEL (the model "
    "trained without the forget set; load_models(corpus) returns it beside the target), or its stored scores "
    'retrained={"forget": [...], "holdout": [...]}, or leave "privleak" out of metrics. A default of 0.5 would be '
    "another metric."
)


def lowest_mean(values: Sequence[float], k: float) -> float:
    """The mean of the lowest share k of a text's values, (n,); int(k · n) of them are averaged.

    Raises:
        ValueError: k outside (0, 1], a value that is not finite, or too few values for k.
    """
    if not 0 < k <= 1:
        raise ValueError(f"k is the share of tokens averaged, in (0, 1], not {k}")
    array = np.asarray(values, dtype=np.float64)
    check_share(array.size, k)
    count = int(k * array.size)
    return float(np.partition(as_scores(array, "token_log_probs"), count - 1)[:count].mean())


def check_share(tokens: int, k: float) -> None:
    """Refuse a text too short to have a lowest share.

    Raises:
        ValueError: naming the number of tokens it needs.
    """
    if int(k * tokens) == 0:
        raise ValueError(
            f"a text of {tokens} tokens is too short: int({k} · {tokens}) = 0 tokens would be averaged, "
            f"and at least {int(np.ceil(1 / k))} are needed. Join it to its neighbour or leave it out."
        )


def _check_log_probs(token_log_probs: Sequence[float]) -> np.ndarray:
    array = as_scores(token_log_probs, "token_log_probs")
    if array.max() > 1e-6:  # a little above 0 is rounding of log-softmax
        raise ValueError(f"token_log_probs holds {array.max()}, but a log-probability is at most 0")
    return array


def min_k_score(token_log_probs: Sequence[float], k: float = 0.4) -> float:
    """Minus the mean of the lowest share k of a text's token log-probabilities.

    Args:
        token_log_probs: log-probability of each token of the text, (n,); a list, an array or a tensor on the CPU.
        k: share of tokens; int(k · n) of them are averaged.

    Returns:
        A positive number in nats; higher = less likely.

    Raises:
        ValueError: k outside (0, 1], a log-probability that is not finite or above 0, or too few tokens for k.
    """
    lowest = lowest_mean(token_log_probs, k)
    _check_log_probs(token_log_probs)
    return -lowest


def loss_score(token_log_probs: Sequence[float]) -> float:
    """Minus the mean of a text's token log-probabilities, in nats: the logarithm of its perplexity, and as an AUC it.

    Raises:
        ValueError: no log-probability, or one that is not finite or above 0.
    """
    return float(-_check_log_probs(token_log_probs).mean())


def zlib_score(token_log_probs: Sequence[float], text: str) -> float:
    """``loss_score`` over the number of bytes that zlib needs for the text: a repetitive text is likely by itself.

    Raises:
        ValueError: as ``loss_score``.

    Source: Carlini et al. 2021, arXiv 2012.07805.
    """
    return loss_score(token_log_probs) / len(zlib.compress(text.encode("utf-8")))


def min_k_plus_score(standardized: Sequence[float], k: float = 0.4) -> float:
    """Minus the mean of the lowest share k of a text's standardized token log-probabilities (Min-K++).

    Args:
        standardized: (log p(token) − μ) / σ at each token, (n,); μ and σ are mean and standard deviation of log p of a
            token drawn from the model's own distribution at that place.
        k: share of tokens; int(k · n) of them are averaged.

    Raises:
        ValueError: k outside (0, 1], a value that is not finite, or too few tokens for k.

    Source: Zhang et al. 2024, arXiv 2404.02936.
    """
    return -lowest_mean(standardized, k)


def wins(forget: Sequence[float], holdout: Sequence[float], model: str) -> np.ndarray:
    """1 where a forget text scores higher than a holdout text, 1/2 at ties: (n_forget, n_holdout)."""
    forget, holdout = as_scores(forget, f"forget of {model}"), as_scores(holdout, f"holdout of {model}")
    return (np.sign(forget[:, None] - holdout[None, :]) + 1) / 2


def auc(forget: Sequence[float], holdout: Sequence[float]) -> float:
    """P(score of a forget text > score of a holdout text), ties half.

    Raises:
        ValueError: a side is empty or holds a value that is not finite.
    """
    return float(wins(forget, holdout, "the model").mean())


def _both(forget, holdout, retrained_forget, retrained_holdout) -> tuple[np.ndarray, np.ndarray]:
    if retrained_forget is None or retrained_holdout is None:
        raise ValueError(MISSING_REFERENCE)
    model = wins(forget, holdout, "the model")
    reference = wins(retrained_forget, retrained_holdout, "the retrained model")
    if reference.mean() == 0:
        raise ValueError(
            "the retrained model's AUC is 0: it finds every forget text likelier than every holdout text, as a model "
            "trained on the forget set does. Was the target passed as the retrained model?"
        )
    return model, reference


def privleak(
    forget: Sequence[float],
    holdout: Sequence[float],
    retrained_forget: Sequence[float] | None,
    retrained_holdout: Sequence[float] | None,
) -> float:
    """PrivLeak = 100 (AUC − AUC_retrain) / AUC_retrain, in percent; 0 is best, −100 is full memory.

    Args:
        forget: Min-40 % scores of the forget texts under the model judged.
        holdout: of texts of the same distribution that no model saw.
        retrained_forget: of the forget texts under the retrained model (in bf16, whatever the judged precision).
        retrained_holdout: of the holdout texts under the retrained model.

    Raises:
        ValueError: no retrained reference, an empty side, a value that is not finite, or a reference AUC of 0.

    Source: MUSE, arXiv 2407.06460, with its public per-text scores.
    """
    model, reference = _both(forget, holdout, retrained_forget, retrained_holdout)
    return float(100 * (model.mean() - reference.mean()) / reference.mean())


def privleak_ci(
    forget: Sequence[float],
    holdout: Sequence[float],
    retrained_forget: Sequence[float] | None,
    retrained_holdout: Sequence[float] | None,
    n_boot: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of ``privleak``: forget texts and holdout texts resampled independently.

    The same texts are drawn for the judged and for the retrained model, since both scored the same texts; so the
    interval of the retrained model against itself is (0, 0).

    Returns:
        (low, high), percent.

    Raises:
        ValueError: as ``privleak``; and when the two models scored different numbers of texts.
    """
    model, reference = _both(forget, holdout, retrained_forget, retrained_holdout)
    if model.shape != reference.shape:
        raise ValueError(
            f"the model scored {model.shape[0]} forget and {model.shape[1]} holdout texts, the retrained model "
            f"{reference.shape[0]} and {reference.shape[1]}: an interval needs both on the same texts"
        )
    forget_counts = resamples(model.shape[0], n_boot, seed)
    holdout_counts = resamples(
        model.shape[1], n_boot, seed + 1
    )  # another seed: else text i is drawn on both sides alike
    resampled = ((forget_counts @ model) * holdout_counts).sum(1)
    resampled_reference = ((forget_counts @ reference) * holdout_counts).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = 100 * (resampled - resampled_reference) / resampled_reference
    return interval(np.nan_to_num(statistic, nan=0.0, posinf=np.inf, neginf=-np.inf))
