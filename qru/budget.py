"""What a run at scale muse takes: memory and time, computed from a model's shapes. Nothing here was measured.

Counted are the tensors that must be held at once at the peak and the arithmetic that must be done; not counted are
buffers of libraries, fragmentation, attention's own arithmetic (4 % of a layer's at 2048 tokens) and input and output.
GB are 10⁹ bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from qru.defaults import LORA_EPOCHS, MUSE, MUSE_LORA
from qru.launch import AT_ONCE
from qru.models import CONTEXT, linear_layers
from qru.objectives import forget_terms, parse_method, retain_terms
from qru.scoring import SCORED_AT_ONCE

GPU_BYTES = 80e9
GPU_FLOPS = 312e12  # NVIDIA A100 80 GB, bf16, dense: its data sheet
GPU_BANDWIDTH = 2.0e12  # bytes a second, likewise
SHARE = 0.4  # of both that training and generation are assumed to reach

# MUSE-Books' forget set: 4 096 855 bytes in the dataset's card; about 4 bytes of English a token of Llama-2's.
FORGET_TOKENS = 4_096_855 / 4
SCORED_TEXTS, SCORED_TOKENS = 200, 2000  # PrivLeak: forget and holdout, of 7 to 8 KB in the card
# Prompts of VerbMem, and of two sets of questions, with their tokens and those generated; the cards' sizes again.
GENERATED = ((100, 600, 128), (100, 350, 32), (100, 350, 32))

LLAMA_2_7B = LlamaConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=32, max_position_embeddings=4096, tie_word_embeddings=False,
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        parameters: of the whole model; ``linear`` of them in the linear layers of its decoder layers.
        layers, hidden, vocabulary: counts.
        inside: features that a decoder layer computes between its linear layers, outputs of them all.
        entering: features that enter its linear layers.
        cache: bytes of keys and values that a token leaves in bf16.
    """

    parameters: int
    linear: int
    layers: int
    hidden: int
    vocabulary: int
    inside: int
    entering: int
    cache: int


def shape_of(config: PreTrainedConfig) -> Shape:
    """The sizes of a model of this configuration; none of its weights is made."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text, linear = config.get_text_config(), linear_layers(model)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=sum(layer.weight.numel() for layer in linear.values()),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        inside=sum(layer.out_features for layer in linear.values()) // text.num_hidden_layers,
        entering=sum(layer.in_features for layer in linear.values()) // text.num_hidden_layers,
        cache=2 * 2 * text.num_hidden_layers * heads * width,
    )


@dataclass(frozen=True)
class Memory:
    """Bytes held at the peak of training.

    Attributes:
        weights, gradients, moments: of the model and, with LoRA, its adapters.
        reference: the frozen copy that KLR needs in full fine-tuning. What stands up to here is sharded over GPUs.
        casts: of fp32 weights to bf16, which autocast keeps to the end of a forward pass.
        activations: the input of every layer, and everything inside one that is being computed again.
        logits: logits, their log-softmax and both gradients, of all tokens of a pass.
    """

    weights: float
    gradients: float
    moments: float
    reference: float
    casts: float
    activations: float
    logits: float

    def total(self, gpus: int = 1) -> float:
        """Bytes on each of ``gpus`` GPUs."""
        sharded = self.weights + self.gradients + self.moments + self.reference
        return sharded / gpus + self.casts + self.activations + self.logits


def training_memory(
    shape: Shape, method: str, adapter: str, weights: str, rank: int = 0, at_once: int = AT_ONCE
) -> Memory:
    """Peak memory of training with gradient checkpointing.

    Args:
        shape: of the model.
        method, adapter, weights: as in ``RunConfig``.
        rank: of LoRA, on all linear layers.
        at_once: forget documents, and as many retain documents, of 2048 tokens in one pass.
    """
    retain = parse_method(method)[1]
    distribution = bool(retain) and retain_terms[retain].reference == "distribution"
    compared = bool(retain) and retain_terms[retain].reference is not None
    tokens = at_once * CONTEXT["muse"] * (2 if retain else 1)
    stepped = {"bf16": 2, "fp32": 4}[weights]
    lora = adapter == "lora"
    adapters = rank * shape.layers * (shape.inside + shape.entering) if lora else 0
    trained = adapters if lora else shape.parameters
    held = 2 * shape.parameters + stepped * adapters if lora else stepped * shape.parameters
    # Two norms (fp32 in, bf16 out), products and sums of the residual (bf16) and what linear layers give (bf16).
    layer = (2 * (4 + 2) + 2 * 2) * shape.hidden + 2 * 2 * shape.inside
    layer += 11 * shape.entering if lora else 0  # an adapter's input: in fp32, its dropout, that one's mask and cast
    return Memory(
        weights=held,
        gradients=stepped * trained,
        moments=2 * stepped * trained,
        reference=stepped * shape.parameters if compared and not lora else 0,
        casts=2 * shape.linear if weights == "fp32" and not lora else 0,
        activations=tokens * (2 * shape.layers * shape.hidden + layer),
        # Logits in bf16 and fp32, their log-softmax in fp32, and the gradients of these two; with a distribution to
        # compare with also that, what is compared, and its gradient, for the half of the tokens that is retained.
        logits=tokens * shape.vocabulary * (2 + 4 + 4 + 4 + 4 + (12 / 2 if distribution else 0)),
    )


def gpus_needed(memory: Memory, capacity: float = GPU_BYTES) -> int | None:
    """The smallest number of GPUs, a power of two up to 64, that hold it; ``None`` if a pass alone is too large."""
    return next((n for n in (1, 2, 4, 8, 16, 32, 64) if memory.total(n) <= capacity), None)


def training_flops(shape: Shape, method: str, adapter: str, epochs: int, forget_tokens: float = FORGET_TOKENS) -> float:
    """Arithmetic of a run's training: 2 N a token forwards, again for checkpointing, 4 N backwards (2 N for LoRA).

    A retain document of the same length goes along with each forget document; KLR asks its reference for 2 N a retain
    token, NPO for 2 N a forget token once. What DPO prefers to a document is not counted.
    """
    forget, retain = parse_method(method)
    each = 2 + 2 + (2 if adapter == "lora" else 4)
    of_forget = epochs * each + (2 if forget_terms[forget].reference else 0)
    of_retain = epochs * (each + (2 if retain_terms[retain].reference else 0)) if retain else 0
    return shape.parameters * forget_tokens * (of_forget + of_retain)


def scoring_memory(shape: Shape, at_once: int = SCORED_AT_ONCE) -> float:
    """Bytes at the peak of scoring one model in bf16: its weights, and keys and values of a batch of prompts."""
    return 2 * shape.parameters + at_once * max(prompt + new for _, prompt, new in GENERATED) * shape.cache


def scoring_seconds(shape: Shape, at_once: int = SCORED_AT_ONCE) -> float:
    """Seconds to score one model at one precision: arithmetic of all that is read, weights read once a new token."""
    read = SCORED_TEXTS * SCORED_TOKENS + sum(count * prompt for count, prompt, _ in GENERATED)
    steps = sum(math.ceil(count / at_once) * new for count, _, new in GENERATED)
    return 2 * shape.parameters * (read / GPU_FLOPS + steps / GPU_BANDWIDTH) / SHARE


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


ARMS = (("lora", "fp32"), ("full", "bf16"), ("full", "fp32"))
NAMED = {
    ("lora", "fp32"): "LoRA",
    ("full", "bf16"): "full, stepped in bf16",
    ("full", "fp32"): "full, fp32 master",
}


def table(shape: Shape | None = None) -> str:
    """Markdown: memory, GPUs and time of each stage, MUSE-Books with the papers' settings."""
    shape = shape or shape_of(LLAMA_2_7B)
    lines = ["| stage | GB on one GPU | GPUs of 80 GB | GB on each | GPU time |", "|---|---|---|---|---|"]
    for adapter, weights in ARMS:
        for method in ("npo_gdr", "npo_klr"):
            epochs = LORA_EPOCHS if adapter == "lora" else MUSE[method][0]
            rank = MUSE_LORA["books"][method][0] if adapter == "lora" else 0
            needs = training_memory(shape, method, adapter, weights, rank)
            gpus = gpus_needed(needs)
            time = training_flops(shape, method, adapter, epochs) / (GPU_FLOPS * SHARE)
            name = f"unlearn, {method}, {NAMED[adapter, weights]}{f' r {rank}' if rank else ''}, {epochs} epochs"
            lines.append(
                f"| {name} | {needs.total() / 1e9:.0f} | {gpus} | {needs.total(gpus) / 1e9:.0f} | {duration(time)} |"
            )
    held = scoring_memory(shape) / 1e9
    lines.append(
        f"| score one model at one precision | {held:.0f} | 1 | {held:.0f} | {duration(scoring_seconds(shape))} |"
    )
    lines.append(
        f"| main memory meanwhile: target and unlearned model in bf16 | {4 * shape.parameters / 1e9:.0f} | | | |"
    )
    return "\n".join(lines)
