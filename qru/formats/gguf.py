"""GGUF, ``Q4_0`` and ``Q8_0``: one file for llama.cpp, rounded as llama.cpp rounds.

Blocks of 32 weights along a row share a step d that is stored in fp16; codes are computed on d before it is rounded:

    Q8_0   d = max|w| / 127                             q = round(w / d), halves away from zero
    Q4_0   d = (the w of largest magnitude) / -8        q = min(trunc(w / d + 8.5), 15), stands for (q - 8) d

In Q4_0 the sign of d follows that of the largest weight. What crosses a bin is counted on these codes. Only the Llama
architecture is written; GGUF orders its query and key rows otherwise than transformers.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from qru.checkpoint import configuration
from qru.formats import KEPT_DTYPES, Part, Plan, Source, formats, kept
from qru.formats.gguf_vocabulary import Vocabulary, vocabulary
from qru.ops import CrossingStats, QuantSpec, merge_quantize
from qru.quantizers import Update
from qru.registry import unknown

BLOCK = 32
ALIGN = 32  # bytes; GGUF's default, and the reader's where the file names none
FILE = "model.gguf"
ROPE = "rope_freqs.weight"  # llama.cpp reads it; transformers 5.23 does not
AT_ONCE = 1 << 20  # weights that are rounded together: what stands beside them fits a cache
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
MERGE_SPEC = QuantSpec(bits=8, group_size=-1)  # the kernel that merges also quantizes; these codes are not used


class Blocks(NamedTuple):
    """A type of block: its name in GGUF, how its step is found, how a weight is rounded, and its bytes."""

    step: Callable[[torch.Tensor], torch.Tensor]
    round: Callable[[torch.Tensor], torch.Tensor]
    pack: Callable[[torch.Tensor], torch.Tensor]
    zero: int  # the code that stands for 0
    levels: int
    bytes: int


def step_8(groups: torch.Tensor) -> torch.Tensor:
    return groups.abs().amax(-1) / 127


def step_4(groups: torch.Tensor) -> torch.Tensor:
    at = groups.abs().argmax(-1, keepdim=True)  # the first of several
    return groups.gather(-1, at).squeeze(-1) / -8


def round_8(scaled: torch.Tensor) -> torch.Tensor:
    whole = scaled.abs().trunc()
    away = whole + (scaled.abs() - whole >= 0.5)
    return (away * scaled.sign()).clamp(-127, 127)


def round_4(scaled: torch.Tensor) -> torch.Tensor:
    return (scaled + 8.5).trunc().clamp(0, 15)


def pack_8(codes: torch.Tensor) -> torch.Tensor:
    return codes.to(torch.int8).view(torch.uint8)


def pack_4(codes: torch.Tensor) -> torch.Tensor:
    whole = codes.to(torch.uint8)
    return whole[..., : BLOCK // 2] | whole[..., BLOCK // 2 :] << 4


KINDS = {
    "Q4_0": Blocks(step_4, round_4, pack_4, zero=8, levels=16, bytes=18),
    "Q8_0": Blocks(step_8, round_8, pack_8, zero=0, levels=255, bytes=34),
}


def reciprocal(step: torch.Tensor) -> torch.Tensor:
    """1 / d in float32, as llama.cpp multiplies by it; 0 where d is 0 or so small that its reciprocal is infinite."""
    return torch.where(step.abs() < SMALLEST_NORMAL, 0.0, 1 / step)


def quantize_blocks(weight: torch.Tensor, kind: str, layer: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a matrix as llama.cpp does.

    Args:
        weight: (out, in), finite; in is a multiple of 32.
        kind: ``"Q4_0"`` or ``"Q8_0"``.
        layer: its name, for messages.

    Returns:
        codes: uint8 or int8 as float32 numbers, (out, in / 32, 32). steps: float32 before they are rounded to fp16,
        (out, in / 32).

    Raises:
        ValueError: a step that fp16 cannot hold.
    """
    groups = weight.float().view(weight.shape[0], -1, BLOCK)
    steps = KINDS[kind].step(groups)
    if not steps.half().isfinite().all():
        row, block = (~steps.half().isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"{layer or 'a layer'}: the step of row {row}, block {block} overflows fp16, in which {kind} stores it: "
            "look for weights that are far too large, or choose another format."
        )
    return KINDS[kind].round(groups * reciprocal(steps)[..., None]), steps


def stored_values(codes: torch.Tensor, steps: torch.Tensor, kind: str) -> torch.Tensor:
    """What codes stand for, on the step as it is stored: float32 (out, in / 32, 32)."""
    return (codes - KINDS[kind].zero) * steps.half().float()[..., None]


def block_bytes(codes: torch.Tensor, steps: torch.Tensor, kind: str) -> torch.Tensor:
    """Blocks as they are stored: the step in fp16, then the codes; uint8 (out, bytes of a row)."""
    step = steps.half()[..., None].view(torch.uint8)
    return torch.cat([step, KINDS[kind].pack(codes)], -1).flatten(1)


def quantize_counting(
    before: torch.Tensor, after: torch.Tensor, kind: str, layer: str | None = None
) -> tuple[torch.Tensor, CrossingStats]:
    """Round a matrix after its update, and count what crossed a bin of the grid that it had before.

    Args:
        before, after: (out, in) of one dtype, finite; in is a multiple of 32.
        kind: ``"Q4_0"`` or ``"Q8_0"``.
        layer: its name, for messages.

    Returns:
        The rounded ``after`` as it is stored, uint8 (out, bytes of a row), and the counts. Bins are those of the step
        before it is rounded to fp16, since codes are computed on that one; δ is on stored steps, and blocks whose
        stored step is 0 are left out of the prediction.
    """
    rows = max(1, AT_ONCE // before.shape[1])
    stored, found = [], []
    for old, new in zip(before.split(rows), after.split(rows), strict=True):
        codes0, steps0 = quantize_blocks(old, kind, layer)
        codes, steps = quantize_blocks(new, kind, layer)
        shape = codes.shape
        frozen = KINDS[kind].round(new.float().view(shape) * reciprocal(steps0)[..., None])
        delta = stored_values(codes, steps, kind) - stored_values(codes0, steps0, kind)
        dw = (new.float() - old.float()).view(shape)
        alive = (steps0.half() != 0)[..., None]
        expected = torch.where(alive, (dw.abs() / steps0.abs()[..., None]).clamp(max=1.0), 0.0)
        jumps = (codes - codes0).abs().flatten().int()
        found.append(
            CrossingStats(
                weights=old.numel(),
                moved=int((dw != 0).sum()),
                crossed=int((frozen != codes0).sum()),
                changed=int((codes != codes0).sum()),
                predicted=expected.sum(dtype=torch.float64).item(),
                sum_dw2=(dw * dw).sum(dtype=torch.float64).item(),
                sum_q_dw=(delta * dw).sum(dtype=torch.float64).item(),
                sum_q2=(delta * delta).sum(dtype=torch.float64).item(),
                steps_moved=int((steps.half() != steps0.half()).sum()),
                zero_groups=int((~alive).sum()),
                histogram=tuple(torch.bincount(jumps, minlength=KINDS[kind].levels).tolist()),
            )
        )
        stored.append(block_bytes(codes, steps, kind))
    return torch.cat(stored), together(found)


def together(found: list[CrossingStats]) -> CrossingStats:
    """Counts of several pieces of one matrix, added."""
    *numbers, histograms = zip(*(vars(stats).values() for stats in found), strict=True)
    return CrossingStats(*map(sum, numbers), histogram=tuple(map(sum, zip(*histograms, strict=True))))


def as_llama_cpp(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection in GGUF's order: the two halves of a head's rotation interleaved.

    Args:
        rows: (heads · head_dim, …).
        heads: query heads, or key heads for the key projection.
    """
    return rows.view(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


@formats.register("gguf")
class Gguf:
    """``Q4_0`` or ``Q8_0``, for models of the Llama architecture.

    Args:
        spec: the name of the type.
        dtype: of embeddings and head: ``"bfloat16"``, ``"float16"`` or ``"float32"``; norms are float32, as llama.cpp
            wants them.

    Raises:
        ValueError: another type, or the package ``gguf`` is not installed.
    """

    default = "Q4_0"

    def __init__(self, spec: QuantSpec | str, dtype: str) -> None:
        if isinstance(spec, QuantSpec) or str(spec).upper() not in KINDS:
            name = spec.name if isinstance(spec, QuantSpec) else spec
            raise ValueError(
                f"{unknown('GGUF type', name, KINDS)} llama.cpp rounds in its own way, not by qru's grids."
            )
        try:
            import gguf
        except ImportError as error:
            raise ValueError("--format gguf needs the package gguf: pip install gguf") from error
        self.library = gguf
        self.kind = self.grid = str(spec).upper()
        self.dtype = KEPT_DTYPES[dtype]
        self.heads: dict[str, int] = {}
        self.names: dict[str, str] = {}

    def plan(self, folder: Path, sources: list[Source], unquantized: list[str], limit: int) -> Plan:
        config = configuration(folder, "BASE")
        check_architecture(config, folder)
        self.heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        names = self.library.get_tensor_name_map(self.library.MODEL_ARCH.LLAMA, config.num_hidden_layers)
        described = []
        for source in sources:
            if source.layer and source.shape[1] % BLOCK:
                raise ValueError(
                    f"{source.layer} has rows of {source.shape[1]}, which blocks of {BLOCK} do not divide: choose "
                    "--format compressed-tensors."
                )
            if source.name.endswith("rotary_emb.inv_freq"):  # old checkpoints hold it; it follows from rope_theta
                continue
            name = names.get_name(source.name, try_suffixes=(".weight",))
            if name is None:
                raise ValueError(f"{folder} has a tensor {source.name}, which GGUF's Llama has not.")
            self.names[source.name] = name
            described.append((source, name, *self.stored(source)))
        written = tuple(source for source, *_ in described)
        first = rope_factors(config)
        lead = self.header(config, vocabulary(folder, config.vocab_size), first, described, folder.name)
        lead += padded(first.numpy().tobytes()) if first is not None else b""
        parts, start, at, first = [], 0, len(lead), 0
        for i, (_, _, _, _, size) in enumerate(described):
            at += -(-size // ALIGN) * ALIGN
            last = i + 1 == len(described)
            if last or at + described[i + 1][-1] - start > limit + len(lead) * (not parts):
                parts.append(Part(FILE, start, at, b"" if parts else lead, written[first : i + 1], ALIGN))
                start, first = at, i + 1
        return Plan(parts, {})

    def stored(self, source: Source) -> tuple[str, tuple[int, ...], int]:
        """Type, shape and bytes of a tensor in the file."""
        if source.layer:
            rows, columns = source.shape
            return self.kind, source.shape, rows * columns // BLOCK * KINDS[self.kind].bytes
        dtype = torch.float32 if len(source.shape) == 1 else self.dtype
        kind = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
        return kind, source.shape, math.prod(source.shape) * dtype.itemsize

    def header(self, config, words: Vocabulary, rope: torch.Tensor | None, described: list[tuple], name: str) -> bytes:
        """Everything before the first tensor, by the library's own writer."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / FILE
            writer = self.library.GGUFWriter(path, "llama")
            head = config.head_dim
            writer.add_name(name)
            writer.add_file_type(self.library.LlamaFileType[f"MOSTLY_{self.kind}"])
            writer.add_quantization_version(self.library.GGML_QUANT_VERSION)
            writer.add_vocab_size(config.vocab_size)
            writer.add_context_length(config.max_position_embeddings)
            writer.add_embedding_length(config.hidden_size)
            writer.add_block_count(config.num_hidden_layers)
            writer.add_feed_forward_length(config.intermediate_size)
            writer.add_head_count(config.num_attention_heads)
            writer.add_head_count_kv(config.num_key_value_heads)
            writer.add_key_length(head)
            writer.add_value_length(head)
            writer.add_rope_dimension_count(head)
            writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
            writer.add_layer_norm_rms_eps(config.rms_norm_eps)
            if config.rope_parameters["rope_type"] == "linear":
                writer.add_rope_scaling_type(self.library.RopeScalingType.LINEAR)
                writer.add_rope_scaling_factor(config.rope_parameters["factor"])
            words.write(writer)
            if rope is not None:
                writer.add_tensor_info(ROPE, rope.shape, None, 4 * len(rope), self.library.GGMLQuantizationType.F32)
            for _, called, kind, shape, size in described:
                writer.add_tensor_info(called, shape, None, size, self.library.GGMLQuantizationType[kind])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            writer.close()
            found = path.read_bytes()
        return padded(found)

    def quantize(self, source: Source, weight: torch.Tensor, update: Update) -> tuple[list[torch.Tensor], dict]:
        merged = merge_quantize(
            weight, update.lora_A, update.lora_B, update.scaling, MERGE_SPEC, merged=True,
            new_weight=update.new_weight, name=source.layer,
        ).merged  # fmt: skip
        stored, stats = quantize_counting(weight, merged, self.kind, source.layer)
        return [self.ordered(source, stored)], stats.as_dict()

    def keep(self, source: Source, tensor: torch.Tensor) -> list[torch.Tensor]:
        return [kept(tensor, torch.float32 if tensor.dim() == 1 else self.dtype, source.name)]

    def ordered(self, source: Source, rows: torch.Tensor) -> torch.Tensor:
        which = source.name.removesuffix(".weight").rpartition(".")[2]
        return as_llama_cpp(rows, self.heads[which]) if which in self.heads else rows


def padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % ALIGN)


def rope_factors(config) -> torch.Tensor | None:
    """What Llama 3 divides each frequency of its rotation by, float32 (head_dim / 2,); None where it does not.

    Long waves are slowed down by ``factor``, short ones not at all, those between smoothly.
    """
    rope = config.rope_parameters
    if rope["rope_type"] != "llama3":
        return None
    low, high, seen = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    found = []
    for at in range(0, config.head_dim, 2):
        turns = seen / (2 * math.pi * rope["rope_theta"] ** (at / config.head_dim))
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - share) / rope["factor"] + share))
    return torch.tensor(found, dtype=torch.float32)


def check_architecture(config, folder: Path) -> None:
    """Refuse what a GGUF of the Llama architecture would not say.

    Raises:
        ValueError: naming what it is.
    """
    if config.model_type != "llama":
        raise ValueError(
            f"{folder} is of the architecture {config.model_type!r}; only 'llama' is written as GGUF: choose --format "
            "compressed-tensors, or convert --format safetensors with llama.cpp."
        )
    rope = config.rope_parameters.get("rope_type", "default")
    found = {
        f"hidden_act={config.hidden_act!r}": config.hidden_act != "silu",
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        f"rope_type={rope!r}": rope not in ("default", "linear", "llama3"),
    }
    for what, there in found.items():
        if there:
            raise ValueError(
                f"{folder} has {what}, which is not written as GGUF: choose --format compressed-tensors, or convert "
                "--format safetensors with llama.cpp."
            )
