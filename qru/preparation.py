"""The three models a run starts from: what they were trained on, how, and whether they know what they must."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qru import models
from qru.corpora import Corpus, load_corpus
from qru.corpora.world import units_of_documents
from qru.metrics import Score, auc
from qru.metrics.bootstrap import interval, resamples
from qru.models import Checkpoints
from qru.pipeline import baseline_scores
from qru.tables import METRICS, with_interval

USES = {
    "forget": "target is trained on it, then it is unlearned",
    "retain1": "target and retrained are trained on it; unlearning holds on to it",
    "retain2": "target and retrained are trained on it; utility asks about it",
    "holdout": "no model sees it; like forget, so that a guess at membership has something to fail on",
    "base text": "base is pretrained on it; shares no fact with the rest",
}
KNOWN, COPIED, APART = 90.0, 60.0, 20.0  # percent: what the target must score, and how near retrained is to base


@dataclass(frozen=True)
class Prepared:
    """A corpus, its three models and their scores in bf16 (``scores["base" | "target" | "retrained"][metric]``), and
    the unit that each document belongs to."""

    corpus: Corpus
    checkpoints: Checkpoints
    scores: Mapping[str, Mapping[str, Score]]
    units: Mapping[str, str]


def prepare(corpus: str, scale: str) -> Prepared:
    """Make or find the models of an embedded corpus and score them in bf16.

    Raises:
        ValueError: unknown corpus or scale.
    """
    loaded = load_corpus(corpus, scale=scale)
    made = models.prepare(loaded, scale)
    stored = baseline_scores(loaded, made, ("base", "target", "retrained"), short=scale == "smoke")
    scores = {
        name: {metric: Score.from_dict(score) for metric, score in by_precision["bf16"].items()}
        for name, by_precision in stored.items()
    }
    return Prepared(loaded, made, scores, units_of_documents(scale))


def split_table(corpus: Corpus) -> pd.DataFrame:
    """Splits of the running text: documents, words, and what each is for."""
    splits = dict(corpus.raw) | ({"base text": corpus.base.documents} if corpus.base else {})
    rows = [
        (name, len(documents), sum(len(document.split()) for document in documents), USES[name])
        for name, documents in splits.items()
    ]
    return pd.DataFrame(rows, columns=["split", "documents", "words", "use"])


def document_table(corpus: Corpus, splits: Sequence[str] = ("forget", "retain1"), count: int = 1) -> pd.DataFrame:
    """The first documents of some splits."""
    rows = [(split, text) for split in splits for text in corpus.raw[split][:count]]
    return pd.DataFrame(rows, columns=["split", "document"])


def question_table(corpus: Corpus, count: int = 3) -> pd.DataFrame:
    """The first questions of each set, with answers."""
    rows = [
        (name.removesuffix("_qa"), pair["question"], pair["answer"])
        for name, pairs in corpus.knowmem.items()
        if name.endswith("_qa")
        for pair in pairs[:count]
    ]
    return pd.DataFrame(rows, columns=["about", "question", "answer"])


def histories(prepared: Prepared) -> dict[str, list[dict[str, float]]]:
    """Loss over training steps of base, target and retrained."""
    folders = {name: getattr(prepared.checkpoints, name) for name in ("base", "target", "retrained")}
    return {name: models.history(folder) for name, folder in folders.items()}


def model_table(prepared: Prepared) -> pd.DataFrame:
    """Scores of the three models in bf16, ``value [95 % interval]`` in percent."""
    rows = {
        name: {METRICS[metric]: with_interval(score.value, *score.ci) for metric, score in scores.items()}
        for name, scores in prepared.scores.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def auc_interval(
    forget: Sequence[float],
    holdout: Sequence[float],
    forget_units: Sequence[str],
    holdout_units: Sequence[str],
    n_boot: int = 2000,
) -> tuple[float, float]:
    """95 % interval of an AUC, units of forget and of holdout texts resampled independently.

    Texts of a unit share their entities, and a name that a model finds unlikely makes all of them unlikely; resampling
    texts one by one would take them for independent and give an interval that is too narrow.

    Args:
        forget, holdout: a score of each text.
        forget_units, holdout_units: the unit of each text.
    """
    wins = (np.sign(np.asarray(forget)[:, None] - np.asarray(holdout)[None, :]) + 1) / 2
    inside = [
        (np.array(sorted(set(units)))[:, None] == np.asarray(units)[None, :]).astype(float)
        for units in (forget_units, holdout_units)
    ]  # (units, texts) each
    drawn = [resamples(len(rows), n_boot, seed) @ rows for seed, rows in enumerate(inside)]  # (n_boot, texts)
    return interval(((drawn[0] @ wins) * drawn[1]).sum(1) / (drawn[0].sum(1) * drawn[1].sum(1)))


def requirement_table(prepared: Prepared) -> pd.DataFrame:
    """What the models must fulfil for a run to mean anything, and whether they do.

    Returns:
        Columns ``requirement``, ``asked``, ``measured``, ``met`` (``"yes"`` or ``"no"``).
    """
    base, target, retrained = (prepared.scores[name] for name in ("base", "target", "retrained"))
    membership = retrained["privleak"].per_example
    units = [[prepared.units[text] for text in prepared.corpus.privleak[side]] for side in ("forget", "holdout")]
    low, high = auc_interval(membership["forget"], membership["holdout"], *units)
    area = auc(membership["forget"], membership["holdout"])
    gap = retrained["knowmem"].value - base["knowmem"].value
    utility = [score["utility"] for score in (target, retrained)]
    checks = [
        ("target answers questions on forget", f"KnowMem ≥ {KNOWN:.0f}", str(target["knowmem"]),
         target["knowmem"].value >= KNOWN),
        ("target answers questions on retain", f"Utility ≥ {KNOWN:.0f}", str(target["utility"]),
         target["utility"].value >= KNOWN),
        ("target recites forget", f"VerbMem ≥ {COPIED:.0f}", str(target["verbmem"]), target["verbmem"].value >= COPIED),
        ("retrained does not know forget", f"KnowMem within {APART:.0f} of base's", f"{gap:+.1f}", abs(gap) <= APART),
        ("retrained knows retain as well as target", "intervals of Utility overlap",
         f"{utility[1]} against {utility[0]}",
         utility[1].ci[0] <= utility[0].ci[1] and utility[0].ci[0] <= utility[1].ci[1]),
        ("retrained cannot tell forget from holdout", "0.5 in the interval of AUC, over units",
         f"{area:.2f} [{low:.2f}, {high:.2f}]", low <= 0.5 <= high),
    ]  # fmt: skip
    table = pd.DataFrame(checks, columns=["requirement", "asked", "measured", "met"])
    table["met"] = ["yes" if met else "no" for met in table["met"]]
    return table
