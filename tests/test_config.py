import math
from dataclasses import replace

import pytest

from qru.config import GUARD_OPTIONS, QUANTIZERS, SCALES, RunConfig, digest
from qru.defaults import BATCH_SIZE, note, resolve


def test_a_misspelt_parameter_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown parameter 'metod'\. Did you mean 'method'\?"):
        RunConfig.from_dict({"metod": "ga"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"adapter": "lorra"}, "Did you mean 'lora'"),
        ({"scale": "maxi"}, "Did you mean 'mini'"),
        ({"scale": "big"}, "Known: mini, mini-128x4, mini-256x8, muse, smoke"),
        ({"method": None}, "method is None"),
        ({"corpus": 3}, "corpus is 3"),
        ({"weights": "fp16"}, "bf16, fp32"),
        ({"lora_targets": "atention"}, "Did you mean 'attention'"),
        ({"lora_rank": 0}, "lora_rank is 0"),
        ({"lora_rank": 1.5}, "lora_rank is 1.5"),
        ({"epochs": True}, "epochs is True"),
        ({"learning_rate": -1e-4}, "learning_rate is -0.0001"),
        ({"beta": 0}, "beta is 0"),
        ({"retain_weight": -1}, "retain_weight is -1"),
        ({"forget_goal": 120}, "forget_goal is 120"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"quantizers": ("rtn-int4-g128", "rtn-int4-g128")}, "more than once"),
        ({"quantizers": "rtn-int4-g128,rtn-int4-g128"}, "more than once"),
        ({"quantizers": ()}, r"quantizers is \(\), but a run needs at least one"),
        ({"quantizers": ""}, "quantizers is '', but a run needs at least one"),
        ({"quantizers": 4}, "quantizers is 4; it must be a list of names"),
        ({"quantizers": [4]}, r"quantizers is \[4\]; it must be a list of names"),
        ({"learning_rate": "1e-4"}, "learning_rate is '1e-4', a str; it must be a number.*1.0e-4"),
        ({"learning_rate": math.inf}, "learning_rate is inf; it must be finite"),
        ({"learning_rate": math.nan}, "learning_rate is nan; it must be finite"),
        ({"learning_rate": True}, "learning_rate is True, a bool"),
        ({"beta": "0.1"}, "beta is '0.1', a str"),
        ({"gamma": -1}, "gamma is -1; it must be 0 or more"),
        ({"steering": 0}, "steering is 0; it must be positive"),
        ({"task_scaling": -0.5}, "task_scaling is -0.5; it must be 0 or more"),
        ({"hidden_layer": 1.5}, "hidden_layer is 1.5; it must be a whole number, 0 or more"),
        ({"lora_alpha": math.inf}, "lora_alpha is inf"),
        ({"target": "a/model"}, "retrained is not given: target and retrained come together"),
        ({"retrained": "a/model"}, "target is not given"),
        ({"target": 3, "retrained": "x"}, "target is 3; it must be a folder, a Hub id"),
        ({"target": "x", "retrained": " "}, "retrained is ' '"),
        ({"tokenizer": "a/model"}, "tokenizer is 'a/model', but no target is given"),
        ({"chat_template": "yes"}, "chat_template is 'yes'; it must be true or false"),
        ({"lora_dropout": "none"}, "lora_dropout is 'none', a str"),
        ({"retain_weight": math.inf}, "retain_weight is inf"),
        ({"retain_weight": "5"}, "retain_weight is '5', a str"),
        ({"forget_goal": math.nan}, "forget_goal is nan"),
        ({"forget_goal": "20"}, "forget_goal is '20', a str"),
        ({"moments": "int8"}, "unknown moments 'int8'. Known: bf16, fp32"),
        ({"rounding": "stochastically"}, "Did you mean 'stochastic'"),
        ({"rounding": "stochastic"}, "rounding is 'stochastic' with moments None: it needs moments 'fp32'"),
        ({"rounding": "stochastic", "moments": "bf16"}, "with moments 'bf16': it needs moments 'fp32'"),
        (
            {"weights": "fp32", "rounding": "stochastic", "moments": "fp32"},
            "is 'fp32' .* set weights to 'bf16'",
        ),
        ({"weights": "fp32", "moments": "bf16"}, "weights is 'fp32' with moments 'bf16'"),
        ({"weights": "fp32", "adapter": "delta"}, "adapter is 'delta' with weights 'fp32'.*Set weights to 'bf16'"),
        ({"adam_beta2": 0.5}, "adam_beta2 is 0.5; it must be over 0.81, the square of beta1, and under 1"),
        ({"adam_beta2": 1}, "adam_beta2 is 1; it must be over 0.81"),
        ({"check_steps": 0}, "check_steps is 0; it must be a whole number of at least 1"),
        ({"metrics": ["verbmem", "verbmem"]}, "metrics names .'verbmem'. more than once"),
        ({"metrics": 3}, "metrics is 3; it must be a list of names"),
        ({"goal_metrics": "utility"}, "unknown goal_metrics 'utility'. Known: forget_accuracy, knowmem, verbmem"),
    ],
)
def test_impossible_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.from_dict(values)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, QUANTIZERS),
        ("rtn-int4-g128", ("rtn-int4-g128",)),
        ("rtn-int4-g128, rtn-int3-row,", ("rtn-int4-g128", "rtn-int3-row")),
        (["rtn-int8-g64"], ("rtn-int8-g64",)),
    ],
)
def test_quantizers_may_be_a_list_a_text_or_left_out(given, names):
    assert RunConfig(quantizers=given).quantizers == names
    assert RunConfig.from_dict({"quantizers": given}).quantizers == names


def test_every_scale_that_is_offered_resolves():
    for scale in SCALES:
        assert resolve(RunConfig(scale=scale)).batch_size == BATCH_SIZE[scale]


def test_resolved_configs_say_everything():
    resolved = resolve(RunConfig(method="ga_klr", adapter="lora")).to_dict()
    optional = {
        "target", "retrained", "tokenizer", "moments", "metrics", "guard", "guard_weight", "sure_percentile",
        "gamma", "steering", "hidden_layer", "task_scaling",
    }  # fmt: skip
    assert {key for key, value in resolved.items() if value is None} == optional | GUARD_OPTIONS.keys()
    assert resolve(RunConfig(adapter="full")).weights == "bf16"
    assert resolve(RunConfig(adapter="lora")).weights == "fp32"


def test_every_method_has_its_own_beta_and_what_it_alone_reads():
    """The papers' six keep the β they had, and nothing else of theirs moved into their keys."""
    for method in ("ga", "npo", "ga_gdr", "ga_klr", "npo_gdr", "npo_klr"):
        resolved = resolve(RunConfig(method=method))
        assert resolved.beta == 0.1
        assert not {"gamma", "steering", "hidden_layer", "task_scaling"} & resolved.identity().keys()
    assert resolve(RunConfig(beta=0.3)).beta == 0.3
    simnpo = resolve(RunConfig(method="simnpo_gdr"))
    assert (simnpo.beta, simnpo.gamma) == (2.5, 0.0)
    assert simnpo.identity()["gamma"] == 0.0
    assert resolve(RunConfig(method="rmu_actr", scale="mini")).steering == 100.0
    given = {"learning_rate": 1e-5, "epochs": 5, "retain_weight": 1200.0}
    assert resolve(RunConfig(method="rmu_actr", scale="muse", **given)).steering == 6.5


def test_a_task_vector_is_scaled_as_told_or_up_to_the_goal():
    by_goal = resolve(RunConfig(method="taskvector"))
    assert (by_goal.forget_goal, by_goal.task_scaling) == (25.0, None)
    for settings, scaling in (({"task_scaling": 3.0}, 3.0), ({"epochs": 2}, 1.0), ({"scale": "smoke"}, 1.0)):
        told = resolve(RunConfig(method="taskvector", **settings))
        assert (told.forget_goal, told.task_scaling) == (None, scaling)
        assert resolve(told) == told
    with pytest.raises(ValueError, match=r"task_scaling is 2.0 and forget_goal 30: .* Leave one of them out"):
        resolve(RunConfig(method="taskvector", task_scaling=2.0, forget_goal=30))


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("npo_gdr", {"gamma": 0.0}),
        ("simnpo", {"steering": 5.0}),
        ("ga_klr", {"hidden_layer": 1}),
        ("ga", {"task_scaling": 1.0}),
    ],
)
def test_what_a_method_does_not_read_is_refused(method, values):
    (name,) = values
    with pytest.raises(ValueError, match=f"{name} is .*, but method '{method}' does not read it: leave it out"):
        resolve(RunConfig(method=method, **values))


def test_methods_without_published_settings_say_so_at_muse():
    for method in ("simnpo_gdr", "rmu_actr", "idkdpo_klr", "dpo", "taskvector"):
        with pytest.raises(ValueError, match=f"no defaults are published at muse for {method} full"):
            resolve(RunConfig(method=method, scale="muse"))


def test_how_to_look_at_a_goal_needs_one():
    for given in ({"goal_metrics": "verbmem"}, {"check_steps": 5}):
        assert resolve(RunConfig(**given)).forget_goal == 25
        with pytest.raises(ValueError, match="there is no goal to look at: give forget_goal"):
            resolve(RunConfig(**given, epochs=2))


def test_what_says_the_same_is_the_same_run():
    assert resolve(RunConfig(weights="bf16", moments="bf16")) == resolve(RunConfig(weights="bf16"))
    assert resolve(RunConfig(adapter="lora", moments="fp32")) == resolve(RunConfig(adapter="lora"))
    assert RunConfig(metrics="", goal_metrics="") == RunConfig()


def test_every_arm_but_lora_is_stepped_in_bf16_unless_told_otherwise():
    known = {"full": "bf16", "delta": "bf16", "lora": "fp32"}
    assert {adapter: resolve(RunConfig(adapter=adapter, scale="smoke")).weights for adapter in known} == known


LATER = {
    "moments": "fp32", "rounding": "stochastic", "adam_beta2": 0.95, "check_steps": 3, "metrics": ("verbmem",),
    "goal_metrics": ("verbmem",),
}  # fmt: skip


@pytest.mark.parametrize("name", LATER)
def test_a_setting_that_came_later_is_part_of_a_key_only_where_it_is_used(name):
    """Runs from before it keep their folders; a run that uses it does not take the folder of one that does not."""
    plain = RunConfig()
    assert name not in plain.identity()
    needed = {"moments": "fp32"} if name == "rounding" else {}
    changed = RunConfig(**{name: LATER[name]} | needed)
    assert digest(changed.identity()) != digest(plain.identity())
    value = LATER[name]
    assert changed.identity()[name] == (list(value) if isinstance(value, tuple) else value)
    assert RunConfig.from_dict(changed.to_dict()) == changed  # as it comes back from a record
    assert digest({"config": plain.to_dict()}) != digest({"config": changed.to_dict()})


def test_given_values_win_over_defaults():
    resolved = resolve(RunConfig(learning_rate=0.5, epochs=3, retain_weight=0.0, weights="fp32"))
    assert (resolved.learning_rate, resolved.epochs, resolved.retain_weight, resolved.weights) == (0.5, 3, 0.0, "fp32")


PUBLISHED = {  # QRU (arXiv 2602.13151): epochs and λ of full fine-tuning; rank and alpha of LoRA on BOOKS and NEWS
    "ga_gdr": (10, 100, (16, 16), (64, 64)),
    "ga_klr": (5, 100, (16, 16), (64, 64)),
    "npo_gdr": (10, 0.1, (64, 128), (16, 16)),
    "npo_klr": (5, 0.1, (16, 32), (64, 128)),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_muse_takes_the_published_settings(method):
    epochs, weight, books, news = PUBLISHED[method]
    full = resolve(RunConfig(method=method, scale="muse", corpus="muse-bench/MUSE-Books"))
    assert (full.learning_rate, full.epochs, full.retain_weight, full.batch_size) == (1e-5, epochs, weight, 16)
    for corpus, cell in (("muse-bench/MUSE-Books", books), ("data/news", news), ("muse-bench/muse-news@v1", news)):
        lora = resolve(RunConfig(method=method, adapter="lora", scale="muse", corpus=corpus))
        assert (lora.lora_rank, lora.lora_alpha) == cell
        assert (lora.learning_rate, lora.epochs, lora.lora_dropout) == (1e-4, 5, 0.05)


def test_plain_forget_terms_have_their_own_epochs_at_muse():
    assert [resolve(RunConfig(method=m, scale="muse")).epochs for m in ("ga", "npo")] == [10, 5]


def test_a_corpus_without_published_settings_is_noted():
    mine = RunConfig(method="npo_gdr", adapter="lora", scale="muse", corpus="/data/letters")
    assert (resolve(mine).lora_rank, resolve(mine).lora_alpha) == (64, 128)
    assert "no LoRA rank and alpha are published for corpus '/data/letters'" in note(mine)
    assert note(replace(mine, lora_rank=8, lora_alpha=8.0)) is None
    assert note(replace(mine, corpus="muse-bench/MUSE-News")) is None
    assert note(replace(mine, scale="mini")) is None


def test_known_corpora_bring_their_models_at_muse_alone():
    news = resolve(RunConfig(corpus="muse-bench/MUSE-News", scale="muse"))
    assert news.target.startswith("muse-bench/MUSE-News_target@")
    assert news.retrained.startswith("muse-bench/MUSE-News_retrain@")
    assert all(len(name.partition("@")[2]) == 40 for name in (news.target, news.retrained, news.tokenizer))
    assert resolve(RunConfig(corpus="muse-bench/MUSE-News", scale="mini")).target is None
    given = resolve(RunConfig(corpus="muse-bench/MUSE-News", scale="muse", target="a", retrained="b"))
    assert (given.target, given.retrained, given.tokenizer) == ("a", "b", None)


def test_an_unknown_method_stops_at_the_door():
    with pytest.raises(ValueError, match="Did you mean 'npo_gdr'"):
        resolve(RunConfig(method="npo_gdrr"))


def test_digest_does_not_depend_on_key_order():
    assert digest({"a": 1, "b": [1.5, "x"]}) == digest({"b": [1.5, "x"], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
