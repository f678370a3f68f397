"""Checkpoint formats that a quantized model is shipped in. The folder is the registry: one file per format.

A format says beforehand what every tensor becomes and where it will lie, so that a checkpoint of any size is written
tensor by tensor, and a part that was written before the process was killed can be told from one that was not.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from qru.quantizers import Update
from qru.registry import Registry

formats = Registry("format", "qru.formats")


class Source(NamedTuple):
    """A tensor of the checkpoint that is converted.

    Attributes:
        name: in its checkpoint, such as ``model.layers.0.self_attn.q_proj.weight``.
        shape: (out, in) of a linear layer's weight, or whatever else it has.
        dtype: that it has there.
        layer: the linear layer whose weight it is and that is quantized; None for a tensor that is kept.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layer: str | None = None

    def stored_as(self, dtype: torch.dtype) -> torch.dtype:
        """The type it is kept in where floats are kept in ``dtype``: integers stay what they are."""
        return dtype if self.dtype.is_floating_point else self.dtype


class Part(NamedTuple):
    """What is written in one go: bytes ``start`` to ``stop`` of a file. Parts of one file follow each other.

    Attributes:
        file: its name in the new folder.
        start, stop: bytes.
        lead: bytes that come before the tensors, a header.
        sources: tensors of the old checkpoint, in the order in which what they become is written.
        align: each tensor that is written is filled up with zeros to a multiple of so many bytes.
    """

    file: str
    start: int
    stop: int
    lead: bytes
    sources: tuple[Source, ...]
    align: int = 1


class Plan(NamedTuple):
    """All that a new checkpoint folder will hold, but for what is copied: parts, and small files by name."""

    parts: list[Part]
    files: dict[str, bytes]


class Format(Protocol):
    """A way to store a quantized model. Made from a grid's name and the type of what is not quantized.

    Attributes:
        grid: the full name of the grid.
    """

    grid: str

    def plan(self, folder: Path, sources: list[Source], unquantized: list[str], limit: int) -> Plan:
        """What the new checkpoint will hold.

        Args:
            folder: of the checkpoint, for its configuration and its tokenizer.
            sources: every tensor, in the order in which they are read.
            unquantized: names of the linear layers that keep their weights.
            limit: bytes that a part may have; one that holds a single larger tensor has more.

        Raises:
            ValueError: the format cannot hold this model; says what and why.
        """
        ...

    def quantize(self, source: Source, weight: torch.Tensor, update: Update) -> tuple[list[torch.Tensor], dict]:
        """A linear layer's tensors in the new checkpoint, and what quantization did to its update.

        Args:
            source: which.
            weight: (out, in) before the update, fp32, bf16 or fp16.
            update: what changed it; an empty one for a model that is quantized as it is.

        Returns:
            Tensors in the order in which they are written, and the counts of ``qru.ops.CrossingStats``.
        """
        ...

    def keep(self, source: Source, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors that one which is not quantized becomes; none if the format stores it elsewhere."""
        ...


# The command's --dtype: what embeddings, norms and head are stored in.
KEPT_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def kept(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """A tensor that is not quantized in the type that it is stored in; integers stay what they are.

    Raises:
        ValueError: NaN or Inf in it, or made by the conversion (names the tensor).
    """
    if not tensor.is_floating_point():
        return tensor.contiguous()
    stored = tensor.to(dtype).contiguous()
    if stored.numel() and not all(end.isfinite() for end in torch.aminmax(stored)):  # NaN is both; no mask is made
        how = f"has values too large for {dtype}" if tensor.isfinite().all() else "has NaN or Inf"
        raise ValueError(f"{name} {how}; mend the checkpoint before quantizing it, or choose a wider dtype.")
    return stored
