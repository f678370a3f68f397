"""What a metric returns, and what it is given beside the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from qru.metrics.options import Options

Better = Literal["lower", "higher", "towards zero", "towards retrained"]


@dataclass(frozen=True)
class Score:
    """One metric of one model, with what is needed to compare it to another one example by example.

    Attributes:
        value: percent.
        ci: (low, high) of the 95 % bootstrap interval over examples, percent.
        per_example: what the value is the mean of, one number in [0, 1] per example (F1 is none, and has whether each
            was right); for PrivLeak and its kin ``{"forget": [...], "holdout": [...]}``, the score of each text.
        responses: what the model generated, or the label that it gave, one string per example, where there is any.
    """

    value: float
    ci: tuple[float, float]
    per_example: list[float] | dict[str, list[float]]
    responses: list[str] | None = None

    @property
    def n(self) -> int:
        """How many examples were scored; for PrivLeak, texts of both sides together."""
        if isinstance(self.per_example, dict):
            return sum(len(scores) for scores in self.per_example.values())
        return len(self.per_example)

    def to_dict(self) -> dict:
        """The score as JSON-ready values; ``from_dict`` is its inverse."""
        out = {"value": self.value, "ci": list(self.ci), "per_example": self.per_example}
        return out if self.responses is None else {**out, "responses": self.responses}

    @classmethod
    def from_dict(cls, stored: Mapping) -> Score:
        """Rebuild a score from ``to_dict``'s output.

        Raises:
            ValueError: a key is missing or not one of Score's.
        """
        known = {field.name for field in fields(cls)}
        if strange := sorted(set(stored) - known):
            raise ValueError(f"a stored score has the unknown keys {strange}; known: {sorted(known)}")
        if missing := sorted(known - {"responses"} - set(stored)):
            raise ValueError(f"a stored score lacks {missing}; it has {sorted(stored)}")
        low, high = stored["ci"]
        return cls(stored["value"], (low, high), stored["per_example"], stored.get("responses"))

    def __str__(self) -> str:
        if any(math.isnan(x) for x in (self.value, *self.ci)):
            return "undefined"
        return f"{self.value:.1f} [{self.ci[0]:.1f}, {self.ci[1]:.1f}]"


@dataclass(frozen=True)
class Context:
    """What ``evaluate`` tells a metric beside model, tokenizer and corpus.

    Attributes:
        examples: positions to score, in the metric's own list of examples; None for all.
        retrained: scores of texts under the retrained model in bf16, by metric:
            ``{"privleak": {"forget": [...], "holdout": [...]}}``, aligned with the corpus's whole lists; None where
            it was not given.
        batch_size: sequences per forward pass.
        advance: called with the number of examples just finished.
        options: departures from the protocol.
    """

    examples: Sequence[int] | None = None
    retrained: Mapping[str, Mapping[str, Sequence[float]]] | None = None
    batch_size: int = 32
    advance: Callable[[int], None] | None = None
    options: Options = field(default_factory=Options)

    def chosen(self, sets: Mapping[str, Sequence]) -> list[list]:
        """What is scored of each of a metric's sets, by the name it has in messages: the first by ``examples``, the
        others whole.

        Raises:
            ValueError: as ``pick``.
        """
        contexts = [self, *[replace(self, examples=None)] * (len(sets) - 1)]
        return [context.pick(items, what) for context, (what, items) in zip(contexts, sets.items(), strict=True)]

    def pick(self, items: Sequence, what: str) -> list:
        """The chosen ones of a metric's examples.

        Raises:
            ValueError: there is nothing to score, or a position lies outside the list.
        """
        if len(items) == 0:
            raise ValueError(f"{what} is empty: there is nothing to score. Fill it, or leave this metric out.")
        if self.examples is None:
            return list(items)
        if len(self.examples) == 0:
            raise ValueError(f"examples for {what} is an empty list; pass None to score all {len(items)}")
        if outside := [i for i in self.examples if not 0 <= i < len(items)]:
            raise ValueError(f"examples {outside} lie outside {what}, which has {len(items)} (0 to {len(items) - 1})")
        return [items[i] for i in self.examples]
