"""How tensors lie in safetensors files: a header that is known before any weight is read, and an index of several."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from qru.checkpoint import INDEX, SINGLE
from qru.formats import Part, Plan, Source
from qru.tensor_file import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """One tensor of a safetensors file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def safetensors_plan(
    sources: list[Source], entries: Callable[[Source], list[Entry]], limit: int, files: dict[str, bytes]
) -> Plan:
    """Tensors in files of at most ``limit`` bytes, in the order they come in; what belongs together stays together.

    Args:
        sources: tensors of the old checkpoint.
        entries: what one of them becomes.
        limit: bytes of tensors in one file, unless a single source makes more.
        files: small files that come beside; the index is put to them where there are several files.
    """
    groups: list[list[Source]] = [[]]
    filled = 0
    for source in sources:
        size = sum(entry.bytes for entry in entries(source))
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(source)
        filled += size
    parts, placed, total = [], {}, 0
    for at, group in enumerate(groups, 1):
        name = SINGLE if len(groups) == 1 else f"model-{at:05d}-of-{len(groups):05d}.safetensors"
        held = [entry for source in group for entry in entries(source)]
        head = header(held)
        size = sum(entry.bytes for entry in held)
        parts.append(Part(name, 0, len(head) + size, head, tuple(group)))
        placed |= {entry.name: name for entry in held}
        total += size
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        files = files | {INDEX: (json.dumps(index, indent=2) + "\n").encode()}
    return Plan(parts, files)


def header(entries: list[Entry]) -> bytes:
    """The first bytes of a safetensors file with these tensors in this order."""
    described: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in entries:
        assert entry.name not in described, f"two tensors are called {entry.name}"
        described[entry.name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.bytes],
        }
        at += entry.bytes
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin aligned
    return len(text).to_bytes(8, "little") + text


def configuration(folder: Path, dtype: torch.dtype, quantization: dict | None = None) -> bytes:
    """``config.json`` of a checkpoint for its copy: the type of its floats, and how it is quantized."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)  # the name that "dtype" had before
    config["dtype"] = str(dtype).removeprefix("torch.")
    if quantization is not None:
        config["quantization_config"] = quantization
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
