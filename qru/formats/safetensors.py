"""An ordinary transformers checkpoint whose weights are what the codes stand for: for evaluation anywhere.

Nothing is smaller. Values are (q - z) * s in float32, rounded once to the type that the checkpoint is stored in.
"""

from __future__ import annotations

from pathlib import Path

import torch

from qru.formats import KEPT_DTYPES, Plan, Source, formats, kept
from qru.formats.layout import Entry, configuration, safetensors_plan
from qru.ops import QuantSpec, merge_quantize
from qru.ops.grid import group_width
from qru.quantizers import Update


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
        return [kept(out.dequantized(self.dtype), self.dtype, source.name)], out.stats.as_dict()

    def keep(self, source: Source, tensor: torch.Tensor) -> list[torch.Tensor]:
        return [kept(tensor, self.dtype, source.name)]
