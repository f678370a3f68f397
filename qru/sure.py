"""SURE: only the linear layers that the forget loss is most sensitive to are trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from qru.models import linear_layers


def saliencies(model: torch.nn.Module, losses: Iterable[torch.Tensor]) -> dict[str, float]:
    """How sensitive the forget loss is to each module.

        s_i = ‖∇_{θ_i} L_forget(θ_0)‖₂

    A module is here the weight matrix of one linear layer of the decoder: what quantizers round. The paper leaves open
    what a module is. Embeddings, norms and head are no modules: they are never quantized, so a mask that chose them
    would protect what needs no protection.

    Args:
        model: the target; requires gradients of these weights and of no other. Its gradients are freed.
        losses: parts of the forget loss, each a graph of its own, whose sum is L_forget.

    Returns:
        Layer -> s_i.
    """
    layers = linear_layers(model)
    for loss in losses:
        loss.backward()
    gradients = {name: layer.weight.grad for name, layer in layers.items()}
    # None: the loss does not reach the layer, as RMU's does not reach those above the one that it steers.
    found = {name: 0.0 if g is None else g.double().norm().item() for name, g in gradients.items()}
    model.zero_grad(set_to_none=True)
    return found


def salient(found: Mapping[str, float], percentile: float) -> list[str]:
    """The layers whose saliency is at or over the percentile of all; the most salient one is always among them.

    Source: SURE (arXiv 2410.16454).
    """
    threshold = torch.quantile(torch.tensor(list(found.values()), dtype=torch.float64), percentile / 100).item()
    return [name for name, value in found.items() if value >= threshold]


def freeze_others(model: torch.nn.Module, chosen: Iterable[str]) -> None:
    """Leave the weights of the chosen layers trainable, and nothing else."""
    layers = linear_layers(model)
    model.requires_grad_(False)
    for name in chosen:
        layers[name].weight.requires_grad_(True)
