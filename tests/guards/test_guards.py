"""What holds for every guard, the moment it is registered."""

import inspect
from dataclasses import replace

import pytest

from qru import launch, pipeline
from qru.arms import run_arms
from qru.config import GUARD_OPTIONS, LATER, RunConfig, stepped
from qru.defaults import resolve
from qru.guards import grids, guards
from qru.ops import QuantSpec
from qru.records import load_records
from qru.tables import arm_label, labelled
from tests.guards.training import config, killed_and_resumed, same_bits, unlearned
from tests.notebooks.test_notebooks import MAIN, papermill

OTHER = {  # another value of each option than its default
    "quail_norm": "l2", "quail_positions": "answer", "quail_step": 0.5, "quail_quantizer": "rtn-int3-g64",
    "ste_quantizers": ("rtn-int4-g64", "rtn-int3-g64"), "sam_rho": 0.02, "bin_margin_quantizer": "rtn-int3-row",
}  # fmt: skip


def options_of(name):
    return [option for option, guard in GUARD_OPTIONS.items() if guard == name]


@pytest.mark.parametrize("name", guards.names())
def test_it_says_its_formula_its_source_and_its_options(name):
    guard = guards[name]
    text = inspect.getdoc(guard)
    assert "L = " in text
    assert "Source:" in text
    assert list(guard.options) == options_of(name)
    assert set(guard.quantizers) <= set(guard.options)
    assert guard.arms


@pytest.mark.parametrize("name", guards.names())
def test_a_resolved_run_says_every_option_of_its_guard_and_none_of_another(name):
    resolved = resolve(RunConfig(guard=name, adapter=guards[name].arms[0]))
    for option, guard in GUARD_OPTIONS.items():
        assert (getattr(resolved, option) is not None) == (guard == name), option
    assert resolved.guard_weight == guards[name].weight
    assert stepped(resolved.to_dict()).endswith(f", {name} guard")
    assert resolve(resolved) == resolved
    assert RunConfig.from_dict(resolved.to_dict()) == resolved


@pytest.mark.parametrize("option", GUARD_OPTIONS)
def test_an_option_is_refused_without_its_guard_and_part_of_the_key_with_it(option):
    assert option in LATER
    assert option in OTHER
    guard = GUARD_OPTIONS[option]
    with pytest.raises(ValueError, match=rf"{option} is .* with guard None: it is an option of guard '{guard}'"):
        RunConfig(**{option: OTHER[option]})
    with pytest.raises(ValueError, match="Set guard to"):
        RunConfig(guard=next(name for name in guards.names() if name != guard), **{option: OTHER[option]})
    plain = resolve(RunConfig(guard=guard, adapter="lora"))
    other = resolve(RunConfig(guard=guard, adapter="lora", **{option: OTHER[option]}))
    assert plain.identity() != other.identity()


def test_without_a_guard_no_key_has_changed():
    assert not set(RunConfig().identity()) & {"guard", "guard_weight", "sure_percentile", *GUARD_OPTIONS}
    resolved = resolve(RunConfig(adapter="lora"))
    assert not set(resolved.identity()) & {"guard", "guard_weight", "sure_percentile", *GUARD_OPTIONS}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"guard": "quial"}, "Did you mean 'quail'"),
        ({"guard": "ste"}, "does not work with adapter 'full': set adapter to 'lora'"),
        ({"guard": 3}, "guard is 3; it must be a name"),
        ({"guard_weight": 1.0}, "guard_weight is 1.0 with guard None"),
        ({"guard": "quail", "guard_weight": -1.0}, "guard_weight is -1.0"),
        ({"guard": "quail", "guard_weight": "1"}, "guard_weight is '1', a str"),
        ({"guard": "sam", "guard_weight": 1.0}, "guard 'sam' adds no term to the loss: leave guard_weight out"),
        ({"guard": "quail", "quail_norm": "l1"}, "unknown quail_norm 'l1'. Did you mean"),
        ({"guard": "quail", "quail_positions": "answers"}, "Did you mean 'answer'"),
        ({"guard": "quail", "quail_step": "meen"}, "Did you mean 'mean'"),
        ({"guard": "quail", "quail_step": 0}, "quail_step is 0; it must be positive"),
        ({"guard": "quail", "quail_step": True}, "quail_step is True, a bool"),
        ({"guard": "quail", "quail_quantizer": "nf4-b64"}, "'nf4-b64' is not a quantizer name"),
        ({"guard": "quail", "quail_quantizer": 4}, "quail_quantizer is 4; it must be a name"),
        ({"guard": "ste", "adapter": "lora", "ste_quantizers": "rtn-int5-row"}, "rtn-int5-row|bits"),
        ({"guard": "ste", "adapter": "lora", "ste_quantizers": "rtn-int4-row,rtn-int4-row"}, "more than once"),
        ({"guard": "sam", "sam_rho": 0}, "sam_rho is 0; it must be positive"),
        ({"guard": "sam", "sam_rho": "x"}, "sam_rho is 'x', a str"),
        ({"guard": "quail", "method": "taskvector"}, "Leave guard out, or take another method"),
        ({"sure_percentile": 90}, "sure_percentile is 90 with adapter 'full'"),
        ({"adapter": "sure", "sure_percentile": 100}, "it must be at least 0 and under 100"),
        ({"adapter": "sure", "sure_percentile": "p90"}, "sure_percentile is 'p90', a str"),
    ],
)
def test_what_cannot_be_is_refused_at_the_door(values, message):
    with pytest.raises(ValueError, match=message):
        resolve(RunConfig.from_dict({"scale": "smoke"} | values))


def test_a_grid_that_does_not_fit_a_layer_is_refused_before_any_work():
    with pytest.raises(ValueError, match="group_size 96 does not divide"):
        pipeline.run(scale="smoke", guard="bin_margin", bin_margin_quantizer="rtn-int4-g96")
    assert grids(resolve(RunConfig(guard="ste", adapter="lora", ste_quantizers="rtn-int4-g64-sym-2^(N-1)"))) == [
        QuantSpec(bits=4, group_size=64)
    ]


@pytest.mark.parametrize("values", [{"guard": "quail"}, {"adapter": "sure"}])
def test_several_processes_are_refused_by_name(values, monkeypatch):
    monkeypatch.setenv("QRU_PROCESSES", "2")
    name, value = next(iter(values.items()))
    with pytest.raises(ValueError, match=f"{name} is '{value}' and 2 processes are to share a batch"):
        launch.wanted(resolve(RunConfig(scale="smoke", **values)))
    assert launch.wanted(resolve(RunConfig(scale="smoke"))) == 2


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("name", [name for name in guards.names() if guards[name].weight is not None])
def test_a_weight_of_zero_is_no_guard_to_the_bit(name, adapter, made, short, tokenizer):
    method = "npo_klr" if name == "quail" else "npo_gdr"
    plain, history = unlearned(made, short, tokenizer, config(method=method, adapter=adapter))
    settings = config(method=method, adapter=adapter, guard=name, guard_weight=0.0)
    guarded, again = unlearned(made, short, tokenizer, settings)
    assert same_bits(plain, guarded)
    for before, after in zip(history, again, strict=True):
        assert {key: after[key] for key in ("loss", "forget", "retain")} == {
            key: before[key] for key in ("loss", "forget", "retain")
        }
        assert "guard" in after


CELLS = [(name, arm) for name in guards.names() for arm in ("full", "lora") if arm in guards[name].arms]


@pytest.mark.parametrize(("name", "adapter"), CELLS)
def test_it_changes_what_is_learned_and_a_killed_run_resumes_to_the_same_bits(
    name, adapter, made, short, tokenizer, tmp_path, monkeypatch
):
    strong = {"ste_quantizers": OTHER["ste_quantizers"]} if name == "ste" else {}
    strong |= {"guard_weight": 50.0} if guards[name].weight is not None else {}
    settings = config(method="npo_gdr", adapter=adapter, guard=name, epochs=2, **strong)
    whole, history = unlearned(made, short, tokenizer, settings)
    plain, _ = unlearned(made, short, tokenizer, config(method="npo_gdr", adapter=adapter, epochs=2))
    assert not same_bits(whole, plain)
    resumed, again = killed_and_resumed(made, short, tokenizer, settings, tmp_path / "t.pt", monkeypatch, at=4)
    assert [row["loss"] for row in again] == [row["loss"] for row in history]
    assert same_bits(whole, resumed)


@pytest.mark.parametrize("name", guards.names())
def test_what_is_computed_at_once_does_not_change_its_term(name, made, short, tokenizer, monkeypatch):
    monkeypatch.setattr("qru.loop.compute_precision", lambda device: "fp32")
    settings = config(
        method="ga_klr", adapter="lora", guard=name, batch_size=5, lora_dropout=0.0, learning_rate=1e-4
    )  # fmt: skip
    whole, parts = (unlearned(made, short, tokenizer, settings, at_once=n)[1] for n in (None, 2))
    for key in [key for key in whole[0] if key in ("loss", "forget", "retain", "guard")]:
        assert [row[key] for row in parts] == pytest.approx([row[key] for row in whole], rel=2e-3, abs=1e-4), key


@pytest.mark.parametrize("name", guards.names())
def test_a_run_of_each(name, made):
    values = {
        "scale": "smoke", "adapter": guards[name].arms[-1], "quantizers": "rtn-int4-g128", "metrics": "knowmem",
    }  # fmt: skip
    record = pipeline.run(guard=name, **values)
    assert record.config["guard"] == name
    assert f"-{name}-" in record.run
    assert f"{name} guard" in record.extra["verdict"][0]
    assert arm_label(record).endswith(f"{name} guard")
    plain = replace(record, config=record.config | dict.fromkeys(("guard", *guards[name].options)))
    assert list(labelled(record, plain)) == [arm_label(record), arm_label(record).removesuffix(f", {name} guard")]


@pytest.mark.parametrize("given", [{"guard": "quail", "quail_step": 0.5, "guard_weight": 2.0}, {"sure_percentile": 50}])
def test_arms_beside_stand_there_without(given, monkeypatch):
    asked = []
    monkeypatch.setattr("qru.pipeline.run_all", lambda configs: asked.extend(configs) or [])
    monkeypatch.setattr("qru.arms.tidy", lambda: None)
    run_arms(["lora", "full-fp32"], scale="smoke", adapter="sure" if "sure_percentile" in given else "full", **given)
    assert {name: getattr(asked[0], name) for name in given} == given
    for beside, (adapter, weights) in zip(asked[1:], (("lora", "fp32"), ("full", "fp32")), strict=True):
        assert beside == resolve(RunConfig(adapter=adapter, weights=weights, scale="smoke"))


@pytest.mark.slow
def test_the_main_notebook_runs_with_a_guard(made, qru_home, tmp_path):
    given = {
        "guard": "quail",
        "quail_step": 0.5,
        "scale": "smoke",
        "quantizers": "rtn-int4-g128",
    }
    options = [part for name, value in given.items() for part in ("-p", name, value)]
    ran = papermill(qru_home, MAIN, tmp_path / "out.ipynb", *options)
    assert ran.returncode == 0, ran.stderr[-4000:]
    found = [r.config for r in load_records(qru_home / "runs") if f"record: {r.path}" in ran.stderr]
    assert [(c["adapter"], c["guard"], c["quail_step"]) for c in sorted(found, key=lambda c: c["adapter"])] == [
        ("full", "quail", 0.5), ("lora", None, None),
    ]  # fmt: skip
    assert "npo_gdr full bf16, quail guard" in (tmp_path / "out.ipynb").read_text()
