"""What a run is: one frozen dataclass, checked at the door, hashed into the name of its folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qru.registry import unknown

SCALES = ("smoke", "mini", "muse")
SIZED = ("mini-128x4", "mini-256x8")  # mini in all but the width and depth of its models
ADAPTERS = ("full", "lora", "delta", "sure")
WEIGHTS = ("bf16", "fp32")
GOAL_METRICS = ("verbmem", "knowmem", "forget_accuracy")
ROUNDINGS = ("nearest", "stochastic")
LORA_TARGETS = ("all", "mlp", "attention")
WHOLE = "all"
FORGET_SETS = (WHOLE, *(f"{kind}_{number}" for kind in ("scal", "sust") for number in (1, 2, 3, 4)))
# Fields that came after the first records were published: at their default they are no part of a run's key.
LATER = (
    "target", "retrained", "tokenizer", "chat_template", "forget_set",
    "moments", "rounding", "adam_beta2", "check_steps", "goal_metrics", "metrics",
    "guard", "guard_weight", "quail_norm", "quail_positions", "quail_step", "quail_quantizer", "ste_quantizers",
    "sam_rho", "bin_margin_quantizer", "sure_percentile",
    "gamma", "steering", "hidden_layer", "task_scaling",
)  # fmt: skip
# Option -> the guard that reads it; the guards themselves are in qru.guards.
GUARD_OPTIONS = {
    "quail_norm": "quail", "quail_positions": "quail", "quail_step": "quail", "quail_quantizer": "quail",
    "ste_quantizers": "ste", "sam_rho": "sam", "bin_margin_quantizer": "bin_margin",
}  # fmt: skip
QUAIL_NORMS = ("abs", "l2", "linf")
QUAIL_POSITIONS = ("all", "answer")
QUAIL_STEPS = ("mean", "carried", "measured")
MEASURING = frozenset({"metrics", "quantizers"})  # fields that training does not depend on
QUANTIZERS = ("rtn-int8-g128", "rtn-int4-g128", "rtn-int4-tensor", "rtn-int3-g128")


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form; the key of every cache and run."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def choice(kind: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise unknown(kind, value, known)


def regime(scale: str) -> str:
    """The scale whose corpora and settings hold: ``"mini"`` for ``"mini-256x8"``."""
    return scale.partition("-")[0]


def stepped(config: Mapping[str, Any]) -> str:
    """What the optimizer steps, and what is unusual about it: ``bf16``, ``bf16, fp32 moments``, ``fp32, ste guard``.

    Args:
        config: a resolved configuration, or that of a record.
    """
    moments, rounding = config.get("moments"), config.get("rounding", "nearest")
    unusual = [f"{moments} moments"] if moments else []
    unusual += [f"{rounding} rounding"] if rounding != "nearest" else []
    unusual += [f"{config['guard']} guard"] if config.get("guard") else []
    return ", ".join([config["weights"], *unusual])


def later_defaults() -> dict[str, Any]:
    """What a record that lacks one of the later fields was run with: its default."""
    return {field.name: field.default for field in dataclasses.fields(RunConfig) if field.name in LATER}


def number(name: str, value: object) -> None:
    """Refuse what is no finite real number: text, a truth value, infinity, NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = " In YAML write 1.0e-4: without the point, 1e-4 is read as text." if isinstance(value, str) else ""
        raise ValueError(f"{name} is {value!r}, a {type(value).__name__}; it must be a number.{hint}")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; it must be finite.")


def quantizer_names(value: object) -> tuple[str, ...]:
    """The field ``quantizers`` as a tuple of names.

    Args:
        value: a list or tuple of names, one text with commas, or ``None`` for the usual ones.

    Raises:
        ValueError: it is something else, names none, or names one twice.
    """
    if value is None:
        return QUANTIZERS
    names = names_of("quantizers", value)
    if not names:
        raise ValueError(
            f"quantizers is {value!r}, but a run needs at least one, such as {QUANTIZERS[1]!r}: it is compared with "
            "bf16, which is always measured."
        )
    return names


def names_of(field: str, value: object) -> tuple[str, ...]:
    """A list or tuple of names, or one text with commas, as a tuple; a name given twice is refused."""
    names = [part for part in map(str.strip, value.split(",")) if part] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        example = f" such as {QUANTIZERS[0]!r}" if field == "quantizers" else ""
        raise ValueError(f"{field} is {value!r}; it must be a list of names{example}.")
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{field} names {sorted(repeated)} more than once.")
    return tuple(names)


@dataclass(frozen=True)
class RunConfig:
    """One unlearning run: method ⊗ arm ⊗ corpus ⊗ scale ⊗ seed, and what is measured at the end.

    Fields left at ``None`` take the default of the method and arm (``qru.defaults``); a resolved config has none.

    Attributes:
        method: ``forget`` or ``forget_retain``: ``ga``, ``npo``, ``ga_gdr``, ``ga_klr``, ``npo_gdr``, ``npo_klr``, and
            so on for every term in ``qru.objectives``.
        adapter: ``"full"`` (all weights), ``"lora"`` (adapters only, merged at the end), ``"delta"`` (all weights,
            but what is stored and stepped is the difference to the target, which starts at zero) or ``"sure"`` (the
            weights of the linear layers that the forget loss is most sensitive to; see ``qru.sure``).
        weights: type of the tensors that the optimizer steps: ``"bf16"`` or ``"fp32"``.
        moments: type of the optimizer's moments: ``"bf16"`` or ``"fp32"``; ``None``: that of ``weights``.
        rounding: of a stepped bf16 weight: ``"nearest"``, or ``"stochastic"`` (with ``moments="fp32"``).
        corpus: what ``load_corpus`` takes: ``"books"``, ``"news"`` or ``"tweets"`` (embedded), a folder or file, or a
            Hub id such as ``"muse-bench/MUSE-Books"``.
        scale: ``"smoke"``, ``"mini"`` or ``"muse"``; picks sizes and nothing else. ``"mini-128x4"`` and
            ``"mini-256x8"`` are mini with models of another width × depth.
        target, retrained: the model to unlearn from and the one that never saw the forget set: local folders, or Hub
            ids, optionally with a revision (``"id@revision"``). ``None``: the embedded models; for MUSE's own corpora
            at ``"muse"``, its authors' models at pinned revisions.
        tokenizer: folder or Hub id of the tokenizer of both models. ``None``: the one that lies beside their weights.
        chat_template: put every prompt of VerbMem and of the questions into the tokenizer's chat template, as one turn
            of the user. Training texts and PrivLeak's stay plain.
        forget_set: ``"all"`` (``raw["forget"]``), ``"scal_1"`` … ``"scal_4"`` (MUSE's nested sets) or ``"sust_1"`` …
            ``"sust_4"`` (its successive requests; each starts from the result of the one before).
        seed: of data order and of LoRA's initial A; target and retrained do not depend on it.
        learning_rate: constant over the run (AdamW).
        adam_beta2: of AdamW's second moment; the papers state none.
        epochs: passes over the forget documents; the upper limit when ``forget_goal`` is set. At mini, without either,
            a run stops at ``qru.defaults.GOAL``.
        forget_goal: stop at the first check where VerbMem and KnowMem (percent) of the stopping half of the
            forget examples are both at or under it, or a classifier's forget accuracy is; the other half is reported.
            ``None``: run all epochs.
        goal_metrics: which of the two the goal is for; ``None``: both.
        check_steps: steps between two looks at the goal; a shorter run is looked at when it ends. ``None``: half an
            epoch.
        retain_weight: λ of the retain term; ignored by ``ga`` and ``npo`` alone.
        beta: inverse temperature of NPO, SimNPO and DPO; ``None``: that of the method, 0.1 but for SimNPO.
        batch_size: forget documents a step; as many retain documents go along.
        lora_rank, lora_alpha, lora_dropout, lora_targets: peft's; targets ``"all"``, ``"mlp"`` or ``"attention"``.
            Rank and alpha go together: where only one is given, the other is still the default's.
        quantizers: names such as ``"rtn-int4-g128"``, also as one text with commas; ``None``: the usual four. There
            is at least one, and ``bf16`` is always measured beside them.
        metrics: those to measure, of the ones that the corpus has data for; ``None``: all of them.
        guard: ``"quail"``, ``"ste"``, ``"bin_margin"`` or ``"sam"``: what is to make forgetting survive quantization
            (``qru.guards`` says how); ``None``: nothing. The options below are of one guard each, and take its
            defaults where they are ``None``.
        guard_weight: γ of a guard that adds a term to the loss.
        quail_norm: how far logits are apart: ``"abs"`` (each by itself), ``"l2"`` or ``"linf"`` (all of a token).
        quail_positions: ``"all"`` tokens of a forget document, or those of the ``"answer"`` alone.
        quail_step: Δ_q: a number, in logits, or ``"mean"``, ``"carried"`` or ``"measured"``.
        quail_quantizer: whose step that is.
        ste_quantizers: names, one of which is drawn at each step.
        sam_rho: ρ, how far weights are moved (L2 norm over all that are trained).
        bin_margin_quantizer: whose bins are to be left.
        sure_percentile: of the saliencies of linear layers; layers at or over it are trained, by ``adapter="sure"``.
        gamma: margin of SimNPO.
        steering: c of RMU, the length that hidden states are steered to.
        hidden_layer: whose output RMU steers and ``actr`` retains, from 0; ``None``: as deep as in RMU's paper, 7/32 of
            all layers.
        task_scaling: λ of a task vector. ``None``: with a ``forget_goal``, the first of
            ``qru.objectives.taskvector.LADDER`` that meets it; else 1.

    Raises:
        ValueError: a value of another type or out of range (names the field, the value and what it must be).
    """

    method: str = "npo_gdr"
    adapter: str = "full"
    weights: str | None = None
    corpus: str = "books"
    scale: str = "mini"
    target: str | None = None
    retrained: str | None = None
    tokenizer: str | None = None
    chat_template: bool = False
    forget_set: str = WHOLE
    seed: int = 0
    learning_rate: float | None = None
    epochs: int | None = None
    forget_goal: float | None = None
    retain_weight: float | None = None
    beta: float | None = None
    batch_size: int | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_dropout: float = 0.05
    lora_targets: str = "all"
    quantizers: tuple[str, ...] = QUANTIZERS
    moments: str | None = None
    rounding: str = "nearest"
    adam_beta2: float | None = None
    check_steps: int | None = None
    goal_metrics: tuple[str, ...] | None = None
    metrics: tuple[str, ...] | None = None
    guard: str | None = None
    guard_weight: float | None = None
    quail_norm: str | None = None
    quail_positions: str | None = None
    quail_step: str | float | None = None
    quail_quantizer: str | None = None
    ste_quantizers: tuple[str, ...] | None = None
    sam_rho: float | None = None
    bin_margin_quantizer: str | None = None
    sure_percentile: float | None = None
    gamma: float | None = None
    steering: float | None = None
    hidden_layer: int | None = None
    task_scaling: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "quantizers", quantizer_names(self.quantizers))
        for name in ("method", "corpus"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a name.")
        for name in ("target", "retrained", "tokenizer"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value.strip()):
                raise ValueError(
                    f"{name} is {value!r}; it must be a folder, a Hub id such as 'name/model' or "
                    "'name/model@revision', or None."
                )
        if (self.target is None) != (self.retrained is None):
            missing = "target" if self.target is None else "retrained"
            raise ValueError(
                f"{missing} is not given: target and retrained come together, or neither does. A retrained model never "
                "saw the forget set; the nearest to it, where there is none, is what the target was fine-tuned from."
            )
        if self.tokenizer is not None and self.target is None:
            raise ValueError(
                f"tokenizer is {self.tokenizer!r}, but no target is given: embedded models have their own."
            )
        if not isinstance(self.chat_template, bool):
            raise ValueError(f"chat_template is {self.chat_template!r}; it must be true or false.")
        choice("adapter", self.adapter, ADAPTERS)
        choice("scale", self.scale, (*SCALES, *SIZED))
        choice("lora_targets", self.lora_targets, LORA_TARGETS)
        choice("forget_set", self.forget_set, FORGET_SETS)
        if self.forget_set != WHOLE and self.forget_goal is not None:
            raise ValueError(
                f"forget_goal is {self.forget_goal!r}, but it is judged on the whole forget set and forget_set is "
                f"{self.forget_set!r}: leave forget_goal out, and give epochs."
            )
        for name in ("weights", "moments"):
            if getattr(self, name) is not None:
                choice(name, getattr(self, name), WEIGHTS)
        choice("rounding", self.rounding, ROUNDINGS)
        if self.weights == "fp32" and (self.moments == "bf16" or self.rounding == "stochastic"):
            raise ValueError(
                f"weights is 'fp32' with moments {self.moments!r} and rounding {self.rounding!r}: those are of weights "
                "that are stepped in bf16. Leave them out, or set weights to 'bf16'."
            )
        if self.adapter == "delta" and self.weights == "fp32":
            raise ValueError(
                "adapter is 'delta' with weights 'fp32': in fp32 a difference is stepped as the weights are. "
                "Set weights to 'bf16', or adapter to 'full'."
            )
        if self.rounding == "stochastic" and self.moments != "fp32":
            raise ValueError(f"rounding is 'stochastic' with moments {self.moments!r}: it needs moments 'fp32'.")
        for name in ("metrics", "goal_metrics", "ste_quantizers"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, names_of(name, getattr(self, name)) or None)
        for name in self.goal_metrics or ():
            choice("goal_metrics", name, GOAL_METRICS)
        for name in ("lora_rank", "epochs", "batch_size", "check_steps"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1.")
        for name in (
            "learning_rate",
            "retain_weight",
            "forget_goal",
            "lora_alpha",
            "adam_beta2",
            "beta",
            "gamma",
            "steering",
            "task_scaling",
        ):  # None: the default, or no goal
            if getattr(self, name) is not None:
                number(name, getattr(self, name))
        number("lora_dropout", self.lora_dropout)
        if self.adam_beta2 is not None and not 0.81 < self.adam_beta2 < 1:
            raise ValueError(
                f"adam_beta2 is {self.adam_beta2!r}; it must be over 0.81, the square of beta1, and under 1."
            )
        for name in ("learning_rate", "beta", "lora_alpha", "steering"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value!r}; it must be positive.")
        for name in ("retain_weight", "gamma", "task_scaling"):
            if getattr(self, name) is not None and not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be 0 or more.")
        layer = self.hidden_layer
        if layer is not None and (not isinstance(layer, int) or isinstance(layer, bool) or layer < 0):
            raise ValueError(f"hidden_layer is {layer!r}; it must be a whole number, 0 or more.")
        if self.forget_goal is not None and not 0 <= self.forget_goal <= 100:
            raise ValueError(f"forget_goal is {self.forget_goal!r}; it is a percentage, 0 to 100.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout!r}; it must be at least 0 and under 1.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ValueError(f"seed is {self.seed!r}; it must be a whole number, 0 or more.")
        self._check_guard()

    def _check_guard(self) -> None:
        """Refuse options of another guard or arm than is given, and values that no guard can have."""
        for name, guard in GUARD_OPTIONS.items():
            if getattr(self, name) is not None and self.guard != guard:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r} with guard {self.guard!r}: it is an option of guard {guard!r}. "
                    f"Set guard to {guard!r}, or leave {name} out."
                )
        if self.guard is not None and not isinstance(self.guard, str):
            raise ValueError(f"guard is {self.guard!r}; it must be a name, or None.")
        if self.guard_weight is not None:
            number("guard_weight", self.guard_weight)
            if self.guard is None or not self.guard_weight >= 0:
                raise ValueError(
                    f"guard_weight is {self.guard_weight!r} with guard {self.guard!r}: it must be 0 or more, the "
                    "weight of a guard. Set guard, or leave guard_weight out."
                )
        if self.quail_norm is not None:
            choice("quail_norm", self.quail_norm, QUAIL_NORMS)
        if self.quail_positions is not None:
            choice("quail_positions", self.quail_positions, QUAIL_POSITIONS)
        if isinstance(self.quail_step, str):
            choice("quail_step (or a number, in logits)", self.quail_step, QUAIL_STEPS)
        for name in ("quail_step", "sam_rho"):
            value = getattr(self, name)
            if value is None or (name == "quail_step" and isinstance(value, str)):
                continue
            number(name, value)
            if not value > 0:
                raise ValueError(f"{name} is {value!r}; it must be positive.")
        for name in ("quail_quantizer", "bin_margin_quantizer"):
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a name such as {QUANTIZERS[1]!r}.")
        if self.sure_percentile is not None:
            number("sure_percentile", self.sure_percentile)
            if self.adapter != "sure" or not 0 <= self.sure_percentile < 100:
                raise ValueError(
                    f"sure_percentile is {self.sure_percentile!r} with adapter {self.adapter!r}: it must be at least 0 "
                    "and under 100, of adapter 'sure'. Set adapter to 'sure', or leave sure_percentile out."
                )

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
        for name in ("metrics", "goal_metrics", "ste_quantizers"):
            values[name] = None if getattr(self, name) is None else list(getattr(self, name))
        return values

    def identity(self) -> dict[str, Any]:
        """What the key of a run is made of: every field but the later ones that are at their default."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {key: v for key, v in self.to_dict().items() if key not in LATER or v != defaults[key]}
