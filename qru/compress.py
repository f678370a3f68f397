"""Walk the linear layers of a model: merge, quantize, count."""

from __future__ import annotations

import copy
import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from peft.utils.other import AuxiliaryTrainingWrapper

from qru import calibration, records
from qru.checkpoint_audit import audit_checkpoint
from qru.counts import survival, total
from qru.models import in_layers, linear_layers, load_weights, loading, quiet
from qru.ops import QuantSpec, merge_quantize
from qru.peft_adapter import BASE_FILE, into_digest, refusal, supported
from qru.quantizers import Calibrated, Quantizer, Update, activations_of, calibration_of
from qru.quantizers.crossings import merged


def updates(
    target: torch.nn.Module, trained: torch.nn.Module, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Update]:
    """What unlearning did to each linear layer, as it is stored.

    Args:
        target: the model before unlearning, without adapters.
        trained: the model after; wrapped by peft for LoRA.
        dtype: of a stored weight.

    Returns:
        Layer name -> ``Update``: adapters in fp32 where there are any, else the new weight in ``dtype``.

    Raises:
        ValueError: the models differ in their linear layers, or in the weights under an adapter; ``target`` itself
            carries adapters; ``trained`` carries something else than one plain LoRA on linear layers (names it).
    """
    for name, module in target.named_modules():
        if isinstance(module, BaseTunerLayer):
            raise ValueError(
                f"the model before unlearning carries an adapter on {name}: peft wraps a model in place, so this is "
                "the model after. Load the base a second time for the model before."
            )
    adapter = plain_lora(trained)
    before, after = linear_layers(target), layers_under(trained)
    for name in [*before, *(name for name in after if name not in before)]:
        shapes = [tuple(side[name].weight.shape) if name in side else None for side in (before, after)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"layer {name} is {shapes[0]} before and {shapes[1]} after: these are not the same "
                "architecture. Give the model that unlearning started from."
            )
    found = {}
    for name, module in after.items():
        weight = stored(module.weight, dtype)  # peft's wrapper forwards to the layer it wraps
        if adapter is None or not isinstance(module, LoraLayer) or adapter not in module.lora_A:
            found[name] = Update(new_weight=weight)
            continue
        if not torch.equal(weight, stored(before[name].weight, dtype)):
            raise ValueError(
                f"the weight under the adapter on {name} is not that of the model before: the adapter belongs to "
                "another base. Give the model that it was trained on."
            )
        a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        found[name] = Update(a.detach().float(), b.detach().float(), module.scaling[adapter])
    return {name: found[name] for name in before}


def layers_under(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Name -> linear layer, as ``linear_layers`` of the model without adapters; a wrapped layer is its wrapper."""
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    head = model.get_output_embeddings()
    found, inside = {}, ()
    for name, module in model.named_modules():  # a parent comes before what is in it
        if inside and name.startswith(inside):
            continue
        wrapped = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if wrapped is not module:
            inside = (*inside, f"{name}.")
        if isinstance(wrapped, torch.nn.Linear) and module is not head and in_layers(name):
            found[name] = module
    return found


def plain_lora(model: torch.nn.Module) -> str | None:
    """Name of the one LoRA adapter that is active in a model; ``None`` for a model without adapters.

    Raises:
        ValueError: whatever else peft does to a model, by its name.
    """
    root = model.get_base_model() if isinstance(model, PeftModel) else model
    configs = getattr(model, "peft_config", None) or {}
    layers, active = layers_under(model), None
    for name, module in root.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise ValueError(refusal(f"modules_to_save or trainable tokens on {name}"))
        if not isinstance(module, BaseTunerLayer):
            continue
        if name not in layers:
            raise ValueError(refusal(f"an adapter on {name}, which is none of the model's inner linear layers"))
        if not isinstance(module, LoraLayer):
            raise ValueError(refusal(f"a {type(module).__name__} of {type(module).__module__} on {name}"))
        if module.merged:
            raise ValueError(f"the adapter on {name} is merged into its layer: call unmerge_adapter() first")
        if module.disable_adapters or len(module.active_adapters) != 1:
            on = [] if module.disable_adapters else list(module.active_adapters)
            raise ValueError(
                f"the active adapters on {name} are {on}: exactly one must be active. Choose it with set_adapter()."
            )
        if active not in (None, module.active_adapters[0]):
            raise ValueError(
                f"the active adapter is {active!r} on one layer and {module.active_adapters[0]!r} on {name}: exactly "
                "one must be active. Choose it with set_adapter()."
            )
        if active is None and module.active_adapters[0] in configs:
            supported(configs[module.active_adapters[0]].to_dict())
        active = module.active_adapters[0]
        if active in module.lora_variant:
            raise ValueError(refusal(f"{type(module.lora_variant[active]).__name__} on {name}"))
        if module.lora_bias.get(active):
            raise ValueError(refusal(f"lora_bias on {name}"))
        if active in module.lora_embedding_A:
            raise ValueError(refusal(f"an adapted embedding {name}"))
    if active is None and isinstance(model, PeftModel):
        kinds = ", ".join(str(getattr(config.peft_type, "value", config.peft_type)) for config in configs.values())
        raise ValueError(refusal(f"{kinds}, which adapts no linear layer"))
    return active


def stored(weight: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A weight as a checkpoint holds it: in bf16, unless another type is given."""
    return weight.detach().to(dtype).contiguous()


def stored_dtype(model: torch.nn.Module) -> torch.dtype:
    """The type of a model's linear layers: bf16 if every value is one that bf16 has, however it is held."""
    weights = [layer.weight.detach() for layer in layers_under(model).values()]
    if all(torch.equal(w.bfloat16().to(w.dtype), w) or bool(w.isnan().any()) for w in weights):
        return torch.bfloat16
    return widest_dtype(model)


def widest_dtype(model: torch.nn.Module) -> torch.dtype:
    """One type that holds the weights of all linear layers, as the model holds them, exactly."""
    return functools.reduce(torch.promote_types, [layer.weight.dtype for layer in layers_under(model).values()])


@torch.no_grad()
def merge(trained: torch.nn.Module) -> torch.nn.Module:
    """Make a trained model the unlearned one as it is saved, in place: no second copy of it is held.

    Args:
        trained: wrapped by peft for LoRA. Adapters are merged by the fused kernel, and every weight is rounded once to
            bf16.

    Returns:
        The model without adapters.

    Raises:
        ValueError: it carries something else than one plain LoRA (names it).
    """
    adapter = plain_lora(trained)
    for name, module in layers_under(trained).items():
        if adapter is not None and isinstance(module, LoraLayer) and adapter in module.lora_A:
            out = merge_quantize(
                stored(module.weight), module.lora_A[adapter].weight.detach().float(),
                module.lora_B[adapter].weight.detach().float(), module.scaling[adapter],
                QuantSpec(bits=8, group_size=-1), merged=True, name=name,
            )  # fmt: skip
            module.get_base_layer().weight.copy_(out.merged)
    unlearned = trained.unload() if isinstance(trained, PeftModel) else trained
    for parameter in unlearned.parameters():
        parameter.copy_(stored(parameter))
    return unlearned.requires_grad_(False).eval()


def merged_model(target: torch.nn.Module, trained: torch.nn.Module) -> torch.nn.Module:
    """``merge`` of a copy; the adapters of ``trained`` are held against the base that they were trained on."""
    updates(target, trained)
    return merge(copy.deepcopy(trained))


@torch.no_grad()
def quantize_layers(
    model: torch.nn.Module,
    before: dict[str, torch.Tensor],
    found: dict[str, Update],
    quantizer: Quantizer | Calibrated,
    text: torch.Tensor | None = None,
) -> dict:
    """Quantize a model's linear layers in place and count what crossed a bin.

    The new values come from ``before`` and ``found``, not from what the layers hold: one model can be given one
    quantizer after the other. Embeddings, norms and head stay as they are. A quantizer that rounds activations, too,
    does so whenever the model runs, until the model is given another quantizer.

    Args:
        model: of the architecture of the target; its linear layers hold dequantized values afterwards, rounded to the
            type that it computes in.
        before: layer -> weight (out, in) before unlearning, as stored; on any device.
        found: layer -> update that leads from there to what is quantized.
        quantizer: from ``load_quantizer``.
        text: (rows, T) of tokens that a calibrated quantizer is calibrated on, from ``calibration.text_for``.

    Returns:
        ``{"layers": {layer: counts}, "total": counts}``; of a calibrated quantizer also ``calibration``: its ``text``,
        and how many ``rows`` and ``tokens`` that was.

    Raises:
        ValueError: a calibrated quantizer is given no text.
    """
    layers = linear_layers(model)
    round_activations(model, None)  # what an earlier quantizer left, before anything is calibrated
    counts: dict[str, dict] = {}
    about = {}
    if kind := calibration_of(quantizer):
        if text is None:
            raise ValueError(f"{quantizer.name} is calibrated: give quantize_layers the text of calibration.text_for.")
        about = {"calibration": {"text": kind, "rows": len(text), "tokens": text.numel()}}
        for name, layer in layers.items():
            layer.weight.copy_(merged(*_on_device(before[name], found[name], layer), name))
        for block in calibration.by_block(model, text):
            for names, inputs in block.items():
                pairs = {name: _on_device(before[name], found[name], layers[name]) for name in names}
                for name, (weight, stats) in quantizer(pairs, inputs).items():
                    layers[name].weight.copy_(weight)
                    counts[name] = stats | survival(stats)
        counts = {name: counts[name] for name in layers}
    else:
        for name, layer in layers.items():
            weight, stats = quantizer(*_on_device(before[name], found[name], layer), name)
            layer.weight.copy_(weight)
            counts[name] = stats | survival(stats)
    round_activations(model, activations_of(quantizer))
    return {"layers": counts, "total": total(counts)} | about


def _on_device(weight: torch.Tensor, update: Update, layer: torch.nn.Module) -> tuple[torch.Tensor, Update]:
    """A weight and its update where a layer is."""
    device = layer.weight.device
    return weight.to(device), Update(*(x.to(device) if isinstance(x, torch.Tensor) else x for x in update))


def round_activations(model: torch.nn.Module, function: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
    """Let a model's linear layers read ``function`` of their input from now on; ``None``: the input itself."""
    for layer in linear_layers(model).values():
        if handle := vars(layer).pop("qru_activations", None):
            handle.remove()
        if function is not None:
            handle = layer.register_forward_pre_hook(lambda module, arguments: (function(arguments[0]), *arguments[1:]))
            layer.qru_activations = handle


def stored_layers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Layer -> its weight (out, in) as stored, where the model is."""
    return {name: stored(layer.weight) for name, layer in linear_layers(model).items()}


def audit(base, unlearned, spec: QuantSpec = QuantSpec()) -> dict:  # noqa: B008 - a frozen dataclass
    """Which weights cross a quantization bin between two models.

    Weights are counted in the type that they are stored in, fp32, fp16 or bf16; if the two sides differ, in one that
    holds both exactly. A module whose values are all bf16 numbers counts as bf16, however it holds them: qru computes
    in fp32 on bf16 values. An adapter is merged into the base's type. Two folders are read tensor by tensor, and no
    model is held.

    Args:
        base: the model before, without adapters; a module or the folder of a checkpoint (no tokenizer needed).
        unlearned: the model after; a module (peft-wrapped or not), the folder of a checkpoint, or of a peft adapter.
        spec: the grid.

    Returns:
        ``{"layers": {layer: counts}, "total": counts}``: what ``CrossingStats`` holds, with ``projection`` and
        ``cosine`` of the surviving update.

    Raises:
        ValueError: the two models differ in their linear layers (names the first that differs), ``base`` carries an
            adapter, or the adapter is not plain LoRA or of another base.
    """
    if not isinstance(base, torch.nn.Module) and not isinstance(unlearned, torch.nn.Module):
        found = audit_checkpoint(base, unlearned, [spec], digests=False, progress=False)["specs"][spec.name]
        return {"layers": found["layers"], "total": found["total"]}
    before, dtype = side(base)
    if not isinstance(unlearned, torch.nn.Module) and (Path(unlearned) / "adapter_config.json").is_file():
        after = with_adapter(before, unlearned)
    else:
        after, its_dtype = side(unlearned)
        dtype = torch.promote_types(dtype, its_dtype)
    found = updates(before, after, dtype)
    counts = {}
    for name, layer in linear_layers(before).items():
        update = found[name]
        out = merge_quantize(
            stored(layer.weight, dtype), update.lora_A, update.lora_B, update.scaling, spec,
            new_weight=update.new_weight, name=name,
        )  # fmt: skip
        counts[name] = out.stats.as_dict()
        counts[name] |= survival(counts[name])
    return {"layers": counts, "total": total(counts)}


def side(model: torch.nn.Module | Path | str) -> tuple[torch.nn.Module, torch.dtype]:
    """One side of an audit, loaded if it is a folder, and the type that its linear layers are stored in."""
    if isinstance(model, torch.nn.Module):
        return model, stored_dtype(model)
    loaded = load_weights(model)
    return loaded, widest_dtype(loaded)


def base_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and bf16 values of a model's linear layers: which base an adapter belongs to."""
    found = hashlib.sha256()
    for name, layer in layers_under(model).items():  # under adapters, too: a base that is being adapted is the same
        into_digest(found, name, layer.weight)
    return found.hexdigest()


def save_adapter(trained: torch.nn.Module, folder: Path | str) -> None:
    """Save the adapter of ``trained`` as peft does, and beside it which base it belongs to.

    Args:
        trained: wrapped by peft, not merged.
        folder: made if it is not there.
    """
    trained.save_pretrained(str(folder))
    records.write_json(Path(folder) / BASE_FILE, {"linear_layers_sha256": base_digest(trained)})


def with_adapter(model: torch.nn.Module, folder: Path | str) -> torch.nn.Module:
    """A copy of ``model`` with a saved peft adapter on it, not merged.

    Raises:
        ValueError: the adapter is not plain LoRA (names what it has), or it belongs to another base: the digest saved
            beside it is another model's, its shapes differ, or it has more or fewer layers (names the first).
    """
    folder, another = Path(folder), f"the adapter in {folder} does not fit this model; it belongs to another base."
    if (folder / BASE_FILE).is_file():
        known, here = records.read_json(folder / BASE_FILE)["linear_layers_sha256"], base_digest(model)
        if known != here:
            raise ValueError(f"{another} It was trained on weights {known[:12]}…, and these are {here[:12]}….")
    if not list(folder.glob("adapter_model.*")):  # or peft would look for a repository of this name
        raise ValueError(f"the adapter in {folder} has no adapter_model.safetensors: its saving did not finish.")
    with loading(folder):
        config, saved = PeftConfig.from_pretrained(str(folder)), load_peft_weights(str(folder), device="cpu")
    supported(config.to_dict())
    try:
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # raised below, by name
            adapted = PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{another} {error}") from error
    plain_lora(adapted)
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    for key in [*expected, *saved]:
        if key not in saved or key not in expected:
            where = "missing from" if key not in saved else "more than the model has in"
            raise ValueError(f"{another} {key} is {where} the adapter's file.")
    return adapted
