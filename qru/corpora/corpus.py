"""What a corpus is: the splits and names of MUSE (arXiv 2407.06460), with or without a text to pretrain on."""

import hashlib
import json
from dataclasses import asdict, dataclass

from qru.registry import Registry

registry = Registry("corpus", "qru.corpora")

RAW_SPLITS = ("forget", "retain1", "retain2", "holdout")
KNOWMEM_SPLITS = ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl", "disjoint_qa", "disjoint_qa_icl")
PRIVLEAK_SPLITS = ("forget", "retain", "holdout")


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
    """A corpus to unlearn from, in the splits of MUSE.

    name: what it was loaded as.
    raw: "forget", "retain1", "retain2", "holdout" -> documents. The target is trained on forget, retain1 and retain2,
        the retrained model on retain1 and retain2; retain1 is what unlearning regularises on; nobody sees holdout.
    verbmem: {"prompt", "gt"}, where prompt + gt is a verbatim run of a forget document.
    knowmem: "forget_qa", "retain_qa" (facts of retain2), "disjoint_qa" (facts of the base text), each with `_icl`
        pairs to put before a question -> {"question", "answer"}.
    privleak: "forget", "retain", "holdout" -> texts.
    base: what the common base model is pretrained on, or None where a public model is the base.
    """

    name: str
    raw: dict[str, list[str]]
    verbmem: list[dict[str, str]]
    knowmem: dict[str, list[dict[str, str]]]
    privleak: dict[str, list[str]]
    base: BaseText | None = None

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over every text and pair of the corpus, in order; equal corpora have equal fingerprints."""
        content = json.dumps(asdict(self), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()
