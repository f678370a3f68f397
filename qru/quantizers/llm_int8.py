"""LLM.int8(): eight bits a weight with one step a row, and eight bits an activation with one step a token."""

from __future__ import annotations

import torch

from qru.quantizers import Update, families, misspelt
from qru.quantizers.blockwise import functional
from qru.quantizers.crossings import Rounded, counts, merged

OUTLIER = 6.0  # the paper's threshold, and bitsandbytes' default through transformers
LARGEST = 127.0


@families.register("llm")
class LLMInt8:
    """``llm-int8``, and ``llm-int8-weights`` for its weights alone.

    Weights: each row, in fp16, is divided by its largest absolute value and rounded to −127 … 127; that is what
    bitsandbytes stores, and the library computes it. In the paper columns that meet an outlier are kept in 16 bits;
    bitsandbytes keeps no such copy once a model is loaded in 8 bits, and multiplies outliers with the int8 weights,
    too. So every weight that deployment computes with is an int8 one.

    Activations are rounded as the model runs: a token's values of |x| ≥ 6 stay in 16 bits, the others are divided by
    the largest of them and rounded to −127 … 127. bitsandbytes takes a feature as an outlier for all tokens of a call
    if it is one in any of them, so what it says of a text depends on what else is in the batch; here each token is
    decided by itself, as the library does where tokens are generated one by one. ``llm-int8-weights`` leaves
    activations as they are.

    Counted are the weights.

    Source: Dettmers et al. 2022, "LLM.int8()" (arXiv 2208.07339), §2.1 and §3; weights by bitsandbytes.
    """

    examples = ("llm-int8", "llm-int8-weights")

    def __init__(self, name: str) -> None:
        if name not in self.examples:
            raise misspelt(name, "llm-int8[-weights]")
        functional()
        self.name = name
        self.activations = None if name.endswith("-weights") else rounded_activations

    def check(self, shape: tuple[int, int], layer: str) -> None:
        """Any shape will do: a row has one step."""

    def __call__(self, weight: torch.Tensor, update: Update, layer: str) -> tuple[torch.Tensor, dict]:
        after = merged(weight, update, layer)
        for label, tensor in (("weight", weight), ("updated weight", after)):
            if not (size := tensor.abs().max().item()) <= torch.finfo(torch.float16).max:
                raise ValueError(
                    f"{layer}: the {label} reaches {size}, which fp16 cannot hold, and LLM.int8() needs to"
                )
        base = rounded(weight)
        new = base if torch.equal(after, weight) else rounded(after)
        frozen = base.codes if new is base else codes_on(after, base.grid)
        return new.values, counts(weight, after, base, new, frozen, levels=256)


def rounded(weight: torch.Tensor) -> Rounded:
    """A weight (out, in) by the library; ``grid`` is the largest value of each row."""
    codes, largest, _ = functional().int8_vectorwise_quant(weight.half())
    codes = torch.where(largest[:, None] > 0, codes, 0)  # 0 · ∞ in a row of zeros
    return Rounded(codes, functional().int8_vectorwise_dequant(codes, largest), largest, largest[:, None] / LARGEST)


def codes_on(weight: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Codes, int8 (out, in), of a weight on given rows, as the library computes them on a weight's own."""
    codes = (weight.half() * (LARGEST / largest[:, None])).round().clamp(-LARGEST, LARGEST)
    return torch.where(largest[:, None] > 0, codes, 0).to(torch.int8)


def rounded_activations(x: torch.Tensor) -> torch.Tensor:
    """What a layer reads, (…, in), as the product of LLM.int8() sees it, in the type of ``x``."""
    half = x.half().float()
    outlier = half.abs() >= OUTLIER
    inside = half.masked_fill(outlier, 0.0)
    largest = inside.abs().amax(-1, keepdim=True)
    codes = torch.where(largest > 0, (inside * (LARGEST / largest)).round(), 0.0)
    return torch.where(outlier, x, (codes * largest / LARGEST).to(x.dtype))
