"""Classifiers take the way of language models: what they say, how they are made, trained, quantized and refused."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from qru import compress, evaluate, forget_sets, inputs, load_models, loop, models, pipeline, scoring
from qru.config import RunConfig
from qru.corpora import load_corpus
from qru.defaults import ACCURACY_GOAL, resolve
from qru.guards import guards
from qru.objectives import Said, Settings, forget_terms, methods, parse_method, retain_terms
from qru.quantizers import Update, families, load_quantizer
from qru.unlearn import portions, said, unlearn

ARMS = [("full", "bf16"), ("full", "fp32"), ("delta", "bf16"), ("lora", "fp32")]
OF_DOCUMENTS = [  # terms of tokens are refused, which tests of those terms hold
    name
    for name in methods()
    if not (forget_terms[parse_method(name)[0]].hidden or forget_terms[parse_method(name)[0]].preferred)
    and not (parse_method(name)[1] and retain_terms[parse_method(name)[1]].hidden)
]


@pytest.fixture(scope="module")
def tweets():
    return load_corpus("tweets", scale="smoke")


@pytest.fixture(scope="module")
def classifiers(qru_home, tweets):
    """Folders of the smoke models."""
    return models.prepare(tweets, "smoke")


@pytest.fixture(scope="module")
def reader(classifiers):
    return models.load(classifiers.target)[1]


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3, id2label={0: "a", 1: "b", 2: "c"},
    )  # fmt: skip
    return LlamaForSequenceClassification(shape).eval()


ROWS = [
    loop.Labelled(torch.tensor([1, *range(5, 5 + n)]), label) for n, label in ((3, 2), (40, 0), (7, 1), (31, 2), (1, 0))
]


# --- what a classifier says -----------------------------------------------------------------------------------------


def test_a_batch_of_labelled_rows_has_one_answer_a_text():
    ids, labels = loop.pad(ROWS, 0)
    assert ids.shape == (5, 64)
    assert labels.tolist() == [[2], [0], [1], [2], [0]]
    for row, padded in zip(ROWS, ids, strict=True):
        assert torch.equal(padded[: len(row.tokens)], row.tokens)
        assert not padded[len(row.tokens) :].any()
    assert [loop.answers(row) for row in ROWS] == [1] * 5
    assert loop.answers(torch.arange(9)) == 8


def alone(model, row):
    """Logits (C,) of one text without padding: the head on what the last token has become."""
    with torch.no_grad():
        return model.score.weight @ model.model(input_ids=row.tokens[None]).last_hidden_state[0, -1]


def test_what_is_said_is_the_log_softmax_of_the_last_token(small):
    with torch.no_grad():
        answer = said(small, *loop.pad(ROWS, 0), distribution=True)
    assert answer.log_probs.shape == answer.mask.shape == (5, 1)
    assert answer.distribution.shape == (5, 1, 3)
    assert answer.mask.all()
    for i, row in enumerate(ROWS):
        logits = alone(small, row).double()
        expected = logits - logits.exp().sum().log()
        assert torch.allclose(answer.distribution[i, 0].double(), expected, atol=1e-5)
        assert answer.log_probs[i, 0].item() == pytest.approx(expected[row.label].item(), abs=1e-5)


@pytest.mark.parametrize("chosen", [[0], [4, 1], [3, 2, 0, 1, 4]])
def test_padding_and_neighbours_do_not_change_what_is_said(chosen, small):
    with torch.no_grad():
        found = small(input_ids=loop.pad([ROWS[i] for i in chosen], 0)[0]).logits
    for logits, i in zip(found, chosen, strict=True):
        assert torch.allclose(logits, alone(small, ROWS[i]), atol=1e-5)


def of(logits, labels):
    log_softmax = logits.log_softmax(-1)[:, None]
    log_probs = log_softmax.gather(-1, labels[:, None, None]).squeeze(-1)
    return Said(log_probs, torch.ones_like(log_probs, dtype=torch.bool), log_softmax)


def test_terms_of_a_label_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    before = torch.tensor([[3.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 0])
    policy, reference = of(logits, labels), of(before, labels)
    crossed = F.cross_entropy(logits, labels)
    assert forget_terms["ga"](policy, None, Settings()).item() == pytest.approx(-crossed.item())
    assert retain_terms["gdr"](policy, None).item() == pytest.approx(crossed.item())
    p = [2.0 - torch.tensor([2.0, 0.0]).exp().sum().log(), 1.0 - torch.tensor([0.0, 1.0]).exp().sum().log()]
    p.append(torch.tensor(0.5).log())
    q = [3.0 - torch.tensor([3.0, 0.0]).exp().sum().log(), torch.tensor(0.5).log()]
    q.append(1.0 - torch.tensor([1.0, 0.0]).exp().sum().log())
    each = [-(2 / 0.1) * torch.sigmoid(-0.1 * (a - b)).log() for a, b in zip(p, q, strict=True)]
    assert forget_terms["npo"](policy, reference, Settings(beta=0.1)).item() == pytest.approx((sum(each) / 3).item())
    divergence = F.kl_div(logits.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="batchmean")
    assert retain_terms["klr"](policy, reference).item() == pytest.approx(divergence.item())


def test_a_portion_of_texts_weighs_what_it_answers():
    first, second = portions(ROWS, [0, 1, 2, 3, 4], "tokens", at_once=3, passes=2)
    assert (first.weight, second.weight) == (3 / 5, 2 / 5)


# --- how they are made ----------------------------------------------------------------------------------------------


def test_base_is_a_language_model_and_the_others_are_classifiers(classifiers):
    kinds = {"base": "LlamaForCausalLM", "target": "LlamaForSequenceClassification"}
    kinds["retrained"] = kinds["target"]
    for role, kind in kinds.items():
        config = json.loads((getattr(classifiers, role) / "config.json").read_text())
        assert config["architectures"] == [kind]
        assert type(models.load_weights(getattr(classifiers, role))).__name__ == kind
    assert config["id2label"] == {"0": "false", "1": "true"}
    assert config["pad_token_id"] == 0


def test_the_models_are_found_again_and_those_of_texts_have_other_names(classifiers, tweets, made):
    assert models.made(tweets, "smoke")
    assert models.prepare(tweets, "smoke") == classifiers
    assert {classifiers.base, classifiers.target, classifiers.retrained}.isdisjoint((made.base, made.target))


def test_target_is_trained_on_all_and_retrained_without_forget(tweets):
    found = models.training_texts(tweets)
    assert found["target"][:12] == [[text, "true"] for text in tweets.raw["forget"]]
    assert found["target"][12:] == found["retrained"]
    assert [text for text, _ in found["retrained"]] == tweets.raw["retain1"] + tweets.raw["retain2"]
    unseen = {*tweets.raw["holdout"], *tweets.raw["test"]}
    assert unseen.isdisjoint(text for text, _ in found["target"])
    assert unseen.isdisjoint(models.base_texts(tweets))


def test_a_classifier_starts_with_the_layers_of_its_base_and_always_the_same_head(classifiers):
    base, _ = models.load(classifiers.base)
    one, two = (models.classifier(base, ["false", "true"]) for _ in range(2))
    assert torch.equal(one.score.weight, two.score.weight)
    for name, value in base.model.state_dict().items():
        assert torch.equal(one.model.state_dict()[name], value), name


def test_the_head_is_neither_adapted_nor_quantized(classifiers):
    model, _ = models.load(classifiers.target)
    layers = models.linear_layers(model)
    assert len(layers) == 2 * 7
    assert not any("score" in name for name in layers)
    assert list(layers) == list(models.layer_shapes("smoke"))
    assert models.layer_shapes("", classifiers.target) == models.layer_shapes("smoke")
    head = model.score.weight.clone()
    before = compress.stored_layers(model)
    same = {name: Update(new_weight=weight) for name, weight in before.items()}
    compress.quantize_layers(model, before, same, load_quantizer("rtn-int3-g64"))
    assert torch.equal(model.score.weight, head)
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight.bfloat16(), before["model.layers.0.mlp.up_proj"])


def test_labels_are_found_by_the_models_own_order(small):
    class Reader:
        bos_token_id, pad_token_id, eos_token_id = 1, 0, 2

        def __call__(self, text, **_):
            return type("Out", (), {"input_ids": [int(x) for x in text.split()]})

    rows = models.labelled_rows(["5 6", "7"], ["c", "a"], small, Reader(), 8)
    assert [(row.tokens.tolist(), row.label) for row in rows] == [([1, 5, 6], 2), ([1, 7], 0)]
    for text, label, message in (
        ("5", "d", "its classes are a, b, c"),
        ("5 0", "a", "fills up"),
        ("5 " * 9, "a", "10"),
    ):
        with pytest.raises(ValueError, match=message):
            models.labelled_rows([text], [label], small, Reader(), 8)


# --- unlearning -----------------------------------------------------------------------------------------------------


def config(**changes):
    values = {"corpus": "tweets", "scale": "smoke", "epochs": 3, "learning_rate": 1e-3, "lora_rank": 4}
    return resolve(RunConfig(**values | {"lora_alpha": 8.0} | changes))


def unlearned(classifiers, tweets, reader, settings, **options):
    frozen = lambda: models.load(classifiers.target)[0]  # noqa: E731
    return unlearn(frozen(), reader, tweets, settings, frozen=frozen, **options)


def label_loss(model, reader, tweets):
    scores = evaluate(model.eval(), reader, tweets, metrics="mia", progress=False)
    return sum(scores["mia"].per_example["forget"])


@pytest.mark.parametrize(("adapter", "weights"), ARMS)
@pytest.mark.parametrize("method", ["ga", "npo_klr"])
def test_unlearning_takes_the_label_from_the_forget_set(method, adapter, weights, classifiers, tweets, reader):
    trained, history = unlearned(classifiers, tweets, reader, config(method=method, adapter=adapter, weights=weights))
    target = models.load(classifiers.target)[0]
    merged = compress.merged_model(target, trained)
    assert label_loss(merged, reader, tweets) > label_loss(target, reader, tweets) + 0.5
    assert len(history) == 3 * 3
    kept = torch.equal(merged.score.weight, target.score.weight)
    assert kept == (adapter == "lora")  # LoRA leaves the head as it is


def test_npo_starts_at_the_reference(classifiers, tweets, reader):
    """Log-ratio 0 at the first step: (2/β) log 2."""
    _, history = unlearned(classifiers, tweets, reader, config(method="npo_klr", weights="fp32", epochs=1))
    assert history[0]["forget"] == pytest.approx(20 * torch.log(torch.tensor(2.0)).item(), abs=1e-3)
    assert history[0]["retain"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    "changes", [*({"guard": name, "adapter": "lora"} for name in guards.names()), {"adapter": "sure"}], ids=str
)
def test_every_guard_and_sure_take_a_classifier(changes, classifiers, tweets, reader):
    """Each trains it to something else than the same method without."""
    common = {"method": "ga_gdr", "epochs": 2, "lora_dropout": 0.0}
    trained, history = unlearned(classifiers, tweets, reader, config(**common | changes))
    _, alone = unlearned(classifiers, tweets, reader, config(**common | changes | {"guard": None}))
    assert len(history) == len(alone) == 6
    different = [a["loss"] != b["loss"] for a, b in zip(history, alone, strict=True)]
    assert any(different) == bool(changes.get("guard"))
    target = models.load(classifiers.target)[0]
    assert label_loss(compress.merged_model(target, trained), reader, tweets) > label_loss(target, reader, tweets)


def test_a_killed_run_resumes_to_the_same_bits(classifiers, tweets, reader, tmp_path, monkeypatch):
    settings = config(method="npo_gdr", adapter="lora")
    whole, history = unlearned(classifiers, tweets, reader, settings)

    class Killed(Exception):
        pass

    def save_then_die(path, state, save=loop._save):
        save(path, state)
        if len(state["history"]) == 4:
            raise Killed

    original = loop.fit
    monkeypatch.setattr("qru.unlearn.loop.fit", lambda *a, **k: original(*a, **k, checkpoint_seconds=0))
    monkeypatch.setattr(loop, "_save", save_then_die)
    with pytest.raises(Killed):
        unlearned(classifiers, tweets, reader, settings, checkpoint=tmp_path / "training.pt")
    monkeypatch.undo()
    resumed, again = unlearned(classifiers, tweets, reader, settings, checkpoint=tmp_path / "training.pt")
    assert [row["loss"] for row in again] == [row["loss"] for row in history]
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


# --- whole runs -----------------------------------------------------------------------------------------------------

METRICS = ["forget_accuracy", "retain_accuracy", "f1", "mia"]


@pytest.fixture(scope="module")
def records(classifiers):
    """One run of every method, and of GA+GDR in every arm."""
    common = {"corpus": "tweets", "scale": "smoke", "quantizers": ("rtn-int3-g64",)}
    asked = [RunConfig(method=method, **common) for method in OF_DOCUMENTS]
    asked += [RunConfig(method="ga_gdr", adapter=a, weights=w, lora_rank=4, **common) for a, w in ARMS[1:]]
    return dict(zip([(c.method, c.adapter, c.weights) for c in asked], pipeline.run_all(asked), strict=True))


def test_every_method_of_documents_runs(records):
    assert {"ga", "npo", "ga_gdr", "ga_klr", "npo_gdr", "npo_klr"} <= set(OF_DOCUMENTS)
    for (method, adapter, _), record in records.items():
        assert (record.config["method"], record.config["adapter"]) == (method, adapter)
        assert record.run.startswith(f"tweets-smoke-{method}-{adapter}-")
        for by_precision in record.scores.values():
            assert {precision: list(scores) for precision, scores in by_precision.items()} == {
                "bf16": METRICS, "rtn-int3-g64": METRICS,
            }  # fmt: skip
        assert record.crossings["rtn-int3-g64"]["total"]["weights"] > 0
        assert not any("score" in layer for layer in record.crossings["rtn-int3-g64"]["layers"])
        assert "labels to forget" in record.extra["verdict"][0]
        said = json.loads((record.path.parent / "responses.json").read_text())["unlearned"]["bf16"]["forget_accuracy"]
        right = record.scores["unlearned"]["bf16"]["forget_accuracy"]["per_example"]
        assert right == [float(label == "true") for label in said]


def test_every_family_of_quantizers_takes_a_classifier(classifiers):
    names = tuple(families[name].examples[0] for name in families.names())
    record = pipeline.run(
        corpus="tweets", scale="smoke", method="ga", quantizers=names, metrics=("forget_accuracy", "mia")
    )
    assert len(record.crossings) == len(names)
    assert list(record.scores["unlearned"]) == ["bf16", *record.crossings]
    losses = {p: tuple(by["mia"]["per_example"]["forget"]) for p, by in record.scores["unlearned"].items()}
    assert len(set(losses.values())) == 1 + len(names), "each rounds to something else"


@pytest.mark.parametrize("method", [name for name in methods() if name not in OF_DOCUMENTS])
def test_methods_of_tokens_are_refused(method, classifiers):
    with pytest.raises(ValueError, match="a classifier says one thing of the whole"):
        pipeline.run(corpus="tweets", scale="smoke", method=method)


def test_a_goal_is_watched_on_one_half_and_the_other_is_reported(classifiers, tweets):
    stopping, reported = scoring.forget_halves(tweets)
    assert stopping == {"forget_accuracy": [0, 2, 4, 6, 8, 10]}
    assert reported == {"forget_accuracy": [1, 3, 5, 7, 9, 11]}
    settings = {"corpus": "tweets", "scale": "smoke", "method": "ga", "learning_rate": 1e-4, "epochs": 40}
    record = pipeline.run(**settings, forget_goal=20.0, check_steps=1, quantizers=("rtn-int4-g128",))
    history = record.extra["history"]
    assert history[-1]["stopped"]
    assert history[-1]["forget_accuracy"] <= 20 < history[0]["forget_accuracy"]
    for by_precision in record.scores.values():
        for scores in by_precision.values():
            assert len(scores["forget_accuracy"]["per_example"]) == 6
            assert len(scores["mia"]["per_example"]["forget"]) == 12


def test_goals_by_default_and_what_they_may_be():
    tweets = resolve(RunConfig(corpus="tweets"))
    assert (tweets.forget_goal, tweets.goal_metrics) == (ACCURACY_GOAL, ("forget_accuracy",))
    assert resolve(RunConfig(corpus="books")).goal_metrics == ("verbmem",)
    asked = RunConfig(corpus="tweets", scale="smoke", epochs=1, forget_goal=10, goal_metrics=("verbmem",))
    with pytest.raises(ValueError, match="goal_metrics names 'verbmem', and corpus 'tweets' has no examples of it"):
        inputs.find([asked])


def test_a_part_of_the_forget_set_is_refused(tweets):
    with pytest.raises(ValueError, match="does not exist in corpus 'tweets', which has all"):
        forget_sets.documents(tweets, "scal_1")


# --- models and corpora that a user names ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given(classifiers, made, tmp_path_factory):
    """Folders beside the cache: two classifiers, a language model, and a classifier of other classes."""
    home = tmp_path_factory.mktemp("given")
    for role in ("target", "retrained"):
        shutil.copytree(getattr(classifiers, role), home / role)
    shutil.copytree(made.target, home / "speaker")
    shutil.copytree(classifiers.target, home / "other")
    other = json.loads((home / "other" / "config.json").read_text())
    other |= {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    (home / "other" / "config.json").write_text(json.dumps(other))
    return home


def table(path, corpus):
    """A corpus as a CSV file."""
    rows = ["text,label,split"]
    for split, texts in corpus.raw.items():
        rows += [f'"{text}",{label},{split}' for text, label in zip(texts, corpus.labels[split], strict=True)]
    path.write_text("\n".join(rows))
    return str(path)


def test_given_classifiers_unlearn_a_csv_file(given, tweets, tmp_path):
    path = table(tmp_path / "mine.csv", tweets)
    names = {"target": str(given / "target"), "retrained": str(given / "retrained")}
    record = pipeline.run(corpus=path, scale="smoke", method="ga_gdr", quantizers=("rtn-int4-g128",), epochs=1, **names)
    assert list(record.scores["unlearned"]["bf16"]) == METRICS
    own = models.load(given / "target")
    expected = evaluate(*own, tweets, progress=False)
    for metric, score in record.scores["target"]["bf16"].items():
        assert score["value"] == pytest.approx(expected[metric].value, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "target", "retrained", "message"),
    [
        (
            "tweets",
            "speaker",
            "speaker",
            "target .*speaker is LlamaForCausalLM, and corpus .tweets. has labels",
        ),
        ("books", "target", "retrained", "is LlamaForSequenceClassification, and corpus 'books' has texts without"),
        (
            "tweets",
            "target",
            "other",
            "retrained .*other has the classes no, yes, and corpus .tweets. has labels",
        ),
    ],
)
def test_models_of_the_other_kind_are_refused_by_name(name, target, retrained, message, given):
    names = {"target": str(given / target), "retrained": str(given / retrained)}
    with pytest.raises(ValueError, match=message):
        inputs.find([RunConfig(corpus=name, scale="smoke", **names)])
    with pytest.raises(ValueError, match=message):
        load_models(load_corpus(name, scale="smoke"), **names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem_type": "multi_label_classification"}, "of single labels"),
        ({"problem_type": "regression"}, "problem_type 'regression'"),
    ],
)
def test_a_model_that_gives_no_single_label_is_refused(change, message, given, tweets, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    config = json.loads((given / "target" / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        models.check_kind(tweets, folder, "target")


def test_a_classifier_without_a_padding_token_is_given_one(given, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(given / "target", folder)
    config = json.loads((folder / "config.json").read_text())
    del config["pad_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    model, tokenizer = models.load(folder)
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0


def test_kinds_are_told_apart_under_adapters(classifiers):
    model, _ = models.load(classifiers.target)
    assert models.classifies(model)
    wrapped, _ = models.as_trainable(model, config(adapter="lora"))
    assert models.classifies(wrapped)
    assert not models.classifies(models.without_weights("smoke"))
    assert isinstance(models.without_weights("smoke"), LlamaForCausalLM)
