"""Greedy generation: the strings of batch size 1, whatever the batch, the prefix and the order."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from qru.metrics import checks, generation, greedy
from qru.metrics.checks import encode
from qru.metrics.knowmem import STOPS, question_prompts

from .conftest import llama


@pytest.fixture
def prompts(corpus):
    return [example["prompt"] for example in corpus.verbmem] + ["", "A", "zebra café ∑", "Adela of Saltby"]


@pytest.fixture
def questions(corpus):
    asked = [qa["question"] for kind in ("forget_qa", "retain_qa") for qa in corpus.knowmem[kind]]
    return question_prompts(corpus.knowmem["forget_qa_icl"], asked)


@pytest.fixture
def seen(request):
    """Shapes and first tokens of every forward pass of a model, recorded by a hook."""

    def watch(model):
        calls = []

        def record(module, args, kwargs):
            calls.append({key: value.clone() for key, value in kwargs.items() if torch.is_tensor(value)})

        handle = model.register_forward_pre_hook(record, with_kwargs=True)
        request.addfinalizer(handle.remove)
        return calls

    return watch


def one_at_a_time(model, tokenizer, prompts, max_new_tokens):
    """What transformers generates for each prompt alone."""
    out = []
    for prompt in prompts:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0
        )
        out.append(
            tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
    return out


@pytest.mark.parametrize("which", ["random_model", "trained_model"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_every_batch_size_gives_what_transformers_generates_alone(which, batch_size, prompts, tokenizer, request):
    model = request.getfixturevalue(which)
    expected = one_at_a_time(model, tokenizer, prompts, 40)
    assert greedy(model, tokenizer, prompts, 40, batch_size=batch_size) == expected


def test_the_trained_model_has_something_to_say(trained_model, tokenizer, corpus):
    """Otherwise the equalities above would compare noise or nothing."""
    said = greedy(trained_model, tokenizer, [example["prompt"] for example in corpus.verbmem], 24)
    told = [answer[:20] in example["gt"] for answer, example in zip(said, corpus.verbmem, strict=True)]
    assert sum(told) >= 6


@pytest.mark.parametrize("batch_size", [1, 5, 24])
def test_questions_with_stops_give_what_transformers_generates_alone(batch_size, questions, trained_model, tokenizer):
    expected = []
    for text in one_at_a_time(trained_model, tokenizer, questions, 32):
        for stop in STOPS:
            text = text.split(stop)[0]
        expected.append(text)
    assert greedy(trained_model, tokenizer, questions, 32, stop=STOPS, batch_size=batch_size) == expected


@pytest.mark.parametrize("which", ["random_model", "trained_model"])
def test_the_shared_prefix_changes_work_but_no_string(which, questions, tokenizer, request, monkeypatch, seen):
    model = request.getfixturevalue(which)
    calls = seen(model)
    shared = greedy(model, tokenizer, questions, 12, stop=STOPS, batch_size=8)
    with_prefix = sum(call["input_ids"].numel() for call in calls)
    calls.clear()
    monkeypatch.setattr(generation, "_shared_length", lambda rows: 0)
    assert greedy(model, tokenizer, questions, 12, stop=STOPS, batch_size=8) == shared
    assert with_prefix < 0.3 * sum(call["input_ids"].numel() for call in calls)


def test_prompts_that_share_everything(trained_model, tokenizer):
    prompt = "Adela of Saltby was"
    alone = greedy(trained_model, tokenizer, [prompt], 10)
    longer = greedy(trained_model, tokenizer, [prompt + " a"], 10)
    assert greedy(trained_model, tokenizer, [prompt, prompt, prompt + " a"], 10) == alone + alone + longer


@given(
    prompts=st.lists(st.text(max_size=30), min_size=1, max_size=7),
    batch_size=st.integers(1, 8),
    stop=st.sampled_from([(), ("a",), (" ",), ("é",), (". ", "of"), ("\n\n",)]),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_prompts_at_any_batch_size(prompts, batch_size, stop, random_model, tokenizer):
    prompts = [prompt.encode("utf-8", "ignore").decode() for prompt in prompts]  # no lone surrogates
    expected = []
    for text in one_at_a_time(random_model, tokenizer, prompts, 8):
        expected.append(text[: min((text.find(s) for s in stop if s in text), default=len(text))])
    assert greedy(random_model, tokenizer, prompts, 8, stop=stop, batch_size=batch_size) == expected


@pytest.mark.parametrize(
    "model",
    [
        lambda vocab: llama(vocab, num_key_value_heads=4, tie_word_embeddings=True),
        lambda vocab: MistralForCausalLM(
            MistralConfig(
                vocab_size=vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, sliding_window=8, bos_token_id=1, eos_token_id=2, initializer_range=0.1,
            )
        ),
        lambda vocab: GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab, n_positions=512, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
            )
        ),
    ],
    ids=["tied", "sliding window", "learned positions"],
)  # fmt: skip
def test_other_architectures(model, prompts, tokenizer):
    torch.manual_seed(0)
    model = model(len(tokenizer)).eval()
    expected = one_at_a_time(model, tokenizer, prompts[:6], 12)
    assert greedy(model, tokenizer, prompts[:6], 12, batch_size=4) == expected


# peft asks a question that transformers has renamed
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_is_part_of_the_model(broken, prompts, tokenizer):
    """LoRA generates what its merged weights generate."""
    adapted = get_peft_model(broken, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    with_adapter = greedy(adapted, tokenizer, prompts[:5], 12, batch_size=3)
    with adapted.disable_adapter():
        without = greedy(adapted, tokenizer, prompts[:5], 12, batch_size=3)
    assert with_adapter != without
    assert greedy(adapted.merge_and_unload(), tokenizer, prompts[:5], 12, batch_size=3) == with_adapter


def test_near_ties_are_settled_alone(prompts, random_model, tokenizer, monkeypatch):
    expected = greedy(random_model, tokenizer, prompts, 12, batch_size=1)
    generate, alone = generation._generate, []

    def watched(model, rows, *rest):
        alone.append(len(rows) == 1)
        return generate(model, rows, *rest)

    monkeypatch.setattr(generation, "_generate", watched)
    monkeypatch.setattr(checks, "NEAR_TIE_ULPS", 10**9)  # every choice is now in doubt
    assert greedy(random_model, tokenizer, prompts, 12, batch_size=16) == expected
    assert sum(alone) == len(prompts)


def test_the_margin_covers_what_a_batch_changes(prompts, trained_model, tokenizer):
    """What rounding differs between a batch and a row alone stays well inside the margin that has a row redone."""
    rows = [row for row in encode(tokenizer, prompts) if len(row) > 20]
    width = min(map(len, rows))
    tokens = torch.tensor([row[:width] for row in rows])
    with torch.no_grad():
        together = trained_model(input_ids=tokens).logits
        alone = torch.cat([trained_model(input_ids=row[None]).logits for row in tokens])
    size = alone.abs().amax(-1).clamp(min=1)
    ulps = ((together - alone).abs().amax(-1) / size / torch.finfo(torch.float32).eps).max()
    assert 2 * ulps < checks.NEAR_TIE_ULPS


def test_of_equal_logits_the_lowest_id_is_taken():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [2.0, -1.0, 0.0, 2.0], [-1.0, -1.0, -1.0, -1.0], [0.0, 1.0, 2.0, 3.0]])
    chosen, close = generation._choose(logits[:, None])
    assert chosen.tolist() == [[1], [0], [0], [3]]
    assert close == [[True], [True], [True], [False]]
    assert generation._choose(logits.bfloat16()[:, None])[1] == [[False]] * 4


@pytest.mark.parametrize("which", ["tokenizer", "tokenizer_adding_bos"])
def test_bos_comes_exactly_once(which, random_model, seen, request):
    tokenizer = request.getfixturevalue(which)
    calls = seen(random_model)
    greedy(random_model, tokenizer, ["Adela", "<s>Adela"], 2, batch_size=1)
    prefills = [call["input_ids"][0].tolist() for call in calls if call["input_ids"].shape[1] > 1]
    assert all(ids.count(1) == 1 and ids[0] == 1 for ids in prefills)
    assert encode(tokenizer, ["Adela"]) == encode(tokenizer, ["<s>Adela"])


def test_padding_is_on_the_left_masked_and_without_positions(random_model, tokenizer, seen):
    calls = seen(random_model)
    prompts = ["Adela of Saltby was", "Borin"]
    lengths = [len(row) for row in encode(tokenizer, prompts)]
    greedy(random_model, tokenizer, prompts, 2)
    first = next(call for call in calls if call["input_ids"].shape[0] == 2)
    width = first["input_ids"].shape[1]
    shorter = min(lengths)
    assert first["attention_mask"][:, -width:].tolist() == [[1] * width, [0] * (width - shorter) + [1] * shorter]
    assert first["position_ids"][1, -shorter:].tolist() == list(range(shorter))


@pytest.mark.parametrize("others", [(), ("\n\n", "q:")])
def test_a_row_ends_at_a_stop_that_spans_tokens_and_costs_nothing_after(others, trained_model, tokenizer, seen):
    prompt = "Adela of"
    (whole,) = greedy(trained_model, tokenizer, [prompt], 30)
    stop = whole[4:9]
    calls = seen(trained_model)
    (cut,) = greedy(trained_model, tokenizer, [prompt], 30, stop=(*others, stop))
    assert cut == whole[: whole.find(stop)]
    assert len(calls) < 25


def test_an_end_that_is_an_ordinary_token_is_not_part_of_the_response(broken, tokenizer):
    (whole,) = greedy(broken, tokenizer, ["Adela of Saltby"], 12)
    broken.generation_config.eos_token_id = [2, encode(tokenizer, [";"])[0][-1]]
    (cut,) = greedy(broken, tokenizer, ["Adela of Saltby"], 12)
    assert cut == whole[: whole.index(";")]


def test_eos_ends_a_row_and_ended_rows_leave_the_batch(broken, tokenizer, seen):
    """A model that answers EOS after 'x' and repeats the last token otherwise: three of four rows end at once."""
    ends_after = tokenizer("x", add_special_tokens=False)["input_ids"][-1]
    with torch.no_grad():
        for layer in broken.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        broken.lm_head.weight.copy_(broken.model.embed_tokens.weight)
        broken.lm_head.weight[2] = 3 * broken.model.embed_tokens.weight[ends_after]
    calls = seen(broken)
    said = greedy(broken, tokenizer, ["1x", "22x", "333x", "Borin y"], 6, batch_size=4)
    assert said[:3] == ["", "", ""]
    assert said[3]
    sizes = [call["input_ids"].shape[0] for call in calls if "logits_to_keep" not in call]
    assert sizes[-1] == 1


def test_progress_counts_every_prompt(random_model, tokenizer):
    counted = []
    greedy(random_model, tokenizer, ["a", "b", "c", "d", "e"], 1, batch_size=2, progress=counted.append)
    assert counted == [2, 2, 1]


def test_no_prompts(random_model, tokenizer):
    assert greedy(random_model, tokenizer, [], 5) == []


def test_a_prompt_may_use_every_position_and_not_one_more(tokenizer):
    model = llama(len(tokenizer), max_position_embeddings=20)
    ids = encode(tokenizer, ["Adela of Saltby was a cooper; the quiet river"])[0][1:12]
    prompt = tokenizer.decode(ids)
    length = len(encode(tokenizer, [prompt])[0])
    assert len(greedy(model, tokenizer, [prompt], 21 - length)) == 1
    with pytest.raises(ValueError, match=rf"{length} tokens.*needs 21 positions.*max_position_embeddings=20"):
        greedy(model, tokenizer, [prompt], 22 - length)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"batch_size": 0}, "batch_size"),
        ({"stop": ("a", "")}, "stop string is empty"),
    ],
)
def test_bad_settings_are_refused(changes, message, random_model, tokenizer):
    with pytest.raises(ValueError, match=message):
        greedy(**{"model": random_model, "tokenizer": tokenizer, "prompts": ["a"], "max_new_tokens": 3, **changes})


def test_logits_that_are_not_finite_are_refused(broken, tokenizer):
    broken.lm_head.weight.data[7, 0] = float("nan")
    with pytest.raises(ValueError, match="logits are NaN or Inf"):
        greedy(broken, tokenizer, ["Adela"], 3)


def test_mode_is_restored(broken, tokenizer):
    broken.train()
    broken.model.layers[0].eval()
    before = [module.training for module in broken.modules()]
    greedy(broken, tokenizer, ["Adela"], 2)
    assert [module.training for module in broken.modules()] == before


# --- Ties -----------------------------------------------------------------------------------------------------------


def test_exact_ties_take_the_lowest_id_at_every_batch_size(broken, prompts, tokenizer):
    """The head gives tokens 57 and 111 one and the same logit, 83 and 140 its negative, and all others 0."""
    head = torch.zeros_like(broken.lm_head.weight)
    head[[57, 111], 0] = 2.0
    head[[83, 140], 0] = -2.0
    broken.lm_head.weight.data = head
    lowest = {tokenizer.decode([token]) for token in (57, 83)}
    for batch_size in (1, 3, 16):
        said = greedy(broken, tokenizer, prompts, 6, batch_size=batch_size)
        assert said == one_at_a_time(broken, tokenizer, prompts, 6)
        assert all(set(text) <= set("".join(lowest)) for text in said)


@pytest.mark.parametrize("apart", [1e-7, 1e-6])
def test_near_ties_do_not_depend_on_the_batch(apart, broken, prompts, tokenizer, monkeypatch):
    """Every token has a twin whose logit lies within rounding, so that the order of sums decides at every step."""
    weight = broken.lm_head.weight.data
    twins = torch.arange(len(weight)) ^ 1
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(weight.shape, generator=generator) * apart * weight.abs().mean()
    broken.lm_head.weight.data = (weight + weight[twins]) / 2 + noise
    expected = one_at_a_time(broken, tokenizer, prompts, 12)
    rows = []
    generate = generation._generate

    def watched(model, those, *rest):
        rows.append(len(those))
        return generate(model, those, *rest)

    monkeypatch.setattr(generation, "_generate", watched)
    for batch_size in (1, 3, 16):
        rows.clear()
        assert greedy(broken, tokenizer, prompts, 12, batch_size=batch_size) == expected
        assert rows.count(1) >= len(prompts)  # every row was doubtful, and was settled alone


# --- Drafts ---------------------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_draft_gives_the_same_string(data, prompts, random_model, tokenizer):
    plain = greedy(random_model, tokenizer, prompts, 40)
    told = [encode(tokenizer, [text])[0][1:] for text in plain]
    drafts = []
    for ids in told:
        cut = data.draw(st.integers(0, len(ids)))
        drafts.append(ids[:cut] + data.draw(st.lists(st.integers(0, 399), max_size=6)) + ids[cut:])
    batch_size = data.draw(st.integers(1, 16))
    assert greedy(random_model, tokenizer, prompts, 40, batch_size=batch_size, drafts=drafts) == plain


def test_true_drafts_save_passes(trained_model, prompts, tokenizer, seen):
    calls = seen(trained_model)
    plain = greedy(trained_model, tokenizer, prompts[:8], 60)
    without = len(calls)
    calls.clear()
    drafts = [encode(tokenizer, [text])[0][1:] for text in plain]
    assert greedy(trained_model, tokenizer, prompts[:8], 60, drafts=drafts) == plain
    assert len(calls) < without / 2


def test_drafts_with_every_position_used(tokenizer):
    """Learned positions end where they end: a row that has ended, or a draft, must not ask for one more."""
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=len(tokenizer), n_positions=48, n_embd=32, n_layer=2, n_head=4, bos_token_id=1,
                       eos_token_id=2, initializer_range=0.3)  # fmt: skip
    model = GPT2LMHeadModel(shape).eval()
    texts = ["Adela of", "Borin of Saltby", "Cael"]
    longest = max(map(len, encode(tokenizer, texts)))
    expected = one_at_a_time(model, tokenizer, texts, 49 - longest)
    drafts = [encode(tokenizer, [text])[0][1:] + [9] * 60 for text in expected]
    assert greedy(model, tokenizer, texts, 49 - longest, drafts=drafts) == expected


def test_less_memory_changes_batches_not_strings(prompts, trained_model, tokenizer, monkeypatch):
    expected = greedy(trained_model, tokenizer, prompts, 12, batch_size=16)
    monkeypatch.setattr(generation, "MAX_CACHE_BYTES", 1)
    counted = []
    assert greedy(trained_model, tokenizer, prompts, 12, batch_size=16, progress=counted.append) == expected
    assert counted == [1] * len(prompts)
