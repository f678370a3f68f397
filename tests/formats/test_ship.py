"""What is shipped is what others load, and what goes wrong leaves nothing."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from qru import cli, ship
from qru.compress import save_adapter
from qru.formats.gguf_vocabulary import LLAMA_3
from qru.models import linear_layers, quiet
from qru.ops import QuantSpec, merge_quantize_ref
from qru.ship import quantize_checkpoint
from tests.checkpoints import made
from tests.formats.byte_tokenizer import byte_level
from tests.methods.checkpoints import write_checkpoint
from tests.paper.test_full_disk import full_disk

IDS = torch.tensor([[1, 5, 9, 33, 2, 17, 80, 4, 60]])
SMALL = {"format": "safetensors", "spec": "rtn-int4-g32", "part_bytes": 20_000}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def factors(adapter: Path, layer: str):
    saved = load_file(adapter / "adapter_model.safetensors")
    return [saved.get(f"base_model.model.{layer}.lora_{side}.weight") for side in "AB"]


@torch.no_grad()
def dequantized(base: Path, adapter: Path | None, spec: QuantSpec, dtype=torch.float32) -> torch.nn.Module:
    """The model that should come out: by the reference, in memory, from the whole model."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    values = {}
    for name, layer in linear_layers(model).items():
        a, b = factors(adapter, name) if adapter else (None, None)
        values[name] = merge_quantize_ref(layer.weight, a, b, 2.0, spec).dequantized().to(dtype)
    model = model.to(dtype)
    for name, layer in linear_layers(model).items():
        layer.weight.copy_(values[name])
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    with quiet():
        return model.eval()(IDS, use_cache=False).logits


@pytest.mark.parametrize("family", made.FAMILIES)
@pytest.mark.parametrize("spec", ["rtn-int4-g32", "rtn-int8-row"])
def test_transformers_loads_compressed_tensors_bit_for_bit(tmp_path, family, spec):
    base = made.write(tmp_path / "base", family, shard="60KB")
    targets = ["qkv_proj", "down_proj"] if family == "phi3" else ["q_proj", "down_proj"]
    adapter = made.write_adapter(tmp_path / "adapter", made.model(family), target_modules=targets)
    quantize_checkpoint(base, tmp_path / "out", adapter=adapter, spec=spec, part_bytes=20_000)
    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    expected = dequantized(base, adapter, QuantSpec.parse(f"{spec}-bfloat16"))
    assert torch.equal(logits(loaded), logits(expected))
    assert not torch.equal(logits(loaded), logits(dequantized(base, None, QuantSpec.parse(f"{spec}-bfloat16"))))
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()


def test_it_loads_in_its_own_type_as_those_values_rounded(tmp_path, pair):
    base, adapter, _ = pair
    quantize_checkpoint(base, tmp_path / "out", adapter=adapter, spec="rtn-int4-tensor")
    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = dequantized(base, adapter, QuantSpec.parse("rtn-int4-tensor-bfloat16"), torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    logits(loaded)  # unpacks
    for name, layer in linear_layers(expected).items():
        assert torch.equal(loaded.get_submodule(name).weight, layer.weight)


@pytest.mark.parametrize("spec", ["rtn-int3-g32", "rtn-int4-row-asym", "rtn-int2-tensor"])
def test_dequantized_weights_reload_as_they_are(tmp_path, pair, spec, monkeypatch):
    base, adapter, _ = pair
    monkeypatch.setattr("qru.formats.safetensors.AT_ONCE", 64 * 7)  # several pieces of each matrix
    result = quantize_checkpoint(base, tmp_path / "out", adapter=adapter, format="safetensors", spec=spec)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    expected = dequantized(base, adapter, QuantSpec.parse(spec), torch.bfloat16).state_dict()
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    counts = result["layers"]["model.layers.1.mlp.down_proj"]
    weight = load_folder(base)["model.layers.1.mlp.down_proj.weight"]
    by_hand = merge_quantize_ref(weight, *factors(adapter, "model.layers.1.mlp.down_proj"), 2.0, QuantSpec.parse(spec))
    assert counts["crossed"] == by_hand.stats.crossed
    assert result["total"]["moved"] > 0
    assert result["layers"]["model.layers.1.mlp.up_proj"]["moved"] == 0


def load_folder(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_fine_tuned_weights_take_the_place_of_an_adapter(tmp_path, pair):
    base, _, weights = pair
    result = quantize_checkpoint(base, tmp_path / "out", weights=weights, format="safetensors", spec="rtn-int4-g32")
    out, before, after = (load_folder(folder) for folder in (tmp_path / "out", base, weights))
    name = "model.layers.0.self_attn.v_proj"
    expected = merge_quantize_ref(
        before[f"{name}.weight"], spec=QuantSpec(group_size=32), new_weight=after[f"{name}.weight"]
    )
    assert torch.equal(out[f"{name}.weight"], expected.dequantized(torch.bfloat16))
    assert result["layers"][name]["crossed"] == expected.stats.crossed > 0
    assert torch.equal(out["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


def test_several_adapters_are_merged_one_after_the_other(tmp_path, pair):
    base, adapter, _ = pair
    second = made.write_adapter(tmp_path / "second", made.model(), seed=8, target_modules=["down_proj", "up_proj"])
    given = {"format": "safetensors", "spec": "rtn-int8-row"}
    result = quantize_checkpoint(base, tmp_path / "out", adapter=[adapter, second], **given)
    name, spec = "model.layers.0.mlp.down_proj", QuantSpec(bits=8, group_size=-1)
    weight = load_folder(base)[f"{name}.weight"]
    between = merge_quantize_ref(weight, *factors(adapter, name), 2.0, spec, merged=True).merged
    after = merge_quantize_ref(between, *factors(second, name), 2.0, spec, merged=True).merged
    expected = merge_quantize_ref(weight, spec=spec, new_weight=after)
    assert torch.equal(load_folder(tmp_path / "out")[f"{name}.weight"], expected.dequantized(torch.bfloat16))
    assert result["layers"][name]["crossed"] == expected.stats.crossed
    assert result["layers"]["model.layers.0.mlp.up_proj"]["moved"] > 0
    assert (tmp_path / "out" / "README.md").read_text().count("adapter_model.safetensors SHA-256") == 2


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_types_are_kept_and_loaded(tmp_path, dtype):
    wide = getattr(torch, dtype)
    base = made.write(tmp_path / "base", dtype=wide)
    weights = made.write(tmp_path / "weights", dtype=torch.bfloat16, change=made.nudged(0.2))
    quantize_checkpoint(base, tmp_path / "out", weights=weights, spec="rtn-int4-g32", dtype=dtype)
    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    logits(loaded)  # unpacks
    name = "model.layers.1.self_attn.k_proj"
    before, after = (load_folder(folder)[f"{name}.weight"].float() for folder in (base, weights))
    expected = merge_quantize_ref(before, spec=QuantSpec(group_size=32, scale_dtype=dtype), new_weight=after)
    assert loaded.get_submodule(name).weight.dtype == wide
    assert torch.equal(loaded.get_submodule(name).weight, expected.dequantized(wide))


@pytest.fixture(scope="module")
def with_tokenizer(tmp_path_factory):
    """A Llama with grouped heads and a tokenizer whose merges follow from scores, as SentencePiece's do."""
    folder = tmp_path_factory.mktemp("tokenized") / "base"
    write_checkpoint(folder, "llama", ["the wolf and the winter, a café", "wolves in winter"] * 4)
    config = json.loads((folder / "config.json").read_text())
    config["num_key_value_heads"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name in tensors:
            if name.endswith(("k_proj.weight", "v_proj.weight")):
                tensors[name] = tensors[name][:64].clone()
        save_file(tensors, file, {"format": "pt"})
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def test_gguf_of_a_byte_level_tokenizer_reads_as_it_did(tmp_path):
    base = made.write(tmp_path / "base", change=lambda model: model.resize_token_embeddings(320))
    split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    before = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    here = byte_level(base, before)
    quantize_checkpoint(base, tmp_path / "out", format="gguf", spec="Q8_0")
    there = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    text = "The wolf's 1984 winters,\n  the end… café <|end|>"
    assert there(text)["input_ids"] == here(text)["input_ids"]
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    assert reader.get_field("tokenizer.ggml.pre").contents() == "llama-bpe"
    assert len(reader.get_field("tokenizer.ggml.tokens").contents()) == 320


def test_gguf_of_llama_3_says_how_its_frequencies_are_divided(tmp_path, with_tokenizer):
    base = shutil.copytree(with_tokenizer, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["rope_parameters"] = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    quantize_checkpoint(base, tmp_path / "out", format="gguf", spec="Q8_0", part_bytes=40_000)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    factors = tensors["rope_freqs.weight"].data
    assert factors.shape == (16,)
    assert factors[-1] == 4
    quantize_checkpoint(with_tokenizer, tmp_path / "plain", format="gguf", spec="Q8_0")
    plain = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "plain" / "model.gguf").tensors}
    assert set(tensors) == {"rope_freqs.weight", *plain}
    assert all(np.array_equal(tensors[name].data, plain[name].data) for name in plain)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_gguf_is_read_by_its_own_reader_and_by_transformers(tmp_path, with_tokenizer, kind):
    quantize_checkpoint(with_tokenizer, tmp_path / "out", format="gguf", spec=kind, part_bytes=40_000)
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    weights = load_folder(with_tokenizer)
    number = gguf.GGMLQuantizationType[kind]
    for ours, theirs in (("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v")):
        weight = weights[f"model.layers.1.{ours}.weight"].float().numpy()
        tensor = stored[f"blk.1.{theirs}.weight"]
        assert tensor.tensor_type == number
        assert np.array_equal(tensor.data, gguf.quants.quantize(weight, number))
    assert stored["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert stored["token_embd.weight"].tensor_type == gguf.GGMLQuantizationType.BF16

    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    expected = AutoModelForCausalLM.from_pretrained(with_tokenizer, dtype=torch.float32)
    with torch.no_grad():
        for layer in linear_layers(expected).values():
            packed = gguf.quants.quantize(layer.weight.numpy(), number)
            layer.weight.copy_(torch.from_numpy(gguf.quants.dequantize(packed, number)))
    assert torch.equal(logits(loaded), logits(expected))
    assert loaded.config.num_key_value_heads == 2

    text = "the winter and the wolves, café 7"
    here, there = (
        AutoTokenizer.from_pretrained(with_tokenizer),
        AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf"),
    )
    assert there(text)["input_ids"] == here(text)["input_ids"]
    assert "chat_template.jinja" in contents(tmp_path / "out")
    assert reader.get_field("tokenizer.chat_template").contents() == "{{ messages }}"


@pytest.mark.parametrize("format", ["compressed-tensors", "gguf"])
def test_what_was_interrupted_is_taken_up_to_the_same_bytes(tmp_path, pair, with_tokenizer, monkeypatch, format):
    base = with_tokenizer if format == "gguf" else pair[0]
    given = {"format": format, "spec": "Q8_0" if format == "gguf" else "rtn-int8-row", "part_bytes": 60_000}
    quantize_checkpoint(base, tmp_path / "whole", **given)
    finish = ship.Place.finish

    def interrupt(self, at, *rest):
        finish(self, at, *rest)
        if at == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ship.Place, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quantize_checkpoint(base, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
    grown = tmp_path / ".out.unfinished" / "checkpoint"
    name = "model.gguf" if format == "gguf" else sorted(path.name for path in grown.iterdir())[0]
    with open(grown / name, "r+b") as file:  # the first part is damaged meanwhile: it is made again
        file.seek(100)
        file.write(b"\1\2\3\4")
    assert quantize_checkpoint(base, tmp_path / "out", **given)["resumed"] == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_part_that_reads_back_otherwise_is_refused(tmp_path, pair, monkeypatch):
    close = ship.PartWriter.close

    def fail_silently(self):
        sha256 = close(self)
        with open(self.file.name, "r+b") as file:
            file.seek(self.part.stop - 1)
            file.write(b"\xff")
        return sha256

    monkeypatch.setattr(ship.PartWriter, "close", fail_silently)
    with pytest.raises(ValueError, match=r"safetensors reads back otherwise than it was written"):
        quantize_checkpoint(pair[0], tmp_path / "out", **SMALL)
    assert nothing_left(tmp_path)


def interrupted(monkeypatch, base, out, **given):
    """Quantize until all parts are written, and be stopped there."""

    def interrupt(*rest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ship, "write_beside", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quantize_checkpoint(base, out, **given)


def test_another_command_does_not_take_up_the_parts(tmp_path, pair, monkeypatch):
    base, adapter, _ = pair
    interrupted(monkeypatch, base, tmp_path / "out", **SMALL)
    assert quantize_checkpoint(base, tmp_path / "out", adapter=adapter, **SMALL)["resumed"] == 0
    quantize_checkpoint(base, tmp_path / "whole", adapter=adapter, **SMALL)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def killed(tmp_path, pair, format, kills, seed):
    base, adapter, _ = pair
    before = {path: path.stat().st_mtime_ns for folder in (base, adapter) for path in folder.iterdir()}
    command = [
        sys.executable,
        Path(__file__).with_name("killed.py"),
        format,
        str(kills),
        str(seed),
        base,
        adapter,
        tmp_path,
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    return int(done.stdout.split()[-1])


def test_killed_at_random_points(tmp_path, pair):
    killed(tmp_path, pair, "compressed-tensors", 3, seed=0)


@pytest.mark.nightly
@pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="minutes: make nightly")
def test_killed_at_fifty_random_points(tmp_path, pair):
    killed(tmp_path, pair, "compressed-tensors", 50, seed=1)


def nothing_left(folder: Path) -> bool:
    return not any(path.name.startswith((".out", "out")) for path in folder.iterdir())


@pytest.mark.parametrize("room", [3_000, 30_000])
def test_a_full_disk_leaves_nothing(tmp_path, pair, room):
    with full_disk(room), pytest.raises(ValueError, match=r"out could not be written \(File too large\): nothing"):
        quantize_checkpoint(pair[0], tmp_path / "out", **SMALL | {"part_bytes": 1 << 20})
    assert nothing_left(tmp_path)


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, pair, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(ValueError, match=r"needs \d+\.?\d* KB more, and .* has 1\.00 KB"):
        quantize_checkpoint(pair[0], tmp_path / "out", **SMALL)
    assert nothing_left(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, pair):
    base = pair[0]
    with pytest.raises(ValueError, match=r"/proc/out cannot be made"):  # read-only even for root
        quantize_checkpoint(base, "/proc/out", **SMALL)
    with pytest.raises(ValueError, match="is no folder: make it"):
        quantize_checkpoint(base, tmp_path / "no" / "out", **SMALL)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(ValueError, match="is not empty"):
        quantize_checkpoint(base, tmp_path / "out", **SMALL)
    assert (tmp_path / "out" / "mine").read_text() == "kept"
    with pytest.raises(ValueError, match="is a file"):
        quantize_checkpoint(base, tmp_path / "out" / "mine", **SMALL)
    with pytest.raises(ValueError, match="never written to"):
        quantize_checkpoint(base, base / "out", **SMALL)
    with pytest.raises(ValueError, match="never written to"):
        quantize_checkpoint(base, base, **SMALL)


def test_an_empty_folder_is_taken_and_a_stranger_s_is_not(tmp_path, pair):
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.unfinished").mkdir()
    (tmp_path / ".out.unfinished" / "thesis.txt").write_text("kept")
    with pytest.raises(ValueError, match=r"holds thesis\.txt, which is not of this command"):
        quantize_checkpoint(pair[0], tmp_path / "out", **SMALL)
    (tmp_path / ".out.unfinished" / "thesis.txt").unlink()
    quantize_checkpoint(pair[0], tmp_path / "out", **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_an_earlier_process_left_damaged_is_made_again(tmp_path, pair):
    for name, content in (("list", "[1]"), ("cut", '{"job": '), ("other", '{"job": "x", "parts": {"99": 1}}')):
        hidden = tmp_path / f".{name}.unfinished"
        hidden.mkdir()
        (hidden / "progress.json").write_text(content)
        assert quantize_checkpoint(pair[0], tmp_path / name, **SMALL)["resumed"] == 0
        assert not hidden.exists()


def test_a_link_in_place_of_the_hidden_folder_is_not_followed(tmp_path, pair):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.unfinished").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"\.out\.unfinished is a link"):
        quantize_checkpoint(pair[0], tmp_path / "out", **SMALL)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (tmp_path / ".out.unfinished").is_symlink()


def test_what_comes_beside_the_weights_is_looked_at_before_they_are_read(tmp_path, pair, monkeypatch):
    monkeypatch.setattr(ship, "write_parts", lambda *_: pytest.fail("the weights were read"))
    for name, content, message in (
        ("certificate.json", "{", "certificate.json beside the weights is no JSON"),
        ("tokenizer.json", None, "tokenizer.json is a link that leaves its folder"),
        ("chat_template.jinja", None, "chat_template.jinja is a link that leaves its folder"),
    ):
        base = shutil.copytree(pair[0], tmp_path / name / "base")
        if content is None:
            (tmp_path / "secret").write_text("{}")
            (base / name).symlink_to(tmp_path / "secret")
        else:
            (base / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            quantize_checkpoint(base, tmp_path / "out", **SMALL)
        assert nothing_left(tmp_path)


def test_two_processes_do_not_write_one_folder(tmp_path, pair, monkeypatch):
    write = ship.write_beside

    def meanwhile(*given):
        with pytest.raises(ValueError, match="another process is writing"):
            quantize_checkpoint(pair[0], tmp_path / "out", **SMALL)
        write(*given)

    monkeypatch.setattr(ship, "write_beside", meanwhile)
    assert quantize_checkpoint(pair[0], tmp_path / "out", **SMALL)["resumed"] == 0


@pytest.mark.parametrize(
    ("name", "where", "message"),
    [
        (
            "model.layers.1.self_attn.o_proj.weight",
            (3, 5),
            r"model\.layers\.1\.self_attn\.o_proj: weight is nan at row 3",
        ),
        ("model.norm.weight", (7,), r"model\.norm\.weight has NaN or Inf"),
        ("lm_head.weight", (0, 1), r"lm_head\.weight has NaN or Inf"),
    ],
)
@pytest.mark.parametrize("format", ["safetensors", "compressed-tensors"])
def test_a_number_that_is_none_is_refused_by_name(tmp_path, name, where, message, format):
    def spoil(model):
        model.get_parameter(name)[where] = float("nan")

    base = made.write(tmp_path / "base", change=spoil)
    before = contents(base)
    with pytest.raises(ValueError, match=message):
        quantize_checkpoint(base, tmp_path / "out", **SMALL | {"format": format})
    assert nothing_left(tmp_path)
    assert contents(base) == before


def test_an_adapter_of_another_base_is_refused_after_all_of_it_was_seen(tmp_path, pair):
    save_adapter(made.adapted(made.model(seed=9)), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"belongs to another base.*trained on weights"):
        quantize_checkpoint(pair[0], tmp_path / "out", adapter=tmp_path / "adapter", **SMALL)
    assert nothing_left(tmp_path)
    right = made.write(tmp_path / "right", seed=9)
    quantize_checkpoint(right, tmp_path / "out", adapter=tmp_path / "adapter", **SMALL)
    other = made.write_adapter(tmp_path / "phi3", made.model("phi3"), target_modules=["qkv_proj"])
    with pytest.raises(ValueError, match="another base"):
        quantize_checkpoint(pair[0], tmp_path / "new", adapter=other, **SMALL)


def test_a_base_that_an_adapter_knows_is_held_against_it_when_resumed_too(tmp_path, monkeypatch):
    base = made.write(tmp_path / "base", seed=9)
    save_adapter(made.adapted(made.model(seed=9)), tmp_path / "adapter")
    given = SMALL | {"adapter": tmp_path / "adapter"}
    interrupted(monkeypatch, base, tmp_path / "out", **given)
    assert quantize_checkpoint(base, tmp_path / "out", **given)["resumed"] > 3


def test_weights_of_another_architecture_are_refused(tmp_path, pair):
    other = made.write(tmp_path / "phi", "phi3")
    with pytest.raises(ValueError, match="not the same architecture"):
        quantize_checkpoint(pair[0], tmp_path / "out", weights=other, **SMALL)
    with pytest.raises(ValueError, match="both an adapter and weights"):
        quantize_checkpoint(pair[0], tmp_path / "out", weights=other, adapter=other, **SMALL)
    with pytest.raises(ValueError, match=r"unknown format 'ggu'.*Did you mean 'gguf'"):
        quantize_checkpoint(pair[0], tmp_path / "out", format="ggu")
    with pytest.raises(ValueError, match="unknown dtype 'bf16'"):
        quantize_checkpoint(pair[0], tmp_path / "out", dtype="bf16")


def test_the_card_says_what_it_was_made_from(tmp_path, pair):
    base, adapter, _ = pair
    adapter = shutil.copytree(adapter, tmp_path / "forgetful")
    (adapter / "certificate.json").write_text(json.dumps({"holds": True, "floor": 0.4, "rows": [1]}))
    (tmp_path / "base").symlink_to(base)
    result = quantize_checkpoint(tmp_path / "base", tmp_path / "out", adapter=adapter, **SMALL)
    card = (tmp_path / "out" / "README.md").read_text()
    sha256 = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    for text in (
        f"`forgetful`, adapter_model.safetensors SHA-256 `{sha256}`",
        "`rtn-int4-g32-sym-2^(N-1)-float32`",
        f"| weights that crossed a bin | {100 * result['total']['crossed'] / result['total']['weights']:.3f} % |",
        f"{result['total']['projection']:.4f}",
        "| `holds` | `True` |",
        "| `floor` | `0.4` |",
    ):
        assert text in card
    assert str(tmp_path) not in card
    assert (tmp_path / "out" / "certificate.json").is_file()
    audit = json.loads((tmp_path / "out" / "quantization_audit.json").read_text())
    assert audit["layers"] == result["layers"]


def test_a_certificate_of_other_weights_is_refused_before_anything_is_written(tmp_path, pair):
    base = shutil.copytree(pair[0], tmp_path / "base")
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in base.glob("*.safetensors")}
    other = {"files": dict.fromkeys(files, "0" * 64)}
    for runs, fits in (({"a": other, "b": {"files": files}}, True), ({"a": other}, False)):
        bound = {"certificate": 1, "outcome": "holds", "bound_to": {"runs": runs}}
        (base / "certificate.json").write_text(json.dumps(bound))
        if fits:
            quantize_checkpoint(base, tmp_path / "out", **SMALL)
            assert "| `outcome` | `holds` |" in (tmp_path / "out" / "README.md").read_text()
            shutil.rmtree(tmp_path / "out")
        else:
            with pytest.raises(ValueError, match=r"certificate\.json is of other weights than those it lies beside"):
                quantize_checkpoint(base, tmp_path / "out", **SMALL)
            assert nothing_left(tmp_path)


def test_what_a_certificate_says_stays_in_its_cell(tmp_path, pair):
    base = shutil.copytree(pair[0], tmp_path / "base")
    (base / "certificate.json").write_text(json.dumps({"statement": "one | two\n\n# Heading"}))
    quantize_checkpoint(base, tmp_path / "out", **SMALL)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `statement` | `one \\| two # Heading` |\n" in card
    assert "\n# Heading" not in card


def test_the_command(tmp_path, pair, capsys):
    base, adapter, weights = map(str, pair)
    out = str(tmp_path / "out")
    given = ["quantize", base, "--adapter", adapter, "--out", out, "--spec", "rtn-int4-g32", "--quiet"]
    assert cli.main([*given, "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["out"] == out
    assert result["grid"] == "rtn-int4-g32-sym-2^(N-1)-bfloat16"
    assert result["total"]["projection"] > 0.5
    assert cli.main(given) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "is not empty" in said.err
    lost = ["quantize", base, "--weights", weights, "--out", f"{out}2", "--format", "safetensors", "--spec"]
    still = made.write(tmp_path / "still", shard="60KB", change=made.nudged(1e-9))  # nothing moves in bf16
    lost[3] = str(still)
    assert cli.main([*lost, "rtn-int2-tensor", "--quiet"]) == 0  # no update, so none that could be lost
    assert "There was no update" in capsys.readouterr().out
    for bad in (
        ["--format", "pickle"],
        ["--shard-size", "1.5"],
        ["--spec", "rtn-int9-g32"],
        ["--spec", "rtn-int4-g32-asym"],
        ["--adapter", base],
    ):
        assert cli.main(["quantize", base, "--out", f"{out}3", *bad, "--quiet"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out3").exists()


def test_an_update_that_is_lost_exits_with_one(tmp_path, capsys):
    made.write(tmp_path / "base")
    with torch.no_grad():
        model = made.model()
        for layer in linear_layers(model).values():  # far below half a 2-bit step, in weights that are not the largest
            small = layer.weight.abs() < layer.weight.abs().amax() / 8
            layer.weight[small] *= 1.5
        with quiet():
            model.save_pretrained(tmp_path / "after")
    given = ["quantize", str(tmp_path / "base"), "--weights", str(tmp_path / "after"), "--out", str(tmp_path / "out")]
    assert cli.main([*given, "--format", "safetensors", "--spec", "rtn-int2-tensor", "--quiet"]) == 1
    assert "does not hold" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").is_file()
