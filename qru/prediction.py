"""What will come back, said before anything is trained: from learning rate, weights and quantization step alone.

Weights stepped in bf16 stop moving above a size, the edge (``qru.optimizers``). Where the edge lies inside the zero bin
of a group, whatever the optimizer does there is rounded away: those weights have code 0 before and after.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from qru.config import RunConfig
from qru.defaults import dead_zone, resolve
from qru.ops import QuantSpec
from qru.ops.grid import grid_of, to_groups
from qru.optimizers import largest_step, movable_below

HIDDEN = 50.0  # percent of the movable weights; our threshold, set before the comparison: more than half is lost


def edge(config: RunConfig) -> float | None:
    """The size under which an arm can move a weight, or ``None`` for an arm without a dead zone.

    Only weights that are themselves stepped in bf16, and rounded to nearest, have one. The others:

    - An fp32 master adds up any step. Stochastic rounding loses none on average.
    - A difference ΔW in bf16 starts at zero and stops near the edge of |ΔW|, hundreds of steps away, wherever W lies.
    - LoRA in bf16 has dead zones in A and B, not in W. B starts at zero; A within 1/√in, which is under the edge at
      the rate used here (width 256, 1.3e-4: both are 2^-4). Even with A at rest, B moves B·A, which is added in fp32 to
      every weight of W, whatever its size.

    Args:
        config: ``adapter``, ``weights``, ``rounding``, ``learning_rate`` and ``adam_beta2`` are read.
    """
    config = resolve(config)
    if not dead_zone(config):
        return None
    return movable_below(config.learning_rate * largest_step(config.adam_beta2))


def predict(config: RunConfig, before: dict[str, torch.Tensor], quantizer_name: str) -> dict[str, Any]:
    """Whether what an arm will have forgotten comes back under a quantizer, and the numbers that say so.

    Not seen from here: what embeddings, norms and head learn, which are never quantized; how far the model may be off
    and still count as forgetful; how often a step comes near its bound. A weight within a bin of its edge does move
    less often than a small one, so an edge a little over s/2 leaks less than is said here.

    Args:
        config: of the arm.
        before: layer -> weight (out, in) of the target, as ``compress.stored_layers`` gives it.
        quantizer_name: RTN's, such as ``"rtn-int4-g128"``.

    Returns:
        ``edge``: of ``edge``. ``zero_bin``: s/2, the median over weights. ``sigma``: root mean square of all weights.
        ``movable``: percent of the weights under the edge. ``hidden``: percent of those whose group has edge ≤ s/2, so
        that nothing the optimizer can do changes their code. ``projection``: share of the update expected to survive,
        Σ δ·ΔW / Σ ΔW², see ``surviving``. ``recovers``: ``hidden`` is over ``HIDDEN``. ``layers``: ``zero_bin`` and
        ``hidden`` of each.

    Raises:
        ValueError: the name is no RTN quantizer's, or its groups do not divide a layer (names it).
    """
    spec, reach = QuantSpec.parse(quantizer_name), edge(config)
    steps, widths, squares, weights, movable, hidden, kept = [], [], 0.0, 0, 0, 0, 0.0
    layers = {}
    for name, weight in before.items():
        scales, _ = grid_of(weight, spec, name)  # (rows, groups)
        size = to_groups(weight.float().abs(), spec, name)  # (rows, groups, width)
        count = (size < (torch.inf if reach is None else reach)).sum(-1)  # movable weights in a group
        steps.append(scales.flatten())
        widths.append(torch.full_like(steps[-1], size.shape[-1]))
        squares += size.double().square().sum().item()
        weights += size.numel()
        here, inside = count.sum().item(), 0
        movable += here
        if reach is not None:
            inside = count[reach <= scales / 2].sum().item()
            hidden += inside
            kept += (count * surviving(scales, size.amax(-1).clamp(max=reach))).double().sum().item()
        layers[name] = {
            "zero_bin": _median(steps[-1], widths[-1]) / 2, "hidden": 100 * inside / here if here else 0.0,
        }  # fmt: skip
    share = 100 * hidden / movable if movable else 0.0
    return {
        "edge": reach,
        "zero_bin": _median(torch.cat(steps), torch.cat(widths)) / 2,
        "sigma": (squares / weights) ** 0.5,
        "movable": 100 * movable / weights,
        "hidden": share,
        "projection": 1.0 if reach is None else kept / movable if movable else 0.0,
        "recovers": share > HIDDEN,
        "layers": layers,
    }


def surviving(steps: torch.Tensor, reach: torch.Tensor) -> torch.Tensor:
    """The part of many small moves that is left after rounding, for weights spread evenly over (−reach, reach).

    A weight that moves by d crosses a boundary between bins with probability |d| · boundaries / (2 · reach) and then
    moves by s. There are 2 ⌈reach/s − 1/2⌉ boundaries, at ±s/2, ±3s/2 …: none if reach is s/2 or less, so that nothing
    is left; the part is 2 just over it, where the one pair stands for the whole room, and nears 1 where there are many.

    Args:
        steps: s, of groups. Where it is zero, so are all weights, and the grid moves with them: 1.
        reach: how far from zero weights lie in each.
    """
    crossed = steps * (reach / steps - 0.5).ceil() / reach
    return torch.where(steps > 0, crossed, 1.0)


def _median(values: torch.Tensor, weights: torch.Tensor) -> float:
    """The smallest value that at least half of the weight lies at or under."""
    values, order = values.sort()
    heaped = weights[order].double().cumsum(0)
    return values[torch.searchsorted(heaped, heaped[-1] / 2)].item()


def scored(rows: Iterable[tuple[bool, bool | None]]) -> dict[str, int]:
    """How well a prediction did.

    Args:
        rows: (predicted, came back); ``None`` where the measurement does not say.

    Returns:
        Counts: ``n`` of all rows, ``right``, ``wrong``, ``undecided``; and of the wrong ones ``false_alarms``
        (predicted, did not come back) and ``missed`` (came back, not predicted).
    """
    rows = list(rows)
    false_alarms = sum(predicted and back is False for predicted, back in rows)
    missed = sum(back is True and not predicted for predicted, back in rows)
    undecided = sum(back is None for _, back in rows)
    wrong = false_alarms + missed
    return {
        "n": len(rows), "right": len(rows) - wrong - undecided, "wrong": wrong, "undecided": undecided,
        "false_alarms": false_alarms, "missed": missed,
    }  # fmt: skip
