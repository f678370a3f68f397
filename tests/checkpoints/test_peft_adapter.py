"""Adapters read from their folders, against peft's own merge and against float64; what is no plain LoRA is refused."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from qru.models import linear_layers, quiet
from qru.peft_adapter import is_adapter, merged, open_adapter, update_of
from tests.checkpoints.made import adapted, model, write_adapter

ULP = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-22}  # largest spacing over size, about
PATTERNS = {
    "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 8},
    "alpha_pattern": {"layers.0.self_attn.q_proj": 3},
}


def shapes_of(base: torch.nn.Module) -> dict[str, tuple[int, int]]:
    return {name: tuple(layer.weight.shape) for name, layer in linear_layers(base).items()}


@pytest.fixture(scope="module")
def shapes():
    return shapes_of(model())


@pytest.fixture
def folder(tmp_path):
    """A plain adapter, to damage."""
    return write_adapter(tmp_path / "adapter", model())


def merged_by_peft(base: torch.nn.Module, folders: list) -> dict[str, torch.Tensor]:
    with quiet():
        for folder in folders:
            base = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    return {name: layer.weight.data for name, layer in linear_layers(base).items()}


@pytest.mark.parametrize("dtype", ULP)
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, PATTERNS, {"target_modules": "all-linear", "r": 3}])
def test_merging_is_pefts_to_one_rounding_and_float64s(tmp_path, shapes, dtype, options):
    base = model(dtype=dtype)
    adapter = open_adapter(write_adapter(tmp_path / "adapter", copy.deepcopy(base), **options), shapes)
    theirs = merged_by_peft(copy.deepcopy(base), [tmp_path / "adapter"])
    wrapped = adapted(copy.deepcopy(base), **options)
    for name, layer in linear_layers(base).items():
        ours = merged(layer.weight.data, name, [adapter])
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs[name], rtol=ULP[dtype], atol=1e-7)
        module = wrapped.base_model.model.get_submodule(name)
        assert (name in adapter.scalings) == hasattr(module, "lora_A")
        if name not in adapter.scalings:
            assert torch.equal(ours, layer.weight.data)
            continue
        assert adapter.scalings[name] == pytest.approx(module.scaling["default"], rel=1e-12)
        a, b = (part["default"].weight.detach().double() for part in (module.lora_A, module.lora_B))
        exact = layer.weight.data.double() + module.scaling["default"] * b @ a
        torch.testing.assert_close(ours.double(), exact, rtol=ULP[dtype] / 2, atol=1e-7)
        assert not torch.equal(ours, layer.weight.data)
        factors = adapter.factors(name)
        assert torch.equal(factors["lora_A"], a.float())
        assert torch.equal(factors["lora_B"], b.float())


def test_several_adapters_are_merged_one_after_the_other(tmp_path, shapes):
    base = model()
    first = write_adapter(tmp_path / "first", copy.deepcopy(base), seed=3)
    second = write_adapter(tmp_path / "second", copy.deepcopy(base), seed=4, target_modules=["q_proj", "up_proj"])
    adapters = [open_adapter(folder, shapes) for folder in (first, second)]
    theirs = merged_by_peft(copy.deepcopy(base), [first, second])
    both = "model.layers.0.self_attn.q_proj"
    for name, layer in linear_layers(base).items():
        weight = layer.weight.data
        ours = merged(weight, name, adapters)
        torch.testing.assert_close(ours, theirs[name], rtol=ULP[torch.bfloat16], atol=1e-7)
        update = update_of(weight, name, adapters)
        if name.endswith("q_proj"):
            assert set(update) == {"new_weight"}
            assert torch.equal(update["new_weight"], ours)
        elif name.endswith(("down_proj", "up_proj")):
            assert set(update) == {"lora_A", "lora_B", "scaling"}
        else:
            assert update == {}
    one = merged(base.get_submodule(both).weight.data, both, adapters[:1])
    assert torch.equal(merged(one, both, adapters[1:]), merged(base.get_submodule(both).weight.data, both, adapters))


def refused(folder, shapes, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        open_adapter(folder, shapes)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, r"DoRA \(use_dora=True\)"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["q_proj", "lm_head"]}, "an adapter on lm_head"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding_A"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*invalid shape")
def test_what_is_not_plain_lora_is_refused_by_name(tmp_path, shapes, options, named):
    refused(write_adapter(tmp_path / "adapter", model(), **options), shapes, named)


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("fan_in_fan_out", True, "fan_in_fan_out=True"),
        ("init_lora_weights", "pissa", "init_lora_weights='pissa', which changes the base"),
        ("init_lora_weights", "olora", "olora"),
        ("peft_type", "LOHA", "LOHA"),
        ("peft_type", None, "None; only plain LoRA"),
        ("trainable_token_indices", [1], "trainable_token_indices"),
        ("layer_replication", [[0, 1]], "layer_replication"),
        ("r", 5, r"has rank 4 on .*q_proj, and adapter_config\.json says 5"),
        ("lora_alpha", "much", "lora_alpha 'much'"),
        ("lora_alpha", True, "lora_alpha True"),
        ("rank_pattern", {"q_proj": 2}, r"has rank 4 on .*q_proj.* says 2"),
        ("rank_pattern", {"(": 2}, "cannot be read"),
        ("rank_pattern", [1], "cannot be read"),
        ("target_modules", 7, "cannot be read"),
        ("target_modules", "(", "cannot be read"),
        ("target_modules", ["q_proj"], r"down_proj\.lora_[AB]\.weight is more than adapter_config\.json says"),
        ("target_modules", ["q_proj", "down_proj", "up_proj"], r"up_proj\.lora_A\.weight is missing"),
        ("target_modules", [], "more than adapter_config"),
        ("layers_to_transform", [0], r"layers\.1.* is more than"),
    ],
)
def test_configurations_that_say_something_else_are_refused(folder, shapes, option, value, named):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {option: value}))
    refused(folder, shapes, named)


@pytest.mark.parametrize("value", [True, False, "gaussian", "eva", "orthogonal"])
def test_beginnings_that_leave_the_base_alone_are_read(folder, shapes, value):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": value}))
    assert len(open_adapter(folder, shapes).scalings) == 4


def test_other_methods_of_peft_are_refused(tmp_path, shapes):
    with quiet():
        scaled = get_peft_model(
            model(), IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
        )
        scaled.save_pretrained(str(tmp_path / "adapter"))
    refused(tmp_path / "adapter", shapes, "IA3; only plain LoRA")


def changed(folder, change) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, path)


KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(KEY), rf"belongs to another base\. {KEY} is missing"),
        (lambda t: t.update({KEY.replace("layers.1", "layers.7"): t[KEY]}), r"layers\.7.*is more than the model has"),
        (lambda t: t.update({KEY: t[KEY][:, :32]}), rf"{KEY} is \(4, 32\), and .*q_proj needs \(r, 64\)"),
        (lambda t: t.update({KEY: t[KEY][:0]}), r"is \(0, 64\)"),
        (lambda t: t.update({KEY: t[KEY][:2]}), "an A of rank 2 and a B of rank 4 on"),
        (lambda t: t.update({KEY: t[KEY].double()}), r"is torch\.float64; fp32, bf16 and fp16 are read"),
        (lambda t: t.update({KEY.replace(".lora_A", ".lora_magnitude_vector"): t[KEY]}), "the tensor .*magnitude"),
        (lambda t: t.update({"stray": t[KEY]}), "the tensor stray"),
        (lambda t: t.clear(), "is missing from the adapter's file"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, shapes, change, named):
    changed(folder, change)
    refused(folder, shapes, named)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_name_the_layer(folder, shapes, value):
    changed(folder, lambda tensors: tensors[KEY].view(-1)[3:4].fill_(value))
    adapter = open_adapter(folder, shapes)
    layer = "model.layers.1.self_attn.q_proj"
    with pytest.raises(ValueError, match=rf"{layer}: lora_A is {value}".replace(".", r"\.")):
        merged(model().get_submodule(layer).weight.data, layer, [adapter])


def test_damaged_pickled_and_missing_files_are_named(folder, shapes, tmp_path):
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:500])
    refused(folder, shapes, r"adapter: .*adapter_model\.safetensors is (damaged|cut short)")
    path.unlink()
    refused(folder, shapes, r"has no adapter_model\.safetensors: its saving did not finish\.$")
    torch.save({}, folder / "adapter_model.bin")
    refused(folder, shapes, r"It has adapter_model\.bin: pickled files can run any code")
    (tmp_path / "elsewhere").write_bytes(whole)
    path.symlink_to(tmp_path / "elsewhere")
    refused(folder, shapes, "is a link that leaves its folder")
    shutil.copy(tmp_path / "elsewhere", tmp_path / "copy")
    path.unlink()
    shutil.move(tmp_path / "copy", path)
    (folder / "adapter_config.json").write_text("{")
    refused(folder, shapes, r"adapter_config\.json is damaged")
    (folder / "adapter_config.json").unlink()
    refused(folder, shapes, r"has no adapter_config\.json")
    assert not is_adapter(folder)


def test_an_adapter_of_a_model_of_another_size_is_refused(tmp_path, shapes):
    folder = write_adapter(tmp_path / "adapter", model("qwen2"), target_modules=["k_proj"])
    wider = {layer: (rows, columns * 2) for layer, (rows, columns) in shapes.items()}
    refused(folder, wider, "belongs to another base")
    only_other_layers = {layer: shape for layer, shape in shapes.items() if "k_proj" not in layer}
    refused(folder, only_other_layers, "belongs to another base.*more than the model has")


def test_the_record_of_a_base_is_read_or_refused(folder, shapes, tmp_path):
    assert open_adapter(folder, shapes).base_sha256 is None
    (folder / "base.json").write_text(json.dumps({"linear_layers_sha256": "ab" * 32}))
    adapter = open_adapter(folder, shapes)
    adapter.check_base("ab" * 32)
    with pytest.raises(ValueError, match=r"belongs to another base\. It was trained on weights abababababab…"):
        adapter.check_base("cd" * 32)
    (folder / "base.json").write_text("{}")
    refused(folder, shapes, r"base\.json is damaged")
    (tmp_path / "elsewhere").mkdir()
    (folder / "base.json").rename(tmp_path / "elsewhere" / "base.json")
    (folder / "base.json").symlink_to(tmp_path / "elsewhere" / "base.json")
    refused(folder, shapes, r"base\.json is a link that leaves its folder")
