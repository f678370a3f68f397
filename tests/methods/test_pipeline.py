"""A whole run at smoke scale: what it leaves behind, what it reuses, and what survives a kill."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from qru import arms, audit, load_corpus, load_models, loop, models, movement, parallel, pipeline, scoring
from qru.config import RunConfig
from qru.ops import QuantSpec

FAST = {"scale": "smoke", "quantizers": ("rtn-int4-g128", "rtn-int3-g64")}


@pytest.fixture(scope="module")
def record(made):
    return pipeline.run(method="npo_gdr", adapter="lora", lora_rank=4, learning_rate=1e-3, epochs=2, **FAST)


def test_a_record_holds_what_it_should(record):
    assert set(record.scores) == {"target", "retrained", "unlearned"}
    for by_precision in record.scores.values():
        assert list(by_precision) == ["bf16", "rtn-int4-g128", "rtn-int3-g64"]
        for scores in by_precision.values():
            assert set(scores) == {"verbmem", "knowmem", "privleak", "utility", "disjoint"}
            for name, score in scores.items():
                assert set(score) == {"value", "ci", "per_example"} | (
                    {"same_quantizer"} if name == "privleak" else set()
                )
    assert abs(record.scores["retrained"]["bf16"]["privleak"]["value"]) < 1e-9
    assert record.scores["retrained"]["rtn-int3-g64"]["privleak"]["same_quantizer"]["value"] == 0
    assert set(record.crossings) == {"rtn-int4-g128", "rtn-int3-g64"}
    assert record.crossings["rtn-int3-g64"]["total"]["crossed"] > 0
    assert record.config["weights"] == "fp32"
    assert record.provenance["versions"]["torch"]
    assert record.cost["unlearn"]["seconds"] > 0
    assert record.extra["verdict"]
    responses = json.loads((record.path.parent / "responses.json").read_text())
    assert len(responses["unlearned"]["bf16"]["verbmem"]) == len(
        record.scores["unlearned"]["bf16"]["verbmem"]["per_example"]
    )
    assert not (record.path.parent / "training.pt").exists()
    assert not (record.path.parent / "partial").exists()


@pytest.mark.parametrize("name", FAST["quantizers"])
def test_every_quantizer_rounds_what_was_saved_and_not_what_another_left(name, record, made):
    report = audit(made.target, record.path.parent / "model", QuantSpec.parse(name))["total"]
    found = record.crossings[name]["total"]
    counts = ("moved", "crossed", "changed", "histogram")
    assert {key: found[key] for key in counts} == {key: report[key] for key in counts}


def test_the_same_configuration_is_not_run_again(record, monkeypatch, capfd):
    monkeypatch.setattr(pipeline, "side_by_side", lambda *a: pytest.fail("ran again"))
    again = pipeline.run(method="npo_gdr", adapter="lora", lora_rank=4, learning_rate=1e-3, epochs=2, **FAST)
    assert again == record


SAME = {"method": "npo_gdr", "adapter": "lora", "lora_rank": 4, "learning_rate": 1e-3, "epochs": 2, "scale": "smoke"}


def test_measuring_something_else_does_not_train_again(record, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("qru.loop.fit", lambda *a, **k: pytest.fail("trained again"))
        again = pipeline.run(**SAME, quantizers=("rtn-int3-g64", "rtn-int2-g64"), metrics=("verbmem",))
        third = pipeline.run(**SAME, quantizers=("rtn-int8-g128",), metrics=("verbmem",))
    source = {"run": record.run} | {name: record.provenance[name] for name in ("commit", "dirty", "versions")}
    assert {"torch", "transformers", "peft"} <= set(source["versions"])
    assert again.provenance["trained_by"] == third.provenance["trained_by"] == source
    assert "trained_by" not in record.provenance
    assert again.cost["unlearn"] == record.cost["unlearn"]
    assert again.extra["history"] == record.extra["history"]
    assert again.crossings["rtn-int3-g64"] == record.crossings["rtn-int3-g64"]
    assert set(again.scores["unlearned"]) == {"bf16", "rtn-int3-g64", "rtn-int2-g64"}
    unlearned = again.scores["unlearned"]["rtn-int3-g64"]["verbmem"]
    assert unlearned == record.scores["unlearned"]["rtn-int3-g64"]["verbmem"]


class Trained(Exception):
    """Raised where training would begin."""


@pytest.fixture
def training_stops(monkeypatch):
    def fit(*arguments, **options):
        raise Trained

    monkeypatch.setattr("qru.loop.fit", fit)


@pytest.mark.parametrize("other", [{"beta": 0.2}, {"seed": 7}, {"lora_dropout": 0.0}, {"epochs": 3}])
def test_a_model_of_other_settings_is_not_taken(other, record, training_stops):
    with pytest.raises(Trained):
        pipeline.run(**SAME | other, quantizers=("rtn-int3-g64",))


OTHER = {"quantizers": ("rtn-int2-g128",), "metrics": ("verbmem",)}  # no test completes this run


@pytest.mark.parametrize(
    "change",
    [
        {"provenance": {"models": {"target": "that of another day"}}},
        {"provenance": {"models": {"base": "that of another day"}}},
        {"provenance": {"corpus": "other texts"}},
        {"provenance": {"compute": "fp16"}},
        {"config": {"retain_weight": 0.25}},
    ],
    ids=str,
)
def test_a_model_made_of_something_else_is_not_taken(change, record, training_stops):
    def merged(value, change):
        return {
            k: merged(v, change[k]) if isinstance(change.get(k), dict) else change.get(k, v) for k, v in value.items()
        }

    before = record.path.read_text()
    after = merged(json.loads(before), change)
    assert after != json.loads(before)
    record.path.write_text(json.dumps(after))
    try:
        with pytest.raises(Trained):
            pipeline.run(**SAME, **OTHER)
    finally:
        record.path.write_text(before)


@pytest.fixture
def job(record, corpus, made):
    """Of a run that takes the record's model."""
    config = RunConfig.from_dict({key: value for key, value in record.config.items() if key != "hash"})
    (job,) = pipeline._chain(dataclasses.replace(config, **OTHER), corpus, made)
    return job


def test_what_a_cpu_trained_is_not_taken_on_a_gpu(job, record, monkeypatch):
    assert pipeline._trained_alike(job).run == record.run
    monkeypatch.setattr("qru.loop.computed_as", lambda: f"cuda {record.provenance['compute']}")
    assert pipeline._trained_alike(job) is None


@contextlib.contextmanager
def model_gone(record):
    model = record.path.parent / "model"
    away = model.rename(model.with_name("model-elsewhere"))
    try:
        yield
    finally:
        away.rename(model)


def test_a_model_that_was_taken_is_not_taken_from_there(record, training_stops):
    taken = pipeline.run(**SAME, quantizers=("rtn-int8-g128",), metrics=("verbmem",))
    assert (taken.path.parent / "model").is_dir()
    with model_gone(record), pytest.raises(Trained):
        pipeline.run(**SAME, **OTHER)


def test_a_model_of_a_part_of_the_forget_set_is_not_taken(made, monkeypatch):
    part = {"method": "ga", "forget_set": "scal_1", "scale": "smoke", "metrics": ("verbmem",)}
    assert pipeline.run(**part, quantizers=("rtn-int3-g64",)).config["forget_set"] == "scal_1"
    monkeypatch.setattr("qru.loop.fit", lambda *a, **k: (_ for _ in ()).throw(Trained()))
    with pytest.raises(Trained):
        pipeline.run(**part, quantizers=("rtn-int2-g64",))


def test_runs_of_a_corpus_with_brackets_in_its_name_are_found(job, record):
    home = record.path.parent
    folder = home.rename(home.with_name(f"notes [2]-s0-{record.config['hash'][:10]}"))
    try:
        found = pipeline._trained_alike(job._replace(folder=home.with_name(f"notes [2]-s0-{job.key[:10]}")))
        assert found.path == folder / "record.json"
    finally:
        folder.rename(home)


class Killed(BaseException):
    pass


COPIED = {".adapter.copy", ".model.copy", "adapter", "history.json", "trained_by.json"}


@pytest.fixture(params=["adapter", "model"])
def killed(request, record, monkeypatch):
    """Settings and folder of a run that was killed when ``adapter`` or ``model`` was copied but for its name."""
    settings = SAME | {"quantizers": ("rtn-int4-row",), "metrics": ("verbmem",)}
    rename = Path.rename

    def dies(self, target):
        if Path(target).name == request.param:
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", dies)
        with pytest.raises(Killed):
            pipeline.run(**settings)
    (folder,) = (path.parent for path in record.path.parents[1].glob(f"*/.{request.param}.copy"))
    assert (folder / "history.json").is_file()
    assert not (folder / "model").exists()
    yield settings, folder
    shutil.rmtree(folder)  # or it would be a source of models for the tests that follow


def test_a_copy_that_was_killed_is_made_again(killed, record, monkeypatch):
    settings, folder = killed
    monkeypatch.setattr("qru.loop.fit", lambda *a, **k: pytest.fail("trained again"))
    found = pipeline.run(**settings)
    assert found.path.parent == folder
    assert found.provenance["trained_by"]["run"] == record.run
    assert found.cost["unlearn"] == record.cost["unlearn"]
    for name in ("adapter", "model"):
        source = {file.name: file.read_bytes() for file in (record.path.parent / name).iterdir()}
        assert {file.name: file.read_bytes() for file in (folder / name).iterdir()} == source
    assert not list(folder.glob(".*.copy"))


def test_nothing_is_left_of_a_killed_copy_whose_source_is_gone(killed, record, monkeypatch):
    settings, folder = killed
    left = []
    train = loop.fit

    def fit(*arguments, **options):
        left.append({path.name for path in folder.iterdir()})
        left.append(json.loads((folder / "partial" / "cost.json").read_text()))
        return train(*arguments, **options)

    monkeypatch.setattr("qru.loop.fit", fit)
    with model_gone(record):
        found = pipeline.run(**settings)
    names, stages = left
    assert not names & COPIED
    assert "unlearn" not in stages
    assert "trained_by" not in found.provenance
    seconds = sum(row["seconds"] for row in found.extra["history"])
    assert found.cost["unlearn"]["seconds"] == pytest.approx(seconds, abs=1e-3)
    assert seconds != sum(row["seconds"] for row in record.extra["history"])
    loss, before = ([row["loss"] for row in one.extra["history"]] for one in (found, record))
    assert loss == before


def test_a_damaged_record_is_made_again_from_what_is_there(record, monkeypatch):
    before = record.path.read_bytes()
    record.path.write_bytes(before[:100])
    monkeypatch.setattr("qru.loop.fit", lambda *a, **k: pytest.fail("trained again"))
    again = pipeline.run(method="npo_gdr", adapter="lora", lora_rank=4, learning_rate=1e-3, epochs=2, **FAST)
    assert again.scores == record.scores
    assert again.crossings == record.crossings


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"method": "npo_gdrr"}, "Did you mean 'npo_gdr'"),
        ({"corpus": "bookz"}, "books"),
        ({"quantizers": ("rtn-int5-g128",)}, "rtn-int5-g128|bits"),
        ({"lora_target": "mlp"}, "Did you mean 'lora_targets'"),
        ({"quantizers": ("rtn-int4-g96",)}, r"layers\.0\.self_attn\.q_proj: group_size 96 does not divide"),
        ({"metrics": ("verbmen",)}, "Did you mean 'verbmem'"),
        (
            {"metrics": ("verbmem", "exact_memorization")},
            "metrics names 'exact_memorization', but corpus .* has no data",
        ),
        ({"rounding": "stochastic"}, "it needs moments 'fp32'"),
    ],
)
def test_bad_input_stops_before_any_work(parameters, message, monkeypatch):
    monkeypatch.setattr("qru.models.prepare", lambda *a: pytest.fail("prepared models"))
    with pytest.raises(ValueError, match=message):
        pipeline.run(**{"scale": "smoke"} | parameters)


STEPPED = {
    "bf16": {"adapter": "full"},
    "fp32 moments": {"adapter": "full", "moments": "fp32"},
    "stochastic": {"adapter": "full", "moments": "fp32", "rounding": "stochastic"},
    "delta": {"adapter": "delta"},
}


@pytest.fixture(scope="module")
def stepped(made):
    """Arms of weights that are stepped in bf16, at one rate: 1.165e-4 is the largest step, so the edge is 2^-5."""
    common = {"method": "ga", "weights": "bf16", "learning_rate": 1e-4, "adam_beta2": 0.95, "epochs": 2}
    configs = [
        RunConfig(**common, **options, scale="smoke", quantizers=("rtn-int3-g64",), metrics=("verbmem",))
        for options in STEPPED.values()
    ]
    return dict(zip(STEPPED, pipeline.run_all(configs), strict=True))


@pytest.mark.parametrize("name", STEPPED)
def test_every_way_to_step_bf16_weights_leaves_a_record(name, stepped):
    record = stepped[name]
    assert {key: record.config[key] for key in STEPPED[name]} == STEPPED[name]
    for by_precision in record.scores.values():  # of the metrics that were asked for, and no other
        assert {precision: list(scores) for precision, scores in by_precision.items()} == {
            "bf16": ["verbmem"], "rtn-int3-g64": ["verbmem"],
        }  # fmt: skip
    assert len({record.path for record in stepped.values()}) == len(STEPPED)
    said = record.extra["prediction"]["rtn-int3-g64"]
    assert said["edge"] == (2.0**-5 if name in ("bf16", "fp32 moments") else None)
    moved = record.crossings["rtn-int3-g64"]["total"]
    assert 0 < 100 * moved["moved"] / moved["weights"] <= said["movable"]


def test_weights_over_the_edge_move_in_every_arm_but_those_rounded_to_nearest(stepped):
    share = {}
    for name, record in stepped.items():
        pairs = movement.stored_pairs(record).values()
        over = torch.cat([(before != after)[before.float().abs() > 2.0**-5] for before, after in pairs])
        assert over.numel() > 10_000
        share[name] = over.float().mean().item()
    assert share["bf16"] == share["fp32 moments"] == 0
    assert share["stochastic"] > 0.1
    assert share["delta"] > 0.1


def test_the_stopping_half_is_not_reported(made):
    found = pipeline.run(method="ga", forget_goal=100.0, epochs=2, learning_rate=1e-3, **FAST)
    assert found.extra["history"][-1]["stopped"]
    counts = {m: len(by["bf16"]["verbmem"]["per_example"]) for m, by in found.scores.items()}
    full = len(found.scores["unlearned"]["bf16"]["utility"]["per_example"])
    assert set(counts.values()) == {full // 2}
    for metric in ("verbmem", "knowmem"):  # what notebooks show beside the answers is the reported half, too
        assert len(arms.asked(found, metric)) == full // 2


def test_one_metric_alone_with_a_goal_that_is_missed(made):
    asked = FAST | {"metrics": ("verbmem",), "quantizers": ("rtn-int3-g64",)}
    found = pipeline.run(
        method="ga", forget_goal=0.0, goal_metrics=("verbmem",), epochs=1, learning_rate=1e-6, check_steps=1, **asked
    )
    history = found.extra["history"]
    assert "stopped" not in history[-1]
    assert history[-1]["verbmem"] > 0
    assert set(found.scores["unlearned"]["rtn-int3-g64"]) == {"verbmem"}
    shown = len(found.scores["unlearned"]["bf16"]["verbmem"]["per_example"])
    assert shown == len(scoring.forget_halves(load_corpus("books", scale="smoke"))[1]["verbmem"])
    assert set(found.extra["recovered"]["rtn-int3-g64"]) == {"verbmem", "knowmem", "recovers"}


def test_half_of_a_score_is_of_the_same_examples_throughout():
    score = {"value": 0.0, "ci": [0, 0], "per_example": [0.0, 1.0, 0.5, 0.25], "responses": ["a", "b", "c", "d"]}
    found = scoring.half({"verbmem": score, "utility": score}, {"verbmem": [1, 3]})
    assert found["verbmem"]["per_example"] == [1.0, 0.25]
    assert found["verbmem"]["responses"] == ["b", "d"]
    assert found["verbmem"]["value"] == 62.5
    assert found["utility"] == score
    assert scoring.half(found, {"verbmem": [1, 3]}) == found


def test_a_killed_process_ends_in_the_same_scores(made, tmp_path):
    """SIGKILL during training, then during scoring, then to the end: the same record as in one go."""
    settings = {"method": "npo_klr", "weights": "bf16", "learning_rate": 1e-3, "epochs": 6} | FAST
    program = f"from qru import pipeline\nif __name__ == '__main__': pipeline.run(**{settings!r})"
    whole = pipeline.run(**settings)
    folder = whole.path.parent
    kept = tmp_path / "whole"
    folder.rename(kept)

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for proof in ("history.json", "partial/bf16.json"):
        process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while not (folder / proof).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "record.json").exists() or proof.startswith("partial")
    resumed = pipeline.run(**settings)
    assert resumed.scores == whole.scores
    assert resumed.crossings == whole.crossings


def test_jobs_side_by_side_keep_their_order_and_raise():
    assert parallel.side_by_side(divmod, [(7, 2), (9, 4), (5, 5)]) == [(3, 1), (2, 1), (1, 0)]
    with pytest.raises(ZeroDivisionError):
        parallel.side_by_side(divmod, [(1, 1), (1, 0)])


def test_a_killed_worker_does_not_poison_the_process():
    with pytest.raises(RuntimeError, match="Run again"):
        parallel.side_by_side(os._exit, [(1,), (1,)])
    assert parallel.side_by_side(divmod, [(7, 2), (9, 4)]) == [(3, 1), (2, 1)]


def test_several_runs_in_one_call(made):
    common = {"method": "ga_gdr", "learning_rate": 1e-3, "epochs": 1} | FAST
    configs = [RunConfig(adapter=adapter, **common) for adapter in ("full", "lora")]
    records = pipeline.run_all(configs)
    assert [record.config["adapter"] for record in records] == ["full", "lora"]


def test_a_record_of_another_configuration_is_not_reused(record, capfd):
    value = json.loads(record.path.read_text())
    record.path.write_text(json.dumps({name: {} for name in ("config", "scores", "crossings", "cost", "provenance")}))
    again = pipeline.run(method="npo_gdr", adapter="lora", lora_rank=4, learning_rate=1e-3, epochs=2, **FAST)
    assert again.scores == value["scores"]


def test_damaged_baseline_scores_are_made_again(made, corpus, record):
    file = scoring._baseline_file("target", corpus, None, made)
    for damage in ("{}x", '{"verbmem": {}}', "[1]"):
        before = scoring.baseline_scores(corpus, made, ("target",), short=True)
        file.write_text(damage)
        assert scoring.baseline_scores(corpus, made, ("target",), short=True) == before


def test_an_empty_split_stops_before_training(corpus):
    empty = dataclasses.replace(corpus, raw={**corpus.raw, "forget": []})
    with pytest.raises(ValueError, match="no documents in forget"):
        models.prepare(empty, "smoke")


def test_load_models_takes_an_embedded_corpus_at_the_scale_asked_for(made, monkeypatch):
    monkeypatch.setattr("qru.loop.fit", lambda *a, **k: pytest.fail("trained on the corpus of another scale"))
    target, retrained, tokenizer = load_models(load_corpus("books"), scale="smoke")
    assert target.config.hidden_size == retrained.config.hidden_size == 128
    assert len(tokenizer) == target.config.vocab_size
