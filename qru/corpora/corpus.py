"""What a corpus is: the splits and names of MUSE (arXiv 2407.06460), with or without a text to pretrain on."""

import hashlib
import json
from dataclasses import asdict, dataclass, field

from qru.registry import Registry

registry = Registry("corpus", "qru.corpora")

RAW_SPLITS = ("forget", "retain1", "retain2", "holdout")
KNOWMEM_SPLITS = ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl", "disjoint_qa", "disjoint_qa_icl")
PRIVLEAK_SPLITS = ("forget", "retain", "holdout")
FOLDS = ("forget_1", "forget_2", "forget_3", "forget_4")


@dataclass(frozen=True)
class BaseText:
    """The text a small model is pretrained on before it meets a corpus; it shares no entity with any split.

    documents: running text, every fact stated several times.
    qa: {"question", "answer"} about facts of `documents`, to teach the question form. Facts asked about in
        `disjoint_qa` and `disjoint_qa_icl` are kept apart; whoever trains decides whether they are asked there.
    """

    documents: list[str]
    qa: list[dict[str, str]]


@dataclass(frozen=True)
class Corpus:
    """A corpus to unlearn from, in the splits of MUSE. A set that there is not is an empty list.

    name: the last part of what it was loaded as, so that it can stand in the name of a file.
    raw: "forget", "retain1", "retain2", "holdout" -> documents. The target is trained on forget, retain1 and retain2,
        the retrained model on retain1 and retain2; retain1 is what unlearning regularises on; nobody sees holdout.
    verbmem: {"prompt", "gt"}, where prompt and gt are a verbatim run of a forget document (MUSE's own leave out the
        space between them).
    knowmem: "forget_qa", "retain_qa" (facts of retain2), "disjoint_qa" (facts of the base text), each with `_icl`
        pairs to put before a question -> {"question", "answer"}.
    privleak: "forget", "retain", "holdout" -> texts.
    base: what the common base model is pretrained on, or None where a public model is the base.
    scal: "forget_1" ⊂ … ⊂ "forget_4" -> documents, nested sets to forget at once; empty where there are none. MUSE's
        News begins at raw["forget"] and grows to four times that; the embedded corpora grow up to raw["forget"].
    sust: "forget_1" … "forget_4" -> documents, disjoint sets to forget one after another; scal's k-th set is the union
        of the first k of them. Empty where there are none.
    labels: split -> what a classifier is to say of each of its documents, in their order. A corpus with labels is for
        classifiers, and raw may have a further split, "test": documents like the retained ones that nobody sees. Empty
        for language models.
    """

    name: str
    raw: dict[str, list[str]]
    verbmem: list[dict[str, str]]
    knowmem: dict[str, list[dict[str, str]]]
    privleak: dict[str, list[str]]
    base: BaseText | None = None
    scal: dict[str, list[str]] = field(default_factory=dict)
    sust: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)

    @property
    def measurable(self) -> tuple[str, ...]:
        """The metrics that there are data for, of "verbmem", "knowmem", "privleak", "utility" and "disjoint", or of a
        classifier's "forget_accuracy", "retain_accuracy", "f1" and "mia"."""

        def asked(subject: str) -> bool:
            return bool(self.knowmem.get(f"{subject}_qa") and self.knowmem.get(f"{subject}_qa_icl"))

        data = {
            "verbmem": bool(self.verbmem),
            "knowmem": asked("forget"),
            "privleak": bool(self.privleak.get("forget") and self.privleak.get("holdout")),
            "utility": asked("retain"),
            "disjoint": asked("disjoint"),
        }
        if self.labels:
            has = {split for split, documents in self.raw.items() if documents}
            data = {
                "forget_accuracy": "forget" in has,
                "retain_accuracy": bool({"retain1", "retain2"} & has),
                "f1": "test" in has,
                "mia": {"forget", "holdout"} <= has,
            }
        return tuple(name for name, given in data.items() if given)

    @property
    def classes(self) -> list[str]:
        """The labels that there are, sorted; none for a corpus without."""
        return sorted({label for labels in self.labels.values() for label in labels})

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over every text and pair of the corpus, in order; equal corpora have equal fingerprints.

        `scal` and `sust` are left out: a run meets one of their sets only in the place of raw["forget"], and is keyed
        by it there.
        """
        told = {name: value for name, value in asdict(self).items() if name not in ("scal", "sust")}
        if not self.labels:
            del told["labels"]  # a corpus without is what it was before there were any
        content = json.dumps(told, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()
