"""Forgetting a part: nested sets at once, and requests that arrive one after another."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from qru import arms, audit, compress, figures, forget_sets, models, pipeline, verdict
from qru.config import FORGET_SETS, RunConfig, digest
from qru.corpora import Corpus, load_corpus
from qru.defaults import PARTS_EPOCHS, resolve
from qru.ops import QuantSpec
from qru.parallel import threads
from qru.unlearn import unlearn
from tests.muse_folder import write_muse_folder
from tests.synthetic import forget_set_records

ROOT = Path(__file__).resolve().parents[2]
RUN = {"method": "ga_gdr", "scale": "smoke", "quantizers": ("rtn-int4-g128",), "learning_rate": 1e-3, "epochs": 4}


def small(**sets) -> Corpus:
    """Documents "a" … "d", and a passage of each of the first three; "e" was never in any of them."""
    texts = {name: f"{name} one two\nthree four {name}" for name in "abcde"}
    verbmem = [{"prompt": f"{name}  one two", "gt": f" three four {name}"} for name in "abce"]
    sets = {kind: {f"forget_{k}": [texts[n] for n in names] for k, names in by.items()} for kind, by in sets.items()}
    return Corpus("small", {"forget": [texts[n] for n in "abcd"], "retain1": ["f"]}, verbmem, {}, {}, **sets)


def test_sets_are_what_the_corpus_says(corpus):
    nested = [set(forget_sets.documents(corpus, f"scal_{k}")) for k in (1, 2, 3, 4)]
    assert all(a < b for a, b in pairwise(nested))
    assert nested[-1] == set(corpus.raw["forget"]) == set(forget_sets.documents(corpus, "all"))
    seen = [forget_sets.documents(corpus, f"sust_{k}") for k in (1, 2, 3, 4)]
    assert sum(map(len, seen)) == len(set().union(*seen)) == len(corpus.raw["forget"])
    assert forget_sets.there(corpus) == list(FORGET_SETS)
    narrowed = forget_sets.narrowed(corpus, "sust_2")
    assert narrowed.raw == {**corpus.raw, "forget": seen[1]}
    assert forget_sets.narrowed(corpus, "all") is corpus


def test_a_request_follows_those_before_it():
    assert forget_sets.requests("sust_3") == ["sust_1", "sust_2", "sust_3"]
    for name in ("all", "scal_3", "sust_1"):
        assert forget_sets.requests(name) == [name]


def test_passages_are_found_in_the_documents_that_were_asked_for():
    corpus = small(scal={1: "b", 2: "bc"}, sust={1: "c", 2: "ad"})
    assert forget_sets.verbmem_parts(corpus, "scal_1") == {"forgotten": [1], "remaining": [0, 2]}
    assert forget_sets.verbmem_parts(corpus, "scal_2") == {"forgotten": [1, 2], "remaining": [0]}
    assert forget_sets.verbmem_parts(corpus, "sust_2") == {"forgotten": [0, 2], "remaining": [1]}
    assert forget_sets.section(corpus, "sust_2")["documents"] == 3


def test_no_passage_runs_from_one_document_into_the_next():
    corpus = replace(small(scal={1: "ab"}), verbmem=[{"prompt": "three four a", "gt": "b one two"}])
    assert forget_sets.verbmem_parts(corpus, "scal_1") == {"forgotten": [], "remaining": []}


def test_parts_are_means_over_their_passages():
    verbmem = {"value": 50.0, "ci": [0, 100], "per_example": [1.0, 0.5, 0.0, 0.5]}
    scores = {"unlearned": {"bf16": {"verbmem": verbmem, "utility": {"value": 3.0}}}}
    examples = {"forgotten": [1, 2], "remaining": [0]}
    found = forget_sets.parts(scores, examples)["unlearned"]["bf16"]
    assert (found["forgotten"]["value"], found["forgotten"]["examples"]) == (25, 2)
    assert (found["remaining"]["value"], found["remaining"]["ci"]) == (100, [100, 100])
    judged = forget_sets.of_forgotten(scores, examples)["unlearned"]["bf16"]
    assert judged["verbmem"]["per_example"] == [0.5, 0.0]
    assert judged["utility"] == {"value": 3.0}
    nothing = {"forgotten": [], "remaining": [0]}
    assert forget_sets.of_forgotten(scores, nothing) == scores
    assert list(forget_sets.parts(scores, nothing)["unlearned"]["bf16"]) == ["remaining"]


@pytest.mark.parametrize(
    ("sets", "name", "message"),
    [
        ({}, "scal_1", "'scal_1' does not exist in corpus 'small', which has all"),
        ({"scal": {1: "a"}}, "scal_2", "which has all, scal_1"),
        ({"sust": {1: "a", 2: ""}}, "sust_2", "is empty in corpus 'small', which has all, sust_1"),
    ],
)
def test_a_set_that_is_not_there_is_named_before_any_work(sets, name, message, monkeypatch):
    monkeypatch.setattr("qru.inputs.load_corpus", lambda *a, **k: small(**sets))
    monkeypatch.setattr("qru.models.prepare", lambda *a: pytest.fail("prepared models"))
    with pytest.raises(ValueError, match=message):
        pipeline.run(scale="smoke", forget_set=name)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"forget_set": "scal_5"}, "scal_4"),
        ({"forget_set": "forget_1"}, "unknown forget_set 'forget_1'"),
        ({"forget_set": "sust_2", "forget_goal": 20.0}, "leave forget_goal out"),
    ],
)
def test_an_impossible_set_stops_at_the_door(parameters, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.from_dict(parameters)


@pytest.mark.parametrize(("kinds", "message"), [(["scale"], "Did you mean 'scal'"), ([], "kinds is empty")])
def test_unknown_kinds_stop_before_any_work(kinds, message, monkeypatch):
    monkeypatch.setattr("qru.models.prepare", lambda *a: pytest.fail("prepared models"))
    with pytest.raises(ValueError, match=message):
        arms.run_forget_sets(kinds, scale="smoke")


def test_a_corpus_without_sets_says_what_it_has(monkeypatch):
    monkeypatch.setattr("qru.inputs.load_corpus", lambda *a, **k: small(sust={1: "a"}))
    with pytest.raises(ValueError, match=r"has no forget sets scal_1.*it has all, sust_1\. Leave 'scal' out"):
        arms.run_forget_sets(scale="smoke")


def test_at_mini_the_parts_take_their_own_defaults_and_no_goal(monkeypatch):
    asked = []
    monkeypatch.setattr(arms.pipeline, "run_all", lambda configs: asked.extend(map(resolve, configs)))
    monkeypatch.setattr(arms, "tidy", lambda: None)
    arms.run_forget_sets()
    assert [config.forget_set for config in asked] == [f"{kind}_{n}" for kind in ("scal", "sust") for n in (1, 2, 3, 4)]
    assert {(config.forget_goal, config.epochs) for config in asked} == {(None, PARTS_EPOCHS)}


@pytest.mark.parametrize("path", sorted((ROOT / "paper/records/readme").glob("*.json")), ids=lambda path: path.stem)
def test_published_records_keep_their_key(path):
    record = json.loads(path.read_text())
    config, made = dict(record["config"]), record["provenance"]["models"]
    known = config.pop("hash")
    parts = RunConfig.from_dict(config).identity(), made["target"], made["retrained"], record["provenance"]["corpus"]
    assert digest(list(parts)) == known
    free = {"forget_goal": None, "goal_metrics": None, "check_steps": None}  # a goal is for the whole set
    assert RunConfig.from_dict(config | free | {"forget_set": "scal_1"}).identity()["forget_set"] == "scal_1"


def linear_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: layer.weight for name, layer in models.linear_layers(models.load(folder)[0]).items()}


def result(start: Path, corpus: Corpus, documents: list[str], config: RunConfig) -> dict[str, torch.Tensor]:
    """The weights that unlearning ``documents`` from a checkpoint leaves, without any pipeline."""
    model, tokenizer = models.load(start)
    asked = replace(corpus, raw=corpus.raw | {"forget": documents})
    with threads(1):
        trained, _ = unlearn(model, tokenizer, asked, resolve(config), frozen=lambda: models.load(start)[0])
    before = models.load(start)[0]
    return {name: layer.weight for name, layer in models.linear_layers(compress.merged_model(before, trained)).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name].float(), b[name].float()) for name in a)


@pytest.fixture(scope="module")
def second(made):
    """The second request, by LoRA on NPO and KLR, which both have a reference."""
    return pipeline.run(**RUN | {"method": "npo_klr"}, adapter="lora", lora_rank=4, forget_set="sust_2")


def earlier(record) -> Path:
    """The folder of the request before."""
    return record.path.parent.parent / record.extra["forget_set"]["start"]


def test_a_request_starts_from_the_result_of_the_one_before(second, made, corpus):
    config = RunConfig(**RUN | {"method": "npo_klr"}, adapter="lora", lora_rank=4)
    found = linear_weights(second.path.parent / "model")
    assert same(linear_weights(earlier(second) / "model"), result(made.target, corpus, corpus.sust["forget_1"], config))
    assert same(found, result(earlier(second) / "model", corpus, corpus.sust["forget_2"], config))
    assert not same(found, result(made.target, corpus, corpus.sust["forget_2"], config))


def test_the_record_of_a_request(second, made, corpus):
    assert earlier(second).name.startswith("books-smoke-npo_klr-lora-fp32-sust_1-s0-")
    about = second.extra["forget_set"]
    assert (about["kind"], about["number"], about["documents"]) == ("sust", 2, 6)
    asked = {*corpus.sust["forget_1"], *corpus.sust["forget_2"]}
    assert about["examples"]["forgotten"] == [
        at for at, example in enumerate(corpus.verbmem) if example["prompt"] + example["gt"] in asked
    ]
    assert len(about["examples"]["remaining"]) == len(corpus.verbmem) - 6
    assert json.loads((earlier(second) / "record.json").read_text())["forget_set"]["start"] is None
    for model in ("target", "unlearned", "retrained"):
        for precision in ("bf16", "rtn-int4-g128"):
            scores = second.scores[model][precision]["verbmem"]["per_example"]
            part = second.extra["parts"][model][precision]["forgotten"]
            assert part["value"] == pytest.approx(100 * sum(scores[i] for i in about["examples"]["forgotten"]) / 6)
            assert part["examples"] == 6
            assert len(scores) == len(corpus.verbmem), "the scores themselves are those of the whole corpus"


def test_crossings_lead_from_the_target_to_the_last_result(second, made):
    report = audit(made.target, second.path.parent / "model", QuantSpec.parse("rtn-int4-g128"))
    found = second.crossings["rtn-int4-g128"]["total"]
    assert {key: found[key] for key in ("moved", "crossed", "changed")} == {
        key: report["total"][key] for key in ("moved", "crossed", "changed")
    }
    assert found["moved"] > audit(earlier(second) / "model", second.path.parent / "model")["total"]["moved"]


def test_what_is_there_is_not_made_again(second, monkeypatch):
    monkeypatch.setattr(pipeline, "side_by_side", lambda *a: pytest.fail("ran again"))
    again = pipeline.run(**RUN | {"method": "npo_klr"}, adapter="lora", lora_rank=4, forget_set="sust_2")
    assert again == second


def test_a_request_that_lost_its_record_or_its_model_is_made_again(second, monkeypatch, capfd):
    first = earlier(second) / "record.json"
    before, weights = json.loads(first.read_text()), linear_weights(first.parent / "model")
    settings = RUN | {"method": "npo_klr", "adapter": "lora", "lora_rank": 4, "forget_set": "sust_2"}
    first.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("qru.loop.fit", lambda *a, **k: pytest.fail("trained again"))
        assert pipeline.run(**settings) == second
    assert json.loads(first.read_text())["scores"] == before["scores"]

    # Now the second must be trained again, and what it starts from is gone although its record is there.
    shutil.rmtree(first.parent / "model")
    assert pipeline.run(**settings) == second, "nothing needs it"
    shutil.rmtree(second.path.parent)
    again = pipeline.run(**settings)
    assert same(linear_weights(first.parent / "model"), weights)
    assert again.scores == second.scores


def loss(folder: Path, documents: list[str]) -> float:
    """Mean negative log-likelihood of a token, over documents."""
    model, tokenizer = models.load(folder)
    rows = models.rows(documents, tokenizer, model.config.max_position_embeddings)
    with torch.no_grad():
        found = [model(input_ids=row[None], labels=row[None]).loss.item() for row in rows]
    return sum(found) / len(found)


def test_what_is_asked_for_is_forgotten_more_than_the_rest(made, corpus):
    run = pipeline.run(**RUN, forget_set="sust_2")
    losses = [
        {name: loss(folder, documents) for name, documents in corpus.sust.items()}
        for folder in (made.target, earlier(run) / "model", run.path.parent / "model")
    ]
    first, second = ({name: after[name] - before[name] for name in after} for before, after in pairwise(losses))
    assert max(first, key=first.get) == "forget_1"
    assert first["forget_1"] > 1.5 * first["forget_3"] > 0, "the third tells of other people than the first"
    assert max(second, key=second.get) == "forget_2"


def test_nested_sets_start_from_the_target_and_share_one_call(made, corpus):
    found = pipeline.run_all([RunConfig(**RUN, forget_set=name) for name in ("sust_2", "scal_2", "sust_1", "scal_2")])
    assert [record.config["forget_set"] for record in found] == ["sust_2", "scal_2", "sust_1", "scal_2"]
    assert [bool(record.extra["forget_set"]["start"]) for record in found] == [True, False, False, False]
    assert same(
        linear_weights(found[1].path.parent / "model"),
        result(made.target, corpus, corpus.scal["forget_2"], RunConfig(**RUN)),
    )
    assert "scal_2" in found[1].extra["verdict"][0]


def test_a_folder_in_the_layout_of_muse_brings_its_sets(made, corpus, tmp_path):
    """MUSE's News: the first set is ``raw/forget``, and the others reach beyond it."""
    news = {f"forget_{k}": [*corpus.raw["forget"], *corpus.raw["retain2"][: 3 * (k - 1)]] for k in (1, 2, 3, 4)}
    (tmp_path / "elsewhere").mkdir()
    folder = write_muse_folder(tmp_path / "mine", replace(corpus, scal=news, sust={}))
    given = RUN | {"corpus": str(folder), "target": str(made.target), "retrained": str(made.retrained), "epochs": 1}
    record = pipeline.run(**given, forget_set="scal_2")
    about = record.extra["forget_set"]
    assert about["documents"] == len(corpus.raw["forget"]) + 3
    assert about["examples"] == {"forgotten": list(range(len(corpus.verbmem))), "remaining": []}
    assert list(record.extra["parts"]["unlearned"]["bf16"]) == ["forgotten"]
    assert len(figures.over_forget_sets(record, kind="scal").axes) == 2, "no passage remains to be asked for"
    with pytest.raises(ValueError, match=r"'sust_1' does not exist in corpus .* which has all, scal_1, scal_2, scal_3"):
        pipeline.run(**given, forget_set="sust_1")

    given["corpus"] = str(shutil.move(folder, tmp_path / "elsewhere" / "mine"))
    again = pipeline.run(**given, forget_set="scal_2")
    assert (again.path, again.scores) == (record.path, record.scores)
    assert arms.asked(again, "verbmem") == [(example["prompt"], example["gt"]) for example in corpus.verbmem]


def test_another_text_in_a_set_is_another_run(made, corpus):
    def key(corpus, name):
        return pipeline._chain(resolve(RunConfig(**RUN, forget_set=name)), corpus, made)[-1].key

    sust = corpus.sust | {"forget_1": [*corpus.sust["forget_1"], "One more."]}
    changed = replace(corpus, sust=sust)
    assert changed.fingerprint == corpus.fingerprint
    assert key(changed, "sust_2") != key(corpus, "sust_2"), "it starts from another model"
    assert key(changed, "scal_2") == key(corpus, "scal_2")
    assert key(changed, "all") == key(corpus, "all")


def test_the_verdict_says_what_the_records_hold():
    told = verdict.over_forget_sets([*forget_set_records("scal"), *forget_set_records("sust")])
    at_once, one_by_one, both = told.values()
    assert at_once[0].startswith("after 20, 50, 70 and 100 documents, utility in bf16 is 92, 87, 82 and 77 percent")
    assert "VerbMem of the text to be forgotten is 15, 18, 21 and 24 percent (target 97)." in at_once
    assert "VerbMem of the text not yet asked for is 86, 77 and 68 percent (target 97)." in at_once
    assert "under rtn-int4-g128 it comes back after sust_1, sust_2, sust_3 and sust_4." in one_by_one
    assert both[0] == "utility in bf16 changes by +0.0 [+0.0, +0.0] points, no more than noise."
    last = forget_set_records("scal", "lora")
    (found,) = verdict.over_forget_sets(last).values()
    assert "under rtn-int4-g128 it comes back after none of them." in found


def test_embedded_corpora_have_all_sets():
    for name in ("books", "news"):
        assert forget_sets.there(load_corpus(name, scale="mini")) == list(FORGET_SETS)
