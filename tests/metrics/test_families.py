"""Other people's models: batches, prefixes and drafts give what transformers gives for one text at a time."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from qru.metrics import generation, greedy, token_log_probs
from qru.metrics.checks import encode
from qru.metrics.knowmem import STOPS, question_prompts

SIZE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "initializer_range": 0.15,
}  # fmt: skip
FAMILIES = {
    "llama": (LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 8}),
    # Windows shorter than the prompts, so that what has left them must be hidden in a batch too.
    "gemma2, windows and soft caps": (Gemma2Config, {"head_dim": 8, "sliding_window": 6}),
    "gemma3, windows and full layers": (
        Gemma3TextConfig,
        {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3, window": (Phi3Config, {"sliding_window": 9}),
    "mistral, window": (MistralConfig, {"sliding_window": 7}),
    "mistral, window that nothing leaves": (MistralConfig, {"sliding_window": 700}),
}


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def model(request, tokenizer):
    kind, settings = request.param
    torch.manual_seed(0)
    config = kind(**{**SIZE, "vocab_size": len(tokenizer), **settings})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def prompts(corpus):
    texts = [example["prompt"] for example in corpus.verbmem[:5]]
    return [*texts, "A", "Adela of Saltby was"]


def alone(model, tokenizer, prompt, new_tokens):
    ids = torch.tensor([[1, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
    )
    return made[0, ids.shape[1] :].tolist()


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_strings(batch_size, model, tokenizer, prompts):
    expected = [decoded(tokenizer, alone(model, tokenizer, prompt, 14)) for prompt in prompts]
    assert len(set(expected)) > 3
    assert greedy(model, tokenizer, prompts, 14, batch_size=batch_size) == expected


def test_strings_behind_a_shared_prefix(model, tokenizer, corpus):
    questions = question_prompts(
        corpus.knowmem["forget_qa_icl"][:2], [qa["question"] for qa in corpus.knowmem["forget_qa"][:5]]
    )
    expected = []
    for prompt in questions:
        text = decoded(tokenizer, alone(model, tokenizer, prompt, 8))
        for stop in STOPS:
            text = text.split(stop)[0]
        expected.append(text)
    assert greedy(model, tokenizer, questions, 8, stop=STOPS, batch_size=3) == expected


def test_strings_with_drafts(model, tokenizer, prompts):
    """True drafts, false ones, ones that go wrong on the way, too long and too short ones, and none."""
    told = [alone(model, tokenizer, prompt, 30) for prompt in prompts]
    wrong = [[*ids[:3], (ids[3] + 1) % 300 + 3, *ids[4:]] for ids in told]
    drafts = [told[0], wrong[1], told[2][:3], [], wrong[4], told[5] + [5] * 40, [7, 7, 7]]
    expected = [decoded(tokenizer, ids) for ids in told]
    for batch_size in (1, 4, 16):
        assert greedy(model, tokenizer, prompts, 30, batch_size=batch_size, drafts=drafts) == expected


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_log_probs(batch_size, model, tokenizer, corpus):
    texts = [*corpus.privleak["forget"][:4], "A river"]
    for text, found in zip(texts, token_log_probs(model, tokenizer, texts, batch_size=batch_size), strict=True):
        ids = torch.tensor(encode(tokenizer, [text]))
        with torch.no_grad():
            table = torch.log_softmax(model(ids).logits[0, :-1].double(), dim=-1)
        assert found.tolist() == pytest.approx(table.gather(1, ids[0, 1:, None])[:, 0].tolist(), abs=1e-5)


def test_a_tokenizer_without_pad_token(model, tokenizer_adding_bos, prompts):
    """Nothing here needs one: what stands in padded places is masked."""
    tokenizer_adding_bos.pad_token = None
    expected = [decoded(tokenizer_adding_bos, alone_ids) for alone_ids in (
        alone(model, tokenizer_adding_bos, prompt, 5) for prompt in prompts[:3])]  # fmt: skip
    assert greedy(model, tokenizer_adding_bos, prompts[:3], 5) == expected
    tokenizer_adding_bos.pad_token = "<pad>"


def test_only_a_window_that_something_leaves_forbids_holes(model):
    windows = [w for w in (getattr(model.config, "sliding_window", None),) if w]
    assert generation._holes_are_harmless(model, 600) == all(window >= 600 for window in windows)
