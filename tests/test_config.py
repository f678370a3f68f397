import pytest

from qru.config import RunConfig, digest
from qru.defaults import resolve


def test_a_misspelt_parameter_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown parameter 'metod'\. Did you mean 'method'\?"):
        RunConfig.from_dict({"metod": "ga"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"adapter": "lorra"}, "Did you mean 'lora'"),
        ({"scale": "maxi"}, "Did you mean 'mini'"),
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
    ],
)
def test_impossible_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.from_dict(values)


def test_resolved_configs_say_everything():
    resolved = resolve(RunConfig(method="ga_klr", adapter="lora")).to_dict()
    assert [key for key, value in resolved.items() if value is None] == ["forget_goal"]
    assert resolve(RunConfig(adapter="full")).weights == "bf16"
    assert resolve(RunConfig(adapter="lora")).weights == "fp32"


def test_given_values_win_over_defaults():
    resolved = resolve(RunConfig(learning_rate=0.5, epochs=3, retain_weight=0.0, weights="fp32"))
    assert (resolved.learning_rate, resolved.epochs, resolved.retain_weight, resolved.weights) == (0.5, 3, 0.0, "fp32")


def test_an_unknown_method_stops_at_the_door():
    with pytest.raises(ValueError, match="Did you mean 'npo_gdr'"):
        resolve(RunConfig(method="npo_gdrr"))


def test_digest_does_not_depend_on_key_order():
    assert digest({"a": 1, "b": [1.5, "x"]}) == digest({"b": [1.5, "x"], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
