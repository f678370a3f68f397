"""Tiny checkpoints of several families, random, without tokenizers: what these tests read needs none."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Phi3Config, Qwen2Config

from qru.models import quiet

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# hidden 64, two blocks: q, k, v, o, gate, up, down; Phi-3 stores q, k, v as one layer and gate, up as one.
LAYERS = {"llama": 14, "qwen2": 14, "phi3": 8, "gemma3": 14}
FAMILIES = tuple(LAYERS)


def configuration(family: str):
    if family == "llama":
        return LlamaConfig(**SIZES, tie_word_embeddings=False)
    if family == "qwen2":
        return Qwen2Config(**SIZES, tie_word_embeddings=True)
    if family == "phi3":
        return Phi3Config(**SIZES, tie_word_embeddings=False)
    assert family == "gemma3"
    kinds = ["sliding_attention", "full_attention"]
    return Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=32, query_pre_attn_scalar=16, layer_types=kinds)


def model(family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.nn.Module:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(configuration(family)).to(dtype).eval()


def write(
    folder: Path,
    family: str = "llama",
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    shard: str = "5GB",
    change=lambda model: None,
) -> Path:
    """A checkpoint as ``save_pretrained`` writes it.

    Args:
        shard: largest size of a file; ``"60KB"`` makes several and an index.
        change: made to the model before it is saved.
    """
    made = model(family, seed, dtype)
    with torch.no_grad():
        change(made)
    with quiet():
        made.save_pretrained(folder, max_shard_size=shard)
    return folder


def nudged(share: float, seed: int = 1):
    """A change for ``write``: adds ``share`` of each weight's size in a random direction, to every parameter."""

    def change(model: torch.nn.Module) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter.add_(noise * parameter.abs().mean() * share)

    return change


def write_adapter(folder: Path, base: torch.nn.Module, seed: int = 3, size: float = 0.02, **options) -> Path:
    """A LoRA adapter that does something, as peft saves it."""
    wrapped = adapted(base, seed, size, **options)
    with quiet():
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def adapted(base: torch.nn.Module, seed: int = 3, size: float = 0.02, **options) -> torch.nn.Module:
    """A model that peft has wrapped; its B is no longer zero."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]} | options
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lora_bias=True|.*rank_pattern|.*rslora")
        wrapped = get_peft_model(base, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in wrapped.named_parameters():
        if "lora_A" in key or "lora_B" in key:
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data = (drawn * (size if "lora_B" in key else 0.1)).to(parameter.dtype)
    return wrapped


def write_file(path: Path, header: dict | bytes, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with any header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path
