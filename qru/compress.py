"""Walk the linear layers of a model: merge, quantize, count."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from peft import PeftModel

from qru.models import linear_layers, load, quiet
from qru.ops import QuantSpec, merge_quantize
from qru.quantizers import Quantizer, Update


def updates(target: torch.nn.Module, trained: torch.nn.Module) -> dict[str, Update]:
    """What unlearning did to each linear layer, as it is stored.

    Args:
        target: the model before unlearning.
        trained: the model after; wrapped by peft for LoRA.

    Returns:
        Layer name -> ``Update``: adapters in fp32 where there are any, else the new weight in bf16.
    """
    adapters = hasattr(trained, "peft_config")
    after = dict((trained.get_base_model() if adapters else trained).named_modules())
    found = {}
    for name, layer in linear_layers(target).items():
        module = after.get(name)
        weight = getattr(module, "weight", None)  # peft's wrapper forwards to the layer it wraps
        if weight is None or weight.shape != layer.weight.shape:
            shape = None if weight is None else tuple(weight.shape)
            raise ValueError(
                f"layer {name} is {tuple(layer.weight.shape)} before and {shape} after: these are not the same "
                "architecture. Give the model that unlearning started from."
            )
        if adapters and hasattr(module, "lora_A"):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            found[name] = Update(a.detach().float(), b.detach().float(), module.scaling["default"])
        else:
            found[name] = Update(new_weight=stored(weight))
    return found


def stored(weight: torch.Tensor) -> torch.Tensor:
    """A weight as a bf16 checkpoint holds it."""
    return weight.detach().to(torch.bfloat16).contiguous()


@torch.no_grad()
def merged_model(target: torch.nn.Module, trained: torch.nn.Module) -> torch.nn.Module:
    """The unlearned model as it is saved: adapters merged by the fused kernel, every tensor rounded once to bf16.

    Returns:
        A new model of the target's class holding bf16 values in fp32.
    """
    if not hasattr(trained, "peft_config"):
        unlearned = copy.deepcopy(trained)
        for tensor in unlearned.state_dict().values():
            tensor.copy_(stored(tensor))
        return unlearned.requires_grad_(False).eval()
    unlearned = copy.deepcopy(target).requires_grad_(False)
    weights = linear_layers(unlearned)
    for name, update in updates(target, trained).items():
        if update.lora_A is not None:
            out = merge_quantize(
                stored(weights[name].weight), update.lora_A, update.lora_B, update.scaling,
                QuantSpec(bits=8, group_size=-1), merged=True, name=name,
            )  # fmt: skip
            weights[name].weight.copy_(out.merged)
    return unlearned.eval()


@torch.no_grad()
def quantized_model(
    target: torch.nn.Module, unlearned: torch.nn.Module, found: dict[str, Update], quantizer: Quantizer
) -> tuple[torch.nn.Module, dict]:
    """Quantize a model's linear layers and count what crossed a bin.

    Args:
        target: the model before unlearning.
        unlearned: the model to quantize; its embeddings, norms and head are kept as they are.
        found: layer -> update that leads from the one to the other.
        quantizer: from ``load_quantizer``.

    Returns:
        A copy of ``unlearned`` whose linear layers hold dequantized values, and
        ``{"layers": {layer: counts}, "total": counts}``.
    """
    quantized = copy.deepcopy(unlearned)
    layers = linear_layers(quantized)
    counts = {}
    for name, layer in linear_layers(target).items():
        weight, stats = quantizer(stored(layer.weight), found[name], name)
        layers[name].weight.copy_(weight)
        counts[name] = stats | survival(stats)
    return quantized, {"layers": counts, "total": total(counts)}


def survival(stats: dict) -> dict[str, float | None]:
    """How much of the update ΔW is left in δ = Q(W0+ΔW) − Q(W0).

    Returns:
        ``projection`` = Σδ·ΔW / Σ ΔW² and ``cosine`` = Σδ·ΔW / √(Σδ² ΣΔW²); ``None`` where a norm is zero.
    """
    dw2, q_dw, q2 = stats["sum_dw2"], stats["sum_q_dw"], stats["sum_q2"]
    return {
        "projection": q_dw / dw2 if dw2 > 0 else None,
        "cosine": q_dw / math.sqrt(dw2 * q2) if dw2 > 0 and q2 > 0 else None,
    }


def total(counts: dict[str, dict]) -> dict:
    """Counts of all layers together; the histogram bin by bin."""
    rows = list(counts.values())
    summed = {}
    for key in rows[0]:
        if key in ("projection", "cosine"):
            continue
        values = [row[key] for row in rows]
        if isinstance(values[0], list):
            width = max(map(len, values))
            summed[key] = [sum(v[i] if i < len(v) else 0 for v in values) for i in range(width)]
        else:
            summed[key] = sum(values)
    return summed | survival(summed)


def audit(base, unlearned, spec: QuantSpec = QuantSpec()) -> dict:  # noqa: B008 - a frozen dataclass
    """Which weights cross a quantization bin between two models.

    Args:
        base: the model before; a module or the folder of a checkpoint.
        unlearned: the model after; a module (peft-wrapped or not), the folder of a checkpoint, or of a peft adapter.
        spec: the grid.

    Returns:
        ``{"layers": {layer: counts}, "total": counts}``: what ``CrossingStats`` holds, with ``projection`` and
        ``cosine`` of the surviving update.

    Raises:
        ValueError: the two models differ in their linear layers (names the first that differs).
    """
    before = base if isinstance(base, torch.nn.Module) else load(base)[0]
    if isinstance(unlearned, torch.nn.Module):
        after = unlearned
    elif (Path(unlearned) / "adapter_config.json").is_file():
        after = with_adapter(before, unlearned)
    else:
        after = load(unlearned)[0]
    found = updates(before, after)
    counts = {}
    for name, layer in linear_layers(before).items():
        update = found[name]
        out = merge_quantize(
            stored(layer.weight), update.lora_A, update.lora_B, update.scaling, spec,
            new_weight=update.new_weight, name=name,
        )  # fmt: skip
        counts[name] = out.stats.as_dict()
        counts[name] |= survival(counts[name])
    return {"layers": counts, "total": total(counts)}


def with_adapter(model: torch.nn.Module, folder: Path | str) -> torch.nn.Module:
    """A copy of ``model`` with a saved peft adapter on it, not merged.

    Raises:
        ValueError: the adapter was trained on a model of other shapes (names the first layer that differs).
    """
    try:
        with quiet():
            return PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()
    except RuntimeError as error:
        raise ValueError(
            f"the adapter in {folder} does not fit this model; it belongs to another base. {error}"
        ) from error
