"""Checkpoints of several families, tiny and random, laid out on disk as their makers publish them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaTokenizerFast,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 4096,
}
PADDED = 24  # embeddings beyond the last token, as vocabularies padded for speed have


def llama_tokenizer(texts: Sequence[str], size: int = 640) -> LlamaTokenizerFast:
    """Llama-2's class and rules, pieces with ▁ and bytes for what it does not know, on a vocabulary of its own."""
    special = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(tokenizer_models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*special, *(f"<0x{b:02X}>" for b in range(256))], show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    state = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in state["merges"]]
    return LlamaTokenizerFast(vocab=state["vocab"], merges=merges)


def qwen_tokenizer(texts: Sequence[str], size: int = 640) -> PreTrainedTokenizerFast:
    """As Qwen2's: bytes, no BOS, a token that ends documents, and the turns of a chat."""
    trained = Tokenizer(tokenizer_models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def ids(tokenizer) -> dict[str, int | None]:
    names = ("bos", "eos", "pad")
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}


def configuration(family: str, tokenizer):
    """A configuration as the family's models have it, but for its sizes."""
    common = SIZES | ids(tokenizer) | {"vocab_size": len(tokenizer) + PADDED}
    if family == "llama":
        return LlamaConfig(**common | {"num_key_value_heads": 4, "tie_word_embeddings": False})
    if family == "qwen2":  # BOS is named here and nowhere in the tokenizer
        document = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        return Qwen2Config(**common | {"tie_word_embeddings": True, "bos_token_id": document})
    if family == "gemma3":
        return Gemma3TextConfig(
            **common,
            head_dim=32,
            sliding_window=64,
            query_pre_attn_scalar=32,
            layer_types=["sliding_attention", "full_attention"],
        )
    if family == "phi3":
        return Phi3Config(**common)
    assert family == "mistral"
    return MistralConfig(**common, sliding_window=None)


FAMILIES = ("llama", "qwen2", "gemma3", "phi3", "mistral")


def write_checkpoint(
    folder: Path, family: str, texts: Sequence[str], seed: int = 0, shard: str = "300KB", dtype=torch.bfloat16
) -> Path:
    """A checkpoint in several safetensors files with an index, and its tokenizer.

    Args:
        texts: to train the tokenizer on.
        seed: of the weights.
        shard: largest size of a file.
    """
    tokenizer = qwen_tokenizer(texts) if family == "qwen2" else llama_tokenizer(texts)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(configuration(family, tokenizer)).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return folder
