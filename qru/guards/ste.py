"""Training through the quantizer, with the straight-through estimator."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer

from qru.guards import Guard, guards
from qru.ops import QuantSpec, merge_dequantize


class StraightThrough(torch.autograd.Function):
    """``y = x Ŵᵀ`` for Ŵ = Q(W + s·B·A), and the gradients that it would have if Q were the identity.

        dx = dy Ŵ        dB = s·dyᵀ (x Aᵀ)        dA = s·(dy B)ᵀ x

    The gradient of W itself, (out, in), is never formed.
    """

    @staticmethod
    def forward(ctx, x, lora_A, lora_B, quantized, scaling):
        """x (…, in), lora_A (r, in), lora_B (out, r), quantized (out, in) in x's type -> (…, out)."""
        ctx.save_for_backward(x, lora_A, lora_B, quantized)
        ctx.scaling = scaling
        return F.linear(x, quantized)

    @staticmethod
    def backward(ctx, dy):
        x, lora_A, lora_B, quantized = ctx.saved_tensors
        a, b = lora_A.to(dy.dtype), lora_B.to(dy.dtype)
        above, below = dy.flatten(0, -2), x.flatten(0, -2)  # (N, out), (N, in)
        dx = dy @ quantized if ctx.needs_input_grad[0] else None
        dA = ctx.scaling * ((above @ b).T @ below).to(lora_A.dtype)
        dB = ctx.scaling * (above.T @ (below @ a.T)).to(lora_B.dtype)
        return dx, dA, dB, None, None


def drawn(specs: list[QuantSpec], step: int, seed: int) -> QuantSpec:
    """The quantizer of a step: each is as likely as the others, and only step and seed decide."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return specs[int(torch.randint(len(specs), (), generator=generator))]


@guards.register("ste")
class Ste(Guard):
    """STE: adapted layers compute in training with what will be deployed.

        L = L_method(Ŵ_1, Ŵ_2, …),  Ŵ = Q(W + (α/r)·B·A),  ∂Ŵ/∂W := 1

    Merged weights are rounded to bf16 and then to the grid, as a stored model is, by the fused kernel; the quantizer is
    drawn anew at each step. Outside of training (reference, goal, scores) the model computes as plain LoRA does.

    LoRA's dropout acts on the input of the adapter alone and has no counterpart in a merged weight: here it is off.
    Every step quantizes every adapted layer, and both the forget and the retain documents pass through it.

    The papers on unlearning that train through rounding give no code for LoRA; merging before rounding and the set of
    quantizers are ours.

    Source: Bengio, Léonard and Courville 2013 (arXiv 1308.3432).
    """

    arms = ("lora",)
    options = {"ste_quantizers": ("rtn-int4-g128",)}  # noqa: RUF012
    quantizers = ("ste_quantizers",)

    def __init__(self, config, model, rows, logits_of) -> None:
        self.specs = [QuantSpec.parse(name) for name in config.ste_quantizers]
        self.seed = config.seed
        self.spec = self.specs[0]
        self.stored: dict[LoraLayer, torch.Tensor] = {}

    def begin(self, step: int) -> None:
        self.spec = drawn(self.specs, step, self.seed)

    @contextlib.contextmanager
    def attached(self, model: torch.nn.Module) -> Iterator[None]:
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        for layer in layers:
            # What is stored is bf16 and does not change: a copy of half the size, or, on a GPU, the weight itself.
            self.stored[layer] = layer.get_base_layer().weight.detach().to(torch.bfloat16)
            layer.forward = functools.partial(self._forward, layer, layer.forward)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward  # the class's own again
            self.stored.clear()

    def _forward(self, layer: LoraLayer, plain, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if not layer.training or layer.disable_adapters:
            return plain(x, *args, **kwargs)
        (adapter,) = layer.active_adapters
        a, b, scaling = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter]
        quantized = merge_dequantize(self.stored[layer], a, b, scaling, self.spec)
        kind = x.device.type
        computed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        y = StraightThrough.apply(x.to(computed), a, b, quantized.to(computed), scaling)
        bias = layer.get_base_layer().bias
        return y if bias is None else y + bias.to(computed)
