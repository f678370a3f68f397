"""What is to make forgetting survive quantization: a part of training beside the forget and the retain term.

A guard is one class in one file of this folder. Its flags say what the training loop does for it, and it has the
method that goes with each flag; everything else a guard leaves as it is in ``Guard``. What can be checked by hand, the
formula, is a pure function beside the class.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from qru.config import ADAPTERS, RunConfig
from qru.ops import QuantSpec
from qru.ops.grid import group_width
from qru.registry import Registry

guards = Registry("guard", "qru.guards")


class Guard:
    """What a training loop asks of a guard.

    Attributes:
        weight: γ of its term unless the user gives one; ``None`` for a guard that adds no term to the loss.
        arms: the adapters it works with.
        options: fields of ``RunConfig`` that it reads -> their defaults. All are ours where the docstring of the guard
            does not name a source, and none was chosen by measurement.
        quantizers: those of its options that name quantizers, RTN's.
        reads_logits: ``of_logits`` is called with the logits of the forget documents, before and after.
        reads_weights: ``of_weights`` is called once a step.
        perturbs: the forget term is computed within ``moved``.
    """

    weight: float | None = None
    arms: tuple[str, ...] = ADAPTERS
    options: dict[str, Any] = {}  # noqa: RUF012 - never written to
    quantizers: tuple[str, ...] = ()
    reads_logits = False
    reads_weights = False
    perturbs = False

    def __init__(
        self, config: RunConfig, model: torch.nn.Module, rows: Sequence, logits_of: Callable[[Any], torch.Tensor]
    ) -> None:
        """Look at the target before it is trained.

        Args:
            config: resolved.
            model: the target, where and as it will be trained, without adapters; left as it is.
            rows: the forget documents.
            logits_of: one of them -> what ``model`` says of it as it then is: raw logits (T, V), fp32.
        """

    @contextlib.contextmanager
    def attached(self, model: torch.nn.Module) -> Iterator[None]:
        """Training happens in here; ``model`` now has its adapters."""
        yield

    def begin(self, step: int) -> None:
        """A step begins; what depends on it depends on nothing else, or a resumed run would differ."""

    def of_logits(self, policy: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The guard's term, a mean over documents: logits (B, T, V) of both, and a mask (B, T) of tokens that count."""
        raise NotImplementedError

    def of_weights(self) -> torch.Tensor:
        """The guard's term, a scalar."""
        raise NotImplementedError

    def moved(self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None]):
        """A context in which the parameters are elsewhere, given the gradients of the forget term."""
        raise NotImplementedError


def settled(config: RunConfig) -> RunConfig:
    """A configuration with every option of its guard filled in, quantizers under their exact names.

    Raises:
        ValueError: the guard is unknown, does not work with the arm, or adds no term that ``guard_weight`` could weigh;
            an option names what is no RTN quantizer.
    """
    if config.guard is None:
        return config
    guard = guards[config.guard]
    if config.adapter not in guard.arms:
        raise ValueError(
            f"guard {config.guard!r} does not work with adapter {config.adapter!r}: set adapter to "
            f"{' or '.join(map(repr, guard.arms))}, or take another guard of {', '.join(guards.names())}."
        )
    if config.guard_weight is not None and guard.weight is None:
        raise ValueError(
            f"guard_weight is {config.guard_weight!r}, but guard {config.guard!r} adds no term to the loss: leave "
            "guard_weight out."
        )
    filled = {name: default for name, default in guard.options.items() if getattr(config, name) is None}
    weight = guard.weight if config.guard_weight is None else config.guard_weight
    config = replace(config, guard_weight=weight, **filled)
    exact = {name: getattr(config, name) for name in guard.quantizers}
    exact = {name: (_exact(v) if isinstance(v, str) else tuple(map(_exact, v))) for name, v in exact.items()}
    return replace(config, **exact)


def _exact(name: str) -> str:
    return QuantSpec.parse(name).name


def grids(config: RunConfig) -> list[QuantSpec]:
    """The grids that a guard of a settled configuration computes with."""
    if config.guard is None:
        return []
    named = [getattr(config, name) for name in guards[config.guard].quantizers]
    return [QuantSpec.parse(one) for value in named for one in ([value] if isinstance(value, str) else value)]


def check(config: RunConfig, shape: tuple[int, int], layer: str) -> None:
    """Refuse a guard's quantizer whose groups do not divide a layer (names both)."""
    for spec in grids(config):
        group_width(shape, spec, layer)
