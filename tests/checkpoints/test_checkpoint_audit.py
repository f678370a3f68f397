"""The audit of checkpoints on disk, against the definitions and against models held in memory."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from qru import compress
from qru.checkpoint_audit import (
    DIED,
    HIGHEST,
    LOWEST,
    audit_checkpoint,
    block_of,
    by_module,
    percent,
    plain,
    table,
)
from qru.models import linear_layers, load_weights
from qru.ops import QuantSpec
from qru.ops.grid import dequantize, grid_of, quantize_ref
from qru.peft_adapter import merged, open_adapter
from qru.tensor_file import TensorFile
from tests.checkpoints.made import FAMILIES, LAYERS, model, nudged, write, write_adapter

INT4 = QuantSpec(bits=4, group_size=64)
SPECS = (INT4, QuantSpec(bits=8, group_size=32), QuantSpec(bits=3, group_size=-1, symmetric=False))


def audited(*arguments, **options):
    return audit_checkpoint(*arguments, **{"progress": False, "digests": False} | options)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A sharded base and a fine-tune of it in one file."""
    home = tmp_path_factory.mktemp("pair")
    return write(home / "base", shard="60KB"), write(home / "tuned", change=nudged(0.05))


@pytest.fixture(scope="module")
def result(pair):
    return audited(*pair, SPECS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_an_audit_is_that_of_the_models_in_memory(tmp_path, family, dtypes):
    one = write(tmp_path / "one", family, dtype=dtypes[0], shard="60KB")
    other = write(tmp_path / "other", family, dtype=dtypes[1], change=nudged(0.05))
    expected = compress.audit(load_weights(one), load_weights(other), INT4)
    found = audited(one, other, [INT4])["specs"][INT4.name]
    assert len(found["layers"]) == LAYERS[family]
    assert {"layers": found["layers"], "total": found["total"]} == expected
    assert compress.audit(one, str(other), INT4) == expected
    assert found["total"]["moved"] > 0


def test_counts_are_the_definitions(pair, result):
    before, after = load_weights(pair[0]), load_weights(pair[1])
    for spec in SPECS:
        layers = result["specs"][spec.name]["layers"]
        assert list(layers) == list(linear_layers(before))
        name = "model.layers.1.mlp.down_proj"
        old, new = (side.get_submodule(name).weight.data for side in (before, after))
        codes = [quantize_ref(side, spec) for side in (old, new)]
        delta = (dequantize(*codes[1], spec) - dequantize(*codes[0], spec)).double()
        update = new.double() - old.double()
        counts = layers[name]
        assert counts["moved"] == int((new != old).sum())
        assert counts["changed"] == int((codes[1][0] != codes[0][0]).sum())
        assert counts["steps_moved"] == int((codes[1][1] != codes[0][1]).sum())
        assert counts["projection"] == pytest.approx(float((delta * update).sum() / update.square().sum()), rel=1e-4)
        norm = (delta.square().sum() * update.square().sum()).sqrt()
        assert counts["cosine"] == pytest.approx(float((delta * update).sum() / norm), rel=1e-4)


def test_the_distribution_of_movement_is_counted_by_hand(pair, result):
    """Every row is sampled at this size, so the bins are those of all weights."""
    before, after = load_weights(pair[0]), load_weights(pair[1])
    for spec in SPECS:
        for name, layer in linear_layers(before).items():
            old, new = layer.weight.data, after.get_submodule(name).weight.data
            steps = grid_of(old, spec)[0]
            ratio = ((new.float() - old.float()).abs().view(*steps.shape, -1) / steps[..., None]).flatten()
            found = result["movement"][spec.name][name]
            assert found["sampled"] == old.numel()
            assert found["unmoved"] == int((ratio == 0).sum())
            assert sum(found["bins"]) + found["unmoved"] == found["sampled"]
            for i, count in enumerate(found["bins"]):
                low = 0.0 if i == 0 else 2.0 ** (LOWEST + i)
                high = float("inf") if LOWEST + i == HIGHEST else 2.0 ** (LOWEST + i + 1)
                assert count == int(((ratio > 0) & (ratio >= low) & (ratio < high)).sum()), (name, i)


def test_the_step_of_a_whole_matrix_is_not_that_of_the_sampled_rows(pair, monkeypatch):
    monkeypatch.setattr("qru.checkpoint_audit.SAMPLED", 64 * 4)  # every 16th row of a 64 x 64 matrix
    spec = QuantSpec(bits=4, group_size="tensor")
    name = "model.layers.0.self_attn.q_proj"
    found = audited(*pair, [spec])["movement"][spec.name][name]
    old, new = (load_weights(side).get_submodule(name).weight.data for side in pair)
    ratio = (new.float() - old.float()).abs()[::16] / (old.float().abs().max() / 8)
    assert found["sampled"] == 4 * 64
    assert sum(found["bins"][-LOWEST:]) == int((ratio >= 1).sum())
    assert sum(found["bins"][-LOWEST - 2 :]) == int((ratio >= 0.25).sum())
    assert found["unmoved"] == int((ratio == 0).sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_adapters_are_audited_as_the_models_they_make(tmp_path, dtype):
    base = model(dtype=dtype)
    base.save_pretrained(tmp_path / "base")
    write_adapter(tmp_path / "first", copy.deepcopy(base), seed=3)
    write_adapter(tmp_path / "second", copy.deepcopy(base), seed=4, target_modules=["q_proj", "up_proj"])
    shapes = {name: tuple(layer.weight.shape) for name, layer in linear_layers(base).items()}
    both = [open_adapter(tmp_path / name, shapes) for name in ("first", "second")]
    for folders in (["first"], ["first", "second"]):
        after = copy.deepcopy(base)
        for name, layer in linear_layers(after).items():
            layer.weight.data = merged(layer.weight.data, name, both[: len(folders)])
        after.save_pretrained(tmp_path / "after")
        expected = audited(tmp_path / "base", tmp_path / "after", SPECS)
        rest = [tmp_path / name for name in folders[1:]]
        found = audited(tmp_path / "base", tmp_path / "first", SPECS, rest)
        for spec in SPECS:
            assert found["specs"][spec.name] == expected["specs"][spec.name]
            assert found["movement"][spec.name] == expected["movement"][spec.name]
        assert found["kept"] is None
        assert expected["kept"]["changed"] == {}
        assert found["holds"] == expected["holds"]
    # A checkpoint with an adapter of its own on it.
    found = audited(tmp_path / "base", tmp_path / "base", SPECS, [tmp_path / "first", tmp_path / "second"])
    assert found["specs"] == expected["specs"]


def test_the_base_of_an_adapter_is_checked(tmp_path):
    base = write(tmp_path / "base")
    loaded = load_weights(base)
    folder = write_adapter(tmp_path / "adapter", load_weights(base))
    (folder / "base.json").write_text(json.dumps({"linear_layers_sha256": compress.base_digest(loaded)}))
    assert audited(base, folder, [INT4])["specs"][INT4.name]["total"]["changed"] > 0
    other = write(tmp_path / "other", seed=5)
    with pytest.raises(ValueError, match=r"belongs to another base\. It was trained on weights"):
        audited(other, folder, [INT4])


def test_what_is_not_quantized_is_compared(tmp_path, pair):
    base = pair[0]

    def change(tuned):
        tuned.model.embed_tokens.weight[3, :5] += 1
        tuned.model.norm.weight[0] = 2

    tuned = write(tmp_path / "tuned", change=change)
    found = audited(base, tuned, [INT4])
    kept = found["kept"]
    assert set(kept["changed"]) == {"model.embed_tokens.weight", "model.norm.weight"}
    embedding = kept["changed"]["model.embed_tokens.weight"]
    size = load_weights(base).model.embed_tokens.weight.data.double().norm()
    assert (embedding["values"], embedding["moved"]) == (96 * 64, 5)
    assert embedding["relative"] == pytest.approx(5**0.5 / float(size), rel=0.01)  # bf16 adds almost 1
    assert kept["changed"]["model.norm.weight"]["relative"] == pytest.approx(1 / 8)
    assert kept["same"] == 5, "the head and four norms"
    assert found["specs"][INT4.name]["total"]["moved"] == 0
    assert found["holds"], "the update is where nothing is quantized"
    assert any("None of the" in line for line in found["reading"])
    assert any("changed, too" in line for line in found["reading"])

    tensors = load_file(tuned / "model.safetensors")
    del tensors["lm_head.weight"]
    tensors["model.extra"] = torch.ones(3)
    save_file(tensors, tuned / "model.safetensors")
    kept = audited(base, tuned, [INT4])["kept"]
    assert (kept["only_before"], kept["only_after"]) == (["lm_head.weight"], ["model.extra"])


def test_two_models_are_not_taken_for_one_before_and_after_training(tmp_path, pair, monkeypatch):
    """Every weight crosses between strangers, and all of that "update" survives: the reading must not begin so."""
    stranger = write(tmp_path / "stranger", seed=7)
    old, new = (
        torch.cat([layer.weight.data.flatten() for layer in linear_layers(load_weights(folder)).values()]).double()
        for folder in (pair[0], stranger)
    )
    expected = float((new - old).norm() / old.norm())
    found = audited(pair[0], stranger, [INT4])
    assert expected > 1
    assert found["relative"] == pytest.approx(expected, rel=1e-5)
    assert f"{100 * expected:.0f} % of the base's own size" in found["reading"][0]
    close = audited(pair[0], write(tmp_path / "close", change=nudged(0.005)), [INT4])
    assert 0 < close["relative"] < 0.7
    assert not any("two models" in line for line in close["reading"])

    monkeypatch.setattr("qru.checkpoint_audit.SAMPLED", 64 * 4)  # some rows stand for all
    assert audited(pair[0], stranger, [INT4])["relative"] == pytest.approx(expected, rel=0.1)


def test_tensors_of_one_side_alone_are_in_the_reading(tmp_path):
    base = write(tmp_path / "base")
    other = write(tmp_path / "other", change=nudged(0.005))
    assert not any("one side alone" in line for line in audited(base, other, [INT4])["reading"])
    tensors = load_file(other / "model.safetensors")
    save_file(tensors | {"model.extra": torch.ones(3)}, other / "model.safetensors")
    (line,) = [line for line in audited(base, other, [INT4])["reading"] if "one side alone" in line]
    assert line.startswith("1 tensor that is not quantized stands on")
    longer = {"model.norm.weight": torch.ones(65)}  # on both sides, and in two shapes
    save_file(tensors | longer | {"model.extra": torch.ones(3)}, other / "model.safetensors")
    (line,) = [line for line in audited(base, other, [INT4])["reading"] if "one side alone" in line]
    assert line.startswith("2 tensors that are not quantized stand on")


def test_an_adapter_on_tuned_weights_is_held_against_those(tmp_path):
    """It was trained on what it is merged into, which is not BASE."""
    base, tuned = write(tmp_path / "base"), write(tmp_path / "tuned", change=nudged(0.005))
    folder = write_adapter(tmp_path / "adapter", load_weights(tuned))
    for known, fits in ((tuned, True), (base, False)):
        digest = compress.base_digest(load_weights(known))
        (folder / "base.json").write_text(json.dumps({"linear_layers_sha256": digest}))
        if fits:
            assert audited(base, tuned, [INT4], [folder])["specs"][INT4.name]["total"]["changed"] > 0
        else:
            with pytest.raises(ValueError, match="belongs to another base"):
                audited(base, tuned, [INT4], [folder])


def test_a_model_against_itself_has_no_update_to_hold(pair):
    found = audited(pair[0], pair[0], [INT4])
    assert not found["holds"]
    assert found["specs"][INT4.name]["died"] == []
    assert found["specs"][INT4.name]["total"]["projection"] is None


def test_an_update_in_the_zero_bin_dies_and_the_reading_says_so(tmp_path, pair):
    """Only the smallest weights move, and by less than the step: as in the dead zone of bf16 training."""
    base = pair[0]

    def tiny(tuned):
        for layer in linear_layers(tuned).values():
            small = layer.weight.abs() < layer.weight.abs().amax(1, keepdim=True) / 100
            layer.weight[small] *= 1.5

    found = audited(base, write(tmp_path / "tuned", change=tiny), [INT4, SPECS[1]])
    four = found["specs"][INT4.name]
    assert four["total"]["moved"] > 0
    assert four["total"]["changed"] == 0
    assert four["total"]["projection"] == 0.0
    assert four["died"] == list(four["layers"])
    assert not found["holds"]
    text = " ".join(found["reading"])
    assert "Of the update to these 14 layers 0.00 % survives int4 g64 (projection 0.000, cosine –)" in text
    assert "(projection 0.000, cosine –): it does not hold." in text
    assert "the update died in 14 of 14 layers: model.layers.0.self_attn.q_proj" in text
    moved = four["total"]["moved"] / four["total"]["weights"]
    assert f"{percent(1 - moved)} of the weights did not move at all, as in training that steps bf16 weights" in text


def test_the_verdict_is_over_every_grid(result):
    for audited_spec in result["specs"].values():
        assert audited_spec["holds"] == (audited_spec["total"]["projection"] >= 0.5)
        died = [name for name, counts in audited_spec["layers"].items() if counts["projection"] < DIED]
        assert audited_spec["died"] == died
    assert result["holds"] == all(one["holds"] for one in result["specs"].values())


def test_sums_by_module_and_the_table(result):
    layers = result["specs"][INT4.name]["layers"]
    modules = by_module(layers)
    attention, mlp = (
        [f"self_attn.{part}_proj" for part in "qkvo"],
        [f"mlp.{part}_proj" for part in ("gate", "up", "down")],
    )
    assert list(modules) == attention + mlp
    for module, counts in modules.items():
        assert counts["crossed"] == sum(row["crossed"] for name, row in layers.items() if name.endswith(module))
    rows = table(result)
    assert len(rows) == len(SPECS) * 14
    assert rows[0] | layers[rows[0]["layer"]] == rows[0] | {"histogram": layers[rows[0]["layer"]]["histogram"]}
    assert block_of("model.layers.31.mlp.up_proj") == (31, "mlp.up_proj")
    assert {row["block"] for row in rows} == {0, 1}


def test_a_result_is_json_and_names_its_files(pair):
    found = audited(*pair, [INT4], digests=True)
    json.dumps(found, allow_nan=False)
    names = {entry["path"] for entry in found["files"]}
    assert names == {str(path) for folder in pair for path in folder.iterdir() if "generation" not in path.name}
    for entry in found["files"]:
        with open(entry["path"], "rb") as file:
            content = file.read()
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert found["dtypes"] == {"bfloat16": found["specs"][INT4.name]["total"]["weights"]}


def test_inputs_are_never_touched(pair):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for folder in pair for path in folder.iterdir()}
    audited(*pair, SPECS)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for folder in pair for path in folder.iterdir()}
    assert before == after


def refused(named: str, *arguments, **options) -> None:
    with pytest.raises(ValueError, match=named):
        audited(*arguments, **options)


def test_two_architectures_are_refused(tmp_path, pair):
    refused(r"layer model\.layers\.0.* in .*not the same architecture", pair[1], write(tmp_path / "phi3", "phi3"))


def test_grids_that_do_not_divide_are_refused_before_anything_is_read(tmp_path, pair):
    refused(r"q_proj.*group_size 48 does not divide a row of 64", *pair, [QuantSpec(group_size=48)])
    refused("give at least one QuantSpec", *pair, [])
    refused("UNLEARNED .* is no folder", pair[0], tmp_path / "nowhere")
    refused(r"BASE .*adapter", write_adapter(tmp_path / "adapter", model()), pair[1])


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_nan_names_the_tensor(tmp_path, pair, name):
    folder = shutil.copytree(pair[1], tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[7] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    refused(name.removesuffix(".weight").replace(".", r"\."), pair[0], folder, [INT4])


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0, "0.00 %"), (1e-9, "under 0.01 %"), (0.0042, "0.42 %"), (0.034, "3.4 %"), (0.87, "87 %"),
        (0.99999, "99.99 %"), (1, "100 %"), (-0.3, "-30 %"),
    ],
)  # fmt: skip
def test_shares_in_words(share, expected):
    assert percent(share) == expected


def test_a_grids_name_in_words():
    assert plain("rtn-int4-g128") == "int4 g128"
    assert plain("rtn-int4-row-asym") == "int4 row-asym"


def test_a_step_holds_one_tensor_a_side_and_lets_go_of_it(pair, monkeypatch):
    alive, most, read = [], [], TensorFile.read

    def watched(self, name):
        tensor = read(self, name)
        alive.append(weakref.ref(tensor))
        most.append(sum(one() is not None for one in alive))
        return tensor

    monkeypatch.setattr(TensorFile, "read", watched)
    audited(*pair, SPECS)
    assert len(most) == 2 * (14 + 7)
    assert max(most) == 2
