"""Merging for every quantizer, and counting for those that do not count as they round."""

from __future__ import annotations

from typing import NamedTuple

import torch

from qru.ops import QuantSpec, merge_quantize
from qru.ops.merge_quantize import CrossingStats
from qru.quantizers import Update

MERGING = QuantSpec(bits=8, group_size=-1)  # any grid serves: only the merged weight is taken


def merged(weight: torch.Tensor, update: Update, layer: str) -> torch.Tensor:
    """The weight (out, in) after its update, as it is stored: rounded once to the type of ``weight``.

    Raises:
        ValueError: a number is NaN or Inf, or shapes do not fit (names the layer).
    """
    return merge_quantize(
        weight, update.lora_A, update.lora_B, update.scaling, MERGING, merged=True,
        new_weight=update.new_weight, name=layer,
    ).merged  # fmt: skip


class Rounded(NamedTuple):
    """A weight on a grid.

    Attributes:
        codes: (out, in), whole numbers that rise with the value; two codes of one value are one number.
        values: (out, in) fp32, what the codes stand for.
        grid: one number a group, which tells two grids apart: its step, or its largest value.
        bins: width of each weight's bin in the weight's units, broadcastable to (out, in); zero where a group has none.
    """

    codes: torch.Tensor
    values: torch.Tensor
    grid: torch.Tensor
    bins: torch.Tensor


def counts(
    before: torch.Tensor, after: torch.Tensor, base: Rounded, new: Rounded, frozen: torch.Tensor, levels: int
) -> dict:
    """What ``CrossingStats`` holds, for any quantizer.

    ``predicted`` is Σ min(|ΔW| / width of the base's bin, 1): the expected crossings for residuals that are uniform in
    their bins and weights that are rounded each for itself. On a grid of unequal steps bins differ in width; of the
    outermost only the part inside the grid counts, and that a weight is clamped there is left out of account, as in
    ``merge_quantize``.

    Args:
        before, after: (out, in), the weight before and after the update, as stored.
        base, new: the two, each rounded on its own grid.
        frozen: codes (out, in) of ``after`` on the grid of ``base``.
        levels: how many codes there are.
    """
    dw = after.float() - before.float()
    delta = new.values - base.values
    bins = base.bins.expand_as(dw)
    expected = torch.where(bins > 0, (dw.abs() / bins).clamp(max=1.0), 0.0)
    jumps = (new.codes.long() - base.codes.long()).abs().flatten()
    return CrossingStats(
        weights=dw.numel(),
        moved=int((dw != 0).sum()),
        crossed=int((frozen != base.codes).sum()),
        changed=int((new.codes != base.codes).sum()),
        predicted=expected.double().sum().item(),
        sum_dw2=(dw * dw).double().sum().item(),
        sum_q_dw=(delta * dw).double().sum().item(),
        sum_q2=(delta * delta).double().sum().item(),
        steps_moved=int((new.grid != base.grid).sum()),
        zero_groups=int((base.grid == 0).sum()),
        histogram=tuple(torch.bincount(jumps, minlength=levels).tolist()),
    ).as_dict()
