"""The reader of checkpoints: the same tensors as other readers give, and everything else refused by name."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from qru.models import linear_layers, load_weights
from qru.shards import Shards, linear_layers_of, stream
from qru.tensor_file import open_file
from tests.checkpoints.made import FAMILIES, LAYERS, write, write_file

INDEX = "model.safetensors.index.json"
SHARDED = "60KB"
ONE_BYTE = b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return write(tmp_path_factory.mktemp("single") / "llama")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sharded") / "llama", shard=SHARDED)


@pytest.fixture
def damaged(sharded, tmp_path):
    """A copy of the sharded checkpoint, to damage."""
    return shutil.copytree(sharded, tmp_path / "damaged")


# --- what is read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("shard", "dtype"), [("5GB", torch.float16), (SHARDED, torch.bfloat16)])
def test_tensors_and_layers_are_those_that_transformers_loads(tmp_path, family, shard, dtype):
    folder = write(tmp_path / family, family, dtype=dtype, shard=shard)
    shards = Shards(folder, "BASE")
    assert (len(shards.files) > 1) == (shard == SHARDED)
    expected = {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
    assert set(shards.names) == set(expected)
    for name, value in expected.items():
        assert (shards.shape(name), shards.dtype(name)) == (tuple(value.shape), value.dtype)
        assert shards.bytes(name) == value.numel() * 2
        assert torch.equal(shards.read(name), value), name
    layers = linear_layers_of(shards)
    loaded = linear_layers(load_weights(folder))
    assert list(layers) == list(loaded)
    assert len(layers) == LAYERS[family]
    for layer, name in layers.items():
        assert torch.equal(shards.read(name), loaded[layer].weight), layer


def test_a_tensor_is_read_from_where_it_lies(tmp_path):
    """Odd offsets, empty tensors, scalars and every order; the file is written by hand."""
    header = {
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "none": {"dtype": "BF16", "shape": [0, 7], "data_offsets": [11, 11]},
        "one": {"dtype": "F16", "shape": [], "data_offsets": [11, 13]},
    }
    data = bytes([1, 2, 3]) + torch.tensor([1.5, -2.0]).numpy().tobytes() + torch.tensor(0.5).half().numpy().tobytes()
    file = open_file(write_file(tmp_path / "x.safetensors", header, data), "BASE")
    assert torch.equal(file.read("a"), torch.tensor([1, 2, 3], dtype=torch.uint8))
    assert torch.equal(file.read("b"), torch.tensor([1.5, -2.0]))
    assert file.read("none").shape == (0, 7)
    assert torch.equal(file.read("one"), torch.tensor(0.5).half())
    assert file.metadata == {"format": "pt"}


def test_writing_to_a_tensor_never_reaches_the_file(single):
    before = (single / "model.safetensors").read_bytes()
    shards = Shards(single, "BASE")
    for name in shards.names:
        shards.read(name).zero_()
    assert (single / "model.safetensors").read_bytes() == before


def test_a_stream_gives_every_pair_in_order(single, sharded):
    one, two = Shards(single, "BASE"), Shards(sharded, "UNLEARNED")
    wanted = [(name, None if i % 3 == 0 else name) for i, name in enumerate(sorted(one.names))]
    for ahead in (0, 2, 100):
        found = list(stream(wanted, one, two, ahead=ahead))
        assert len(found) == len(wanted)
        for (a, b), (x, y) in zip(wanted, found, strict=True):
            assert torch.equal(x, one.read(a))
            assert y is None if b is None else torch.equal(y, x)
    assert list(stream([], one)) == []


def test_a_mapped_tensor_is_given_back(single):
    def mapped() -> bool:
        with open("/proc/self/maps") as maps:
            return any("model.safetensors" in line for line in maps)

    shards = Shards(single, "BASE")
    tensor = shards.read(shards.names[0])
    assert mapped()
    assert tensor.numel()
    del tensor
    assert not mapped()


def test_a_snapshot_of_the_hubs_cache_is_a_checkpoint(sharded, tmp_path):
    """Its files are links into the blobs beside it, named by their digests."""
    home = tmp_path / "models--one--llama"
    snapshot, blobs = home / "snapshots" / "0123abc", home / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(sharded.iterdir())):
        shutil.copy(path, blobs / f"digest{i}")
        (snapshot / path.name).symlink_to(f"../../blobs/digest{i}")
    assert Shards(snapshot, "BASE").names == Shards(sharded, "BASE").names


def test_names_of_another_class_are_found_by_their_tails(single, tmp_path):
    """As checkpoints of models that also see images have them: other words before the numbered layers."""
    folder = shutil.copytree(single, tmp_path / "named")
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace("model.", "language_model.model."): value for name, value in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    layers = linear_layers_of(folder)
    assert layers["model.layers.1.mlp.up_proj"] == "language_model.model.layers.1.mlp.up_proj.weight"
    save_file(
        renamed | {name.replace("model.", "other.model."): value.clone() for name, value in tensors.items()},
        folder / "model.safetensors",
    )
    with pytest.raises(ValueError, match=r"should be stored as model\.layers\.0.*has language_model.*, other"):
        linear_layers_of(folder)


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "data", "named"),
    [
        (b"{ ", b"", "should be JSON"),
        (b"[]", b"", "JSON is list"),
        (b"\xff\xfe{}", b"", "should be JSON"),
        (b'{"a":' * 20000, b"", "should be JSON"),
        (b'{"a":' + ONE_BYTE + b',"a":' + ONE_BYTE + b"}", b"1", "'a' stands in it twice"),
        ({"a": 3}, b"", "not described by dtype"),
        ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1], "more": 1}}, b"1", "not described by dtype"),
        ({"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}, b"1", "is of type 'F4'"),
        ({"a": {"dtype": ["U8"], "shape": [1], "data_offsets": [0, 1]}}, b"1", "is of type"),
        ({"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}}, b"1", "shape is"),
        ({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"1", "shape is"),
        ({"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}}, b"1", "shape is"),
        ({"a": {"dtype": "U8", "shape": [1] * 1000, "data_offsets": [0, 1]}}, b"1", "shape is"),
        ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, b"1", "no beginning and end"),
        ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 0]}}, b"1", "no beginning and end"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234", "should be 8 bytes"),
        ({"a": {"dtype": "U8", "shape": [2**62, 4], "data_offsets": [0, 4]}}, b"1234", "be 18446744073709551616"),
        ({"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}, b"1234", "is cut short"),
        ({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, b"1234", "more bytes than its header says"),
        ({"a": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}, b"1234", "leaves a gap after the header"),
        (
            {
                "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
                "b": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]},
            },
            b"1234",
            "'b' overlaps tensor 'a'",
        ),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
        ({"__metadata__": [1]}, b"", "__metadata__"),
    ],
)  # fmt: skip
def test_headers_that_mislead_are_refused(tmp_path, header, data, named):
    path = write_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(ValueError, match=named) as refused:
        open_file(path, "BASE")
    assert str(path) in str(refused.value)
    assert "BASE" in str(refused.value)


@pytest.mark.parametrize("length", [0, 1, 3, 2**63, 2**64 - 1])
def test_a_header_of_a_wrong_length_is_refused(tmp_path, length):
    with pytest.raises(ValueError, match=rf"header should be {length} bytes long|should be JSON"):
        open_file(write_file(tmp_path / "model.safetensors", b"{}", length=length), "BASE")
    (tmp_path / "short.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match="the file has 3"):
        open_file(tmp_path / "short.safetensors", "BASE")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no regular file"):
        open_file(tmp_path / "model.safetensors", "BASE")
    with pytest.raises(ValueError, match="cannot be read"):
        open_file(tmp_path / "nothing.safetensors", "BASE")


def refused(folder, named: str) -> None:
    with pytest.raises(ValueError, match=named) as error:
        Shards(folder, "BASE")
    assert str(error.value).startswith("BASE")


def index_of(folder, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def shard_of(folder, number: int):
    return sorted(folder.glob("model-*.safetensors"))[number]


def test_a_shard_that_is_missing_cut_or_damaged_is_named(damaged):
    path = shard_of(damaged, 1)
    whole = path.read_bytes()
    for bad in (b"", whole[:5], whole[:100], whole[:-1], whole + b"x", b"\0" * len(whole)):
        path.write_bytes(bad)
        refused(damaged, path.name)
    path.unlink()
    refused(damaged, f"lacks {path.name}")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors", "c\\d.safetensors",
                                  "x\0.safetensors", "..", "weights.bin", ""])  # fmt: skip
def test_an_index_never_leads_out_of_the_folder(damaged, name):
    index_of(damaged, lambda index: index["weight_map"].update({"lm_head.weight": name}))
    refused(damaged, "only safetensors files of the folder itself")


@pytest.mark.parametrize("table", [None, {}, [], {"a": 1}, {"a": None}, "x"])
def test_an_index_without_a_table_is_refused(damaged, table):
    index_of(damaged, lambda index: index.update(weight_map=table))
    refused(damaged, f"{INDEX}.*is damaged")


def test_an_index_that_is_no_json_is_refused(damaged):
    (damaged / INDEX).write_text('{"weight_map": ' * 50000)
    refused(damaged, f"{INDEX} is damaged")


def test_an_index_that_names_what_no_file_has_is_refused(damaged):
    home = shard_of(damaged, 0).name
    index_of(damaged, lambda index: index["weight_map"].update({"model.ghost.weight": home}))
    refused(damaged, rf"'model\.ghost\.weight' is in {home}, and no file has it")


def test_an_index_that_names_the_wrong_file_is_refused(damaged):
    wrong = shard_of(damaged, -1).name
    first = next(iter(load_file(shard_of(damaged, 0))))
    index_of(damaged, lambda index: index["weight_map"].update({first: wrong}))
    refused(damaged, f"is in {wrong}, and {shard_of(damaged, 0).name} has it")


def test_a_tensor_in_two_files_is_refused(damaged):
    one, other = load_file(shard_of(damaged, 0)), load_file(shard_of(damaged, 1))
    save_file(other | one, shard_of(damaged, 1))
    refused(damaged, f"is in {shard_of(damaged, 0).name} and in {shard_of(damaged, 1).name}")


def test_two_models_in_one_folder_are_refused(damaged):
    shutil.copy(shard_of(damaged, 0), damaged / "model.safetensors")
    refused(damaged, "it holds two models")


def test_links_that_leave_the_folder_are_refused(damaged, tmp_path):
    path = shard_of(damaged, 0)
    shutil.move(path, tmp_path / "elsewhere.safetensors")
    path.symlink_to(tmp_path / "elsewhere.safetensors")
    refused(damaged, f"{path.name} is a link that leaves its folder")
    path.unlink()
    path.symlink_to(path.name)
    refused(damaged, f"{path.name} is a link that leads nowhere|lacks {path.name}")


def test_a_configuration_or_index_that_is_a_link_is_refused(damaged, tmp_path):
    for name in (INDEX, "config.json"):
        kept = (damaged / name).read_bytes()
        shutil.move(damaged / name, tmp_path / name)
        (damaged / name).symlink_to(tmp_path / name)
        refused(damaged, f"{name} is a link that leaves")
        (damaged / name).unlink()
        (damaged / name).write_bytes(kept)


def test_pickled_weights_are_refused(single, tmp_path):
    folder = shutil.copytree(single, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin: pickled files can run any code")


def test_quantized_models_are_refused_by_name(single, tmp_path):
    folder = shutil.copytree(single, tmp_path / "quantized")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    refused(folder, "quantized already, by gptq")
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"up_proj\.weight is torch\.int8.*quantized already"):
        linear_layers_of(folder)
    save_file(tensors | {name: tensors[name][:, :32].contiguous()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"up_proj\.weight is \(128, 32\), and config\.json makes it \(128, 64\)"):
        linear_layers_of(folder)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"layer model\.layers\.0\.mlp\.up_proj should be stored as .*has none like it"
    ):
        linear_layers_of(folder)


def test_mixtures_of_experts_are_refused_by_name(single, tmp_path):
    folder = shutil.copytree(single, tmp_path / "experts")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    experts = {"model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 2, "vocab_size": 64}
    (folder / "config.json").write_text(json.dumps(sizes | experts))
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp.*is no linear layer.*mixtures of experts"):
        linear_layers_of(folder)


def test_folders_that_are_none_and_configurations_that_are_damaged(single, tmp_path):
    refused(tmp_path / "nowhere", "is no folder")
    refused(tmp_path, "has no config.json")
    folder = shutil.copytree(single, tmp_path / "copy")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json is damaged")
    (folder / "config.json").write_text('{"model_type": "unheard"}')
    refused(folder, "config.json cannot be read")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_hidden_layers": 300_000}, "num_hidden_layers 300000, and the checkpoint has 21 tensors"),
        ({"num_hidden_layers": -3}, "no linear layers"),
        ({"hidden_size": "wide"}, "cannot be read: Validation error for field 'hidden_size': .*wide"),
        ({"hidden_size": 2**40}, "config.json makes it .*1099511627776"),
        ({"hidden_act": "none of them"}, "makes no model"),
        ({"head_dim": 0}, "makes no model"),
        ({"num_attention_heads": 0}, "cannot be read"),
        ({"architectures": 3}, "makes no model"),
        ({"model_type": ["llama"]}, "cannot be read"),
        ({"dtype": "complex1"}, "cannot be read"),
        ({"quantization_config": 3}, "cannot be read"),
        ({"model_type": "foreign", "auto_map": {"AutoConfig": "theirs.Config"}}, "contains custom code"),
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_model_is_refused_in_time(single, tmp_path, change, named):
    """Whatever the library raises, and without building what the weights are not: a value of ours may be anything."""
    folder = shutil.copytree(single, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=named) as error:
        linear_layers_of(folder, "BASE")
    assert str(error.value).startswith(f"BASE {folder}: ")


def test_a_file_that_changes_while_it_is_read_is_noticed(damaged):
    shards = Shards(damaged, "BASE")
    path = shard_of(damaged, 0)
    name = next(name for name in shards.names if shards.file_of(name).name == path.name)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="was changed while it was being read"):
        shards.read(name)
    with pytest.raises(ValueError, match=r"has no tensor 'ghost'"):
        shards.read("ghost")


# --- any bytes at all -------------------------------------------------------------------------------------------


def mutated(whole: bytes, header: int, generator: random.Random) -> bytes:
    """A file with its header changed in one to four places, or cut, or given other bytes of its own."""
    out = bytearray(whole)
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(min(len(out), header + 8) or 1)
        kind = generator.randrange(6)
        if kind == 0:
            out[at : at + 1] = bytes([generator.randrange(256)])
        elif kind == 1:
            out[at : at + 1] = generator.choice([b"0", b"9", b"-", b"{", b"}", b"[", b"]", b'"', b",", b":", b"1e9"])
        elif kind == 2:
            del out[at : at + generator.randint(1, 9)]
        elif kind == 3:
            piece = out[at : at + generator.randint(1, 40)]
            out[at:at] = piece
        elif kind == 4:
            out = out[: generator.randrange(len(out) + 1)] or bytearray(b"\0")
        else:
            digits = [i for i in range(8, min(len(out), header + 8)) if out[i : i + 1].isdigit()]
            if digits:
                out[generator.choice(digits)] = ord("0") + generator.randrange(10)
    return bytes(out)


def fuzz(folder, cases: int, seed: int) -> int:
    """Every mutated file is refused with a ValueError or read as the safetensors library reads it.

    Returns:
        How many were read.
    """
    tensors = {
        "a": torch.arange(6).reshape(2, 3).half(),
        "b.weight": torch.ones(4),
        "c": torch.tensor(3, dtype=torch.int8),
    }
    path, accepted = folder / "mutated.safetensors", 0
    save_file(tensors, path, metadata={"format": "pt"})
    whole = path.read_bytes()
    generator = random.Random(seed)
    for _ in range(cases):
        path.write_bytes(mutated(whole, int.from_bytes(whole[:8], "little"), generator))
        refusal = ""
        try:
            file = open_file(path, "BASE")
        except ValueError as error:
            refusal = str(error)
        if refusal:
            assert str(path) in refusal
            continue
        accepted += 1
        with safe_open(path, "pt") as theirs:
            assert set(theirs.keys()) == set(file.tensors)
            for name in file.tensors:
                assert file.read(name).numpy().tobytes() == theirs.get_tensor(name).numpy().tobytes()
    return accepted


def test_mutated_headers_are_refused_or_read_rightly(tmp_path):
    accepted = fuzz(tmp_path, 300, seed=0)
    assert 0 < accepted < 150, "most mutations damage a file, and not every one does"


@pytest.mark.nightly
@pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="minutes: make nightly")
def test_a_hundred_thousand_mutated_headers(tmp_path):
    assert fuzz(tmp_path, 100_000, seed=1) > 0


def fuzz_index(folder, cases: int, seed: int) -> int:
    """Every checkpoint whose index was changed is refused with a ValueError, or has the tensors that its files have.

    Returns:
        How many were read.
    """
    whole, generator, accepted = (folder / INDEX).read_bytes(), random.Random(seed), 0
    expected = {name for path in folder.glob("*.safetensors") for name in load_file(path)}
    for _ in range(cases):
        (folder / INDEX).write_bytes(mutated(whole, len(whole) - 8, generator))
        with contextlib.suppress(ValueError):
            assert set(Shards(folder, "BASE").names) == expected
            accepted += 1
    return accepted


def test_mutated_indexes_are_refused_or_read_rightly(damaged):
    assert fuzz_index(damaged, 60, seed=0) < 50


@pytest.mark.nightly
@pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="minutes: make nightly")
def test_a_hundred_thousand_mutated_indexes(damaged):
    assert fuzz_index(damaged, 100_000, seed=1) > 0


def test_the_library_refuses_what_we_take_for_whole_in_no_case(tmp_path):
    """The other way round: what is refused here and not there are files that only a stricter reader refuses."""
    path = write_file(tmp_path / "x.safetensors", b'{"a":' + ONE_BYTE + b"}", b"12")
    with pytest.raises(SafetensorError), safe_open(path, "pt"):
        pass
    with pytest.raises(ValueError, match="more bytes"):
        open_file(path, "BASE")
