"""What a run is: one frozen dataclass, checked at the door, hashed into the name of its folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from qru.registry import unknown

SCALES = ("smoke", "mini", "muse")
ADAPTERS = ("full", "lora")
WEIGHTS = ("bf16", "fp32")
LORA_TARGETS = ("all", "mlp", "attention")
QUANTIZERS = ("rtn-int8-g128", "rtn-int4-g128", "rtn-int4-tensor", "rtn-int3-g128")


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form; the key of every cache and run."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def choice(kind: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise unknown(kind, value, known)


@dataclass(frozen=True)
class RunConfig:
    """One unlearning run: method ⊗ arm ⊗ corpus ⊗ scale ⊗ seed, and what is measured at the end.

    Fields left at ``None`` take the default of the method and arm (``qru.defaults``); a resolved config has none.

    Attributes:
        method: ``forget`` or ``forget_retain``: ``ga``, ``npo``, ``ga_gdr``, ``ga_klr``, ``npo_gdr``, ``npo_klr``.
        adapter: ``"full"`` (all weights) or ``"lora"`` (adapters only, merged at the end).
        weights: type of the tensors that the optimizer steps, its moments included: ``"bf16"`` or ``"fp32"``.
        corpus: a name of the corpus registry or the path of a folder.
        scale: ``"smoke"``, ``"mini"`` or ``"muse"``; picks sizes and nothing else.
        seed: of data order and of LoRA's initial A; target and retrained do not depend on it.
        learning_rate: constant over the run (AdamW).
        epochs: passes over the forget documents; the upper limit when ``forget_goal`` is set.
        forget_goal: stop at the first check where VerbMem and KnowMem (percent) of the stopping half of the
            forget examples are both at or under it; the other half is reported. ``None``: run all epochs.
        retain_weight: λ of the retain term; ignored by ``ga`` and ``npo`` alone.
        beta: NPO's inverse temperature.
        batch_size: forget documents a step; as many retain documents go along.
        lora_rank, lora_alpha, lora_dropout, lora_targets: peft's; targets ``"all"``, ``"mlp"`` or ``"attention"``.
        quantizers: names such as ``"rtn-int4-g128"``; ``bf16`` is always measured.
    """

    method: str = "npo_gdr"
    adapter: str = "full"
    weights: str | None = None
    corpus: str = "books"
    scale: str = "mini"
    seed: int = 0
    learning_rate: float | None = None
    epochs: int | None = None
    forget_goal: float | None = None
    retain_weight: float | None = None
    beta: float = 0.1
    batch_size: int | None = None
    lora_rank: int = 32
    lora_alpha: float = 64.0
    lora_dropout: float = 0.05
    lora_targets: str = "all"
    quantizers: tuple[str, ...] = QUANTIZERS

    def __post_init__(self) -> None:
        object.__setattr__(self, "quantizers", tuple(self.quantizers))
        choice("adapter", self.adapter, ADAPTERS)
        choice("scale", self.scale, SCALES)
        choice("lora_targets", self.lora_targets, LORA_TARGETS)
        if self.weights is not None:
            choice("weights", self.weights, WEIGHTS)
        for name in ("lora_rank", "epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1.")
        for name in ("learning_rate", "beta", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value!r}; it must be positive.")
        if self.retain_weight is not None and not self.retain_weight >= 0:
            raise ValueError(f"retain_weight is {self.retain_weight!r}; it must be 0 or more.")
        if self.forget_goal is not None and not 0 <= self.forget_goal <= 100:
            raise ValueError(f"forget_goal is {self.forget_goal!r}; it is a percentage, 0 to 100.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout!r}; it must be at least 0 and under 1.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ValueError(f"seed is {self.seed!r}; it must be a whole number, 0 or more.")
        if repeated := {q for q in self.quantizers if self.quantizers.count(q) > 1}:
            raise ValueError(f"quantizers names {sorted(repeated)} more than once.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """Build from a plain dict; a key that is no field raises with the nearest field's name."""
        fields = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in fields:
                raise unknown("parameter", key, fields)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        values["quantizers"] = list(self.quantizers)
        return values
