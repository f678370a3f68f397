"""The benchmark runs and verifies; what it measures is not a test's business. Its sums are."""

import importlib.util
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qru import ship_bench
from qru.records import read_json
from qru.ship import quantize_checkpoint


@pytest.fixture
def made(tmp_path):
    ship_bench.make_input(tmp_path / "made", "tiny", 4)
    return tmp_path / "made"


def test_its_input_is_a_checkpoint_and_an_adapter(made):
    model = AutoModelForCausalLM.from_pretrained(made / "base")
    weight = model.model.layers[1].mlp.down_proj.weight
    assert weight.dtype == torch.bfloat16
    assert 0.019 < weight.float().std() < 0.021
    assert not torch.equal(weight, model.model.layers[0].mlp.down_proj.weight)
    factors = load_file(made / "adapter" / "adapter_model.safetensors")
    assert factors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].shape == (4, 128)
    assert len(factors) == 2 * 14


def test_what_is_written_wrongly_does_not_count(made):
    quantize_checkpoint(made / "base", made / "out", adapter=made / "adapter", spec="rtn-int4-g32")
    assert ship_bench.verify(made) == sum(path.stat().st_size for path in (made / "out").iterdir())
    shutil.rmtree(made / "out")
    quantize_checkpoint(made / "base", made / "out", spec="rtn-int4-g32")
    with pytest.raises(AssertionError, match="is not what the specification gives"):
        ship_bench.verify(made)


def test_contestants_do_their_work(made):
    for name in ("quantize", "audit", "kernel"):
        shutil.rmtree(made / "out", ignore_errors=True)
        found = ship_bench.contestant(name, made)
        assert found["peak_mb"] >= found["before_mb"] > 0
        assert found["resident_mb"] > found["before_mb"] / 2
        assert (made / "out").exists() == (name == "quantize")
    (made / "out_bytes").write_text("12345678")
    ship_bench.by_disk(made)
    assert (made / "out" / "zeros").stat().st_size == 12345678


def test_ratios_are_of_medians():
    def one(seconds, memory):
        return {"seconds": seconds, "peak_mb": memory}

    results = {
        "quantize": one([2.0, 4.0, 3.0], [100.0, 100.0, 100.0]),
        "peft-nf4": one([30.0, 20.0, 18.0], [500.0, 450.0, 440.0]),
        "disk": one([2.0, 2.0, 2.0], [1.0, 1.0, 1.0]),
        "kernel": one([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
    }
    assert ship_bench.ratios(results) == {
        "quantize": {"of_floor": 1.5},
        "peft-nf4": {"seconds": 20 / 3, "peak_mb": 4.5},
    }


def test_a_process_of_its_own_hands_back_what_it_took(made, monkeypatch):
    found = ship_bench.in_its_own_process("kernel", made)
    assert set(found) == {"seconds", "before_mb", "peak_mb", "resident_mb"}
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(RuntimeError, match="disk failed"):
        ship_bench.in_its_own_process("disk", made)


def test_smoke(tmp_path, capsys):
    record = ship_bench.main(["--folder", str(tmp_path / "scratch"), "--smoke"])
    assert read_json(tmp_path / "scratch" / "record.json") == record
    without = set() if importlib.util.find_spec("bitsandbytes") else {"peft-nf4"}
    assert set(record["results"]) == set(ship_bench.CONTESTANTS) - without
    assert all(len(one["seconds"]) == 1 for one in record["results"].values())
    assert record["input_bytes"] > 14 * 64 * 64
    with pytest.raises(ValueError, match="is not empty"):
        ship_bench.measure(tmp_path / "scratch", "tiny")
    assert "record: " in capsys.readouterr().out
