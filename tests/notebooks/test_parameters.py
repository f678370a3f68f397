"""A misspelt or mistyped parameter stops a notebook before anything runs."""

from __future__ import annotations

import pytest

from qru.notebook import assigned_names, check_parameters, declared_parameters

DECLARED = """
method: str = "npo_gdr"  # which
seed: int = 0  # of the order
beta: float = 0.1  # temperature
epochs: int = None  # None: the default
quantizers: list = ["rtn-int8-g128", "rtn-int4-g128"]  # with commas
quick: bool = False  # or not
"""
VALUES = {"method": "npo_gdr", "seed": 0, "beta": 0.1, "epochs": None, "quantizers": ["a"], "quick": False}


def check(*cells: str, **values):
    return check_parameters([*cells, "parameters = check_parameters()"], VALUES | values)


def test_without_papermill_the_declared_values_hold():
    assert check("", DECLARED, seed=3) == VALUES | {"seed": 3}


def test_what_papermill_injects_must_be_declared():
    assert check("", DECLARED, '# Parameters\nseed = 4\nmethod = "ga"\n', seed=4, method="ga")["seed"] == 4
    with pytest.raises(ValueError, match=r"unknown parameter 'metod'. Did you mean 'method'\? Known: beta, epochs"):
        check("", DECLARED, '# Parameters\nmetod = "ga"\n', metod="ga")


def test_only_what_was_injected_after_the_last_parameters_cell_counts():
    stale = '# Parameters\nmetod = "ga"\n'
    assert check("", DECLARED, stale, "1 + 1", DECLARED) == VALUES
    with pytest.raises(ValueError, match="metod"):
        check("", DECLARED, "x = 1", stale, "1 + 1")


def test_other_cells_in_between_do_not_matter():
    assert check("", "import torch", DECLARED, "lerning_rate = 3", "%matplotlib inline", "y = [") == VALUES


def test_no_parameters_cell():
    with pytest.raises(ValueError, match="run that cell first"):
        check("", "x = 1")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("seed", "abc", "parameter 'seed' is 'abc', a str; it must be int"),
        ("seed", 1.5, "it must be int"),
        ("seed", True, "it must be int"),
        ("seed", None, "it must be int"),
        ("epochs", "many", "it must be int or None"),
        ("beta", "low", "it must be float"),
        ("method", 3, "it must be str"),
        ("method", None, "it must be str"),
        ("quick", 1, "it must be bool"),
        ("quantizers", 4, r"it must be list \(text with commas\)"),
    ],
)
def test_values_of_another_type(name, value, wanted):
    with pytest.raises(ValueError, match=wanted):
        check("", DECLARED, f"# Parameters\n{name} = {value!r}\n", **{name: value})


def test_what_the_command_line_can_say_is_taken():
    found = check("", DECLARED, beta=1, quantizers="rtn-int4-g64, rtn-int3-g64", epochs=2)
    assert found["beta"] == 1.0
    assert isinstance(found["beta"], float)
    assert found["quantizers"] == ["rtn-int4-g64", "rtn-int3-g64"]
    assert found["epochs"] == 2
    assert check("", DECLARED, quantizers="")["quantizers"] == []


def test_a_cell_that_uses_the_name_sees_what_was_declared():
    names = VALUES | {"quantizers": "rtn-int4-g64, rtn-int3-g64", "beta": 1}
    check_parameters(["", DECLARED], names)
    assert names["quantizers"] == ["rtn-int4-g64", "rtn-int3-g64"]
    assert isinstance(names["beta"], float)


@pytest.mark.parametrize(
    "source", ["", "x = 1", "x: int = f()", "x: int", "x: int = 1\nprint(x)", "x: Path = 1", "x ="]
)
def test_cells_that_declare_nothing(source):
    assert declared_parameters(source) is None


def test_names_are_read_from_every_kind_of_assignment():
    assert assigned_names("# Parameters\na = 1\nb: int = 2\nc = {'d': 3}\n") == ["a", "b", "c"]


def test_outside_a_notebook_it_says_what_to_call():
    with pytest.raises(RuntimeError, match=r"qru\.run"):
        check_parameters()
