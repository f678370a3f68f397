"""Checkpoints of random weights in Llama's shapes, with an adapter of all their layers, to measure time and memory."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path

import torch
from transformers import LlamaConfig

from qru.checkpoint import INDEX
from qru.formats.layout import Entry, header

SHAPES = {  # hidden, intermediate, layers, heads, key heads, vocabulary
    "tiny": (64, 128, 2, 4, 2, 96),
    "0.1b": (768, 2048, 12, 12, 4, 32000),
    "1.1b": (2048, 5632, 22, 32, 4, 32000),
    "7b": (4096, 11008, 32, 32, 32, 32000),
}
SHARD = 5 * 10**9  # bytes; what the Hub's checkpoints have
DRAWN = 1 << 24  # random numbers that all tensors are cut from, at places of their own
PREFIX = "base_model.model."


def layers_of(shape: str) -> dict[str, tuple[int, int]]:
    """Linear layer -> (out, in), in the model's order."""
    hidden, intermediate, layers, heads, key_heads, _ = SHAPES[shape]
    keys = hidden // heads * key_heads
    sizes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden), "mlp.down_proj": (hidden, intermediate),
    }  # fmt: skip
    return {f"model.layers.{at}.{name}": size for at in range(layers) for name, size in sizes.items()}


def kept_of(shape: str) -> dict[str, tuple[int, ...]]:
    """Tensor that is not quantized -> its size."""
    hidden, _, layers, _, _, vocabulary = SHAPES[shape]
    norms = {
        f"model.layers.{at}.{norm}.weight": (hidden,)
        for at in range(layers)
        for norm in ("input_layernorm", "post_attention_layernorm")
    }
    ends = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    return ends | {"model.norm.weight": (hidden,)} | norms


def factors_of(shape: str, rank: int) -> list[Entry]:
    """The adapter's tensors."""
    found = []
    for layer, (rows, columns) in layers_of(shape).items():
        found.append(Entry(f"{PREFIX}{layer}.lora_A.weight", torch.float32, (rank, columns)))
        found.append(Entry(f"{PREFIX}{layer}.lora_B.weight", torch.float32, (rows, rank)))
    return found


def base_of(shape: str) -> list[Entry]:
    """The checkpoint's tensors."""
    sizes = {f"{layer}.weight": size for layer, size in layers_of(shape).items()} | kept_of(shape)
    return [Entry(name, torch.bfloat16, size) for name, size in sizes.items()]


def make_input(folder: Path, shape: str, rank: int) -> None:
    """Write ``base``, a checkpoint of random weights, and ``adapter``, of all its layers; never holds the model."""
    hidden, intermediate, layers, heads, key_heads, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, vocab_size=vocabulary, tie_word_embeddings=False, dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    base, adapter = folder / "base", folder / "adapter"
    config.save_pretrained(base)
    drawn = torch.randn(DRAWN, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    entries = base_of(shape)
    groups: list[list[Entry]] = [[]]
    for entry in entries:
        if groups[-1] and sum(one.bytes for one in groups[-1]) + entry.bytes > SHARD:
            groups.append([])
        groups[-1].append(entry)
    names = [f"model-{at:05d}-of-{len(groups):05d}.safetensors" for at in range(1, len(groups) + 1)]
    for name, group in zip(names, groups, strict=True):
        write_tensors(base / name, group, drawn)
    placed = {entry.name: name for name, group in zip(names, groups, strict=True) for entry in group}
    index = {"metadata": {"total_size": sum(entry.bytes for entry in entries)}, "weight_map": placed}
    (base / INDEX).write_text(json.dumps(index))
    adapter.mkdir()
    write_tensors(adapter / "adapter_model.safetensors", factors_of(shape, rank), drawn)
    targets = sorted({layer.rpartition(".")[2] for layer in layers_of(shape)})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))


def write_tensors(path: Path, entries: list[Entry], drawn: torch.Tensor) -> None:
    """A safetensors file of numbers cut from ``drawn``, each tensor from a place of its own."""
    with open(path, "wb") as file:
        file.write(header(entries))
        for entry in entries:
            left, at = math.prod(entry.shape), random.Random(entry.name).randrange(DRAWN)
            while left:
                piece = drawn[at : at + left].to(entry.dtype)
                file.write(memoryview(piece.view(torch.uint8).numpy()))
                left, at = left - len(piece), 0
        os.fsync(file.fileno())
