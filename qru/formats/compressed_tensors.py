"""compressed-tensors, ``pack-quantized``: integer codes in 32-bit words beside their steps.

What transformers and vLLM load. Beside each other stand ``weight_packed`` (int32, see ``qru.ops.pack``),
``weight_scale`` (one step a group) and ``weight_shape``. Only 4 and 8 bits: vLLM has no kernel for other widths. Only
symmetric: transformers 5.23 does not load packed zero points. Steps are stored in the model's own type, because both
loaders cast them to it: codes that were computed on other steps would not be the ones that are used.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from qru.formats import KEPT_DTYPES, Plan, Source, formats, kept
from qru.formats.layout import Entry, configuration, safetensors_plan
from qru.ops import QuantizedWeight, QuantSpec, merge_quantize
from qru.ops.grid import SCALE_DTYPES, group_width
from qru.ops.pack import packed_width
from qru.quantizers import Update

BITS = (4, 8)


@formats.register("compressed-tensors")
class CompressedTensors:
    """Integers of 4 or 8 bits, symmetric, a step for each group, each row or the whole matrix.

    Args:
        spec: a grid, or its name; a name that leaves the steps' type open gets ``dtype``.
        dtype: of what is not quantized, and of the steps: ``"bfloat16"``, ``"float16"`` or ``"float32"``.

    Raises:
        ValueError: the format cannot hold the grid; says why.
    """

    default = "rtn-int4-g128"

    def __init__(self, spec: QuantSpec | str, dtype: str) -> None:
        if isinstance(spec, str):
            named = QuantSpec.parse(spec)
            spec = named if spec.endswith(tuple(SCALE_DTYPES)) else replace(named, scale_dtype=dtype)
        if not spec.symmetric:
            raise ValueError(
                f"{spec.name} has zero points, and transformers 5.23 fails to load packed ones: choose a symmetric "
                "grid, or --format safetensors."
            )
        if spec.bits not in BITS:
            raise ValueError(
                f"{spec.name} has {spec.bits} bits, and vLLM loads pack-quantized models of {BITS} bits only: choose "
                "one of these, or --format safetensors."
            )
        if spec.scale_dtype != dtype:
            raise ValueError(
                f"{spec.full_name} has steps in {spec.scale_dtype}, and transformers and vLLM cast them to the model's "
                f"{dtype} when they load it: the codes would be off their grid. Choose {named_with(spec, dtype)}."
            )
        self.spec, self.dtype, self.grid = spec, KEPT_DTYPES[dtype], spec.full_name

    def plan(self, folder: Path, sources: list[Source], unquantized: list[str], limit: int) -> Plan:
        for source in sources:
            if source.layer:
                group_width(source.shape, self.spec, source.layer)
        text = configuration(folder, self.dtype, self.quantization(unquantized))
        return safetensors_plan(sources, self.entries, limit, {"config.json": text})

    def quantization(self, unquantized: list[str]) -> dict:
        """``quantization_config`` of ``config.json``."""
        grouped = isinstance(self.spec.group_size, int) and self.spec.group_size > 0
        weights = {
            "num_bits": self.spec.bits,
            "type": "int",
            "symmetric": True,
            "strategy": "group" if grouped else "channel",
            "group_size": self.spec.group_size if grouped else None,
            "dynamic": False,
            "actorder": None,
            "block_structure": None,
            "observer": "minmax",
            "observer_kwargs": {},
        }
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
            "format": "pack-quantized",
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": unquantized,
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }

    def entries(self, source: Source) -> list[Entry]:
        """What a tensor becomes. One step for a whole matrix is stored once for each row, as the format has it."""
        if source.layer is None:
            return [Entry(source.name, source.stored_as(self.dtype), source.shape)]
        rows, columns = source.shape
        prefix = source.name.removesuffix("weight")
        return [
            Entry(f"{prefix}weight_shape", torch.int64, (2,)),
            Entry(f"{prefix}weight_packed", torch.int32, (rows, packed_width(columns, self.spec.bits))),
            Entry(f"{prefix}weight_scale", self.dtype, (rows, columns // group_width(source.shape, self.spec))),
        ]

    def quantize(self, source: Source, weight: torch.Tensor, update: Update) -> tuple[list[torch.Tensor], dict]:
        out = merge_quantize(
            weight, update.lora_A, update.lora_B, update.scaling, self.spec,
            new_weight=update.new_weight, name=source.layer,
        )  # fmt: skip
        return self.tensors(out), out.stats.as_dict()

    def tensors(self, out: QuantizedWeight) -> list[torch.Tensor]:
        """``weight_shape``, ``weight_packed`` and ``weight_scale`` of a quantized weight."""
        scales = out.scales.to(self.dtype)  # exact: codes were computed on steps of this type
        if self.spec.group_size == "tensor":
            scales = scales.expand(out.shape[0], 1)
        return [torch.tensor(out.shape, dtype=torch.int64), out.packed, scales.contiguous()]

    def keep(self, source: Source, tensor: torch.Tensor) -> list[torch.Tensor]:
        return [kept(tensor, self.dtype, source.name)]


def named_with(spec: QuantSpec, dtype: str) -> str:
    return replace(spec, scale_dtype=dtype).name
