"""AWQ: input channels that carry large activations are scaled up before rounding, and down again after it."""

from __future__ import annotations

import torch

from qru.ops import QuantSpec
from qru.ops.grid import codes_on, dequantize, grid_of, group_width
from qru.quantizers import Inputs, Update, families
from qru.quantizers.calibrated import parse
from qru.quantizers.crossings import Rounded, counts, merged

ALPHAS = tuple(i / 20 for i in range(21))  # the paper searches [0, 1]; 20 steps as in the authors' code
FLOOR = 1e-4  # of E|x|, as in the authors' code: a channel that is never used keeps a finite scale


@families.register("awq")
class AWQ:
    """``awq-int{8,4,3,2}-{g<n>,row,tensor}[-{sym,asym}[-{step}]][-{heldout,forget}]``.

    The weight that deployment computes with is Q(W·diag(s))·diag(1/s), with s = (E|x|)^α and the α of 0, 0.05, … 1
    that has the least squared error of the layer's output on the calibration text. Layers that read the same input
    share s, since 1/s is folded into what makes it: query, key and value into the norm before them, gate and up
    likewise; of the others into value and up. (Where value has fewer rows than the output projection has columns, as
    in grouped-query attention, there is nothing to fold 1/s into and the authors' code does not scale; here it does.)
    Errors are summed over the layers that share s; the authors' code measures them behind the attention or the MLP. Q
    is RTN on the grid of the name, so that α = 0 is RTN. The optional clipping of the paper is left out. The
    calibration text is the retain set unless the name ends in ``heldout`` or ``forget``.

    Counted is against the base weight, with an α searched for it on the same inputs; ``crossed`` on its s and its
    steps. Where the two take different α, nearly every code may change. Bins are steps over s.

    Source: Lin et al. 2024, "AWQ" (arXiv 2306.00978), equations 4 and 5.
    """

    examples = ("awq-int4-g128", "awq-int4-g128-heldout", "awq-int4-g128-forget", "awq-int3-g128")

    def __init__(self, name: str) -> None:
        self.spec, self.calibration, self.name = parse(name, "awq")

    def check(self, shape: tuple[int, int], layer: str) -> None:
        group_width(shape, self.spec, layer)

    def __call__(
        self, layers: dict[str, tuple[torch.Tensor, Update]], inputs: Inputs
    ) -> dict[str, tuple[torch.Tensor, dict]]:
        before = {layer: weight for layer, (weight, _) in layers.items()}
        after = {layer: merged(weight, update, layer) for layer, (weight, update) in layers.items()}
        alpha = best_alpha(before.values(), inputs, self.spec)
        same = all(torch.equal(before[layer], after[layer]) for layer in layers)
        s0 = channel_scales(inputs, alpha)
        s = s0 if same else channel_scales(inputs, best_alpha(after.values(), inputs, self.spec))
        out = {}
        for layer, weight in before.items():
            base = rounded(weight, s0, self.spec)
            new = base if same else rounded(after[layer], s, self.spec)
            frozen = base.codes
            if not same:
                scaled = weight.float() * s0
                frozen = codes_on(after[layer].float() * s0, *grid_of(scaled, self.spec, layer), self.spec)
            found = counts(weight, after[layer], base, new, frozen, 2**self.spec.bits)
            out[layer] = new.values, found
        return out


def channel_scales(inputs: Inputs, alpha: float) -> torch.Tensor:
    """s = (E|x|)^α, (in,) float32."""
    return inputs.magnitude.clamp(min=FLOOR).pow(alpha).float()


def rounded(weight: torch.Tensor, s: torch.Tensor, spec: QuantSpec) -> Rounded:
    """Q(W·diag(s))·diag(1/s) of a weight (out, in)."""
    scaled = weight.float() * s
    scales, zeros = grid_of(scaled, spec)
    codes = codes_on(scaled, scales, zeros, spec)
    steps = scales.repeat_interleave(codes.numel() // scales.numel()).view(codes.shape)
    return Rounded(codes, dequantize(codes, scales, zeros, spec) / s, scales, steps / s)


def output_error(weight: torch.Tensor, values: torch.Tensor, inputs: Inputs) -> float:
    """Mean over tokens of ‖(Q − W) x‖², from the mean of x xᵀ."""
    error = values - weight.float()
    return ((error @ inputs.gram.float()) * error).sum(dtype=torch.float64).item()


def best_alpha(weights, inputs: Inputs, spec: QuantSpec) -> float:
    """The α of ``ALPHAS`` with the least output error of weights (out, in) that read the same; of equals, the least."""
    weights = list(weights)

    def total(alpha: float) -> float:
        s = channel_scales(inputs, alpha)
        return sum(output_error(weight, rounded(weight, s, spec).values, inputs) for weight in weights)

    return min(ALPHAS, key=total)
