"""Memory and time that the README states, against numbers worked out by hand for Llama-2-7B."""

from __future__ import annotations

import pytest
from transformers import Qwen2Config

from qru import budget

# 32 layers of 4 · 4096² (q, k, v, o) and 3 · 4096 · 11008 (gate, up, down), 65 norms of 4096, embeddings and head.
LINEAR = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
PARAMETERS = LINEAR + 65 * 4096 + 2 * 32000 * 4096
ADAPTERS = 39_976_960  # rank 16 on every linear layer of Llama-2-7B, as peft prints it


@pytest.fixture(scope="module")
def llama():
    return budget.shape_of(budget.LLAMA_2_7B)


def test_the_shape_is_that_of_llama_2_7b(llama):
    assert llama.parameters == PARAMETERS == 6_738_415_616
    assert llama.linear == LINEAR
    assert 16 * 32 * (llama.inside + llama.entering) == ADAPTERS
    assert llama.cache == 512 * 1024  # half a MB of keys and values a token


def test_tied_embeddings_and_shared_heads_are_counted_once():
    config = Qwen2Config(
        vocab_size=100, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=128, tie_word_embeddings=True,
    )  # fmt: skip
    shape = budget.shape_of(config)
    a_layer = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 128
    assert shape.linear == 3 * a_layer
    assert shape.parameters == 100 * 64 + 3 * (a_layer + 64 + 32 + 32 + 2 * 64) + 64  # q, k, v have a bias
    assert shape.cache == 2 * 2 * 3 * 32


@pytest.mark.parametrize(
    ("adapter", "weights", "held", "gradients", "moments", "casts"),
    [
        ("full", "bf16", 2 * PARAMETERS, 2 * PARAMETERS, 4 * PARAMETERS, 0),
        ("full", "fp32", 4 * PARAMETERS, 4 * PARAMETERS, 8 * PARAMETERS, 2 * LINEAR),
        ("lora", "fp32", 2 * PARAMETERS + 4 * ADAPTERS, 4 * ADAPTERS, 8 * ADAPTERS, 0),
    ],
)
def test_what_the_optimizer_holds(llama, adapter, weights, held, gradients, moments, casts):
    needs = budget.training_memory(llama, "npo_gdr", adapter, weights, rank=16)
    assert (needs.weights, needs.gradients, needs.moments) == (held, gradients, moments)
    assert needs.casts == casts
    assert needs.reference == 0


def test_only_full_fine_tuning_with_klr_holds_a_second_model(llama):
    assert budget.training_memory(llama, "npo_klr", "full", "bf16").reference == 2 * PARAMETERS
    assert budget.training_memory(llama, "npo_klr", "lora", "fp32", 16).reference == 0
    assert budget.training_memory(llama, "npo", "full", "bf16").reference == 0


def test_what_grows_with_the_tokens_of_a_pass(llama):
    tokens = 2 * 4 * 2048  # four forget and four retain documents
    four = budget.training_memory(llama, "npo_gdr", "full", "bf16", at_once=4)
    inputs = tokens * 2 * 32 * 4096
    inside = tokens * (16 * 4096 + 4 * (4 * 4096 + 2 * 11008 + 4096))
    assert four.activations == inputs + inside
    assert four.logits == tokens * 32000 * 18
    one = budget.training_memory(llama, "npo_gdr", "full", "bf16", at_once=1)
    assert four.logits == 4 * one.logits
    alone = budget.training_memory(llama, "npo", "full", "bf16", at_once=4)
    assert alone.activations == four.activations / 2


def test_sharding_spreads_what_the_optimizer_holds(llama):
    needs = budget.training_memory(llama, "npo_gdr", "full", "fp32")
    per_gpu = needs.casts + needs.activations + needs.logits
    assert needs.total(4) == 16 * PARAMETERS / 4 + per_gpu
    assert needs.total(2) > 80e9 >= needs.total(4)
    assert budget.gpus_needed(needs) == 4
    assert budget.gpus_needed(needs, capacity=per_gpu) is None


@pytest.mark.parametrize(
    ("method", "adapter", "epochs", "expected"),
    [  # a forget token and the retain token beside it, in N: forwards, again, backwards; what a reference adds
        ("ga", "full", 1, 8),
        ("ga_gdr", "full", 10, 10 * (8 + 8)),
        ("npo_gdr", "full", 10, 10 * (8 + 8) + 2),
        ("npo_klr", "lora", 5, 5 * (6 + 6 + 2) + 2),
    ],
)
def test_arithmetic(llama, method, adapter, epochs, expected):
    found = budget.training_flops(llama, method, adapter, epochs, forget_tokens=1000)
    assert found == pytest.approx(expected * PARAMETERS * 1000)


def test_scoring(llama):
    assert budget.scoring_memory(llama, at_once=10) == 2 * PARAMETERS + 10 * (600 + 128) * 512 * 1024
    read = 200 * 2000 + 100 * 600 + 200 * 350
    steps = 10 * 128 + 2 * 10 * 32
    seconds = 2 * PARAMETERS * (read / 312e12 + steps / 2e12) / 0.4
    assert budget.scoring_seconds(llama, at_once=10) == pytest.approx(seconds)
