"""A penalty on updates that stop between the weight and the next boundary of its bin."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from peft.tuners.lora import LoraLayer

from qru.guards import Guard, guards
from qru.models import linear_layers
from qru.ops import QuantSpec, quantize_ref
from qru.ops.grid import to_groups

MARGIN = 0.05  # of a step, beyond the boundary: on it rounding to bf16 decides on which side a weight ends


def reaches(weight: torch.Tensor, spec: QuantSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """How far each weight must move up, and down, to be in another bin by a margin.

    Args:
        weight: (out, in), before unlearning.
        spec: whose bins; they stay where they are while the weights move.

    Returns:
        Two tensors (out, in), fp32: the distance to the boundary of the bin and ``MARGIN`` of a step. Minus a step
        where there is no boundary, at the outermost codes; infinity where a group has no step, since all is 0 there.
    """
    codes, scales, zeros = quantize_ref(weight, spec)
    w, q = to_groups(weight.float(), spec), to_groups(codes.float(), spec)  # (rows, groups, width)
    s = scales[..., None]
    centre = (q if zeros is None else q - zeros[..., None]) * s
    up = torch.where(q < spec.qmax, centre + (0.5 + MARGIN) * s - w, -s)
    down = torch.where(q > spec.qmin, w - centre + (0.5 + MARGIN) * s, -s)
    return tuple(torch.where(s > 0, side, torch.inf).reshape(weight.shape) for side in (up, down))


def undecided(delta: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """ρ of every weight: 0 where it did not move or is in another bin, 1 halfway between the two.

    Args:
        delta: (out, in), ΔW.
        up, down: of ``reaches``.
    """
    reach = torch.where(delta >= 0, up, down)
    u = delta.abs() / reach.abs()
    inside = u.clamp(max=1)
    return 16 * torch.where(reach < 0, u.square(), (inside * (1 - inside)).square())


@guards.register("bin_margin")
class BinMargin(Guard):
    """Bin-margin: each ΔW is pushed past the next boundary of the bin that it moves towards, or back to zero.

        L = (1/N) Σ_i ρ(ΔW_i),  ρ(ΔW) = 16·u²·(1 − u)²,  u = min(|ΔW|/m, 1)

    m is the distance from W to the boundary of its bin in the direction of ΔW and ``MARGIN`` = 0.05 steps more. So ρ is
    0 at ΔW = 0 and wherever the code of the weight is another one, and 1 halfway; its slope is 0 at both ends, changes
    sign in between, and is never infinite. Bins are those of the weights before unlearning. Outwards of the outermost
    codes there is no boundary: there ρ = 16·(ΔW/s)² only pulls back. Groups without a step are left out. N is the
    number of weights of the linear layers that are trained.

    For full fine-tuning ΔW is W minus a kept copy. For LoRA it is (α/r)·B·A, before the rounding to bf16: a product
    (out, in) and its gradient for each adapted layer and step, where plain LoRA never forms either. Kept beside: two
    fp32 numbers for each weight, and for full fine-tuning W in bf16.

    Ours: formula, margin, γ and quantizer. An edge in weight space that MANSU holds by a floor on |ΔW| is here smooth.

    Source: this project; the bins are those of QRU (arXiv 2602.13151), §III.
    """

    weight = 1.0
    options = {"bin_margin_quantizer": "rtn-int4-g128"}  # noqa: RUF012
    quantizers = ("bin_margin_quantizer",)
    reads_weights = True

    def __init__(self, config, model, rows, logits_of) -> None:
        spec = QuantSpec.parse(config.bin_margin_quantizer)
        with torch.no_grad():
            self.reaches = {name: reaches(layer.weight, spec) for name, layer in linear_layers(model).items()}
            kept = {} if config.adapter == "lora" else linear_layers(model)
            self.before = {name: layer.weight.detach().to(torch.bfloat16, copy=True) for name, layer in kept.items()}
        self.layers: dict[str, torch.nn.Module] = {}

    @contextlib.contextmanager
    def attached(self, model: torch.nn.Module) -> Iterator[None]:
        if self.before:
            self.layers = {name: layer for name, layer in linear_layers(model).items() if layer.weight.requires_grad}
        else:
            inside = model.get_base_model().named_modules()
            self.layers = {name: layer for name, layer in inside if isinstance(layer, LoraLayer)}
        yield
        self.layers = {}

    def _delta(self, name: str, layer: torch.nn.Module) -> torch.Tensor:
        if name in self.before:
            return layer.weight.float() - self.before[name].float()
        (adapter,) = layer.active_adapters
        return layer.scaling[adapter] * (layer.lora_B[adapter].weight.float() @ layer.lora_A[adapter].weight.float())

    def of_weights(self) -> torch.Tensor:
        some = next(iter(self.layers.values()))
        with torch.autocast(some.weight.device.type, enabled=False):  # a bf16 product would blur where a bin ends
            sums = [
                undecided(self._delta(name, layer), *self.reaches[name]).sum() for name, layer in self.layers.items()
            ]
        return torch.stack(sums).sum() / sum(self.reaches[name][0].numel() for name in self.layers)
