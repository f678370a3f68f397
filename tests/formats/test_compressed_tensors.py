"""What compressed-tensors itself packs, dequantizes and describes is what this project writes."""

import json

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file

from qru.formats import Source, formats, kept
from qru.formats.layout import Entry, header, safetensors_plan
from qru.ops import QuantSpec
from qru.quantizers import Update

PACKER = BaseCompressor.get_value_from_registry("pack-quantized")


def scheme(made):
    config = {"quant_method": "compressed-tensors", **made.quantization(["lm_head"])}
    return QuantizationConfig.model_validate(config).config_groups["group_0"]


@pytest.mark.parametrize("group", ["g32", "row", "tensor"])
@pytest.mark.parametrize(
    ("bits", "step", "dtype"),
    [
        (4, "2^(N-1)", "bfloat16"),
        (8, "2^(N-1)", "bfloat16"),
        (4, "2^(N-1)-1", "float32"),
        (8, "2^(N-1)-1/2", "float16"),
    ],
)
def test_words_and_values_are_their_packers(bits, group, step, dtype):
    made = formats["compressed-tensors"](f"rtn-int{bits}-{group}-sym-{step}", dtype)
    torch.manual_seed(bits)
    weight = torch.randn(24, 192).mul(0.02).bfloat16()
    weight[3] = 0
    weight[5, :7] = -weight.abs().max()  # a code at the low end
    source = Source("model.layers.0.mlp.up_proj.weight", (24, 192), torch.bfloat16, "model.layers.0.mlp.up_proj")
    (shape, packed, scales), _ = made.quantize(source, weight, Update())
    theirs = scheme(made)
    given = {"weight": weight.float(), "weight_scale": scales.float()}
    given["weight_scale"][3] = 1  # they divide by it
    again = PACKER.compress(given, theirs)
    assert torch.equal(again["weight_packed"], packed)
    assert again["weight_packed"].dtype == packed.dtype == torch.int32
    assert (shape.tolist(), shape.dtype) == ([24, 192], torch.int64)
    assert scales.dtype == getattr(torch, dtype)

    back = PACKER.decompress({"weight_packed": packed, "weight_scale": scales.float(), "weight_shape": shape}, theirs)
    fields = np.ascontiguousarray(packed.numpy()).view(np.uint8)  # by hand: bytes, low nibble first, 2^(N-1) off
    fields = fields if bits == 8 else np.stack([fields & 15, fields >> 4], -1).reshape(24, -1)
    codes = fields.astype(int) - 2 ** (bits - 1)
    expected = codes * scales.float().repeat_interleave(192 // scales.shape[1], 1).numpy()
    assert np.array_equal(back["weight"].numpy(), expected.astype(np.float32))
    assert codes[5, 0] == {"2^(N-1)": -(2 ** (bits - 1))}.get(step, codes[5, 0])


@pytest.mark.parametrize(
    ("spec", "dtype", "reason"),
    [
        ("rtn-int4-g32-asym", "bfloat16", "zero points"),
        ("rtn-int3-g32", "bfloat16", "3 bits"),
        ("rtn-int2-g32", "bfloat16", "2 bits"),
        ("rtn-int4-g32-float32", "bfloat16", "cast them to the model's bfloat16.*Choose rtn-int4-g32-bfloat16"),
        (QuantSpec(bits=4, group_size=32), "bfloat16", "cast them"),
        ("rtn-int4-g32-bfloat16", "float16", "cast them"),
        ("rtn-int5-g32", "bfloat16", "choose one of"),
    ],
)
def test_what_does_not_load_is_refused_by_name(spec, dtype, reason):
    with pytest.raises(ValueError, match=reason):
        formats["compressed-tensors"](spec, dtype)


def test_a_name_without_a_type_of_steps_gets_the_model_s(tmp_path):
    made = formats["compressed-tensors"]("rtn-int4-g32", "bfloat16")
    assert made.grid == "rtn-int4-g32-sym-2^(N-1)-bfloat16"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "float32"}))
    sources = [
        Source("model.norm.weight", (8,), torch.float32),
        Source("model.layers.0.q.weight", (2, 48), torch.float32, "model.layers.0.q"),
    ]
    with pytest.raises(ValueError, match=r"model\.layers\.0\.q.*does not divide"):
        made.plan(tmp_path, sources, [], 1 << 20)
    written = json.loads(made.plan(tmp_path, sources[:1], ["lm_head"], 1 << 20).files["config.json"])
    assert written["dtype"] == "bfloat16"
    assert "torch_dtype" not in written
    assert written["quantization_config"]["ignore"] == ["lm_head"]


@pytest.mark.parametrize("at", [0, 5, -1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_kept_is_finite_in_its_new_type(dtype, at):
    tensor = torch.randn(3, 4, 5, dtype=torch.float32)
    assert torch.equal(kept(tensor, dtype, "norm"), tensor.to(dtype))
    for bad, message in ((float("nan"), "norm has NaN or Inf"), (float("-inf"), "norm has NaN or Inf")):
        tensor.view(-1)[at] = bad
        with pytest.raises(ValueError, match=message):
            kept(tensor, dtype, "norm")
    tensor.view(-1)[at] = 1e5
    if dtype == torch.float16:
        with pytest.raises(ValueError, match=r"norm has values too large for torch\.float16"):
            kept(tensor, dtype, "norm")
    else:
        kept(tensor, dtype, "norm")
    assert kept(torch.empty(0, 3), dtype, "norm").shape == (0, 3)
    assert kept(torch.arange(3), dtype, "ids").dtype == torch.int64


def test_a_header_is_one_that_safetensors_reads(tmp_path):
    tensors = {"a": torch.arange(3, dtype=torch.int64), "ü": torch.randn(3, 5).bfloat16(), "c": torch.randn(1)}
    file = tmp_path / "x.safetensors"
    content = header([Entry(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()])
    file.write_bytes(content + b"".join(t.view(torch.uint8).numpy().tobytes() for t in tensors.values()))
    back = load_file(file)
    assert set(back) == set(tensors)
    assert all(torch.equal(back[name], t) for name, t in tensors.items())
    assert len(content) % 8 == 0


def test_files_keep_below_the_limit_and_the_index_names_each_tensor():
    made = formats["safetensors"]("rtn-int4-g32", "bfloat16")
    sources = [Source(f"t{i}", (10,), torch.bfloat16) for i in range(5)] + [Source("large", (100,), torch.int64)]
    plan = safetensors_plan(sources, made.entries, 40, {})
    assert [[s.name for s in part.sources] for part in plan.parts] == [["t0", "t1"], ["t2", "t3"], ["t4"], ["large"]]
    assert [part.stop - len(part.lead) for part in plan.parts] == [40, 40, 20, 800]
    index = json.loads(plan.files["model.safetensors.index.json"])
    assert index["metadata"] == {"total_size": 900}
    assert index["weight_map"]["t4"] == "model-00003-of-00004.safetensors" == plan.parts[2].file
