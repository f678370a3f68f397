"""Quantizers, each under its exact name: ``rtn-int4-g128`` is method, bits, group and, if not the default, step."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from qru.registry import Registry, unknown

families = Registry("quantizer family", "qru.quantizers")


class Update(NamedTuple):
    """What unlearning did to one linear layer: a low-rank update to merge, or the new weight itself.

    Attributes:
        lora_A: (r, in), lora_B: (out, r), scaling: α/r; or
        new_weight: (out, in) in the weight's dtype.
    """

    lora_A: torch.Tensor | None = None
    lora_B: torch.Tensor | None = None
    scaling: float = 1.0
    new_weight: torch.Tensor | None = None


class Quantizer(Protocol):
    """A named way to store a linear layer in few bits."""

    name: str

    def check(self, shape: tuple[int, int], layer: str) -> None:
        """Raise ``ValueError`` if a layer of this shape (out, in) cannot be stored so; names layer and sizes."""
        ...

    def __call__(self, weight: torch.Tensor, update: Update, layer: str) -> tuple[torch.Tensor, dict]:
        """Quantize one layer after its update.

        Args:
            weight: (out, in) of the base model, as stored.
            update: what unlearning did to it.
            layer: its name, for messages.

        Returns:
            The weight (out, in) that deployment computes with, in fp32, and the crossing statistics.
        """
        ...


def load_quantizer(name: str) -> Quantizer:
    """The quantizer of a name such as ``"rtn-int4-g128"``; an unknown one raises with the nearest and the list."""
    family = str(name).partition("-")[0]
    if family not in families:
        raise unknown("quantizer", name, [example for f in families.names() for example in families[f].examples])
    return families[family](name)
