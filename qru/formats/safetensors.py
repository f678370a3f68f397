"""An ordinary transformers checkpoint whose weights are what the codes stand for: for evaluation anywhere.

Nothing is smaller. Values are (q - z) * s in float32, rounded once to the type that the checkpoint is stored in.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from qru.formats import KEPT_DTYPES, Plan, Source, formats, kept
from qru.formats.layout import Entry, configuration, safetensors_plan
from qru.ops import QuantizedWeight, QuantSpec, merge_quantize
from qru.ops.grid import group_width
from qru.quantizers import Update

AT_ONCE = 1 << 22  # weights that are dequantized together: unpacked codes and values in fp32 take 12 bytes each


@formats.register("safetensors")
class Dequantized:
    """Any grid that ``QuantSpec`` describes.

    Args:
        spec: a grid, or its name.
        dtype: of all tensors: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
    """

    default = "rtn-int4-g128"

    def __init__(self, spec: QuantSpec | str, dtype: str) -> None:
        self.spec = QuantSpec.parse(spec) if isinstance(spec, str) else spec
        self.dtype, self.grid = KEPT_DTYPES[dtype], self.spec.full_name

    def plan(self, folder: Path, sources: list[Source], unquantized: list[str], limit: int) -> Plan:
        for source in sources:
            if source.layer:
                group_width(source.shape, self.spec, source.layer)
        text = configuration(folder, self.dtype)
        return safetensors_plan(sources, self.entries, limit, {"config.json": text})

    def entries(self, source: Source) -> list[Entry]:
        return [Entry(source.name, source.stored_as(self.dtype), source.shape)]

    def quantize(self, source: Source, weight: torch.Tensor, update: Update) -> tuple[list[torch.Tensor], dict]:
        out = merge_quantize(
            weight, update.lora_A, update.lora_B, update.scaling, self.spec,
            new_weight=update.new_weight, name=source.layer,
        )  # fmt: skip
        return [kept(dequantized(out, self.dtype), self.dtype, source.name)], out.stats.as_dict()

    def keep(self, source: Source, tensor: torch.Tensor) -> list[torch.Tensor]:
        return [kept(tensor, self.dtype, source.name)]


def dequantized(out: QuantizedWeight, dtype: torch.dtype) -> torch.Tensor:
    """``out.dequantized(dtype)``, (out, in), some rows at a time."""
    rows, columns = out.shape
    values = torch.empty(out.shape, dtype=dtype)
    step = max(1, AT_ONCE // columns)
    for first in range(0, rows, step):
        these = slice(first, min(first + step, rows))
        grid = [
            None if part is None else part if part.shape[0] < rows else part[these] for part in (out.scales, out.zeros)
        ]
        few = replace(out, packed=out.packed[these], scales=grid[0], zeros=grid[1], shape=(these.stop - first, columns))
        values[these] = few.dequantized(dtype)
    return values
