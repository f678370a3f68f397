"""What one run is asked to forget: the whole forget set, or one of MUSE's nested or successive sets.

Scalability and sustainability are the fifth and sixth way of MUSE (arXiv 2407.06460). ``scal_k`` is forgotten at once,
starting from the target, for as many epochs as every other set. ``sust_k`` is the k-th of a sequence of requests: it
starts from the model that request k − 1 left behind and trains on its own documents alone. As in MUSE's public code,
the model at the start of a request is also the reference of NPO and KLR in it, the optimizer starts anew, and what is
retained stays ``retain1``: neither earlier requests nor what is not yet to be forgotten is trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qru.config import WHOLE
from qru.corpora import Corpus
from qru.metrics import mean_ci

KINDS = ("scal", "sust")
PARTS = ("forgotten", "remaining")


def split_name(name: str) -> tuple[str, int]:
    """``"sust_3"`` -> ``("sust", 3)``."""
    kind, _, number = name.rpartition("_")
    return kind, int(number)


def previous(name: str) -> str | None:
    """The request before this one, whose result it starts from; ``None`` for a run that starts from the target."""
    if name == WHOLE:
        return None
    kind, number = split_name(name)
    return f"sust_{number - 1}" if kind == "sust" and number > 1 else None


def requests(name: str) -> list[str]:
    """A forget set and those that must be forgotten before it, in order: ``sust_1 … sust_k``, or the set alone."""
    before = previous(name)
    return [*(requests(before) if before else []), name]


def documents(corpus: Corpus, name: str) -> list[str]:
    """What a run is to forget.

    Args:
        corpus: its ``raw["forget"]``, ``scal`` and ``sust``.
        name: ``"all"``, ``"scal_1"`` … or ``"sust_1"`` …; of a sequence only the request of this run.

    Raises:
        ValueError: the corpus has no such set, or it is empty (names those there are).
    """
    if name == WHOLE:
        return corpus.raw["forget"]
    kind, number = split_name(name)
    found = getattr(corpus, kind).get(f"forget_{number}")
    if not found:
        what = "is empty" if found is not None else "does not exist"
        raise ValueError(f"forget_set {name!r} {what} in corpus {corpus.name!r}, which has {', '.join(there(corpus))}.")
    return found


def there(corpus: Corpus) -> list[str]:
    """Names of the forget sets that a corpus has."""
    sets = [f"{kind}_{split_name(key)[1]}" for kind in KINDS for key, texts in getattr(corpus, kind).items() if texts]
    return [WHOLE, *sorted(sets)]


def narrowed(corpus: Corpus, name: str) -> Corpus:
    """The corpus as unlearning sees it: ``raw["forget"]`` holds what this run is to forget."""
    return corpus if name == WHOLE else replace(corpus, raw=corpus.raw | {"forget": documents(corpus, name)})


def verbmem_parts(corpus: Corpus, name: str) -> dict[str, list[int]]:
    """Which VerbMem examples stem from documents that this run and the requests before it were to forget.

    A passage belongs to the documents that hold its prompt and continuation verbatim, white space aside: tokenizing
    and decoding, which cut MUSE's passages, does not always keep it.

    Returns:
        ``"forgotten"`` and ``"remaining"`` (found in ``raw["forget"]`` or another forget set) -> positions in
        ``corpus.verbmem``. A passage found nowhere is in neither.
    """

    def bare(texts: list[str]) -> str:
        return "\n".join("".join(text.split()) for text in texts)

    asked = bare([text for one in requests(name) for text in documents(corpus, one)])
    sets = [corpus.raw["forget"], *corpus.scal.values(), *corpus.sust.values()]
    known = bare([text for texts in sets for text in texts])
    out: dict[str, list[int]] = {part: [] for part in PARTS}
    for at, example in enumerate(corpus.verbmem):
        passage = "".join((example["prompt"] + example["gt"]).split())
        if passage in asked:
            out["forgotten"].append(at)
        elif passage in known:
            out["remaining"].append(at)
    return out


def section(corpus: Corpus, name: str) -> dict[str, Any]:
    """What a record says of the forget set of its run.

    Returns:
        ``name``, ``kind``, ``number``, ``documents`` (how many it and the requests before it were to forget), and
        ``examples``: positions as ``verbmem_parts`` gives them.
    """
    kind, number = split_name(name)
    count = sum(len(documents(corpus, one)) for one in requests(name))
    return {
        "name": name, "kind": kind, "number": number, "documents": count, "examples": verbmem_parts(corpus, name),
    }  # fmt: skip


def restricted(score: Mapping[str, Any], chosen: Sequence[int]) -> dict[str, Any]:
    """A ROUGE score as a record holds it, of the chosen examples alone; there is at least one."""
    values = [score["per_example"][at] for at in chosen]
    mean, low, high = (100 * x for x in mean_ci(values))
    return {"value": mean, "ci": [low, high], "per_example": values}


def of_forgotten(scores: dict[str, Any], examples: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """``scores[model][precision][metric]`` with VerbMem of what was to be forgotten so far, where a corpus has any.

    KnowMem stays that of all questions: they do not say which document they are about.
    """
    if not examples["forgotten"]:  # also where a corpus has no VerbMem
        return scores
    return {
        model: {
            precision: by | {"verbmem": restricted(by["verbmem"], examples["forgotten"])}
            for precision, by in by_precision.items()
        }
        for model, by_precision in scores.items()
    }


def parts(scores: dict[str, Any], examples: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """VerbMem of each part: ``[model][precision][part]`` -> ``value``, ``ci`` (percent) and ``examples`` (count)."""
    out: dict[str, Any] = {}
    for model, by_precision in scores.items():
        for precision, by in by_precision.items():
            found = out.setdefault(model, {}).setdefault(precision, {})
            for part, chosen in examples.items():
                if chosen:
                    score = restricted(by["verbmem"], chosen)
                    found[part] = {"value": score["value"], "ci": score["ci"], "examples": len(chosen)}
    return out
