"""Rounding against the gguf package's own, which repeats llama.cpp's; counts against a plain loop."""

import json
import math

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import LlamaConfig, Qwen2Config
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from qru.formats import Source, formats
from qru.formats.gguf import (
    as_llama_cpp,
    block_bytes,
    quantize_blocks,
    quantize_counting,
    rope_factors,
    stored_values,
)  # fmt: skip
from qru.formats.gguf_vocabulary import LLAMA_3, Type, cut, cut_into_pieces, piece_scores, vocabulary
from qru.ops import QuantSpec
from qru.quantizers import Update
from tests.formats.byte_tokenizer import byte_level

KINDS = ("Q4_0", "Q8_0")


def matrix(dtype=torch.bfloat16, rows=40, columns=96):
    torch.manual_seed(0)
    weight = torch.randn(rows, columns) * 0.02
    weight[1] = 0
    weight[2, :32] = 0.01  # all of one size, and
    weight[3, :32] = 0.01 * torch.tensor([-1.0, 1.0]).repeat(16)  # of both signs: the first gives Q4_0's step
    weight[4] *= 1e-7  # a step that is subnormal in fp16
    weight[5] *= 1e-12  # and one that is zero in it
    weight[6] = torch.arange(columns) - 31.5  # halves between codes
    return weight.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_values_are_the_gguf_package_s(kind, dtype):
    weight = matrix(dtype)
    number = gguf.GGMLQuantizationType[kind]
    theirs = gguf.quants.quantize(weight.float().numpy(), number)
    codes, steps = quantize_blocks(weight, kind)
    ours = block_bytes(codes, steps, kind)
    assert np.array_equal(ours.numpy(), theirs)
    values = stored_values(codes, steps, kind).view(weight.shape)
    assert np.array_equal(values.numpy(), gguf.quants.dequantize(theirs, number))


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_a_plain_loop(kind):
    before = matrix(rows=9, columns=64)
    after = before.clone()
    after[0] += 0.004
    after[2, 5] = -0.05  # takes over as the largest, with the other sign
    after[7] *= 1.01
    f32, f16 = np.float32, np.float16
    zero = 8 if kind == "Q4_0" else 0

    def step(block):
        if kind == "Q8_0":
            return f32(max(abs(w) for w in block) / f32(127))
        return f32(max(block, key=abs) / f32(-8))

    def code(w, d):
        scaled = f32(w * (f32(1) / d if d else f32(0)))
        if kind == "Q4_0":
            return min(max(math.trunc(float(scaled + f32(8.5))), 0), 15)
        return min(max(int(math.copysign(math.floor(abs(float(scaled)) + 0.5), scaled)), -127), 127)

    crossed = changed = moved_steps = dead = 0
    predicted = dw2 = q_dw = q2 = 0.0
    for old, new in zip(before.float().view(-1, 32).numpy(), after.float().view(-1, 32).numpy(), strict=True):
        d0, d = step(old), step(new)
        moved_steps += f16(d0) != f16(d)
        dead += f16(d0) == 0
        for w0, w in zip(old, new, strict=True):
            crossed += code(w, d0) != code(w0, d0)
            changed += code(w, d) != code(w0, d0)
            if f16(d0) != 0:
                predicted += min(abs(float(w) - float(w0)) / abs(float(d0)), 1)
            delta = (code(w, d) - zero) * float(f16(d)) - (code(w0, d0) - zero) * float(f16(d0))
            dw2, q_dw, q2 = dw2 + float(w - w0) ** 2, q_dw + delta * float(w - w0), q2 + delta**2
    stored, stats = quantize_counting(before, after, kind)
    assert stored.shape == (9, 64 // 32 * {"Q4_0": 18, "Q8_0": 34}[kind])
    assert (stats.weights, stats.moved) == (9 * 64, int((before != after).sum()))
    assert (stats.crossed, stats.changed, stats.steps_moved, stats.zero_groups) == (crossed, changed, moved_steps, dead)
    assert 0 < crossed < changed or kind == "Q8_0"
    assert (stats.predicted, stats.sum_dw2) == pytest.approx((predicted, dw2), rel=1e-5)
    assert (stats.sum_q_dw, stats.sum_q2) == pytest.approx((q_dw, q2), rel=1e-4)
    assert sum(stats.histogram) == 9 * 64
    assert sum(stats.histogram[1:]) == changed


def test_pieces_of_a_matrix_count_as_the_whole(monkeypatch):
    before, after = matrix(), matrix() * 1.05
    whole = quantize_counting(before, after, "Q4_0")
    monkeypatch.setattr("qru.formats.gguf.AT_ONCE", 7 * 96)
    pieces = quantize_counting(before, after, "Q4_0")
    assert torch.equal(whole[0], pieces[0])
    assert whole[1].crossed == pieces[1].crossed > 0
    assert whole[1].histogram == pieces[1].histogram


def test_a_step_that_fp16_cannot_hold_is_refused():
    weight = matrix(torch.float32)
    weight[8, 40] = 1e7
    with pytest.raises(ValueError, match=r"up_proj: the step of row 8, block 1 overflows fp16"):
        quantize_blocks(weight, "Q8_0", "up_proj")


@pytest.mark.parametrize(("heads", "rows"), [(4, 64), (2, 32)])
def test_rows_of_queries_and_keys_come_back_in_order(heads, rows):
    weight = torch.randn(rows, 5)
    there = as_llama_cpp(weight, heads)
    assert not torch.equal(there, weight)
    assert there[1].equal(weight[rows // heads // 2])  # first half, second half, first half, …
    back = LlamaTensorProcessor()._reverse_permute_weights(there.numpy(), heads, heads)
    assert np.array_equal(back, weight.numpy())


def test_a_layer_is_merged_quantized_and_ordered():
    made = formats["gguf"]("q4_0", "bfloat16")
    made.heads = {"q_proj": 4, "k_proj": 2}
    torch.manual_seed(1)
    weight, a, b = torch.randn(64, 64).bfloat16(), torch.randn(2, 64), torch.randn(64, 2)
    layer = "model.layers.0.self_attn.q_proj"
    source = Source(f"{layer}.weight", (64, 64), torch.bfloat16, layer)
    (stored,), counts = made.quantize(source, weight, Update(a, b, 0.5))
    merged = (weight.double() + 0.5 * b.double() @ a.double()).bfloat16()
    values = torch.from_numpy(gguf.quants.dequantize(stored.numpy(), gguf.GGMLQuantizationType.Q4_0))
    expected = as_llama_cpp(merged.float(), 4)
    step = expected.view(64, 2, 32).abs().amax(-1, keepdim=True) / 8
    # An eighth of the range is a bin; the end opposite to the largest weight is cut off half a bin further in.
    assert ((values - expected).view(64, 2, 32).abs() <= 1.01 * step).all()
    assert counts["moved"] > 4000


def test_unknown_types_are_refused():
    with pytest.raises(ValueError, match=r"unknown GGUF type 'Q4_K_M'.*Known: Q4_0, Q8_0"):
        formats["gguf"]("Q4_K_M", "bfloat16")
    with pytest.raises(ValueError, match="unknown GGUF type 'rtn-int4-g32'"):
        formats["gguf"](QuantSpec(group_size=32), "bfloat16")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Qwen2Config(num_hidden_layers=1), "architecture 'qwen2'"),
        (LlamaConfig(attention_bias=True), "attention_bias"),
        (LlamaConfig(mlp_bias=True), "mlp_bias"),
        (LlamaConfig(hidden_act="gelu"), "hidden_act='gelu'"),
        (LlamaConfig(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "rope_type='dynamic'"),
    ],
)
def test_other_architectures_are_refused_by_name(tmp_path, config, reason):
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=reason):
        formats["gguf"]("Q4_0", "bfloat16").plan(tmp_path, [], [], 1 << 20)


def test_frequencies_of_llama_3_are_divided_as_transformers_divides_them():
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, rope_parameters=rope)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 500000.0 ** (torch.arange(0, 128, 2) / 128)
    assert torch.allclose(plain / rope_factors(config), theirs, rtol=1e-5)
    assert {1.0, 8.0} < set(rope_factors(config).tolist())
    assert rope_factors(LlamaConfig()) is None


def test_pieces_are_joined_in_the_order_of_their_merges():
    tokens = ["<unk>", "a", "b", "c", "ab", "bc", "abc"]
    assert piece_scores(tokens, [["b", "c"], ["a", "bc"], ["a", "b"], ["ab", "c"]]) == [-4, -4, -4, -4, -2, 0, -1]


@pytest.mark.parametrize(
    ("before", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            "smollm",
        ),
        (
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            ),
            "llama-bpe",
        ),
    ],
)
def test_byte_level_tokenizers(tmp_path, before, name):
    tokenizer = byte_level(tmp_path, before)
    found = vocabulary(tmp_path, len(tokenizer) + 3)
    assert (found.model, found.pre) == ("gpt2", name)
    assert found.tokens[-1] == f"[PAD{len(tokenizer) + 2}]"
    assert found.types[-3:] == [Type.UNUSED] * 3
    assert found.types[found.special["eos"]] == Type.CONTROL
    assert found.merges[:2] == ["h e", "t he"]
    assert found.scores is None
    assert found.chat_template == "{{ messages }}"
    with pytest.raises(ValueError, match=r"embeds 10 tokens, but its tokenizer has ids up to"):
        vocabulary(tmp_path, 10)


def test_ways_of_cutting_are_known_by_their_expression(tmp_path):
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False}
    assert cut({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, step]}}, tmp_path) == "llama-bpe"
    other = split | {"pattern": {"Regex": r"\w+"}}
    for before in ({"type": "Sequence", "pretokenizers": [other, step]}, None, step, {"type": "Whitespace"}):
        with pytest.raises(ValueError, match="is not known here"):
            cut({"pre_tokenizer": before}, tmp_path)


def test_sentencepiece_is_cut_as_llama_cpp_cuts_or_refused(tmp_path):
    from tests.methods.checkpoints import llama_tokenizer

    texts = ["the wolf and the winter, a café", "wolves in winter"] * 3
    trained = llama_tokenizer(texts, 300)
    trained.save_pretrained(tmp_path)
    found = vocabulary(tmp_path, len(trained))
    assert (found.model, found.add_bos, found.space) == ("llama", False, True)
    assert found.types[:4] == [Type.UNKNOWN, Type.CONTROL, Type.CONTROL, Type.BYTE]
    assert cut_into_pieces("the wolf", found) == trained("the wolf", add_special_tokens=False)["input_ids"]

    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["model"]["merges"] = state["model"]["merges"][5:]  # pieces that no merge makes any more
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="would cut texts otherwise"):
        vocabulary(tmp_path, len(trained))
