"""Quantizers, each under its exact name: ``rtn-int4-g128`` is method, bits, group and, if not the default, step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from qru.registry import Registry, unknown

families = Registry("quantizer family", "qru.quantizers")

# Text that a quantizer may be calibrated on, by what names call it -> split of the corpus.
CALIBRATION_TEXTS = {"retain": "retain1", "heldout": "holdout", "forget": "forget"}


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
    """A named way to store a linear layer in few bits.

    Two attributes are there where they mean something:

    - ``calibration``, a key of ``CALIBRATION_TEXTS``: the text whose activations it needs. Such a quantizer is called
      with what a layer reads, see ``Calibrated``.
    - ``activations``, a function of what a layer reads, (…, in) -> (…, in): a quantizer that rounds activations, too,
      as the model runs.
    """

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


class Inputs(NamedTuple):
    """What calibration text puts into one or several linear layers.

    Attributes:
        gram: (in, in) float64, the mean of x xᵀ over tokens.
        magnitude: (in,) float64, the mean of |x|.
        tokens: how many.
    """

    gram: torch.Tensor
    magnitude: torch.Tensor
    tokens: int


class Calibrated(Protocol):
    """A quantizer that rounds a layer with a look at what it reads.

    What is counted compares the updated weight with the base weight under the same inputs, those of the model that is
    being quantized: a weight that did not move keeps its code, and what changes is owed to the weights alone.
    """

    name: str
    calibration: str

    def check(self, shape: tuple[int, int], layer: str) -> None:
        """As ``Quantizer.check``."""
        ...

    def __call__(
        self, layers: dict[str, tuple[torch.Tensor, Update]], inputs: Inputs
    ) -> dict[str, tuple[torch.Tensor, dict]]:
        """Quantize layers that read the same (query, key and value; gate and up).

        Args:
            layers: name -> weight (out, in) of the base model, as stored, and what unlearning did to it.
            inputs: what they read.

        Returns:
            Name -> the weight (out, in) that deployment computes with, in fp32, and the crossing statistics.
        """
        ...


def load_quantizer(name: str) -> Quantizer | Calibrated:
    """The quantizer of a name such as ``"rtn-int4-g128"``; an unknown one raises with the nearest and the list."""
    family = str(name).partition("-")[0]
    if family not in families:
        raise unknown("quantizer", name, examples())
    return families[family](name)


def examples() -> list[str]:
    """Names of every family; sizes and options beyond them are in each family's docstring."""
    return [example for family in families.names() for example in families[family].examples]


def misspelt(name: str, form: str) -> ValueError:
    """The error for a name that begins as a family's and does not go on so: the nearest, the list, the form."""
    return ValueError(f"{unknown('quantizer', name, examples())} A name of this family reads {form}.")


def calibration_of(quantizer: Quantizer | Calibrated) -> str | None:
    """The text that a quantizer is calibrated on, a key of ``CALIBRATION_TEXTS``; ``None`` for one that needs none."""
    return getattr(quantizer, "calibration", None)


def activations_of(quantizer: Quantizer | Calibrated) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What a quantizer does to what a layer reads, as the model runs; ``None`` for one that stores weights only."""
    return getattr(quantizer, "activations", None)
