"""A peft adapter folder, read without building a peft model: W + scaling · B A for each layer, and nothing else.

LoRA and rsLoRA (scaling α/√r, Kalajdzievski 2023, arXiv 2312.03732), with ``rank_pattern`` and ``alpha_pattern``. What
else peft can put into an adapter is refused by its name. Several adapters are merged one after the other, each rounded
to the weight's type, as peft's ``merge_and_unload`` does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from qru.ops import QuantSpec, merge_quantize
from qru.records import read_json
from qru.tensor_file import TensorFile, contained, open_file, parse_json

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
BASE_FILE = "base.json"  # beside an adapter that qru saved: which base it belongs to
PREFIX = "base_model.model."  # before the name of a module in peft's files
FACTORS = (".lora_A.weight", ".lora_B.weight")
FACTOR_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Initial values of A and B that leave the base as it is; the others train from a base that they have changed.
INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Adapter:
    """One LoRA adapter.

    Attributes:
        folder: that it lies in.
        file: its tensors.
        scalings: layer -> α/r, or α/√r for rsLoRA; its keys are the layers that it adapts.
        base_sha256: which base it was trained on (``into_digest``), or ``None`` where that is not recorded.
    """

    folder: Path
    file: TensorFile
    scalings: dict[str, float]
    base_sha256: str | None

    def factors(self, layer: str) -> dict[str, torch.Tensor | float]:
        """``lora_A`` (r, in) and ``lora_B`` (out, r) in fp32 and ``scaling``, as ``merge_quantize`` takes them."""
        a, b = (self.file.read(f"{PREFIX}{layer}{factor}").float() for factor in FACTORS)
        return {"lora_A": a, "lora_B": b, "scaling": self.scalings[layer]}

    def check_base(self, found: str) -> None:
        """Refuse a base whose digest is not the one recorded beside the adapter.

        Raises:
            ValueError: naming both.
        """
        if self.base_sha256 not in (None, found):
            raise ValueError(
                f"{_another(self.folder)} It was trained on weights {self.base_sha256[:12]}…, and these are "
                f"{found[:12]}…."
            )


def is_adapter(folder: Path | str) -> bool:
    """Whether a folder holds a peft adapter and not a checkpoint."""
    return (Path(folder).expanduser() / CONFIG_FILE).is_file()


def open_adapter(folder: Path | str, shapes: Mapping[str, tuple[int, int]]) -> Adapter:
    """Read an adapter's configuration and header, and hold them against the model; reads no weights.

    Args:
        folder: as ``save_pretrained`` of a peft model writes it.
        shapes: layer -> (out, in) of the model's linear layers.

    Raises:
        ValueError: it is not plain LoRA (names what it has), it is damaged or pickled, its shapes differ from the
            model's, or it has more or fewer layers than its configuration says (names the first).
    """
    folder = Path(folder).expanduser().resolve()
    path, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    if not path.is_file():
        raise ValueError(f"adapter {folder} has no {CONFIG_FILE}: give the folder that save_pretrained() wrote.")
    contained(path, "adapter")
    options = parse_json(path.read_bytes(), f"adapter: {path}")
    supported(options)
    if not weights.is_file():
        pickled = [found.name for found in sorted(folder.glob("adapter_model.*"))]
        hint = f" It has {pickled[0]}: pickled files can run any code and are not read." if pickled else ""
        raise ValueError(f"the adapter in {folder} has no {WEIGHTS_FILE}: its saving did not finish.{hint}")
    contained(weights, "adapter")
    file = open_file(weights, "adapter")
    try:  # a configuration can hold anything, regular expressions included
        expected = [layer for layer in shapes if _targets(options, layer)]
        _check_tensors(folder, file, expected, shapes)
        ranks = {layer: file.tensors[f"{PREFIX}{layer}{FACTORS[0]}"].shape[0] for layer in expected}
        scalings = {layer: _scaling(folder, layer, rank, options) for layer, rank in ranks.items()}
    except (re.error, AttributeError, TypeError) as error:
        raise ValueError(f"adapter: {path} cannot be read ({error}): save or download it again.") from error
    if (folder / BASE_FILE).exists():
        contained(folder / BASE_FILE, "adapter")
    known = read_json(folder / BASE_FILE) if (folder / BASE_FILE).is_file() else {}
    digest = known.get("linear_layers_sha256") if isinstance(known, dict) else None
    if (folder / BASE_FILE).is_file() and not isinstance(digest, str):
        raise ValueError(f"{folder / BASE_FILE} is damaged: it names no linear_layers_sha256. Save the adapter again.")
    return Adapter(folder, file, scalings, digest)


def merged(weight: torch.Tensor, layer: str, adapters: Sequence[Adapter]) -> torch.Tensor:
    """A layer's weight with adapters merged into it in their order, each rounded once to the weight's type.

    Args:
        weight: (out, in).
        layer: its name.
        adapters: those that do not adapt this layer are passed over.

    Raises:
        ValueError: NaN or Inf in a weight or an adapter (names the layer).
    """
    for adapter in adapters:
        if layer in adapter.scalings:
            out = merge_quantize(
                weight, **adapter.factors(layer), spec=QuantSpec(bits=8, group_size=-1), merged=True, name=layer
            )
            weight = out.merged
    return weight


def update_of(weight: torch.Tensor, layer: str, adapters: Sequence[Adapter]) -> dict[str, Any]:
    """What adapters do to a layer, as ``merge_quantize`` takes it beside ``weight`` (out, in): nothing, one adapter's
    factors, or the weight that several lead to."""
    those = [adapter for adapter in adapters if layer in adapter.scalings]
    if len(those) < 2:
        return those[0].factors(layer) if those else {}
    return {"new_weight": merged(weight, layer, those)}


def into_digest(found, layer: str, weight: torch.Tensor) -> None:
    """Add a layer to the digest by which an adapter knows its base: name, shape and bf16 values, in the model's order.

    Args:
        found: of ``hashlib.sha256()``.
        layer: its name.
        weight: (out, in).
    """
    found.update(f"{layer} {tuple(weight.shape)}\n".encode())
    found.update(weight.detach().to(torch.bfloat16).contiguous().cpu().view(torch.uint8).numpy().data)


def supported(options: Mapping[str, Any]) -> None:
    """Refuse an adapter that is not W + scaling · B A and nothing else.

    Args:
        options: of its configuration, by name.

    Raises:
        ValueError: naming the option that makes it something else.
    """
    kind = options.get("peft_type")
    kind = getattr(kind, "value", kind)
    if kind != "LORA":
        raise ValueError(refusal(str(kind)))
    if options.get("bias", "none") != "none":
        raise ValueError(refusal(f"bias={options['bias']!r}"))
    for option in (
        "use_dora", "fan_in_fan_out", "modules_to_save", "trainable_token_indices", "lora_bias", "layer_replication",
        "target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config",
        "monteclora_config", "velora_config",
    ):  # fmt: skip
        if options.get(option):
            named = {"use_dora": "DoRA (use_dora=True)"}.get(option, f"{option}={options[option]!r}")
            raise ValueError(refusal(named))
    initial = options.get("init_lora_weights", True)
    if initial not in INITIAL:
        raise ValueError(refusal(f"init_lora_weights={initial!r}, which changes the base before training"))


def refusal(what: str) -> str:
    return (
        f"this adapter has {what}; only plain LoRA on the linear layers is read. Merge it with peft "
        "(merge_and_unload), save the model, and give that."
    )


def _another(folder: Path) -> str:
    return f"the adapter in {folder} does not fit this model; it belongs to another base."


def _check_tensors(folder: Path, file: TensorFile, expected: list[str], shapes: Mapping) -> None:
    """Hold the tensors of an adapter against the layers that its configuration adapts, and the model's."""
    for key, stored in file.tensors.items():
        if not key.startswith(PREFIX) or not key.endswith(FACTORS):
            raise ValueError(refusal(f"the tensor {key}"))
        layer = key[len(PREFIX) : -len(FACTORS[0])]
        if layer not in shapes:
            if layer.endswith(("lm_head", "embed_tokens", "embed_out", "wte")):
                raise ValueError(refusal(f"an adapter on {layer}, which is none of the model's inner linear layers"))
            raise ValueError(f"{_another(folder)} {key} is more than the model has in the adapter's file.")
        if stored.dtype not in FACTOR_DTYPES:
            raise ValueError(f"adapter {folder}: {key} is {stored.dtype}; fp32, bf16 and fp16 are read. Save it again.")
        rows, columns = shapes[layer]
        side = 1 if key.endswith(FACTORS[0]) else 0
        fits = len(stored.shape) == 2 and stored.shape[side] == (columns if side else rows) and 0 not in stored.shape
        if not fits:
            fitting = f"(r, {columns})" if side else f"({rows}, r)"
            raise ValueError(f"{_another(folder)} {key} is {stored.shape}, and {layer} needs {fitting}.")
        if layer not in expected:
            raise ValueError(f"{_another(folder)} {key} is more than {CONFIG_FILE} says that the adapter has.")
    if not expected:
        raise ValueError(f"{_another(folder)} It adapts none of the model's linear layers.")
    for key in (f"{PREFIX}{layer}{factor}" for layer in expected for factor in FACTORS):
        if key not in file.tensors:
            raise ValueError(f"{_another(folder)} {key} is missing from the adapter's file.")
    for layer in expected:
        a, b = (file.tensors[f"{PREFIX}{layer}{factor}"].shape for factor in FACTORS)
        if a[0] != b[1]:
            raise ValueError(f"the adapter in {folder} has an A of rank {a[0]} and a B of rank {b[1]} on {layer}.")


def _targets(options: Mapping[str, Any], layer: str) -> bool:
    """Whether an adapter's configuration adapts a layer, by peft's own rule."""
    names = ("target_modules", "exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern")
    wanted = SimpleNamespace(**{name: options.get(name) for name in names})
    if wanted.target_modules == "all-linear":
        return True
    return bool(wanted.target_modules) and bool(check_target_module_exists(wanted, layer))


def _scaling(folder: Path, layer: str, rank: int, options: Mapping[str, Any]) -> float:
    """α/r, or α/√r for rsLoRA, of one layer."""
    ranks, alphas = options.get("rank_pattern") or {}, options.get("alpha_pattern") or {}
    said = ranks.get(get_pattern_key(list(ranks), layer), options.get("r"))
    alpha = alphas.get(get_pattern_key(list(alphas), layer), options.get("lora_alpha"))
    if said != rank:
        raise ValueError(
            f"the adapter in {folder} has rank {rank} on {layer}, and {CONFIG_FILE} says {said!r}: they are of two "
            "adapters. Save it again."
        )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"the adapter in {folder} has lora_alpha {alpha!r} on {layer}; it must be a number.")
    return alpha / math.sqrt(rank) if options.get("use_rslora") else alpha / rank
