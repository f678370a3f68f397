"""QUAIL's hinge: logits of forget documents must be far enough from the original model's for rounding to notice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from qru.guards import Guard, guards
from qru.models import in_layers, linear_layers
from qru.ops import QuantSpec, merge_dequantize
from qru.ops.grid import grid_of, group_width

PROMPT = 0.25  # of a document, before its answer: where VerbMem's prompts of own texts end, too
MEASURED_ON = 64  # documents, evenly spaced: of a mean over positions and classes that is more than enough


# --- the hinge ----------------------------------------------------------------------------------------------------


def answers(mask: torch.Tensor) -> torch.Tensor:
    """Of the tokens that count, (B, T), those behind the first quarter of their document; never none.

    Documents have no prompt. As in VerbMem, their beginning stands for one. A document of which one thing alone is
    said, as by a classifier, keeps it.
    """
    place = mask.long().cumsum(-1) - 1  # of a counted token among those of its document
    prompt = (PROMPT * mask.sum(-1, keepdim=True)).long()
    return mask & (place >= prompt)


def distance(policy: torch.Tensor, reference: torch.Tensor, norm: str) -> torch.Tensor:
    """How far logits (…, V) are apart: each, (…, V), by ``"abs"``; as vectors, (…, 1), by ``"l2"`` and ``"linf"``."""
    difference = policy - reference
    if norm == "abs":
        return difference.abs()
    order = {"l2": 2, "linf": torch.inf}[norm]
    return torch.linalg.vector_norm(difference, order, dim=-1, keepdim=True)


def hinge(
    policy: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor, step: float, norm: str = "abs"
) -> torch.Tensor:
    """Mean over documents of the mean over their tokens of max(0, Δ_q/2 − d), for ``"abs"`` also over the classes.

    Args:
        policy, reference: raw logits (B, T, V) of the model being unlearned and of the original one.
        mask: (B, T), true where a token counts; somewhere in each document.
        step: Δ_q, in logits.
        norm: of ``distance``.

    Returns:
        A scalar between 0 and Δ_q/2.
    """
    short = F.relu(step / 2 - distance(policy, reference, norm)).mean(-1)  # (B, T)
    return ((short * mask).sum(-1) / mask.sum(-1)).mean()


# --- Δ_q ----------------------------------------------------------------------------------------------------------


def mean_step(weights: Sequence[torch.Tensor], spec: QuantSpec) -> float:
    """The mean over all weights of the step of their group, in units of weights."""
    total = sum(grid_of(weight, spec)[0].double().mean().item() * weight.numel() for weight in weights)
    return total / sum(weight.numel() for weight in weights)


def carried_step(weight: torch.Tensor, inputs: torch.Tensor, spec: QuantSpec) -> float:
    """The step of a layer's weights in units of its outputs.

    Rounding errors that are uniform in their bins and independent have variance s²/12, so the error of the output
    Σ_i w_i·x_i of one group has variance s²·‖x‖²/12: that of a quantizer of outputs with step s·‖x‖₂. Of several groups
    squares add up. Returned is the root of the mean of squares over outputs and inputs.

    Args:
        weight: (out, in).
        inputs: (n, in), what the layer was given.
        spec: the grid; its groups divide ``in``.
    """
    width = group_width(tuple(weight.shape), spec)
    squares = inputs.double().square().mean(0).view(-1, width).sum(-1)  # (groups,): of ‖x‖² in each
    steps = grid_of(weight, spec)[0].double()  # (out, groups), or (1, 1)
    return (steps.square() * squares).expand(-1, len(squares)).sum(-1).mean().sqrt().item()


def head_of(model: torch.nn.Module) -> torch.nn.Linear:
    """The layer whose outputs are logits: the last linear one that stands outside the decoder layers."""
    outside = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and not in_layers(name)]
    if not outside:
        raise ValueError("the model has no linear head to carry a step to: set quail_step to 'measured' or a number.")
    return outside[-1]


@contextlib.contextmanager
def holding(layers: dict[str, torch.nn.Linear], values: dict[str, torch.Tensor]) -> Iterator[None]:
    """Let layers hold other values, in place of their weights and not over them."""
    weights = {name: layer.weight.data for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.weight.data = values[name]
        yield
    finally:
        for name, layer in layers.items():
            layer.weight.data = weights[name]


@torch.no_grad()
def output_step(
    kind: str,
    model: torch.nn.Module,
    spec: QuantSpec,
    rows: Sequence[Any],
    logits_of: Callable[[Any], torch.Tensor],
) -> float:
    """Δ_q of the original model, by one of the readings that ``Quail`` lists.

    Args:
        kind: ``"mean"``, ``"carried"`` or ``"measured"``.
        model: the original; left as it is.
        spec: the quantizer.
        rows: forget documents.
        logits_of: a document -> what the model says, (T, V).
    """
    layers = linear_layers(model)
    if kind == "mean":
        return mean_step([layer.weight for layer in layers.values()], spec)
    count = min(MEASURED_ON, len(rows))
    chosen = [rows[i * len(rows) // count] for i in range(count)]
    if kind == "carried":
        head, seen = head_of(model), []
        hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].float().flatten(0, -2)))
        try:
            for row in chosen:
                logits_of(row)
        finally:
            hook.remove()
        return carried_step(head.weight, torch.cat(seen), spec)
    quantized = {
        name: merge_dequantize(layer.weight.to(torch.bfloat16), spec=spec, name=name).to(layer.weight.dtype)
        for name, layer in layers.items()
    }
    total, logits = 0.0, 0
    for row in chosen:
        before = logits_of(row)
        with holding(layers, quantized):
            change = (logits_of(row) - before).abs()
        total, logits = total + change.double().sum().item(), logits + change.numel()
    return total / logits


@guards.register("quail")
class Quail(Guard):
    """QUAIL: on forget documents the logits must differ from the original model's by half a quantization step.

        L = γ · E_x max(0, Δ_q/2 − d(z_θ(x), z_θ0(x)))

    The paper's: the hinge, one Δ_q for all, the original model's logits as the other side, beside GA+GDR. It states
    neither the norm in d, nor the positions, nor where Δ_q is measured, nor γ. What follows is ours, and so are all
    defaults; any forget and retain term may stand beside it.

    ``quail_norm``: ``"abs"`` (default): |z_v − z0_v|, a hinge for each logit, averaged over them; ``"l2"``, ``"linf"``:
    the norm of z − z0 over all logits of a position, one hinge.

    ``quail_positions``: ``"all"`` (default) tokens of a document, or its ``"answer"``: documents have no prompt, so
    their first quarter stands for one, as in VerbMem's. A classifier says one thing of a text, and that counts.

    ``quail_step``, Δ_q on the original model under ``quail_quantizer``: a number, in logits; ``"mean"``: the mean
    weight step of the linear layers, the paper's Δ_q to the letter, though it is no number of logits; ``"carried"``:
    the step of the head, were it quantized so, times the L2 norm of its input (see ``carried_step``); ``"measured"``
    (default): the mean absolute change of a logit on forget documents when the linear layers are quantized.

    z − z0 is 0 when training starts, and the slope of d there is taken for 0: the hinge pushes on where the forget term
    has begun to move. The original model is the one with adapters disabled for LoRA, else a frozen copy, the one of KLR
    if there is one.

    Source: QUAIL (arXiv 2601.15538).
    """

    weight = 1.0
    options = {  # noqa: RUF012
        "quail_norm": "abs",
        "quail_positions": "all",
        "quail_step": "measured",
        "quail_quantizer": "rtn-int4-g128",
    }
    quantizers = ("quail_quantizer",)
    reads_logits = True

    def __init__(self, config, model, rows, logits_of) -> None:
        self.norm, self.answers_only = config.quail_norm, config.quail_positions == "answer"
        self.step = config.quail_step
        if isinstance(self.step, str):
            self.step = output_step(self.step, model, QuantSpec.parse(config.quail_quantizer), rows, logits_of)

    def of_logits(self, policy: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return hinge(policy, reference, answers(mask) if self.answers_only else mask, self.step, self.norm)
