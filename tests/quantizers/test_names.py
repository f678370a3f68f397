"""Every name runs, and what is no name says which is near."""

import sys

import pytest

from qru.quantizers import load_quantizer


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("nf4-g64", "nf4-b64"),
        ("nf4", "nf4-b64"),
        ("nf4-b63", "nf4-b64"),
        ("nf5-b64", "nf4-b64"),
        ("fp4-b64-double", "fp4-b64-dq"),
        ("llm-int4", "llm-int8"),
        ("gptq-int5-g128", "gptq-int4-g128"),
        ("gptq-int4-g128-forgot", "gptq-int4-g128-forget"),
        ("gptq-int4-g128-forget-heldout", "gptq-int4-g128-heldout"),
        ("awq-int4", "awq-int4-g128"),
        ("awg-int4-g128", "awq-int4-g128"),
    ],
)
def test_a_wrong_name_says_which_is_near(name, near):
    with pytest.raises(ValueError, match=f"unknown quantizer '{name}'.*Did you mean '{near}'.*Known: .*rtn-int8-row"):
        load_quantizer(name)


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        ("gptq-int4-g128-retain", "gptq-int4-g128"),
        ("gptq-int4-g64-sym-2^(N-1)", "gptq-int4-g64"),
        ("gptq-int3-row-sym-2^(N-1)-1/2-forget", "gptq-int3-row-sym-2^(N-1)-1/2-forget"),
        ("awq-int8-tensor-asym-heldout", "awq-int8-tensor-asym-heldout"),
        ("awq-int4-g128-bfloat16", "awq-int4-g128-bfloat16"),
        ("nf4-b4096-dq", "nf4-b4096-dq"),
    ],
)
def test_a_name_is_kept_without_what_is_default(given, exact):
    assert load_quantizer(given).name == exact
    assert load_quantizer(exact).name == exact


def test_the_calibration_text_is_in_the_name():
    texts = {"": "retain", "-heldout": "heldout", "-forget": "forget"}
    for suffix, text in texts.items():
        assert load_quantizer(f"gptq-int4-g128{suffix}").calibration == text
        assert load_quantizer(f"awq-int4-g128{suffix}").calibration == text


@pytest.mark.parametrize("name", ["nf4-b64", "fp4-b64-dq", "llm-int8"])
def test_without_bitsandbytes_the_way_to_it_is_said(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(ValueError, match=r"pip install 'bitsandbytes>=0\.50'"):
        load_quantizer(name)


@pytest.mark.parametrize("name", ["gptq-int4-g96", "awq-int4-g96"])
def test_groups_that_do_not_divide_a_row_name_the_layer(name):
    with pytest.raises(ValueError, match=r"layers\.0\.up.*96 does not divide a row of 128"):
        load_quantizer(name).check((64, 128), "layers.0.up")
