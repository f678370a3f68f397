"""evaluate() against the protocol written out one example at a time, and everything it refuses at the door."""

import copy
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rouge_score import rouge_scorer
from tqdm import tqdm

from qru.metrics import METRICS, Score, direction, evaluate, evaluation, registry, retrained_scores
from qru.metrics.generation import decoded
from qru.metrics.score import Context

from .conftest import llama


@pytest.fixture(scope="module")
def reference(random_model, tokenizer, corpus):
    """The untrained model stands in for the retrained one: it has not seen the forget set."""
    return retrained_scores(random_model, tokenizer, corpus)


def changed(corpus, **parts):
    return SimpleNamespace(**{**copy.deepcopy(vars(corpus)), **parts})


# --- The protocol in its plainest form ------------------------------------------------------------------------------


def plain_decode(tokenizer, ids):
    """With all of the clean-up that MUSE's code asks for, and transformers 5 leaves out for BPE."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return tokenizer.clean_up_tokenization(text)


def plain_generate(model, tokenizer, prompt, new_tokens):
    ids = torch.tensor([[1, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens, pad_token_id=0
    )
    return plain_decode(tokenizer, made[0, ids.shape[1] :])


def plain_f1(truth, response):
    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False).score(truth, response)["rougeL"].fmeasure


def plain_verbmem(model, tokenizer, corpus):
    scores = []
    for example in corpus.verbmem:
        truth_ids = [1, *tokenizer(example["gt"], add_special_tokens=False)["input_ids"]][:128]
        truth = plain_decode(tokenizer, truth_ids)
        scores.append(plain_f1(truth, plain_generate(model, tokenizer, example["prompt"], 128)))
    return scores


def plain_questions(model, tokenizer, corpus, subject):
    scores = []
    for asked in corpus.knowmem[f"{subject}_qa"]:
        prompt = ""
        for shown in corpus.knowmem[f"{subject}_qa_icl"]:
            prompt += "Question: " + shown["question"] + "\nAnswer: " + shown["answer"] + "\n\n"
        prompt += "Question: " + asked["question"] + "\nAnswer: "
        answer = plain_generate(model, tokenizer, prompt, 32)
        for stop in ["\n\n", "\nQuestion", "Question:"]:
            answer = answer.split(stop)[0]
        scores.append(plain_f1(asked["answer"], answer))
    return scores


def plain_min_k(model, tokenizer, text):
    ids = torch.tensor([[1, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        table = torch.log_softmax(model(ids).logits[0, :-1], dim=-1)
    log_probs = [table[place, token].item() for place, token in enumerate(ids[0, 1:])]
    return -np.mean(np.sort(log_probs)[: int(len(log_probs) * 0.4)])


def plain_auc(forget, holdout):
    return np.mean([1.0 if f > h else 0.5 if f == h else 0.0 for f in forget for h in holdout])


OTHERS = ("exact_memorization", "extraction_strength", "privleak_ppl", "privleak_zlib", "privleak_min_k++")


# --- Agreement ------------------------------------------------------------------------------------------------------


def test_every_metric_is_the_protocol(trained_model, random_model, tokenizer, corpus):
    scores = evaluate(trained_model, tokenizer, corpus, retrained=random_model, progress=False)
    assert tuple(scores) == METRICS
    plain = {
        "verbmem": plain_verbmem(trained_model, tokenizer, corpus),
        "knowmem": plain_questions(trained_model, tokenizer, corpus, "forget"),
        "utility": plain_questions(trained_model, tokenizer, corpus, "retain"),
        "disjoint": plain_questions(trained_model, tokenizer, corpus, "disjoint"),
    }
    for name, expected in plain.items():
        assert scores[name].per_example == expected
        assert scores[name].value == pytest.approx(100 * np.mean(expected))
        assert scores[name].ci[0] <= scores[name].value <= scores[name].ci[1]
        assert len(scores[name].responses) == scores[name].n == len(expected)
    mine, theirs = ([[plain_min_k(model, tokenizer, text) for text in corpus.privleak[side]]
                     for side in ("forget", "holdout")] for model in (trained_model, random_model))  # fmt: skip
    assert scores["privleak"].per_example["forget"] == pytest.approx(mine[0], abs=1e-5)
    assert scores["privleak"].per_example["holdout"] == pytest.approx(mine[1], abs=1e-5)
    assert scores["privleak"].value == pytest.approx(100 * (plain_auc(*mine) / plain_auc(*theirs) - 1))
    assert scores["privleak"].n == 23


def test_spaces_are_cleaned_up_where_that_changes_a_word(random_model, tokenizer, monkeypatch):
    """MUSE's code compares "didn't" with "didn't", whichever way text or model had it."""
    assert decoded(tokenizer, tokenizer("He did n't go .", add_special_tokens=False)["input_ids"]) == "He didn't go ."
    monkeypatch.setattr("qru.metrics.verbmem.greedy", lambda *args, **kwargs: ["he didn't"])
    passage = SimpleNamespace(name="one", verbmem=[{"prompt": "Then", "gt": "he did n't"}])
    assert evaluate(random_model, tokenizer, passage, metrics="verbmem", progress=False)["verbmem"].value == 100


def test_the_scores_tell_a_model_that_knows_from_one_that_does_not(trained_model, random_model, tokenizer, corpus):
    knows = evaluate(trained_model, tokenizer, corpus, retrained=random_model, progress=False)
    does_not = evaluate(random_model, tokenizer, corpus, retrained=random_model, progress=False)
    assert knows["verbmem"].value > 60 > 20 > does_not["verbmem"].value
    assert knows["privleak"].value == pytest.approx(-100)
    assert does_not["privleak"].value == 0
    assert does_not["privleak"].ci == (0, 0)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batch_size_changes_no_score(batch_size, trained_model, tokenizer, corpus, reference):
    expected = evaluate(trained_model, tokenizer, corpus, retrained=reference, progress=False)
    found = evaluate(trained_model, tokenizer, corpus, retrained=reference, progress=False, batch_size=batch_size)
    for name in METRICS:
        assert found[name].responses == expected[name].responses
        assert found[name].value == expected[name].value
        assert found[name].ci == expected[name].ci


def test_a_retrained_model_and_its_stored_scores_are_the_same_reference(
    trained_model, random_model, tokenizer, corpus, reference
):
    by_model = evaluate(trained_model, tokenizer, corpus, retrained=random_model, metrics=("privleak",), progress=False)
    stored = json.loads(json.dumps(reference))
    by_scores = evaluate(trained_model, tokenizer, corpus, retrained=stored, metrics=("privleak",), progress=False)
    assert by_model == by_scores


def test_chosen_examples_are_the_same_examples(trained_model, tokenizer, corpus, reference):
    whole = evaluate(trained_model, tokenizer, corpus, retrained=reference, progress=False)
    half = list(range(1, 12, 2))
    chosen = evaluate(
        trained_model, tokenizer, corpus, retrained=reference, progress=False, examples=dict.fromkeys(METRICS, half)
    )
    for name in ("verbmem", "knowmem", "utility", "disjoint"):
        assert chosen[name].per_example == [whole[name].per_example[i] for i in half]
        assert chosen[name].responses == [whole[name].responses[i] for i in half]
    sides, all_sides = chosen["privleak"].per_example, whole["privleak"].per_example
    assert sides["forget"] == pytest.approx([all_sides["forget"][i] for i in half], abs=1e-5)
    assert sides["holdout"] == pytest.approx(all_sides["holdout"], abs=1e-5)


def test_disjoint_is_left_out_by_default_only(trained_model, tokenizer, corpus, reference):
    without = {key: value for key, value in corpus.knowmem.items() if not key.startswith("disjoint")}
    muse = changed(corpus, knowmem=without)
    scores = evaluate(trained_model, tokenizer, muse, retrained=reference, progress=False)
    assert tuple(scores) == METRICS[:-1]
    with pytest.raises(ValueError, match=r"no examples for \['disjoint'\]"):
        evaluate(trained_model, tokenizer, muse, metrics=("disjoint",), progress=False)


@pytest.mark.parametrize("settings", [{}, {"examples": {"privleak": [0, 3], "utility": [1]}}])
def test_progress_reaches_the_end(settings, random_model, tokenizer, corpus, monkeypatch):
    bars = []

    class Watched(tqdm):
        def close(self):
            bars.append((self.n, self.total))
            super().close()

    monkeypatch.setattr(evaluation, "tqdm", Watched)
    evaluate(random_model, tokenizer, corpus, retrained=random_model, metrics=("privleak", "utility"), **settings)
    assert {done == total > 0 for done, total in bars} == {True}


def test_mode_and_weights_are_as_before(broken, tokenizer, corpus):
    """Scored in train mode, dropout would make every score a lottery."""
    broken.config.attention_dropout = 0.5
    for layer in broken.model.layers:
        layer.self_attn.attention_dropout = 0.5
    expected = evaluate(broken, tokenizer, corpus, metrics=("knowmem",), progress=False)
    before = copy.deepcopy(broken.state_dict())
    broken.train()
    assert evaluate(broken, tokenizer, corpus, metrics=("knowmem",), progress=False) == expected
    assert all(module.training for module in broken.modules())
    assert all(torch.equal(before[name], value) for name, value in broken.state_dict().items())


# --- The registry ---------------------------------------------------------------------------------------------------


def test_every_registered_metric_is_scored_and_has_a_direction(random_model, tokenizer, corpus, reference):
    assert set(registry.names()) == {*METRICS, *OTHERS, *evaluation.OF_CLASSIFIERS}  # of those: test_labels.py
    reference = {**{name: reference for name in registry.names() if name.startswith("privleak")}}
    for name in registry.names():
        assert direction(name) in ("lower", "higher", "towards zero", "towards retrained")
        assert registry[name].__doc__
    for name in (*METRICS, *OTHERS):
        scores = evaluate(random_model, tokenizer, corpus, retrained=reference, metrics=name, progress=False)
        assert isinstance(scores[name], Score)
    assert [direction(name) for name in METRICS] == ["lower", "lower", "towards zero", "higher", "higher"]


def test_unknown_metric_names_the_nearest(random_model, tokenizer, corpus):
    with pytest.raises(ValueError, match=r"unknown metric 'verbmen'. Did you mean 'verbmem'"):
        evaluate(random_model, tokenizer, corpus, metrics=("verbmen",), progress=False)
    with pytest.raises(ValueError, match="unknown metric"):
        direction("rouge")


# --- Score ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "score",
    [
        Score(12.5, (10.0, 15.25), [0.1, 0.15], ["a", "é\n"]),
        Score(-99.8, (-100.0, -99.0), {"forget": [1.0, 2.0], "holdout": [3.0]}),
    ],
)
def test_score_survives_json(score):
    assert Score.from_dict(json.loads(json.dumps(score.to_dict()))) == score


def test_score_counts_prints_and_is_frozen():
    score = Score(12.54, (10.0, 15.26), [0.1, 0.15])
    assert score.n == 2
    assert str(score) == "12.5 [10.0, 15.3]"
    assert "responses" not in score.to_dict()
    with pytest.raises(AttributeError):
        score.value = 1.0


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"value": 1, "ci": [0, 2], "per_example": [], "extra": 1}, "unknown keys"),
        ({"value": 1, "ci": [0, 2]}, "lacks"),
    ],
)
def test_stored_score_with_other_keys_is_refused(stored, message):
    with pytest.raises(ValueError, match=message):
        Score.from_dict(stored)


# --- The door -------------------------------------------------------------------------------------------------------


def refused(message, model, tokenizer, corpus, **settings):
    with pytest.raises(ValueError, match=message):
        evaluate(model, tokenizer, corpus, progress=False, **settings)


def test_missing_retrained_reference(random_model, tokenizer, corpus):
    refused("retrained=MODEL", random_model, tokenizer, corpus)
    refused("retrained=MODEL", random_model, tokenizer, corpus, metrics=("verbmem", "privleak"))
    with pytest.raises(ValueError, match="retrained=MODEL"):
        registry["privleak"](random_model, tokenizer, corpus, Context())


def test_mismatched_retrained_scores(random_model, tokenizer, corpus, reference):
    half = {"forget": reference["forget"][:5], "holdout": reference["holdout"]}
    refused(r"retrained\['forget'\] has 5 scores.*12 such texts", random_model, tokenizer, corpus, retrained=half)
    refused("a mapping, not 'retrained/'", random_model, tokenizer, corpus, retrained="retrained/")
    refused("exactly the keys", random_model, tokenizer, corpus, retrained={"forget": [1.0]})


def test_tokenizer_of_another_model(tokenizer, tokenizer_adding_bos, corpus):
    small = llama(300)
    refused("400 tokens but the model embeds 300", small, tokenizer, corpus, metrics=("verbmem",))
    other = llama(400, bos_token_id=17)
    refused(r"BOS is token \[17\]", other, tokenizer, corpus, metrics=("verbmem",))
    other = llama(400, eos_token_id=[17, 18])
    refused(r"EOS is token \[17, 18\]", other, tokenizer, corpus, metrics=("verbmem",))
    without = copy.deepcopy(tokenizer_adding_bos)
    without.bos_token = None
    refused("no BOS token", llama(400), without, corpus, metrics=("verbmem",))


def test_tokenizer_of_another_retrained_model(random_model, tokenizer, corpus):
    message = "the retrained model cannot be the reference.*embeds 300"
    refused(message, random_model, tokenizer, corpus, retrained=llama(300), metrics=("privleak",))


def test_nan_in_weights(broken, random_model, tokenizer, corpus):
    broken.model.layers[1].mlp.up_proj.weight.data[3, 5] = float("nan")
    message = r"model.layers.1.mlp.up_proj.weight holds NaN or Inf in 1 of 8192"
    refused(message, broken, tokenizer, corpus, metrics=("verbmem",))
    refused(message, random_model, tokenizer, corpus, metrics=("privleak",), retrained=broken)


@pytest.mark.parametrize("metric", METRICS)
def test_empty_sets(metric, random_model, tokenizer, corpus, reference):
    empty = changed(corpus, verbmem=[], knowmem={}, privleak={"forget": [], "holdout": []})
    refused(rf"corpus 'tiny' has no examples for \['{metric}'\]", random_model, tokenizer, empty, metrics=(metric,),
            retrained=reference)  # fmt: skip


def test_one_empty_side_and_missing_icl(random_model, tokenizer, corpus):
    one_side = changed(corpus, privleak={"forget": corpus.privleak["forget"], "holdout": []})
    refused(r"privleak\['holdout'\] of corpus 'tiny' is empty", random_model, tokenizer, one_side,
            metrics=("privleak",), retrained=random_model)  # fmt: skip
    bare = changed(corpus, knowmem={"forget_qa": corpus.knowmem["forget_qa"]})
    refused(r"in-context pairs knowmem\['forget_qa_icl'\]", random_model, tokenizer, bare, metrics=("knowmem",))


def test_a_text_without_a_lowest_share(random_model, tokenizer, corpus):
    short = changed(corpus, privleak={"forget": ["A", *corpus.privleak["forget"]], "holdout": ["A river when"]})
    refused(r"text 0 of privleak\['forget'\].*too short", random_model, tokenizer, short, metrics=("privleak",),
            retrained=random_model)  # fmt: skip


def test_everything_is_refused_before_any_work(tokenizer, corpus, random_model):
    """A second metric that cannot be had stops the first: nothing passes through the model."""
    fed = []
    small = llama(len(tokenizer), max_position_embeddings=150)
    for model in (small, random_model):
        model.register_forward_pre_hook(lambda *_: fed.append(1))
    short = changed(corpus, privleak={"forget": ["A", *corpus.privleak["forget"]], "holdout": ["A river when"]})
    bare = changed(corpus, knowmem={"forget_qa": corpus.knowmem["forget_qa"]})
    brief = changed(corpus, verbmem=[*corpus.verbmem, {"prompt": "Adela of", "gt": ""}])
    half = {"forget": [1.0], "holdout": [1.0]}
    refused("too short", random_model, tokenizer, short, metrics=("verbmem", "privleak"), retrained=random_model)
    refused("in-context pairs", random_model, tokenizer, bare, metrics=("verbmem", "knowmem"))
    refused("1 tokens, and the last is not scored", random_model, tokenizer, brief,
            metrics=("verbmem", "exact_memorization"))  # fmt: skip
    refused("has 1 scores", random_model, tokenizer, corpus, metrics=("verbmem", "privleak"), retrained=half)
    message = r"prompt \d+ of verbmem \(\d+ tokens\) with 128 new ones needs \d+ positions.*=150"
    refused(message, small, tokenizer, corpus, metrics=("verbmem",))
    refused(
        r"prompt \d+ of knowmem\['forget_qa'\].*with 32 new ones needs", small, tokenizer, corpus, metrics=("knowmem",)
    )
    refused(r"text \d+ of privleak\['forget'\].*it begins '.*needs \d+ positions", small, tokenizer, corpus,
            metrics=("privleak",), retrained=random_model)  # fmt: skip
    refused(r"of verbmem of corpus 'tiny'.*needs \d+ positions", small, tokenizer, corpus,
            metrics=("extraction_strength",))  # fmt: skip
    assert not fed
    del random_model._forward_pre_hooks[next(reversed(random_model._forward_pre_hooks))]


def test_bad_examples(random_model, tokenizer, corpus):
    refused("'utility'.*not among", random_model, tokenizer, corpus, metrics=("verbmem",), examples={"utility": [0]})
    refused(r"\[12\] lie outside", random_model, tokenizer, corpus, metrics=("verbmem",), examples={"verbmem": [12]})
    refused(r"\[-1\] lie outside", random_model, tokenizer, corpus, metrics=("verbmem",), examples={"verbmem": [-1]})
    refused("empty list", random_model, tokenizer, corpus, metrics=("verbmem",), examples={"verbmem": []})


def test_no_metrics(random_model, tokenizer, corpus):
    refused("metrics is empty", random_model, tokenizer, corpus, metrics=())


def test_the_arithmetic_loads_without_torch():
    code = (
        "import sys; from qru.metrics import Score, min_k_score, privleak, rouge_l; "
        "from qru.metrics.bootstrap import paired_difference; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
