"""MIA: can texts that a classifier was trained on be told from unseen ones by its loss?"""

from __future__ import annotations

from collections.abc import Sequence

from qru.metrics.bootstrap import interval, resamples
from qru.metrics.labels import check_labelled, label_log_probs, labelled
from qru.metrics.privleak import auc, wins
from qru.metrics.registry import metric
from qru.metrics.score import Context, Score


def member_auc_ci(forget: Sequence[float], holdout: Sequence[float], n_boot: int = 2000) -> tuple[float, float]:
    """95 % interval of P(loss of a holdout text > loss of a forget text), both sides resampled independently."""
    won = wins(holdout, forget, "the model")  # (n_holdout, n_forget)
    drawn = [resamples(n, n_boot, seed) / n for seed, n in enumerate(won.shape)]  # two seeds: else both draw text i
    return interval(((drawn[0] @ won) * drawn[1]).sum(1))


def _sets(corpus, options) -> dict[str, list]:
    forget, holdout = labelled(corpus, "forget"), labelled(corpus, "holdout")
    # Without one side there is no attack, so there is nothing to score on the other.
    return {**forget, **holdout} if all([*forget.values(), *holdout.values()]) else {next(iter(forget)): []}


@metric("mia", better="towards retrained", sets=_sets, check=check_labelled(_sets))
def mia(model, tokenizer, corpus, context: Context) -> Score:
    """AUC of a membership attack by loss (Yeom et al. 2018, arXiv 1709.01604), forget against holdout texts, percent.

    A text's score is minus the log-probability of its label; the attacker takes the lower loss for the member's, so the
    value is P(loss of a holdout text > loss of a forget text), ties half: **higher is more like a member**. 100: every
    forget text is given away; 50: the attack is a toss of a coin. It is the other way round than the AUC inside
    PrivLeak, and no share of the retrained model's: that one's own value, which need not be 50, is what unlearning
    should come to; under it, too, forget texts stand out. ``examples`` choose forget texts, the holdout is always
    whole.

    ``per_example`` has the loss of each text, in nats, under ``"forget"`` and ``"holdout"``.
    """
    losses = {}
    for side, pairs in zip(("forget", "holdout"), context.chosen(_sets(corpus, context.options)), strict=True):
        found, labels = label_log_probs(model, tokenizer, pairs, context.batch_size, context.advance)
        losses[side] = (-found.gather(1, labels[:, None])[:, 0]).tolist()
    low, high = (100 * x for x in member_auc_ci(losses["forget"], losses["holdout"]))
    return Score(100 * auc(losses["holdout"], losses["forget"]), (low, high), losses)
