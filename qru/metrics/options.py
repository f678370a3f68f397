"""Departures from MUSE's protocol, each by name and each off by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Options:
    """How ``evaluate`` departs from MUSE's protocol (arXiv 2407.06460). Scores made with one are another metric.

    Attributes:
        stemmer: compare word stems in ROUGE ("running" and "run" are one word), Porter's, in every ROUGE metric.
        k: share of a text's tokens that Min-K % and Min-K++ average, in (0, 1].
        privleak_against: texts that the forget texts are compared with: "holdout", as in every published number, or
            "retain", as the text of QRU (arXiv 2602.13151) has it.
        chat_template: put every prompt of VerbMem and of the questions into the tokenizer's chat template, as one turn
            of the user; the answer is then the assistant's. Texts whose likelihood is measured stay plain.
    """

    stemmer: bool = False
    k: float = 0.4
    privleak_against: Literal["holdout", "retain"] = "holdout"
    chat_template: bool = False

    def __post_init__(self) -> None:
        for name in ("stemmer", "chat_template"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        if isinstance(self.k, bool) or not isinstance(self.k, (int, float)) or not 0 < self.k <= 1:
            raise ValueError(f"k is the share of tokens averaged, in (0, 1], not {self.k!r}")
        if self.privleak_against not in ("holdout", "retain"):
            raise ValueError(f"privleak_against is {self.privleak_against!r}; it must be 'holdout' or 'retain'")

    @property
    def sides(self) -> tuple[str, str]:
        """The two sets of texts that membership scores compare."""
        return "forget", self.privleak_against
