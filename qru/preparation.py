"""The three models a run starts from: what they were trained on, how, and whether they know what they must."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qru import inputs, models, scoring
from qru.config import RunConfig
from qru.corpora import Corpus
from qru.corpora.world import units_of_documents
from qru.metrics import Score, auc, paired_difference
from qru.metrics.bootstrap import interval, resamples
from qru.models import Checkpoints
from qru.tables import HEADINGS, with_interval

USES = {
    "forget": "target is trained on it, then it is unlearned",
    "retain1": "target and retrained are trained on it; unlearning holds on to it",
    "retain2": "target and retrained are trained on it; utility asks about it",
    "holdout": "no model sees it; like forget, so that a guess at membership has something to fail on",
    "base text": "base is pretrained on it; shares no fact with the rest",
    "test": "no model sees it; like the retained texts, F1 is measured on it",
}
KNOWN, COPIED, APART = 90.0, 60.0, 20.0  # percent: what the target must score, and how near retrained is to base
KEPT, UNKNOWN = 85.0, 50.0  # percent of labels: what both models must know of retain, and retrained at most of forget


SHOWN = 3000  # characters of a document


@dataclass(frozen=True)
class Prepared:
    """A corpus, its three models and their scores in bf16 (``scores["base" | "target" | "retrained"][metric]``), and
    the unit that each document belongs to."""

    corpus: Corpus
    checkpoints: Checkpoints
    scores: Mapping[str, Mapping[str, Score]]
    units: Mapping[str, str]


def prepare(
    corpus: str,
    scale: str,
    target: str | None = None,
    retrained: str | None = None,
    tokenizer: str | None = None,
    chat_template: bool = False,
) -> Prepared:
    """Make or find the models of a corpus and score them in bf16.

    Args:
        corpus, scale, target, retrained, tokenizer, chat_template: as in ``RunConfig``.

    Raises:
        ValueError: a name is unknown, or what it names cannot be used.
    """
    named = {"target": target, "retrained": retrained, "tokenizer": tokenizer}
    (found,) = inputs.find([RunConfig(corpus=corpus, scale=scale, chat_template=chat_template, **named)], train=False)
    loaded, made = found.corpus, found.models()
    names = [name for name in ("base", "target", "retrained") if getattr(made, name)]
    if loaded.labels and "base" in names:
        names.remove("base")  # a language model, which has no labels to give
    stored = scoring.baseline_scores(
        loaded, made, names, short=scale == "smoke" or made.base is None, chat_template=chat_template
    )
    scores = {
        name: {metric: Score.from_dict(score) for metric, score in by_precision["bf16"].items()}
        for name, by_precision in stored.items()
    }
    if loaded.base and not loaded.labels:
        units = units_of_documents(scale if scale in models.SIZES else "mini")
    else:
        units = {text: text for texts in loaded.privleak.values() for text in texts}  # nothing is known of units
    return Prepared(loaded, made, scores, units)


def split_table(corpus: Corpus) -> pd.DataFrame:
    """Splits of the running text: documents, words, and what each is for."""
    splits = dict(corpus.raw) | ({"base text": corpus.base.documents} if corpus.base else {})
    rows = [
        (name, len(documents), sum(len(document.split()) for document in documents), USES[name])
        for name, documents in splits.items()
    ]
    return pd.DataFrame(rows, columns=["split", "documents", "words", "use"])


def document_table(corpus: Corpus, splits: Sequence[str] = ("forget", "retain1"), count: int = 1) -> pd.DataFrame:
    """The first documents of some splits, each to its first ``SHOWN`` characters: a book is one document."""
    cut = [(split, text, text[:SHOWN]) for split in splits for text in corpus.raw[split][:count]]
    rows = [(split, shown if shown == text else f"{shown} …") for split, text, shown in cut]
    table = pd.DataFrame(rows, columns=["split", "document"])
    if corpus.labels:
        table["label"] = [label for split in splits for label in corpus.labels[split][:count]]
    return table


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
    """Loss over training steps of base, target and retrained; nothing is known of models that came ready."""
    if prepared.checkpoints.base is None:
        return {}
    folders = {name: getattr(prepared.checkpoints, name) for name in ("base", "target", "retrained")}
    return {name: models.history(folder) for name, folder in folders.items()}


def model_table(prepared: Prepared) -> pd.DataFrame:
    """Scores of the three models in bf16, ``value [95 % interval]`` in percent."""
    rows = {
        name: {HEADINGS[metric]: with_interval(score.value, *score.ci) for metric, score in scores.items()}
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


def _utility_check(target: Mapping[str, Score], retrained: Mapping[str, Score]) -> tuple:
    first, second = target["utility"], retrained["utility"]
    overlap = first.ci[0] <= second.ci[1] and second.ci[0] <= first.ci[1]
    return (
        "retrained knows retain as well as target",
        "intervals of Utility overlap",
        f"{second} against {first}",
        overlap,
    )


def _membership_check(prepared: Prepared) -> tuple:
    membership = prepared.scores["retrained"]["privleak"].per_example
    units = [[prepared.units[text] for text in prepared.corpus.privleak[side]] for side in ("forget", "holdout")]
    low, high = auc_interval(membership["forget"], membership["holdout"], *units)
    area = auc(membership["forget"], membership["holdout"])
    return (
        "retrained cannot tell forget from holdout", "0.5 in the interval of AUC, over units",
        f"{area:.2f} [{low:.2f}, {high:.2f}]", low <= 0.5 <= high,
    )  # fmt: skip


def _of_embedded(prepared: Prepared) -> list[tuple]:
    """What models of a size that can be trained to it must fulfil."""
    base, target, retrained = (prepared.scores[name] for name in ("base", "target", "retrained"))
    gap = retrained["knowmem"].value - base["knowmem"].value
    return [
        ("target answers questions on forget", f"KnowMem ≥ {KNOWN:.0f}", str(target["knowmem"]),
         target["knowmem"].value >= KNOWN),
        ("target answers questions on retain", f"Utility ≥ {KNOWN:.0f}", str(target["utility"]),
         target["utility"].value >= KNOWN),
        ("target recites forget", f"VerbMem ≥ {COPIED:.0f}", str(target["verbmem"]), target["verbmem"].value >= COPIED),
        ("retrained does not know forget", f"KnowMem within {APART:.0f} of base's", f"{gap:+.1f}", abs(gap) <= APART),
        _utility_check(target, retrained),
        _membership_check(prepared),
    ]  # fmt: skip


def _of_classifiers(prepared: Prepared) -> list[tuple]:
    """What classifiers must fulfil, as far as the corpus can tell; the retrained one guesses at what it never saw."""
    target, retrained = prepared.scores["target"], prepared.scores["retrained"]
    known, guessed = target["forget_accuracy"], retrained["forget_accuracy"]
    checks = [
        ("target gives forget its labels", f"Forget accuracy ≥ {KNOWN:.0f}", str(known), known.value >= KNOWN),
        ("retrained does not", f"Forget accuracy ≤ {UNKNOWN:.0f}", str(guessed), guessed.value <= UNKNOWN),
    ]
    for name, scores in (("target", target), ("retrained", retrained)):
        if "retain_accuracy" in scores:
            kept = scores["retain_accuracy"]
            told = f"Retain accuracy ≥ {KEPT:.0f}"
            checks.append((f"{name} gives retain its labels", told, str(kept), kept.value >= KEPT))
    if "mia" in retrained:
        attack = retrained["mia"]
        told = attack.ci[0] <= 50 <= attack.ci[1]
        checks.append(("retrained cannot tell forget from holdout", "50 in the interval of MIA", str(attack), told))
    return checks


def _of_given(prepared: Prepared) -> list[tuple]:
    """What models that came ready must fulfil, as far as the corpus can tell: how well they score is not ours to say,
    but the target must know of forget what the retrained model does not."""
    target, retrained = prepared.scores["target"], prepared.scores["retrained"]
    checks = []
    for metric, what in (("knowmem", "answers questions on forget"), ("verbmem", "recites forget")):
        if metric in target:
            sides = retrained[metric].per_example, target[metric].per_example
            change, low, high = (100 * value for value in paired_difference(*sides))
            told = f"{with_interval(change, low, high)} points"
            checks.append((f"target {what} better than retrained", "interval of the difference above 0", told, low > 0))
    if "utility" in target:
        checks.append(_utility_check(target, retrained))
    if "privleak" in target:
        checks.append(_membership_check(prepared))
    return checks


def requirement_table(prepared: Prepared) -> pd.DataFrame:
    """What the models must fulfil for a run to mean anything, and whether they do.

    Returns:
        Columns ``requirement``, ``asked``, ``measured``, ``met`` (``"yes"`` or ``"no"``).
    """
    if prepared.corpus is not None and prepared.corpus.labels:
        checks = _of_classifiers(prepared)
    else:
        checks = (_of_embedded if prepared.checkpoints.base else _of_given)(prepared)
    table = pd.DataFrame(checks, columns=["requirement", "asked", "measured", "met"])
    table["met"] = ["yes" if met else "no" for met in table["met"]]
    return table
