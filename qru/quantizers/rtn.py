"""Round to nearest on a uniform grid, one step per group of weights: the papers' quantizer, by the fused kernel."""

from __future__ import annotations

import torch

from qru.ops import QuantSpec, merge_quantize
from qru.ops.grid import group_width
from qru.quantizers import Update, families


@families.register("rtn")
class RoundToNearest:
    """``rtn-int{8,4,3,2}-{g<n>,row,tensor}[-{sym,asym}[-{step}]]``.

    Source: QRU (arXiv 2602.13151), §III; SURE (arXiv 2410.16454) uses the same step.
    """

    examples = tuple(f"rtn-int{bits}-{group}" for bits in (8, 4, 3, 2) for group in ("g64", "g128", "row", "tensor"))

    def __init__(self, name: str) -> None:
        self.spec = QuantSpec.parse(name)
        self.name = self.spec.name

    def check(self, shape: tuple[int, int], layer: str) -> None:
        group_width(shape, self.spec, layer)

    def __call__(self, weight: torch.Tensor, update: Update, layer: str) -> tuple[torch.Tensor, dict]:
        out = merge_quantize(
            weight, update.lora_A, update.lora_B, update.scaling, self.spec, new_weight=update.new_weight, name=layer
        )
        return out.dequantized(), out.stats.as_dict()
