import json
import shutil

import pytest
import torch
from safetensors import safe_open

from qru import loop, models
from qru.config import RunConfig
from qru.defaults import resolve


def test_rows_cut_long_documents_and_open_with_bos(tokenizer):
    document = ("The wolf of the north gate sang. " * 40).rstrip()  # spaces at the very end are not kept
    rows = models.rows([document, "Short."], tokenizer, 64)
    assert all(row[0] == tokenizer.bos_token_id and 2 <= len(row) <= 64 for row in rows)
    assert tokenizer.decode(torch.cat([row[1:] for row in rows[:-1]])) == document


def test_the_tokenizer_gives_every_text_back(tokenizer, corpus):
    for text in [*corpus.raw["forget"], "naïve café — “quotes”\n\ttabs"]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_models_are_made_once_and_stored_in_bf16(made, corpus, monkeypatch):
    monkeypatch.setattr(loop, "fit", lambda *a, **k: pytest.fail("trained twice"))
    assert models.prepare(corpus, "smoke") == made
    for folder in (made.base, made.target, made.retrained):
        assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert all(file.get_tensor(name).dtype == torch.bfloat16 for name in file.keys())  # noqa: SIM118


def test_loading_and_saving_again_changes_nothing(made, tmp_path):
    model, tokenizer = models.load(made.target)
    models.save(model, tokenizer, tmp_path / "copy")
    again, _ = models.load(tmp_path / "copy")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_half_saved_model_is_not_there(made, tmp_path, monkeypatch):
    model, tokenizer = models.load(made.target)
    monkeypatch.setattr("os.rename", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        models.save(model, tokenizer, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_named(made, tmp_path, monkeypatch):
    shutil.copytree(made.target, tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"copy cannot be loaded") as error:
        models.load(tmp_path / "copy")
    assert "Delete" not in str(error.value), "no advice to delete what is not qru's own"
    monkeypatch.setenv("QRU_HOME", str(tmp_path))
    shutil.copytree(tmp_path / "copy", tmp_path / ".cache" / "copy")
    with pytest.raises(ValueError, match=r"copy cannot be loaded.*Delete the folder"):
        models.load(tmp_path / ".cache" / "copy")
    with pytest.raises(ValueError, match=r"nowhere does not exist"):
        models.load(tmp_path / "nowhere")


def test_lora_targets(made):
    model, _ = models.load(made.target)
    every = models.lora_layers(model, "all")
    assert set(every) == set(models.linear_layers(model))
    assert "lm_head" not in every
    assert sorted([*models.lora_layers(model, "mlp"), *models.lora_layers(model, "attention")]) == sorted(every)


def test_lora_starts_from_its_seed(made):
    def first(seed):
        model, _ = models.load(made.target)
        wrapped, _ = models.as_trainable(model, resolve(RunConfig(adapter="lora", scale="smoke", seed=seed)))
        return next(p for n, p in wrapped.named_parameters() if "lora_A" in n)

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_sizes_of_an_unknown_scale():
    with pytest.raises(ValueError, match="Did you mean 'mini'"):
        models.sizes("minii")
