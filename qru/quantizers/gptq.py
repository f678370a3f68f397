"""GPTQ: columns are rounded one after another, and the error of each is made up for in those still to come."""

from __future__ import annotations

from dataclasses import replace

import torch

from qru.ops import QuantSpec
from qru.ops.grid import codes_on, dequantize, grid_of, group_width
from qru.quantizers import Inputs, Update, families
from qru.quantizers.calibrated import parse
from qru.quantizers.crossings import Rounded, counts, merged

DAMPING = 0.01  # of the mean of the Hessian's diagonal, as in the paper
BLOCK = 128  # columns whose errors reach the columns behind the block at once: the same numbers, sooner

Grid = tuple[torch.Tensor, torch.Tensor | None]


@families.register("gptq")
class GPTQ:
    """``gptq-int{8,4,3,2}-{g<n>,row,tensor}[-{sym,asym}[-{step}]][-{heldout,forget}]``.

    Grids, steps and their names are RTN's, so that the two differ in rounding alone. A group's grid is set when its
    first column is reached, from the weights as the errors before have left them; ``row`` and ``tensor`` grids at the
    start. Columns are taken in order, as in the paper; ``act_order``, by the size of their inputs, came after it and is
    what libraries now do unless told otherwise. The Hessian is damped by 1 % of its mean diagonal. The calibration text
    is the retain set unless the name ends in ``heldout`` or ``forget``.

    Where the authors' code sets weights of inputs that are zero throughout the text to zero, they are rounded to
    nearest here: another text may use them.

    Counted is against the base weight, rounded by the same algorithm with the same inputs. Rounding here depends on the
    errors of the columns before, so one weight that crosses a bin sends others across theirs: far more codes change
    than ``predicted`` says, which takes each weight for itself. ``crossed`` is from a third pass, of the updated weight
    on the steps that the base's pass has set.

    Source: Frantar et al. 2023, "GPTQ" (arXiv 2210.17323), algorithm 1; grids of groups from §4, "Additional Tricks".
    """

    examples = ("gptq-int4-g128", "gptq-int4-g128-heldout", "gptq-int4-g128-forget", "gptq-int3-g128")

    def __init__(self, name: str) -> None:
        self.spec, self.calibration, self.name = parse(name, "gptq")

    def check(self, shape: tuple[int, int], layer: str) -> None:
        group_width(shape, self.spec, layer)

    def __call__(
        self, layers: dict[str, tuple[torch.Tensor, Update]], inputs: Inputs
    ) -> dict[str, tuple[torch.Tensor, dict]]:
        factor = compensation(inputs.gram)
        out = {}
        for layer, (weight, update) in layers.items():
            after = merged(weight, update, layer)
            codes, grid = rounded(weight, self.spec, factor)
            base = on_grid(codes, grid, self.spec)
            if torch.equal(after, weight):
                out[layer] = base.values, counts(weight, after, base, base, base.codes, 2**self.spec.bits)
                continue
            frozen, _ = rounded(after, self.spec, factor, grid)
            new = on_grid(*rounded(after, self.spec, factor), self.spec)
            out[layer] = new.values, counts(weight, after, base, new, frozen, 2**self.spec.bits)
        return out


def on_grid(codes: torch.Tensor, grid: Grid, spec: QuantSpec) -> Rounded:
    """Codes (out, in) on a grid of steps and zero points, as ``counts`` takes them."""
    scales, zeros = grid
    bins = scales.repeat_interleave(codes.numel() // scales.numel()).view(codes.shape)
    return Rounded(codes, dequantize(codes, scales, zeros, spec), scales, bins)


def compensation(gram: torch.Tensor) -> torch.Tensor:
    """U with H⁻¹ = Uᵀ U, upper triangular: row j says how the error of column j is spread over those behind it.

    Args:
        gram: (in, in), the mean of x xᵀ: the Hessian of the layer's squared error, but for a factor.

    Returns:
        (in, in) float32.
    """
    hessian = gram.double().clone()
    diagonal = hessian.diagonal()  # a view
    used = diagonal > 0
    level = diagonal[used].mean() if used.any() else torch.ones((), dtype=torch.float64, device=gram.device)
    diagonal[~used] = level
    diagonal += DAMPING * level
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True).float()


def rounded(
    weight: torch.Tensor, spec: QuantSpec, factor: torch.Tensor, grid: Grid | None = None
) -> tuple[torch.Tensor, Grid]:
    """Round a weight column by column.

    Args:
        weight: (out, in).
        spec: the grid; its groups divide a row.
        factor: (in, in), from ``compensation``.
        grid: steps and zero points to round on, in place of the weight's own.

    Returns:
        Codes, int8 (out, in), and the grid: steps (out, in // g), (1, 1) for "tensor"; zero points likewise or None.
    """
    left = weight.float().clone()  # what is still to be rounded, errors of the columns before made up for
    columns = weight.shape[1]
    width = group_width(tuple(weight.shape), spec)
    row = replace(spec, group_size=-1)
    block = max(width, BLOCK // width * width) if width < columns else BLOCK  # a block ends where a group does
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    grids: list[Grid] = []
    scales = zeros = None
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = torch.empty(len(weight), stop - start, device=weight.device)
        for j in range(start, stop):
            if j % width == 0:
                whole = spec.group_size == "tensor"
                one = _column(grid, j // width) if grid else grid_of(left[:, j : j + width], spec if whole else row)
                grids.append(one)
                scales, zeros = (part if part is None else part.expand(len(weight), 1) for part in one)
            column = left[:, j : j + 1]
            codes[:, j : j + 1] = q = codes_on(column, scales, zeros, row)
            error = (column - dequantize(q, scales, zeros, row)) / factor[j, j]
            left[:, j + 1 : stop] -= error * factor[j, j + 1 : stop]
            errors[:, j - start] = error[:, 0]
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    scales = torch.cat([one[0] for one in grids], 1)
    return codes, (scales, None if spec.symmetric else torch.cat([one[1] for one in grids], 1))


def _column(grid: Grid, group: int) -> Grid:
    scales, zeros = grid
    return scales[:, group : group + 1], None if zeros is None else zeros[:, group : group + 1]
