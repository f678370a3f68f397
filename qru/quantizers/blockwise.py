"""Four-bit codebooks of bitsandbytes: blocks of the flattened weight, each scaled by its largest value.

The library computes what is stored. What it does not offer, codes of one weight on the grid of another, is computed
here by the same operations in the same order, and tested for equality with the library.
"""

from __future__ import annotations

import re

import torch

from qru.quantizers import Update, misspelt
from qru.quantizers.crossings import Rounded, counts, merged

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # what the library takes
SMALLEST = 1e-38  # its floor under a block's largest value


def functional():
    """``bitsandbytes.functional``, imported when a name asks for it.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise ValueError(
            f"this quantizer is bitsandbytes', which cannot be imported ({error}): pip install 'bitsandbytes>=0.50'"
        ) from error
    return bitsandbytes.functional


class Blockwise:
    """Base of ``nf4`` and ``fp4``: ``{codebook}-b{32,64,…,4096}[-dq]``.

    Blocks run along the flattened weight. Where the block does not divide a row, one block holds the end of a row and
    the beginning of the next, which then share a scale, and the last block of a layer may be short. ``-dq`` is double
    quantization: the blocks' largest values, less their mean, are themselves stored in 8 bits, 256 to a block. Codes
    are those without it; what they stand for differs by the rounding of the scale.

    A code is counted by the rank of its value: FP4 has two zeros, and a weight that changes between them has not
    crossed.
    """

    codebook: str
    examples: tuple[str, ...]

    def __init__(self, name: str) -> None:
        match = re.fullmatch(rf"{self.codebook}-b(\d+)(-dq)?", name)
        if match is None or int(match[1]) not in BLOCKS:
            raise misspelt(name, f"{self.codebook}-b{{{','.join(map(str, BLOCKS))}}}[-dq]")
        functional()
        self.name, self.block, self.double = name, int(match[1]), bool(match[2])

    def check(self, shape: tuple[int, int], layer: str) -> None:
        """Any shape will do: blocks do not mind rows."""

    def __call__(self, weight: torch.Tensor, update: Update, layer: str) -> tuple[torch.Tensor, dict]:
        after = merged(weight, update, layer)
        base = self.rounded(weight)
        new = base if torch.equal(after, weight) else self.rounded(after)
        frozen = base.codes if new is base else self.ranks(self.codes_on(after, base.grid))
        return new.values, counts(weight, after, base, new, frozen, levels=16)

    def rounded(self, weight: torch.Tensor) -> Rounded:
        """A weight (out, in), and its bins, by the library; ``grid`` is the blocks' largest values, never rounded."""
        codes, largest = self.stored(weight)
        scale = largest
        if self.double:
            _, state = functional().quantize_4bit(
                weight, blocksize=self.block, quant_type=self.codebook, compress_statistics=True
            )
            scale = functional().dequantize_blockwise(state.absmax, state.state2) + state.offset
        book = functional().get_4bit_type(self.codebook, device=weight.device)
        values = book[codes.long()] * self.spread(scale, weight)
        ranks = self.ranks(codes)
        levels = book.unique()
        width = torch.cat([levels[:1], (levels[:-1] + levels[1:]) / 2, levels[-1:]]).diff()
        return Rounded(ranks, values, largest, width[ranks.long()] * self.spread(largest, weight))

    def stored(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The library's codes, uint8 (out, in), and the largest value of each block, fp32."""
        packed, state = functional().quantize_4bit(weight, blocksize=self.block, quant_type=self.codebook)
        packed = packed.reshape(-1)
        codes = torch.stack([packed >> 4, packed & 15], -1).reshape(-1)[: weight.numel()]
        return codes.reshape(weight.shape), state.absmax

    def codes_on(self, weight: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        """Codes, uint8 (out, in), of a weight on given blocks: the nearest value, the lower one of two as near."""
        floor = largest.clamp(min=SMALLEST)
        flat = weight.float().flatten()
        full = flat.numel() // self.block * self.block
        # The library multiplies whole blocks by the reciprocal and divides a short last one.
        whole = flat[:full].view(-1, self.block) * (1.0 / floor[: full // self.block, None])
        scaled = torch.cat([whole.flatten(), flat[full:] / floor[-1]]).clamp(-1, 1)
        book = functional().get_4bit_type(self.codebook, device=weight.device)
        return torch.argsort(book)[torch.bucketize(scaled, self.edges(weight.device))].byte().view(weight.shape)

    def edges(self, device: torch.device) -> torch.Tensor:
        """The 15 numbers halfway between neighbouring values of the codebook, ascending."""
        book = functional().get_4bit_type(self.codebook, device=device).sort().values
        return (book[:-1] + book[1:]) / 2

    def ranks(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (out, in) -> place of their value among the codebook's, int16."""
        book = functional().get_4bit_type(self.codebook, device=codes.device)
        return torch.searchsorted(book.unique(), book).short()[codes.long()]

    def spread(self, per_block: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """One number a block -> one a weight, (out, in)."""
        return per_block.repeat_interleave(self.block)[: weight.numel()].view(weight.shape)
