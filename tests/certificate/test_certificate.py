"""The certificate: whom it is given to, whom not, what it is bound to, and that nothing is scored twice."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qru import cells, certificate, records
from qru.certificate import certify, excess, kept, sealed, verify
from qru.certificate_page import page
from qru.cli import main
from qru.metrics import direction, registry
from tests.certificate.reader import texts_of

SMALL = {"quantizers": "rtn-int8-row", "transforms": ("merged", "relearn-2x2"), "progress": False}
SAME = ["--quantizers", "rtn-int8-row", "--transforms", "merged,relearn-2x2", "--quiet"]


@pytest.fixture
def counted(monkeypatch):
    """Every scoring of a model, as the metrics that were asked for."""
    calls = []
    scored = cells.scoring.scored

    def count(*given, **named):
        calls.append(tuple(named["metrics"]))
        return scored(*given, **named)

    monkeypatch.setattr(cells.scoring, "scored", count)
    return calls


@pytest.fixture(scope="session")
def clean(world):
    """A run whose model is the retrained one: nothing of the forgotten is in it."""
    return world.run("clean", world.retrained)


@pytest.fixture(scope="session")
def knowing(world):
    """A run whose model is the target: nothing was forgotten."""
    return world.run("knowing", world.target)


@pytest.fixture(scope="session")
def destroyed(world):
    """A run whose model was driven into the ground: its weights are finite, and it says nothing sensible."""
    folder = world.run("destroyed", world.target)
    file = folder / "model" / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: tensor + torch.randn(tensor.shape, generator=generator).to(tensor.dtype) * tensor.abs().max()
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def test_the_retrained_model_is_certified(clean, counted):
    found = certify(clean, "rtn-int8-row,rtn-int4-g32", progress=False)
    assert found["outcome"] == "holds"
    assert found["reasons"] == []
    rows = found["cells"]
    assert [(row["transform"], row["quantizer"]) for row in rows] == [
        (transform, quantizer)
        for transform in ("merged", "twice-rtn-int8-row", "prune-10", "relearn-4x8")
        for quantizer in ("bf16", "rtn-int8-row", "rtn-int4-g32")
    ]
    for row in rows:
        assert row["weights"] == row["retrained_weights"]
        assert row["forget"]["verbmem"]["excess"] == 0
        # 1 − 0.05^(1/40): nothing was seen to leak in 40 examples, and in 36 beside four relearned ones
        n = 36 if row["transform"] == "relearn-4x8" else 40
        assert row["forget"]["verbmem"]["n"] == n
        assert row["forget"]["verbmem"]["upper"] == pytest.approx(100 * (1 - 0.05 ** (1 / n)), abs=0.3)
        assert bool(row["utility"]) == (row["transform"] != "relearn-4x8")
    assert found["worst_excess"] == max(row["forget"]["verbmem"]["upper"] for row in rows)
    assert found["least_utility"] == min(row["utility"]["utility"]["lower"] for row in rows if row["utility"])
    # The run's model and the retrained one are bit-identical, so each weight set is scored once: the target's, and one
    # for each distinct set of the 9 without relearning; relearning, once for each of the three merged ones.
    plain = {row["weights"] for row in rows if row["utility"]}
    assert len(counted) == 1 + len(plain) + 3
    assert found["distinct"] == 1 + len(plain)


def test_the_target_is_not(knowing):
    found = certify(knowing, **SMALL)
    assert found["outcome"] == "does not hold"
    worst = found["worst"]
    assert worst["unlearned"] > 80
    assert worst["excess"] > 50
    assert worst["upper"] >= worst["excess"]
    assert worst["excess"] == pytest.approx(worst["unlearned"] - worst["retrained"], abs=1e-3)
    assert "over the ceiling" in found["reasons"][0]
    assert certify(knowing, **SMALL, forget_ceiling=100)["outcome"] == "holds"


def test_a_destroyed_model_is_refused(destroyed):
    found = certify(destroyed, **SMALL)
    assert found["outcome"] == "refused"
    assert "No statement about forgetting" in found["statement"]
    assert "utility under the floor" in found["reasons"][0]
    assert not any("to blame" in reason for reason in found["reasons"]), "the retrained model keeps its utility"
    assert all(row["forget"]["verbmem"]["holds"] for row in found["cells"]), "it has indeed forgotten"


def test_what_destroys_every_model_is_named(clean):
    found = certify(clean, "rtn-int8-row", transforms="merged,prune-99.9", progress=False)
    assert found["outcome"] == "refused"
    named = "under bf16 (prune-99.9), rtn-int8-row (prune-99.9): not unlearning alone is to blame there."
    assert found["reasons"][-1] == f"The retrained model misses the floor, too, {named}"


def test_the_worst_seed_counts(world, clean, knowing):
    other = world.run("knowing-s3", world.target, seed=3)
    found = certify([other, clean], **SMALL)
    assert found["declared"]["seeds"] == [0, 3]
    assert found["outcome"] == "does not hold"
    assert found["worst"]["seed"] == 3
    assert list(found["bound_to"]["runs"]) == ["clean", "knowing-s3"]
    with pytest.raises(ValueError, match="seed 0 is given by more than one run"):
        certify([clean, knowing], **SMALL)


def test_what_a_stopping_rule_looked_at_is_not_scored(world, counted):
    run = world.run("stopped", world.retrained, forget_goal=25.0)
    found = certify(run, **SMALL)
    by_transform = {row["transform"]: row["forget"]["verbmem"]["n"] for row in found["cells"]}
    # the odd half of 40; the two relearned passages are of the even half, so that no example is lost
    assert by_transform == {"merged": 20, "relearn-2x2": 20}
    assert found["examples"] == {"verbmem": 20, "utility": 20}


def test_what_was_asked_is_told_whatever_comes_first(clean):
    found = certify(clean, **SMALL | {"transforms": ("relearn-2x2", "merged")})
    assert found["cells"][0]["forget"]["verbmem"]["n"] == 38, "two of the 40 are relearned"
    assert found["examples"] == {"verbmem": 40, "utility": 20}
    assert "how it answers questions about what it was to keep" in texts_of(page(found))[0]


def test_a_statement_says_how_sure_it_is(clean):
    found = certify(clean, **SMALL)
    assert found["outcome"] == "holds"
    assert "(required: 80 %); each with 95 % confidence." in found["statement"]


def test_what_was_scored_before_a_kill_is_not_scored_again(knowing, counted, monkeypatch):
    whole = cells.measure
    done = []

    def killed(*given):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(given)
        return whole(*given)

    monkeypatch.setattr(cells, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        certify(knowing, **SMALL)
    before = len(counted)
    assert before == 3
    monkeypatch.setattr(cells, "measure", whole)
    found = certify(knowing, **SMALL)
    # The target in bf16 twice, since its utility is asked for first and the run, which is the same, for VerbMem, too;
    # the run in int8; the retrained model in both; and each of the four relearned.
    assert len(counted) == 9
    certify(knowing, **SMALL)
    assert len(counted) == 9
    again = certify(knowing, **SMALL)
    same = {"issued", "digest", "provenance"}
    assert {k: v for k, v in again.items() if k not in same} == {k: v for k, v in found.items() if k not in same}


def test_a_damaged_score_is_made_again(clean, counted, home):
    found = certify(clean, **SMALL)
    before = len(counted)
    file = next((home / ".cache" / "certificates").glob("*/utility-*.json"))
    file.write_text(file.read_text()[:20])
    assert certify(clean, **SMALL)["cells"] == found["cells"]
    assert counted[before:] == [("utility",)]


def test_numbers_of_one_cell_by_hand():
    one = excess([0.5, 1.0, 0.0, 0.5], [0.0, 0.5, 0.0, 0.5], 10)
    assert (one["unlearned"], one["retrained"], one["excess"], one["n"]) == (50, 25, 25, 4)
    assert one["upper"] > 25
    assert not one["holds"]
    assert excess([0.0] * 60, [1.0] * 60, 0)["holds"], "less than the retrained model says is no excess"
    left = kept([1.0, 0.0] * 50, [1.0] * 100, [1.0] * 100, 0.8)
    assert (left["value"], left["target"], left["share"], left["holds"], left["possible"]) == (
        50,
        100,
        0.5,
        False,
        True,
    )
    assert 0.4 < left["lower"] < 0.5
    assert kept([0.0] * 9, [0.0] * 9, [0.0] * 9, 0.8)["share"] == 0, "a target without utility"


def test_it_is_bound_to_the_weights(world, clean, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(clean, run)
    file = tmp_path / "certificate.json"
    records.write_json(file, certify(run, **SMALL))
    assert verify(file, [run]) == []
    assert verify(file, [run / "model"]) == [], "the folder of the checkpoint will do"
    adapter = run / "model" / "adapter_config.json"  # transformers would load one on top of the weights
    adapter.write_text("{}")
    assert "adapter_config.json changed" in "".join(verify(file, [run]))
    adapter.unlink()
    weights = run / "model" / "model.safetensors"
    tensors = load_file(weights)
    first = next(iter(tensors))
    tensors[first].view(-1)[0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    (against,) = verify(file, [run])
    assert "model.safetensors changed" in against

    known = json.loads(file.read_text())
    known["worst_excess"] = 0.0
    file.write_text(json.dumps(known))
    assert any("edited" in line for line in verify(file, [clean]))


def test_the_command_says_it_by_its_exit_code_and_writes_both_files(clean, destroyed, knowing, tmp_path, capsys):
    assert main(["certify", str(clean), *SAME]) == 0
    assert capsys.readouterr().out.startswith("holds\n")
    known = json.loads((clean / "model" / "certificate.json").read_text())
    assert known["outcome"] == "holds"
    assert main(["certify", "--verify", str(clean / "model" / "certificate.json"), str(clean)]) == 0
    assert main(["certify", "--verify", str(clean / "model" / "certificate.json"), str(knowing)]) == 1
    capsys.readouterr()

    page = (clean / "certificate.html").read_text()
    text, resources = texts_of(page)
    assert resources == [], "nothing from elsewhere"
    for part in (
        known["statement"], known["digest"], known["command"], f"{known['worst']['upper']:.1f}", "rtn-int8-row",
        *known["limits"], *known["bound_to"]["target"]["files"].values(),
    ):  # fmt: skip
        assert part in text

    assert main(["certify", str(knowing), *SAME, "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)["outcome"] == "does not hold"
    assert not (knowing / "certificate.html").exists()
    html, file = tmp_path / "new" / "c.html", tmp_path / "new" / "c.json"
    assert main(["certify", str(destroyed), *SAME, "--json", str(file), "--html", str(html)]) == 1
    assert "Refused" in texts_of(html.read_text())[0]
    assert json.loads(file.read_text())["outcome"] == "refused"
    assert not (destroyed / "model" / "certificate.json").exists()
    assert main(["certify", "--verify", str(file), str(destroyed)]) == 1, "it names these weights, and is refused"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"forget_ceiling": -1}, "forget_ceiling is -1; it is in points"),
        ({"forget_ceiling": float("nan")}, "forget_ceiling is nan"),
        ({"utility_floor": 80}, "Did you mean 0.8"),
        ({"utility_floor": 0}, "a destroyed model would pass"),
        ({"quantizers": "rtn-int5-row"}, "bits is 5"),
        ({"quantizers": "rtn-int4-g48"}, "group_size 48 does not divide"),
        ({"quantizers": "bf16"}, "name at least one beside bf16"),
        ({"quantizers": "rtn-int8-row,rtn-int8-row"}, "more than once"),
        ({"transforms": "merge"}, "unknown transform 'merge'"),
        ({"transforms": "relearn-2x2"}, "at least one that is no relearning"),
        ({"transforms": "merged,relearn-40x2"}, "take fewer, such as relearn-1x8"),
        ({"transforms": "merged,prune-10,prune-10.0"}, "more than once"),
        ({"metrics": ""}, "name at least one of verbmem"),
        ({"metrics": "verbmen"}, "Did you mean 'verbmem'"),
        ({"metrics": "utility"}, "is of what is kept and always measured"),
        ({"metrics": ["privleak"]}, "unknown metric of forgetting 'privleak'"),
        ({"metrics": "verbmem,knowmem"}, "has no data for it; it has verbmem"),
        ({"metrics": "verbmem,verbmem"}, "more than once"),
    ],
)
def test_bad_input_is_refused_at_the_door(clean, counted, changed, named):
    with pytest.raises(ValueError, match=named):
        certify(clean, **SMALL | changed)
    assert counted == []


def test_runs_that_cannot_be_certified_are_refused(world, clean, tmp_path, capsys, counted):
    with pytest.raises(FileNotFoundError, match="no record at"):
        certify(tmp_path / "nowhere", **SMALL)
    other = world.run("another", world.retrained, seed=1, learning_rate=3e-4)
    with pytest.raises(ValueError, match="differ in learning_rate"):
        certify([clean, other], **SMALL)
    gone = world.run("gone", world.retrained)
    shutil.rmtree(gone / "model")
    with pytest.raises(ValueError, match="those of gone are gone"):
        certify(gone, **SMALL)
    assert main(["certify", str(gone), *SAME]) == 2
    assert "run it again" in capsys.readouterr().err
    elsewhere = world.run("elsewhere", world.retrained)
    record = json.loads((elsewhere / "record.json").read_text())
    record["provenance"]["models"]["retrained"] = "another"
    (elsewhere / "record.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="was run with the retrained model another"):
        certify(elsewhere, **SMALL)
    assert main(["certify", "--verify", str(elsewhere / "record.json"), str(clean)]) == 2
    assert counted == []


def test_metrics_of_forgetting_are_those_that_are_better_lower():
    known = {**dict.fromkeys(certificate.FORGET, "lower"), **dict.fromkeys(certificate.UTILITY, "higher")}
    there = [name for name in known if name in registry.names()]
    assert {"verbmem", "knowmem", "utility"} <= set(there)
    assert {name: direction(name) for name in there} == {name: known[name] for name in there}


NOT_SAID = "KnowMem was left out: nothing is said of knowledge in other words."


def test_what_is_left_out_is_said(at_home, counted, capsys):
    known = json.loads((at_home / "record.json").read_text())["scores"]["unlearned"]["bf16"]
    both = certify(at_home, transforms="merged", progress=False, utility_floor=1e-9)
    assert both["declared"]["metrics"] == {"forget": ["verbmem", "knowmem"], "utility": ["utility"], "left_out": []}
    assert "metrics verbmem,knowmem" in both["command"]
    assert NOT_SAID not in [*both["limits"], both["statement"]]

    text = ["certify", str(at_home), "--transforms", "merged", "--metrics", "verbmem", "--quiet", "--json", "-"]
    main([*text, "--utility-floor", "1e-9"])
    found = json.loads(capsys.readouterr().out)
    assert found["declared"]["metrics"] == {"forget": ["verbmem"], "utility": ["utility"], "left_out": ["knowmem"]}
    assert {name for row in found["cells"] for name in row["forget"]} == {"verbmem"}
    assert {name for row in found["cells"] for name in row["utility"]} == {"utility"}
    assert found["cells"][0]["forget"]["verbmem"]["unlearned"] == pytest.approx(known["verbmem"]["value"], rel=1e-5)
    assert found["limits"][0] == NOT_SAID
    assert (NOT_SAID in found["statement"]) == (found["outcome"] != "refused")
    assert "--metrics verbmem " in found["command"]
    shown, _ = texts_of(page(found))
    assert shown.count(NOT_SAID) == 1 + (found["outcome"] != "refused")
    assert "how it answers questions about what was to be forgotten" in shown.partition("What was not asked")[2]

    with pytest.raises(ValueError, match="it is not known which text answers them"):
        certify(at_home, transforms="merged,relearn-2x2", metrics="knowmem", progress=False)
    plain = certify(at_home, metrics="knowmem", progress=False, utility_floor=1e-9)
    assert not any(name.startswith("relearn") for name in plain["declared"]["transforms"])
    assert "VerbMem was left out" in plain["limits"][0]


def test_a_corpus_without_questions_says_so(clean):
    found = certify(clean, **SMALL)
    assert found["outcome"] == "holds"
    assert found["declared"]["metrics"]["left_out"] == []
    assert found["statement"].endswith("nothing is said of knowledge in other words.")
    assert "more of the text to be forgotten than a model that never saw it" in found["statement"]


def test_certificates_from_before_metrics_were_chosen_still_count(clean, tmp_path):
    found = certify(clean, **SMALL)
    del found["declared"]["metrics"]["left_out"]
    found["command"] = found["command"].replace(" --metrics verbmem", "")
    file = tmp_path / "older.json"
    records.write_json(file, sealed(found))
    assert verify(file, [clean]) == []
    assert "What was not asked" not in page(found)


def test_what_a_run_has_measured_is_not_measured_again(at_home, counted):
    asked = {"transforms": "merged", "progress": False}
    everything = ("verbmem", "knowmem", "utility")
    found = certify(at_home, **asked)
    assert counted == [("utility",)] + 3 * [everything], "the target in bf16, and the retrained model thrice"
    del counted[:]
    shutil.rmtree(at_home.parent.parent / ".cache" / "certificates")
    alone = certify(at_home, **asked)
    assert counted == [("utility",)] + 6 * [everything], "and the run, too"
    assert found["cells"] == alone["cells"]
    assert found["examples"]["verbmem"] == len(known_of(at_home)["verbmem"]["per_example"])


def known_of(folder):
    """What a run recorded of its model in bf16."""
    return json.loads((folder / "record.json").read_text())["scores"]["unlearned"]["bf16"]


def test_scores_of_other_examples_are_not_taken_for_these(at_home, counted):
    run = records.load_record(at_home)
    config, found = certificate._inputs(certificate._settings(run), None, "merged")
    *_, positions = certificate._metrics(config, found.corpus, None)
    made = found.models()
    setting = cells.Setting(found.corpus, made.tokenizer, "smoke", False, positions, [], [])
    cell = cells.Cell(at_home / "model", "merged", "bf16", ("verbmem", "utility"))
    cells.measure(cell, setting)
    assert counted == [], "the run has measured it"
    _, whole = cells.measure(cell, setting._replace(positions={}))
    assert counted == [("verbmem",)], "utility is of all examples in either"
    assert len(whole["verbmem"]) == len(found.corpus.verbmem)
    assert whole["verbmem"][1::2] == known_of(at_home)["verbmem"]["per_example"], "each by itself, whatever beside it"
