"""What guards cost: ratios of hand-made steps, sentences true whichever way they fall, and a short measurement."""

import json
import statistics

import pytest
import torch

from qru import guard_record, loop, method_facts
from qru.guard_record import config_of, guard_cost_words, load_guard_costs, measure, medians, over_rounds, ratios
from qru.guards import guards
from qru.records import write_json

# --- what is measured -------------------------------------------------------------------------------------------------


def test_every_guard_and_sure_is_measured_beside_an_arm_that_it_guards():
    assert set(guard_record.COMPARED) == {*guards.names(), "sure"}
    for name in guards.names():
        beside, changed = guard_record.COMPARED[name]
        assert changed == {"guard": name}
        assert guard_record.PLAIN[beside]["adapter"] in guards[name].arms


@pytest.mark.parametrize(
    ("arm", "adapter", "weights", "guard", "rate", "retain_weight"),
    [
        ("full", "full", "bf16", None, 2.61e-5, 1.0),
        ("quail", "full", "bf16", "quail", 2.61e-5, 1.0),
        ("sure", "sure", "bf16", None, 2.61e-4, 1.0),
        ("lora", "lora", "fp32", None, 1.3e-4, 5.0),
        ("ste", "lora", "fp32", "ste", 1.3e-4, 5.0),
    ],
)
def test_arms_have_their_defaults(arm, adapter, weights, guard, rate, retain_weight):
    config = config_of(arm, "mini", seed=3, steps=12, documents=100)
    assert (config.adapter, config.weights, config.guard, config.seed) == (adapter, weights, guard, 3)
    assert (config.learning_rate, config.batch_size) == (pytest.approx(rate), 2)
    # SURE's λ is that of its own family of arms, whichever the table of defaults has.
    assert arm == "sure" or config.retain_weight == retain_weight


@pytest.mark.parametrize(("steps", "epochs"), [(12, 1), (50, 1), (51, 2)])
def test_there_are_steps_enough(steps, epochs):
    """100 documents two at a time are 50 steps an epoch."""
    config = config_of("full", "mini", 0, steps, 100)
    assert (config.epochs, config.check_steps) == (epochs, steps)


# --- ratios -----------------------------------------------------------------------------------------------------------


def test_medians_leave_the_first_steps_out_and_ratios_are_to_the_arm_beside():
    found = {
        "full": [90.0, 90.0, 1.0, 2.0, 3.0],
        "lora": [0.1, 0.1, 4.0, 4.0, 100.0],
        "sam": [1.0, 1.0, 5.0, 4.0, 6.0],
        "ste": [50.0, 1.0, 6.0, 6.0, 6.0],
    }
    middle = medians(found, left_out=2)
    assert middle == {"full": 2.0, "lora": 4.0, "sam": 5.0, "ste": 6.0}
    assert ratios(middle) == {"sam": 2.5, "ste": 1.5}


def test_over_rounds_there_are_a_median_and_both_ends():
    found = [{"ste": 1.5, "sam": 2.0}, {"ste": 1.2, "sam": 3.0}, {"ste": 1.25, "sam": 7.0}]
    assert over_rounds(found) == {
        "ste": {"ratio": 1.25, "least": 1.2, "greatest": 1.5},
        "sam": {"ratio": 3.0, "least": 2.0, "greatest": 7.0},
    }


def test_a_short_measurement(made, corpus):
    before = torch.get_num_threads()
    record = measure("smoke", rounds=1, steps=2, threads=1, guards=("quail", "ste"))
    assert torch.get_num_threads() == before
    json.dumps(record, allow_nan=False)
    (only,) = record["rounds"]
    assert set(only["arms"]) == {"full", "lora", "quail", "ste"}
    for arm in only["arms"].values():
        assert len(arm["seconds"]) == 2, "it stops after the steps that were asked for"
        assert arm["median"] == pytest.approx(statistics.median(arm["seconds"][1:]), rel=1e-4), "but the first"
        assert min(arm["seconds"]) > 0
        assert arm["start"] > 0
    for name, beside in (("quail", "full"), ("ste", "lora")):
        ratio = only["arms"][name]["seconds"][1] / only["arms"][beside]["seconds"][1]
        assert only["ratios"][name] == pytest.approx(ratio, rel=1e-4)
        cost = record["costs"][name]
        assert cost["beside"] == beside
        assert cost["ratio"] == cost["least"] == cost["greatest"] == only["ratios"][name]
    config = record["config"]
    assert (config["threads"], config["steps"], config["left_out"], config["rounds"]) == (1, 2, 1, 1)
    assert config["arms"]["ste"]["ste_quantizers"] == ["rtn-int4-g128"]
    assert "guard" not in config["arms"]["full"]
    assert len(guard_cost_words([record])) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rounds": 0}, "rounds is 0; give at least 1"),
        ({"steps": 4}, "steps is 4; give at least 5, as the first 4 do not count"),
        ({"threads": 0}, "threads is 0; give at least 1"),
        ({"scale": "muse"}, "unknown scale 'muse'"),
        ({"guards": ("quall",)}, "unknown guard 'quall'. Did you mean 'quail'"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_before_anything_is_trained(given, message):
    with pytest.raises(ValueError, match=message):
        measure(**given)


def test_steps_are_timed_on_a_cpu(monkeypatch):
    monkeypatch.setattr(loop, "device", lambda: torch.device("cuda", 0))
    with pytest.raises(ValueError, match=r"timed on cuda.*set QRU_DEVICE=cpu"):
        measure()


# --- what is told -----------------------------------------------------------------------------------------------------


def made_up(threads: int = 2, **found: tuple[float, ...]) -> dict:
    """A record with these ratios of ``sam`` and ``ste``, one a round."""
    beside = {name: {"sam": "full", "ste": "lora"}[name] for name in found}
    took = {"full": (0.2, 0.5), "lora": (0.25, 0.75), "sam": (1.0, 0.5), "ste": (1.0, 3.0)}
    arms = {arm: {"median": took[arm][0], "start": took[arm][1]} for arm in (*beside.values(), *found)}
    rounds = [
        {"arms": arms, "ratios": dict(zip(found, values, strict=True))} for values in zip(*found.values(), strict=True)
    ]
    costs = {
        name: {"beside": beside[name], "ratio": statistics.median(one), "least": min(one), "greatest": max(one)}
        for name, one in found.items()
    }
    config = {"corpus": "books", "scale": "mini", "method": "ga_gdr", "threads": threads, "computed_as": "bf16"}
    config |= {"steps": 12, "left_out": 4, "arms": {arm: {} for arm in arms}}
    where = {"hardware": {"processor": "AMD EPYC (some)", "cores": 2}, "load_before": 0.26, "kernel": {"built": True}}
    return {"kind": guard_record.KIND, "config": config, "rounds": rounds, "costs": costs, "provenance": where}


def test_sentences_say_what_was_measured():
    assert guard_cost_words([made_up(sam=(2.0, 2.125, 3.0), ste=(1.4, 1.32, 1.281))]) == [
        "A training step of plain full bf16 takes 0.20 s, and 2.12 [2.00, 3.00] times as long with SAM.",
        "A training step of plain LoRA takes 0.25 s, and 1.32 [1.28, 1.40] times as long with STE (our aim: at most "
        "1.5; met).",
        "What comes once, before the first step, takes 0.50 s with plain full bf16, 0.75 s with plain LoRA, 0.50 s "
        "with SAM and 3.0 s with STE.",
        "Medians of 3 interleaved rounds, with the least and the greatest in brackets, each of 12 steps less the first "
        "4; GA+GDR on books at mini, 2 threads of AMD EPYC (some), computed in bf16, load before 0.3 on 2 cores.",
    ]


@pytest.mark.parametrize(
    ("ste", "told"),
    [
        ((1.5, 1.2, 1.4), "1.40 [1.20, 1.50] times as long with STE (our aim: at most 1.5; met)."),
        ((1.6, 1.7, 1.8), "1.70 [1.60, 1.80] times as long with STE (our aim: at most 1.5; missed)."),
        ((1.6, 1.2, 1.4), "(our aim: at most 1.5; met by the median, and met in 2 of 3 rounds)."),
        ((1.6, 1.7, 1.4), "(our aim: at most 1.5; missed by the median, and met in 1 of 3 rounds)."),
        ((0.9,), "0.90 [0.90, 0.90] times as long with STE (our aim: at most 1.5; met)."),
    ],
)
def test_an_aim_is_met_or_missed(ste, told):
    first, *_, last = guard_cost_words([made_up(ste=ste)])
    assert first.endswith(told)
    assert ("Medians of 1 interleaved round," in last) == (len(ste) == 1)


def test_a_kernel_that_is_not_built_is_told():
    record = made_up(ste=(1.2,))
    record["provenance"]["kernel"]["built"] = False
    assert "computed in bf16, without the compiled kernel, load before" in guard_cost_words([record])[-1]


def test_the_paper_says_it_of_committed_records_and_nothing_without_one(monkeypatch):
    for found, told in (([], 0), ([made_up(ste=(1.2,)), made_up(1, ste=(1.6,))], 6)):
        monkeypatch.setattr(method_facts, "load_guard_costs", lambda found=found: found)
        said = method_facts.method_facts({})["cost"]
        assert said == guard_cost_words(found)
        assert len(said) == told


def test_only_records_of_this_kind_are_taken(tmp_path):
    assert load_guard_costs(folder=tmp_path) == []
    for name, threads in (("a", 2), ("b", 1)):
        write_json(tmp_path / f"{name}.json", made_up(threads, ste=(1.2,)))
    assert [record["config"]["threads"] for record in load_guard_costs(folder=tmp_path)] == [1, 2]
    write_json(tmp_path / "c.json", {"kind": "kernel-benchmark"})
    with pytest.raises(ValueError, match=r"c\.json is no record of what guards cost.*qru\.guard_record --keep"):
        load_guard_costs(folder=tmp_path)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_record_named_by_the_machine(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setenv("QRU_HOME", str(tmp_path))
    monkeypatch.setattr(guard_record, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(guard_record, "measure", lambda *given: asked.append(given) or made_up(1, ste=(1.2,)))
    guard_record.main(["--smoke", "--rounds", "3"])
    guard_record.main(["--keep", "--threads", "1"])
    assert asked == [("smoke", 3, None, None), ("mini", None, None, 1)]
    for folder in (tmp_path / "runs" / "guards", tmp_path / "kept"):
        assert [path.name for path in folder.iterdir()] == ["amd-epyc-some-1-thread.json"]


@pytest.mark.parametrize(
    ("given", "message"),
    [(["--keep", "--smoke"], "--smoke measures toy sizes"), (["--steps", "4"], "steps is 4; give at least 5")],
    ids=str,
)
def test_the_command_refuses(given, message, capsys):
    with pytest.raises(SystemExit):
        guard_record.main(given)
    assert message in capsys.readouterr().err
