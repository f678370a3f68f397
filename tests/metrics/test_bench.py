"""The benchmark measures what it says: it refuses differing answers, and its record can be written and read."""

import json

import pytest
import torch

from qru.metrics import bench, evaluate, retrained_scores
from qru.metrics.score import Score


@pytest.fixture
def few(corpus):
    corpus = type(corpus)(**vars(corpus))
    corpus.verbmem = corpus.verbmem[:2]
    corpus.knowmem = {key: pairs[:2] for key, pairs in corpus.knowmem.items()}
    corpus.privleak = {side: texts[:3] for side, texts in corpus.privleak.items()}
    return corpus


@pytest.fixture
def result(trained_model, random_model, tokenizer, few):
    reference = retrained_scores(random_model, tokenizer, few)
    return bench.bench(trained_model, tokenizer, few, reference, 2, say=lambda line: None)


def test_record(result, few, tokenizer):
    assert result["verified"]["strings"] == 8
    texts = [text for side in ("forget", "holdout") for text in few.privleak[side]]
    assert result["verified"]["log_probs"] == sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    assert result["verified"]["largest_log_prob_difference"] <= 1e-5
    for name, found in result["metrics"].items():
        assert found["ratio"] == pytest.approx(found["seconds"]["alone"] / found["seconds"]["ours"]), name
    assert list(result["metrics"]) == ["verbmem", "knowmem", "privleak", "utility", "disjoint", "total"]
    json.dumps(result)


def changed(score: Score, what: str) -> Score:
    if what == "string":
        return Score(score.value, score.ci, score.per_example, [*score.responses[:-1], "other"])
    if what == "score":
        return Score(score.value, score.ci, [*score.per_example[:-1], 0.123], score.responses)
    return Score(score.value, score.ci, {**score.per_example, "forget": [9.0, *score.per_example["forget"][1:]]})


@pytest.mark.parametrize(
    ("name", "what", "message"),
    [
        ("verbmem", "string", "verbmem, example 1: 'other' in a batch"),
        ("utility", "score", "utility: the responses are the same"),
        ("privleak", "text", "privleak is"),
    ],
)
def test_a_difference_stops_it(name, what, message, trained_model, random_model, tokenizer, few):
    reference = retrained_scores(random_model, tokenizer, few)
    runs = bench.contestants(trained_model, tokenizer, few, reference)
    ours = runs[name]["ours"]
    runs[name]["ours"] = lambda: changed(ours(), what)
    with pytest.raises(AssertionError, match=message):
        bench.verify(trained_model, tokenizer, few, runs)


def test_a_differing_log_probability_stops_it(trained_model, random_model, tokenizer, few, monkeypatch):
    reference = retrained_scores(random_model, tokenizer, few)
    runs = bench.contestants(trained_model, tokenizer, few, reference)
    alone = bench.log_probs_alone
    monkeypatch.setattr(bench, "token_log_probs", lambda *given: [v + 1e-4 for v in alone(*given)])
    with pytest.raises(AssertionError, match="a log-probability differs by"):
        bench.verify(trained_model, tokenizer, few, runs)


def test_both_sides_score_alike(trained_model, random_model, tokenizer, few):
    """Also where the scores come from: the plain side's F1 is the metric's."""
    found = evaluate(trained_model, tokenizer, few, metrics="knowmem", progress=False)["knowmem"]
    assert bench.questions_alone(trained_model, tokenizer, few, "forget") == (found.responses, found.per_example)


def test_spread():
    assert bench.spread([1.0]) == 0.0
    assert bench.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)


def test_models_that_are_not_made_are_named(monkeypatch, capsys):
    monkeypatch.setattr(bench.models, "made", lambda corpus, scale: False)
    with pytest.raises(SystemExit):
        bench.main(["--corpus", "news", "--threads", str(torch.get_num_threads())])
    assert "papermill notebooks/01_prepare.ipynb" in capsys.readouterr().err
