"""What may be done to an unlearned model before it is used, or attacked; each by a name.

``merged``               nothing: adapters merged, weights as stored, then the quantizer
``twice-<quantizer>``    stored under that quantizer first, dequantized to bf16, then quantized again
``prune-<percent>``      the smallest weights of every linear layer set to zero, then the quantizer
``relearn-<p>x<k>``      an attack on what was shipped: quantized, dequantized, trained k steps on p forgotten passages

Relearning is the attack of Hu et al. (arXiv 2406.13356): who holds the weights and a few of the forgotten passages
trains on these and asks for the others. It starts from the dequantized weights, since those are what the attacker has,
and steps all of them in fp32 with AdamW; what it brings out of a model that never knew the passages is the reference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qru import calibration, compress, loop, models
from qru.config import regime
from qru.corpora import Corpus
from qru.quantizers import Update, load_quantizer
from qru.registry import unknown

EXAMPLES = ("merged", "twice-rtn-int8-row", "prune-10", "relearn-4x8")
# Learning rate of the attack, ours: at smoke and mini a few steps teach the relearned passages and leave utility;
# at muse that of full fine-tuning in QRU (arXiv 2602.13151).
RELEARN_RATE = {"smoke": 3e-4, "mini": 3e-4, "muse": 1e-5}


def rate(scale: str) -> float:
    """Learning rate of relearning at a scale."""
    return RELEARN_RATE[regime(scale)]


@dataclass(frozen=True)
class Transform:
    """A parsed name.

    Attributes:
        first: quantizer that the weights pass before the one under test, or ``None``.
        pruned: percent of the weights of each linear layer that are set to zero.
        passages, steps: of relearning; 0 where there is none.
    """

    name: str
    first: str | None = None
    pruned: float = 0.0
    passages: int = 0
    steps: int = 0

    @classmethod
    def parse(cls, name: str) -> Transform:
        """Read a name.

        Raises:
            ValueError: it is none of the forms above, or a number in it is out of range.
        """
        text = str(name)
        if text == "merged":
            return cls(text)
        if text.startswith("twice-"):
            first = load_quantizer(text.removeprefix("twice-")).name
            return cls(f"twice-{first}", first=first)
        if found := re.fullmatch(r"prune-(\d+(?:\.\d+)?)", text):
            percent = float(found[1])
            if not 0 < percent < 100:
                raise ValueError(f"transform {text!r} prunes {percent:g} %; it must be over 0 and under 100.")
            return cls(f"prune-{percent:g}", pruned=percent)
        if found := re.fullmatch(r"relearn-(\d+)x(\d+)", text):
            passages, steps = map(int, found.groups())
            if not passages or not steps:
                raise ValueError(f"transform {text!r} relearns {passages} passages in {steps} steps; give 1 or more.")
            return cls(f"relearn-{passages}x{steps}", passages=passages, steps=steps)
        raise unknown("transform", text, EXAMPLES)

    @property
    def words(self) -> str:
        """What it is, for people."""
        if self.first:
            return f"stored under {self.first} first, then quantized again"
        if self.pruned:
            return f"the smallest {self.pruned:g} % of the weights of every linear layer set to zero, then quantized"
        if self.steps:
            return (
                f"quantized, then trained again for {self.steps} steps on {self.passages} of the forgotten passages; "
                "scored on the others"
            )
        return "as it is: adapters merged, then quantized"


def prune(weight: torch.Tensor, percent: float) -> torch.Tensor:
    """A copy without its smallest weights: exactly ⌊percent · count / 100⌋ zeros more, the earlier of equal ones first.

    Args:
        weight: (out, in).
    """
    size = weight.abs().flatten().float()
    count = math.floor(size.numel() * percent / 100)
    out = weight.clone()
    if count:
        edge = size.kthvalue(count).values
        below = size < edge
        equal = (size == edge).nonzero().flatten()[: count - int(below.sum())]
        below[equal] = True
        out.view(-1)[below] = 0
    return out


@torch.no_grad()
def deploy(
    model: torch.nn.Module, transform: Transform, quantizer: str | None, corpus: Corpus | None = None, tokenizer=None
) -> None:
    """Make a stored model what is deployed, in place: transformed, quantized and dequantized.

    Args:
        model: as ``models.load`` gives it.
        transform: relearning is not done here.
        quantizer: its name; ``None``: none, bf16.
        corpus, tokenizer: of the text that a calibrated quantizer is calibrated on.
    """
    if transform.first:
        _quantize(model, transform.first, corpus, tokenizer)
        compress.round_activations(model, None)
    for layer in models.linear_layers(model).values():
        weight = compress.stored(layer.weight)
        layer.weight.copy_(prune(weight, transform.pruned) if transform.pruned else weight)
    if quantizer:
        _quantize(model, quantizer, corpus, tokenizer)


def _quantize(model: torch.nn.Module, name: str, corpus: Corpus | None, tokenizer) -> None:
    quantizer = load_quantizer(name)
    text = calibration.text_for(quantizer, corpus, model, tokenizer) if corpus else None
    before = compress.stored_layers(model)
    unchanged = {name: Update(new_weight=weight) for name, weight in before.items()}
    compress.quantize_layers(model, before, unchanged, quantizer, text)


def relearn(
    model: torch.nn.Module, tokenizer, texts: Sequence[str] | Sequence[tuple[str, str]], steps: int, scale: str
) -> None:
    """Train a model on a few texts, all of them at every step, in place.

    Args:
        model: of dequantized weights; afterwards in fp32.
        tokenizer: its own.
        texts: cut into rows of the scale's context, as in unlearning; for a classifier (text, label) pairs.
        scale: of the run; gives the learning rate.
    """
    classifier, context = models.classifies(model), models.context(model, scale)
    if classifier:
        rows = models.labelled_rows(*zip(*texts, strict=True), model, tokenizer, context)
    else:
        rows = models.rows(texts, tokenizer, context)
    compress.round_activations(model, None)  # training through them has no gradient
    model.float().requires_grad_(True).eval()
    device = next(model.parameters()).device
    ids, labels = (part.to(device) for part in loop.pad(rows, models.padding_of(model, tokenizer)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate(scale), weight_decay=0.0)
    with torch.enable_grad():
        for _ in range(steps):
            if classifier:
                loss = torch.nn.functional.cross_entropy(model(input_ids=ids, use_cache=False).logits, labels[:, 0])
            else:
                loss = model(input_ids=ids, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    model.requires_grad_(False)
