"""Merging, quantizing and counting over a whole model, against peft and against the plain definitions."""

import copy
import shutil
import warnings

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

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
    found, before = compress.updates(target, adapted), compress.stored_layers(target)
    quantized = copy.deepcopy(unlearned)
    compress.quantize_layers(quantized, before, found, load_quantizer("rtn-int2-row"))  # leaves no trace in the next
    counts = compress.quantize_layers(quantized, before, found, load_quantizer("rtn-int4-g64"))
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


# --- what must not be taken for something else ------------------------------------------------------------------


def small(seed: int = 0, **changes) -> torch.nn.Module:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return models.LlamaForCausalLM(models.LlamaConfig(**sizes | {"intermediate_size": 128} | changes)).eval()


def rounded(model: torch.nn.Module) -> torch.nn.Module:
    """The same model with bf16 values in fp32, as qru holds its own."""
    for value in model.state_dict().values():
        value.copy_(value.bfloat16())
    return model


def with_lora(model: torch.nn.Module, name: str = "default", **options) -> PeftModel:
    settings = {"r": 4, "lora_alpha": 8.0, "target_modules": ["q_proj", "down_proj"]} | options
    with models.quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`lora_bias=True` was passed")
        torch.manual_seed(2)  # A is drawn at random
        wrapped = get_peft_model(model, LoraConfig(**settings), adapter_name=name)
    generator = torch.Generator().manual_seed(3)
    for key, parameter in wrapped.named_parameters():
        if "lora_B" in key:
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    return wrapped


@pytest.fixture
def base():
    return rounded(small())


def test_a_base_that_peft_wrapped_in_place_is_refused(base):
    wrapped = with_lora(base)  # peft replaces the linear layers of the very module it is given
    for before in (base, wrapped):
        with pytest.raises(ValueError, match=r"carries an adapter on .*Load the base a second time"):
            compress.audit(before, wrapped)
        with pytest.raises(ValueError, match="carries an adapter"):
            compress.updates(before, wrapped)


def test_a_layer_of_one_model_only_is_refused(base):
    deeper = small(num_hidden_layers=3)
    with pytest.raises(
        ValueError, match=r"layer model\.layers\.2\.self_attn\.q_proj is None before and \(64, 64\) after"
    ):
        compress.audit(base, deeper)
    with pytest.raises(
        ValueError, match=r"layer model\.layers\.2\.self_attn\.q_proj is \(64, 64\) before and None after"
    ):
        compress.audit(deeper, base)


def test_an_adapter_of_another_base_is_refused(base, tmp_path):
    trained = with_lora(copy.deepcopy(base))
    compress.save_adapter(trained, tmp_path / "adapter")
    assert compress.audit(base, tmp_path / "adapter", QuantSpec(group_size=64))["total"]["changed"] > 0
    other = rounded(small(seed=1))  # the same shapes
    with pytest.raises(ValueError, match=r"belongs to another base\. It was trained on weights"):
        compress.audit(other, tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"weight under the adapter on .*layers\.0\.self_attn\.q_proj is not"):
        compress.audit(other, trained)


def test_the_digest_of_a_base_does_not_depend_on_how_it_is_held(base):
    held = compress.base_digest(base)
    assert held == compress.base_digest(copy.deepcopy(base).bfloat16())
    list(models.linear_layers(base).values())[-1].weight.data[0, 0] += 1
    assert held != compress.base_digest(base)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_an_adapter_with_other_layers_is_refused(base, tmp_path, change):
    with_lora(copy.deepcopy(base)).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    if change == "missing":
        tensors = {key: value for key, value in tensors.items() if "layers.1.self_attn.q_proj" not in key}
    else:
        extra = {k.replace("layers.1", "layers.2"): v.clone() for k, v in tensors.items() if "layers.1.self_attn" in k}
        tensors |= extra
    save_file(tensors, file)
    layer = {"missing": r"layers\.1\.self_attn\.q_proj\.lora_A", "extra": r"layers\.2\.self_attn\.q_proj\.lora_A"}[
        change
    ]
    with pytest.raises(ValueError, match=f"another base.*{layer}.*{change if change == 'missing' else 'more than'}"):
        compress.audit(base, tmp_path / "adapter")


def test_a_damaged_adapter_is_named(base, tmp_path):
    with_lora(copy.deepcopy(base)).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"adapter cannot be loaded"):
        compress.audit(base, tmp_path / "adapter")
    file.unlink()
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors"):
        compress.audit(base, tmp_path / "adapter")


def test_another_kind_of_adapter_is_refused(base, tmp_path):
    with models.quiet():
        scaled = get_peft_model(
            copy.deepcopy(base), IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
        )
    scaled.save_pretrained(tmp_path / "adapter")
    for after in (scaled, tmp_path / "adapter"):
        with pytest.raises(ValueError, match=r"(?i)ia3.*only plain LoRA"):
            compress.audit(base, after)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["q_proj", "lm_head"]}, "an adapter on lm_head"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"an adapter on model\.embed_tokens"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(base, tmp_path, options, named):
    trained = with_lora(copy.deepcopy(base), **options)
    with pytest.raises(ValueError, match=named):
        compress.audit(base, trained)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*have invalid shape")  # a bias is not a matrix
        trained.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(ValueError, match=named):
        compress.audit(base, tmp_path / "adapter")


def test_the_active_adapter_is_the_one_that_counts(base):
    spec = QuantSpec(group_size=64)
    expected = compress.audit(base, with_lora(copy.deepcopy(base)), spec)
    named = with_lora(copy.deepcopy(base), name="forget")
    assert compress.audit(base, named, spec) == expected
    named.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    assert compress.audit(base, named, spec) == expected
    named.set_adapter("second")  # its B is zero
    assert compress.audit(base, named, spec)["total"]["changed"] == 0
    named.base_model.set_adapter(["forget", "second"])
    with pytest.raises(ValueError, match=r"\['forget', 'second'\]: exactly one must be active"):
        compress.audit(base, named, spec)


def test_merged_and_disabled_adapters_are_refused(base):
    trained = with_lora(copy.deepcopy(base))
    with trained.disable_adapter(), pytest.raises(ValueError, match="exactly one must be active"):
        compress.audit(base, trained)
    trained.merge_adapter()
    with pytest.raises(ValueError, match=r"is merged.*unmerge_adapter"):
        compress.audit(base, trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_audit_keeps_the_stored_type(tmp_path, dtype):
    """A change below the spacing of bf16 is there in a checkpoint of a finer type."""
    before = small().to(dtype)
    after = copy.deepcopy(before)
    changed = 0
    for layer in models.linear_layers(after).values():
        moved = layer.weight.data * (1 + 2**-9)
        changed += int((moved != layer.weight.data).sum())
        layer.weight.data = moved
    assert changed > 0
    before.save_pretrained(tmp_path / "before")
    after.save_pretrained(tmp_path / "after")
    spec = QuantSpec(group_size=64)
    report = compress.audit(before, after, spec)
    assert report["total"]["moved"] == changed
    assert compress.audit(tmp_path / "before", tmp_path / "after", spec) == report  # and needs no tokenizer
    assert not list(tmp_path.glob("*/tokenizer*"))


def test_sides_of_two_types_meet_in_one_that_holds_both(base):
    spec = QuantSpec(group_size=64)
    after = copy.deepcopy(base)
    for layer in models.linear_layers(after).values():
        layer.weight.data *= 1 + 2**-9  # fp32 values that bf16 does not have
    expected = compress.audit(base, after, spec)
    assert expected["total"]["moved"] > 0
    assert compress.audit(copy.deepcopy(base).bfloat16(), after, spec) == expected
    assert compress.side(base)[1] is torch.bfloat16
    assert compress.side(after)[1] is torch.float32


def test_a_folder_that_is_not_there_is_said_to_be_missing(base, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere does not exist"):
        compress.audit(base, tmp_path / "nowhere")


def test_an_audit_of_folders_needs_no_tokenizer(made, tmp_path):
    shutil.copytree(made.target, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    assert compress.audit(tmp_path / "bare", made.target)["total"]["changed"] == 0
