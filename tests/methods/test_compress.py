"""Merging, quantizing and counting over a whole model, against peft and against the plain definitions."""

import copy

import pytest
import torch

from qru import compress, models
from qru.config import RunConfig
from qru.defaults import resolve
from qru.ops import QuantSpec
from qru.ops.grid import dequantize, quantize_ref
from qru.quantizers import load_quantizer


@pytest.fixture
def target(made):
    return models.load(made.target)[0]


@pytest.fixture
def adapted(made):
    """The target with adapters that do something."""
    model, _ = models.load(made.target)
    settings = resolve(RunConfig(adapter="lora", scale="smoke", lora_rank=4, lora_alpha=8.0))
    wrapped, _ = models.as_trainable(model, settings)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.01 * torch.randn(parameter.shape, generator=generator)
    return wrapped


def test_merging_equals_peft_to_one_rounding(target, adapted):
    merged = compress.merged_model(target, adapted)
    theirs = copy.deepcopy(adapted).merge_and_unload()
    for name, layer in models.linear_layers(merged).items():
        expected = models.linear_layers(theirs)[name].weight
        assert torch.equal(layer.weight, layer.weight.bfloat16().float()), "stored values are bf16"
        # One spacing of bf16 at the larger of the two: peft adds in fp32 in another order, then we round once.
        torch.testing.assert_close(layer.weight, expected, rtol=2**-7, atol=1e-6)
        assert not torch.equal(layer.weight, models.linear_layers(target)[name].weight)


def test_quantized_layers_are_what_the_grid_says(target, adapted):
    unlearned = compress.merged_model(target, adapted)
    spec = QuantSpec(bits=4, group_size=64)
    quantized, counts = compress.quantized_model(
        target, unlearned, compress.updates(target, adapted), load_quantizer("rtn-int4-g64")
    )
    for name, layer in models.linear_layers(quantized).items():
        weight = models.linear_layers(unlearned)[name].weight.bfloat16()
        assert torch.equal(layer.weight, dequantize(*quantize_ref(weight, spec), spec))
        assert counts["layers"][name]["weights"] == weight.numel()
    for name, value in quantized.state_dict().items():  # embeddings, norms and head are left as they were
        if "proj" not in name:
            assert torch.equal(value, unlearned.state_dict()[name])
    total = counts["total"]
    assert total["crossed"] == sum(layer["crossed"] for layer in counts["layers"].values()) > 0
    assert sum(total["histogram"]) == total["weights"]


def test_a_model_against_itself_crosses_nothing(target):
    report = compress.audit(target, target)["total"]
    assert (report["crossed"], report["changed"], report["moved"]) == (0, 0, 0)
    assert report["projection"] is None


def test_audit_of_modules_folders_and_adapters_agree(target, adapted, made, tokenizer, tmp_path):
    merged = compress.merged_model(target, adapted)
    models.save(merged, tokenizer, tmp_path / "merged")
    adapted.save_pretrained(tmp_path / "adapter")
    spec = QuantSpec(bits=4, group_size=128)
    reports = [
        compress.audit(target, adapted, spec),
        compress.audit(target, merged, spec),
        compress.audit(made.target, tmp_path / "merged", spec),
        compress.audit(str(made.target), str(tmp_path / "adapter"), spec),
    ]
    for report in reports[1:]:
        for layer, counts in reports[0]["layers"].items():
            for key in ("crossed", "changed", "moved", "steps_moved", "histogram", "weights"):
                assert report["layers"][layer][key] == counts[key]


def test_a_group_that_does_not_divide_names_the_layer(target):
    with pytest.raises(ValueError, match=r"q_proj.*96|96.*q_proj"):
        compress.audit(target, target, QuantSpec(bits=4, group_size=96))


def test_nan_names_the_layer(target):
    broken = copy.deepcopy(target)
    name, layer = list(models.linear_layers(broken).items())[3]
    layer.weight.data[5, 7] = float("nan")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        compress.audit(target, broken)


def test_another_architecture_is_refused(target, made, adapted, tmp_path):
    smaller = models.LlamaForCausalLM(
        models.LlamaConfig(
            vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
        )
    )
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj is .* before and"):
        compress.audit(target, smaller)
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="belongs to another base"):
        compress.audit(smaller, tmp_path / "adapter")


@pytest.mark.parametrize("name", ["rtn-int5-g128", "rtm-int4-g128", "rtn-int4", "int4", ""])
def test_unknown_quantizers_are_refused(name):
    with pytest.raises(ValueError, match=r"rtn-int|bits"):
        load_quantizer(name)
