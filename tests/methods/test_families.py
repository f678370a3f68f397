"""Any causal model that transformers loads: found by type, trained, merged, quantized, saved and read back."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors import safe_open

from qru import checkpoint, compress, models
from qru.config import RunConfig
from qru.corpora import load_corpus
from qru.defaults import resolve
from qru.metrics import evaluate
from qru.ops import QuantSpec
from qru.ops.grid import dequantize, quantize_ref
from qru.quantizers import load_quantizer
from qru.unlearn import unlearn
from tests.methods.checkpoints import FAMILIES, PADDED, write_checkpoint

# hidden 128, two layers: q, k, v, o, gate, up, down; Phi-3 stores q, k, v as one layer and gate, up as one.
LAYERS = dict.fromkeys(FAMILIES, 14) | {"phi3": 8}
ATTENTION = dict.fromkeys(FAMILIES, 8) | {"phi3": 4}
TIED = ("qwen2", "gemma3")


@pytest.fixture(scope="module")
def small_corpus():
    """A few short documents and questions: one step must be cheap."""
    corpus = load_corpus("books", scale="smoke")
    raw = {split: [text[:400] for text in documents[:4]] for split, documents in corpus.raw.items()}
    return corpus.__class__(**{**corpus.__dict__, "raw": raw, "verbmem": corpus.verbmem[:2]})


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory, small_corpus):
    texts = [text for documents in load_corpus("books", scale="smoke").raw.values() for text in documents]
    return write_checkpoint(tmp_path_factory.mktemp(request.param) / request.param, request.param, texts)


@pytest.fixture
def family(folder):
    return folder.name


def stored_names(folder) -> list[str]:
    return [name for file in folder.glob("*.safetensors") for name in safe_open(file, "pt").keys()]  # noqa: SIM118


def equal(one: torch.nn.Module, other: torch.nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


def test_layers_are_found_by_type_and_without_weights(folder, family):
    shapes = models.layer_shapes("mini", folder)
    model, tokenizer = models.load(folder)
    assert shapes == {name: tuple(layer.weight.shape) for name, layer in models.linear_layers(model).items()}
    assert len(shapes) == LAYERS[family]
    assert len(models.lora_layers(model, "attention")) == ATTENTION[family]
    assert len(models.lora_layers(model, "mlp")) == LAYERS[family] - ATTENTION[family]
    embeddings = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert not any(layer.weight is kept for layer in models.linear_layers(model).values() for kept in embeddings)
    assert (embeddings[0] is embeddings[1]) == (family in TIED)
    assert embeddings[0].shape[0] == len(tokenizer) + PADDED
    assert tokenizer.bos_token_id is not None


def test_saved_is_what_was_loaded(folder, family, tmp_path):
    model, tokenizer = models.load(folder)
    models.save(model, tokenizer, tmp_path / "copy")
    again, reader = models.load(tmp_path / "copy")
    equal(model, again)
    assert reader.bos_token_id == tokenizer.bos_token_id
    assert checkpoint.vocabulary_digest(reader) == checkpoint.vocabulary_digest(tokenizer)
    assert ("lm_head.weight" in stored_names(tmp_path / "copy")) == (family not in TIED), "a tied head is stored once"
    assert sorted(stored_names(tmp_path / "copy")) == sorted(stored_names(folder))


@pytest.mark.parametrize(("adapter", "weights"), [("full", "bf16"), ("full", "fp32"), ("lora", "fp32")])
def test_one_step_to_a_quantized_checkpoint(folder, family, small_corpus, tmp_path, adapter, weights):
    settings = {"scale": "smoke", "lora_rank": 4, "lora_alpha": 8.0, "learning_rate": 1e-2, "batch_size": 4}
    config = resolve(RunConfig(method="npo_klr", adapter=adapter, weights=weights, **settings))
    before, tokenizer = models.load(folder)
    trained, _ = models.load(folder)
    trained, history = unlearn(trained, tokenizer, small_corpus, config, frozen=lambda: models.load(folder)[0])
    assert len(history) == 1
    head = before.get_output_embeddings().weight
    expected = compress.merged_model(before, trained)
    unlearned = compress.merge(trained)
    equal(unlearned, expected)
    kept = torch.equal(unlearned.get_output_embeddings().weight, head)
    assert kept == (adapter == "lora"), "LoRA leaves the head alone, full fine-tuning trains it"
    tied = unlearned.get_output_embeddings().weight is unlearned.get_input_embeddings().weight
    assert tied == (family in TIED)

    models.save(unlearned, tokenizer, tmp_path / "model")
    stored, _ = models.load(tmp_path / "model")
    equal(stored, unlearned)
    report = compress.audit(folder, tmp_path / "model", QuantSpec(bits=4, group_size=64))
    assert len(report["layers"]) == LAYERS[family]
    assert all(counts["moved"] > 0 for counts in report["layers"].values())

    found = compress.updates(before, stored)
    counts = compress.quantize_layers(stored, compress.stored_layers(before), found, load_quantizer("rtn-int4-g64"))
    assert counts["total"]["crossed"] == report["total"]["crossed"]
    spec = QuantSpec(bits=4, group_size=64)
    for name, layer in models.linear_layers(stored).items():
        weight = models.linear_layers(unlearned)[name].weight.bfloat16()
        assert torch.equal(layer.weight, dequantize(*quantize_ref(weight, spec), spec)), name
    for name, value in stored.state_dict().items():
        if name.removesuffix(".weight") not in counts["layers"]:
            assert torch.equal(value, unlearned.state_dict()[name]), f"{name} is no linear layer and must stay"


def test_adapters_are_read_back_onto_their_base(folder, family, small_corpus, tmp_path):
    settings = {"scale": "smoke", "lora_rank": 4, "lora_targets": "attention", "learning_rate": 1e-2}
    config = resolve(RunConfig(method="ga", adapter="lora", **settings))
    trained, tokenizer = models.load(folder)
    trained, _ = unlearn(trained, tokenizer, small_corpus, config, frozen=lambda: pytest.fail("a second copy"))
    compress.save_adapter(trained, tmp_path / "adapter")
    before = models.load_weights(folder)
    found = compress.updates(before, compress.with_adapter(before, tmp_path / "adapter"))
    assert sum(update.lora_A is not None for update in found.values()) == ATTENTION[family]
    merged = compress.merge(trained)
    models.save(merged, tokenizer, tmp_path / "model")
    spec = QuantSpec(bits=4, group_size=64)
    by_adapter = compress.audit(folder, tmp_path / "adapter", spec)
    by_model = compress.audit(folder, tmp_path / "model", spec)
    assert by_adapter["total"]["crossed"] == by_model["total"]["crossed"] > 0
    assert by_adapter["total"]["moved"] == by_model["total"]["moved"]


def test_scores_of_a_family_do_not_depend_on_how_it_is_held(folder, small_corpus):
    """Also: rotary frequencies and other buffers are those of a model that was loaded in one go."""
    model, tokenizer = models.load(folder)
    once = models.load_weights(folder, torch.float32)
    equal(model, once)
    for name, buffer in once.named_buffers():
        assert torch.equal(dict(model.named_buffers())[name], buffer), name
    found = evaluate(model, tokenizer, small_corpus, metrics=("verbmem",), progress=False)
    again = evaluate(once, tokenizer, small_corpus, metrics=("verbmem",), progress=False)
    assert found["verbmem"].responses == again["verbmem"].responses


def test_finer_weights_are_rounded_once(tmp_path, small_corpus):
    folder = write_checkpoint(tmp_path / "llama", "llama", small_corpus.raw["forget"], dtype=torch.float32)
    model, _ = models.load(folder)
    stored = models.load_weights(folder)
    for name, value in stored.named_parameters():
        assert value.dtype == torch.float32
        assert torch.equal(model.get_parameter(name), value.bfloat16().float())
    half = copy.deepcopy(stored).bfloat16()
    assert all(torch.equal(p.float(), model.get_parameter(n)) for n, p in half.named_parameters())


def test_mixtures_of_experts_are_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "mixtral", "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64, "num_local_experts": 2,
            }
        )
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp.*is no linear layer"):
        models.layer_shapes("mini", tmp_path)


def test_layers_that_no_name_gives_away():
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    model.get_output_embeddings = lambda: None
    assert models.lora_layers(model, "all") == ["layers.0"]
    with pytest.raises(ValueError, match=r"lora_targets is 'mlp', but no layer's name says so; the first is layers\.0"):
        models.lora_layers(model, "mlp")
