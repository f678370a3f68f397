"""Quantization grids, packing, and the fused merge-quantize-count kernel with its PyTorch reference."""

from qru.ops.extension import build_info
from qru.ops.grid import QuantSpec, dequantize, quantize_ref
from qru.ops.merge_quantize import (
    CrossingStats,
    QuantizedWeight,
    merge_dequantize,
    merge_dequantize_ref,
    merge_quantize,
    merge_quantize_ref,
)
from qru.ops.pack import pack, unpack

__all__ = [
    "CrossingStats",
    "QuantSpec",
    "QuantizedWeight",
    "build_info",
    "dequantize",
    "merge_dequantize",
    "merge_dequantize_ref",
    "merge_quantize",
    "merge_quantize_ref",
    "pack",
    "quantize_ref",
    "unpack",
]
