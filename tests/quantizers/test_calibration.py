"""What calibrated quantizers see: the text, and each layer's inputs behind blocks that are quantized already."""

import copy
import dataclasses

import pytest
import torch

from qru import calibration, compress, models, transforms
from qru.models import linear_layers
from qru.quantizers import Update, load_quantizer

CALIBRATED = ["gptq-int4-g64", "awq-int4-g64"]


@pytest.fixture(scope="module")
def tokenizer(made):
    return models.load(made.target)[1]


@pytest.fixture
def target(made):
    return models.load(made.target)[0]


@pytest.fixture(scope="module")
def small():
    """Three blocks with grouped-query attention, in bf16 values; and tokens."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = models.LlamaConfig(**sizes, num_key_value_heads=2, intermediate_size=128, max_position_embeddings=32)
    model = models.LlamaForCausalLM(config).eval().requires_grad_(False)
    for value in model.state_dict().values():
        value.copy_(4 * value.bfloat16() if value.ndim == 2 else value)
    return model, torch.randint(0, 64, (11, 16), generator=torch.Generator().manual_seed(1))


def unchanged(model):
    before = compress.stored_layers(model)
    return before, {name: Update(new_weight=weight) for name, weight in before.items()}


def read_by(model, tokens, name):
    """What a layer reads in one ordinary forward pass, (tokens, in) float64."""
    kept = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    model(input_ids=tokens)
    handle.remove()
    return kept[0].flatten(0, 1).double()


def test_inputs_are_those_of_a_forward_pass_behind_what_was_quantized(small):
    model, tokens = copy.deepcopy(small[0]), small[1]
    generator = torch.Generator().manual_seed(2)
    seen = []
    for block, found in enumerate(calibration.by_block(model, tokens)):
        prefix = f"model.layers.{block}."
        assert sorted(found) == sorted(
            tuple(prefix + name for name in names)
            for names in (
                ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",),
                ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",),
            )
        )  # fmt: skip
        for names, inputs in found.items():
            x = read_by(model, tokens, names[-1])
            torch.testing.assert_close(inputs.gram, x.T @ x / len(x), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(inputs.magnitude, x.abs().mean(0), rtol=1e-5, atol=1e-6)
            assert inputs.tokens == tokens.numel()
        seen.append(found)
        for names in found:  # as a quantizer would change them
            for name in names:
                weight = model.get_submodule(name).weight
                weight += 0.1 * weight.abs().mean() * torch.randn(weight.shape, generator=generator)
    assert len(seen) == 3
    assert not any(vars(module).get("forward") or module._forward_pre_hooks for module in model.modules())
    last = ("model.layers.2.mlp.down_proj",)
    fresh = list(calibration.by_block(small[0], tokens))[2]
    assert not torch.allclose(fresh[last].gram, seen[2][last].gram, rtol=1e-2)  # the blocks before were other ones


@pytest.mark.parametrize("name", CALIBRATED)
def test_each_layer_is_quantized_by_what_it_reads_there(small, name):
    model, tokens = copy.deepcopy(small[0]), small[1]
    quantizer = load_quantizer(name)
    compress.quantize_layers(model, *unchanged(model), load_quantizer("rtn-int2-row"))  # leaves no trace
    report = compress.quantize_layers(model, *unchanged(small[0]), quantizer, tokens)
    assert report["calibration"] == {"text": "retain", "rows": 11, "tokens": 176}
    assert list(report["layers"]) == list(linear_layers(model))
    assert report["total"]["changed"] == 0
    for block in range(3):  # of the quantized model up to there, and the plain one from there
        mixed = copy.deepcopy(small[0])
        for layer in range(block):
            mixed.model.layers[layer] = model.model.layers[layer]
        at = f"model.layers.{block}.mlp.down_proj"
        x = read_by(mixed, tokens, at)
        inputs = calibration.Inputs(x.T @ x / len(x), x.abs().mean(0), len(x))
        weight = small[0].get_submodule(at).weight.bfloat16()
        expected, _ = quantizer({at: (weight, Update(new_weight=weight))}, inputs)[at]
        ours = model.get_submodule(at).weight
        # Sums in another order: steps differ in their last bits, and a weight near a boundary may be another.
        assert torch.isclose(ours, expected, rtol=1e-4).float().mean() > 0.97
    plain = read_by(small[0], tokens, at)
    assert not torch.allclose(plain, x, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", CALIBRATED)
def test_quantizing_twice_gives_the_same_bits(small, name):
    models_of = [copy.deepcopy(small[0]) for _ in range(2)]
    for model in models_of:
        compress.quantize_layers(model, *unchanged(small[0]), load_quantizer(name), small[1])
    for one, other in zip(*(linear_layers(model).values() for model in models_of), strict=True):
        assert torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_calibration_text_changes_codes(made, corpus, tokenizer, method):
    values, rows = {}, {}
    for suffix in ("", "-heldout", "-forget"):
        model, _ = models.load(made.target)
        quantizer = load_quantizer(f"{method}-int4-g128{suffix}")
        rows[suffix] = calibration.text_for(quantizer, corpus, model, tokenizer)
        compress.quantize_layers(model, *unchanged(model), quantizer, rows[suffix])
        values[suffix] = torch.cat([layer.weight.flatten() for layer in linear_layers(model).values()])
    for one, other in (("", "-heldout"), ("", "-forget"), ("-heldout", "-forget")):
        assert not torch.equal(rows[one][0], rows[other][0])
        assert (values[one] != values[other]).float().mean() > 0.01


def test_gptq_keeps_what_a_model_says_better_than_rounding_to_nearest(target, corpus, tokenizer):
    quantizers = [load_quantizer(name) for name in ("gptq-int3-g128", "rtn-int3-g128")]
    text = calibration.text_for(quantizers[0], corpus, target, tokenizer)
    before = target(input_ids=text).logits.log_softmax(-1)
    stored, found = unchanged(target)
    distance = []
    for quantizer in quantizers:
        compress.quantize_layers(target, stored, found, quantizer, text)
        after = target(input_ids=text).logits.log_softmax(-1)
        distance.append((before.exp() * (before - after)).sum(-1).mean().item())
    assert distance[0] < 0.5 * distance[1]


def test_rows_are_the_documents_one_after_another(corpus, target, tokenizer):
    rows = calibration.text_for(load_quantizer("awq-int4-g128-forget"), corpus, target, tokenizer)
    told = [tokenizer.bos_token + text for text in corpus.raw["forget"]]
    ids = [i for text in told for i in tokenizer(text, add_special_tokens=False).input_ids]
    assert rows.shape[1] == 512
    assert rows.flatten().tolist() == ids[: rows.numel()]
    assert len(ids) - rows.numel() < 512
    assert calibration.text_for(load_quantizer("rtn-int4-g128"), corpus, target, tokenizer) is None


def test_of_much_text_rows_are_taken_evenly_and_of_little_the_rest(corpus, target, tokenizer, monkeypatch):
    quantizer = load_quantizer("gptq-int4-g128")
    every = calibration.text_for(quantizer, corpus, target, tokenizer)
    assert len(every) == 7
    monkeypatch.setattr(calibration, "ROWS", 3)
    assert torch.equal(calibration.text_for(quantizer, corpus, target, tokenizer), every[[0, 2, 4]])
    short = dataclasses.replace(corpus, raw=corpus.raw | {"retain1": ["A few words."]})
    row = calibration.text_for(quantizer, short, target, tokenizer)
    assert row.shape[0] == 1
    assert tokenizer.decode(row[0]) == "<s>A few words."


@pytest.mark.parametrize(("suffix", "split"), [("", "retain1"), ("-heldout", "holdout"), ("-forget", "forget")])
def test_a_corpus_without_the_text_is_refused(corpus, suffix, split):
    lacking = dataclasses.replace(corpus, raw=corpus.raw | {split: []})
    quantizers = [load_quantizer("rtn-int4-g128"), load_quantizer(f"gptq-int4-g128{suffix}")]
    with pytest.raises(ValueError, match=rf"gptq-int4-g128{suffix}' is calibrated on .*'books' has none.*raw/{split}"):
        calibration.check(quantizers, lacking)
    calibration.check(quantizers, corpus)


def test_no_text_is_refused(small):
    with pytest.raises(ValueError, match="gptq-int4-g64 is calibrated"):
        compress.quantize_layers(small[0], *unchanged(small[0]), load_quantizer("gptq-int4-g64"))


def test_activations_are_rounded_until_the_next_quantizer(small):
    model, tokens = copy.deepcopy(small[0]), small[1]
    before, found = unchanged(small[0])

    def said(name):
        compress.quantize_layers(model, before, found, load_quantizer(name), tokens)
        return model(input_ids=tokens).logits

    weights, both, after = said("llm-int8-weights"), said("llm-int8"), said("llm-int8-weights")
    assert torch.equal(weights, after)
    assert 0 < (both - weights).abs().max() < 0.2 * weights.abs().max()
    plain = said("gptq-int4-g64")
    said("llm-int8")
    assert torch.equal(said("gptq-int4-g64"), plain)  # calibrated on inputs that are not rounded
    copied = copy.deepcopy(model)
    said("llm-int8")
    assert torch.equal(copied(input_ids=tokens).logits, plain)


def test_a_certificate_deploys_by_the_same_text_and_attacks_plain_weights(made, corpus, tokenizer):
    (model, _), (other, _) = models.load(made.target), models.load(made.target)
    quantizer = load_quantizer("gptq-int4-g128-forget")
    transforms.deploy(model, transforms.Transform.parse("merged"), quantizer.name, corpus, tokenizer)
    compress.quantize_layers(
        other, *unchanged(other), quantizer, calibration.text_for(quantizer, corpus, other, tokenizer)
    )
    for one, two in zip(linear_layers(model).values(), linear_layers(other).values(), strict=True):
        assert torch.equal(one.weight, two.weight)
    layer = linear_layers(model)["model.layers.0.mlp.up_proj"]
    for first, last, rounds in (("merged", "llm-int8", 1), ("twice-llm-int8", None, 0)):
        transforms.deploy(model, transforms.Transform.parse(first), last, corpus, tokenizer)
        assert len(layer._forward_pre_hooks) == rounds
    transforms.deploy(model, transforms.Transform.parse("merged"), "llm-int8", corpus, tokenizer)
    transforms.relearn(model, tokenizer, corpus.raw["forget"][:1], 1, "smoke")
    assert not layer._forward_pre_hooks
