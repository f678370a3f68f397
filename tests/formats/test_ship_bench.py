"""The benchmark runs, verifies and goes on after a kill; what it measures is not a test's business. Its sums are."""

import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from importlib import util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qru import ship_bench, ship_input
from qru.models import linear_layers
from qru.records import read_json, write_json
from qru.ship import quantize_checkpoint
from qru.ship_bench import in_this_process, llmcompressor_python

ROOT = Path(__file__).parents[2]
OURS = ["quantize", "audit", "read", "disk", "kernel"]
THERE = [*OURS[:2], *(["peft-nf4"] if util.find_spec("bitsandbytes") else []), *OURS[2:]]


@pytest.fixture
def made(tmp_path):
    ship_input.make_input(tmp_path / "made", "tiny", 4)
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
    shapes = {name: tuple(layer.weight.shape) for name, layer in linear_layers(model).items()}
    assert ship_input.layers_of("tiny") == shapes
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        entry.name: entry.shape for entry in ship_input.base_of("tiny")
    }


def test_llama_2_7b_is_as_large_as_it_is():
    entries = ship_input.base_of("7b")
    assert sum(entry.bytes for entry in entries) == 2 * 6_738_415_616  # its published number of parameters
    shapes = ship_input.layers_of("7b")
    assert len(shapes) == 7 * 32
    assert shapes["model.layers.31.mlp.down_proj"] == (4096, 11008)
    assert ship_input.layers_of("1.1b")["model.layers.0.self_attn.k_proj"] == (256, 2048)
    assert sum(entry.bytes for entry in ship_input.base_of("1.1b")) == 2 * 1_100_048_384  # TinyLlama's


def test_room_is_asked_for_before_anything_is_written(tmp_path, monkeypatch):
    """7B: 13.5 GB of weights, an adapter of 32 · (4·(4096 + 4096) + 3·(4096 + 11008)) · 64 numbers of 4 bytes."""
    adapter = 32 * (4 * 8192 + 3 * 15104) * 64 * 4
    packed = 2 * 262_410_240 + 6_476_005_376 * (0.5 + 2 / 128)  # embeddings, head, norms; codes and steps
    need = ship_bench.needed("7b", 64, ["quantize"])
    assert need == pytest.approx(13_476_831_232 + adapter + packed, rel=0.02)
    assert ship_bench.needed("7b", 64, ["quantize", "peft-nf4"]) > need + 9e9
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**12, 10**12, 5 * 10**9))
    monkeypatch.setattr(ship_bench, "build_info", lambda: {"built": True})
    folder = tmp_path / "scratch"
    with pytest.raises(ValueError, match=r"7b needs 18\.\d GB of disk .* has 5\.00 GB"):
        ship_bench.measure(shape="7b", folder=folder)
    assert list(folder.iterdir()) == []


def test_what_is_written_wrongly_does_not_count(made):
    given = {"spec": "rtn-int4-g32"}
    result = quantize_checkpoint(made / "base", made / "out", adapter=made / "adapter", **given)
    found = ship_bench.verify("quantize", made, "tiny")
    assert found["output_bytes"] == sum(path.stat().st_size for path in (made / "out").iterdir())
    assert found["total"] == json.loads(json.dumps(result["total"]))
    with pytest.raises(AssertionError, match="of what it made are not what its rule gives"):
        ship_bench.verify("llmcompressor", made, "tiny")  # another step
    shutil.rmtree(made / "out")
    quantize_checkpoint(made / "base", made / "out", **given)
    with pytest.raises(AssertionError, match="of the codes are not those of the specification"):
        ship_bench.verify("quantize", made, "tiny")
    shutil.rmtree(made / "out")
    shutil.copytree(made / "base", made / "out")  # not merged
    with pytest.raises(AssertionError, match=r"peft-nf4: .* are not what its rule gives"):
        ship_bench.verify("peft-nf4", made, "tiny")


def test_what_another_counts_must_be_what_the_first_counted(made):
    write_json(made / "progress.json", {})
    job = {"job": {"shape": "tiny"}, "verified": {}}
    ship_bench.one(made, "quantize", job, lambda name: in_this_process(name, made, "tiny"))
    total = job["verified"]["total"]
    assert total["weights"] == 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)
    assert job["output_bytes"] > total["weights"] / 2
    found = ship_bench.one(made, "audit", job, lambda name: in_this_process(name, made, "tiny"))
    assert found["wall"] >= found["seconds"] > 0
    left = made / ".out.unfinished" / "checkpoint"  # by a process that was killed: the next would have less to do

    def kernel(name):
        assert not left.exists()
        return in_this_process(name, made, "tiny")

    left.mkdir(parents=True)
    ship_bench.one(made, "kernel", job, kernel)
    job["verified"]["total"] = total | {"crossed": total["crossed"] + 1}
    with pytest.raises(AssertionError, match="audit counts"):
        ship_bench.one(made, "audit", job, lambda name: in_this_process(name, made, "tiny"))
    assert not (made / "out").exists()


def scratch(tmp_path, **given):
    return {"scale": "smoke", "folder": tmp_path / "scratch", "record": tmp_path / "record.json", **given}


def numbers(name, seconds=1.0):
    return {"seconds": seconds, "before_mb": 1.0, "peak_mb": 2.0, "resident_mb": 3.0, "threads": 1}


def test_a_run_that_is_stopped_goes_on_behind_its_finished_rounds(tmp_path, monkeypatch):
    """Stopped in the second round: what was done is not done again, and the scratch folder is gone at the end."""
    ran = []

    def run(name, folder, shape):
        ran.append(name)
        if len(ran) == 9:
            raise KeyboardInterrupt
        if name == "quantize":
            in_this_process(name, folder, shape)
        if name == "audit":
            (folder / "out").mkdir()
            write_json(folder / "out" / "quantization_audit.json", read_json(folder / "progress.json")["verified"])
        return numbers(name, len(ran))

    monkeypatch.setattr(ship_bench, "in_this_process", run)
    given = scratch(tmp_path, only=["audit"], rounds=3)
    with pytest.raises(KeyboardInterrupt):
        ship_bench.measure(**given, report=lambda text: None)
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "scratch" / "base").iterdir()}
    assert len(first) == 3
    assert not (tmp_path / "record.json").exists()
    with pytest.raises(ValueError, match=r"scratch holds rounds of .*'rank': 4.*, not of .*'rank': 8"):
        ship_bench.measure(**given | {"rank": 8})
    said = []
    record = ship_bench.measure(**given, report=said.append)
    assert len(ran) == 1 + 15 + 1, "a run to see how much there is to write, fifteen that count, one that was stopped"
    assert len(said) == 15 - 7 + 1
    assert said[-2].startswith("round 3 of 3, ")
    assert said[-2].endswith("0 to go, about 0 min")
    assert said[-1] == f"record: {tmp_path / 'record.json'}"
    counted = sorted(value for one in record["results"].values() for value in one["seconds"])
    assert counted == [2, 3, 4, 5, 6, 7, 8, *range(10, 18)]
    assert [len(one["seconds"]) for one in record["results"].values()] == [3] * 5
    assert len(record["provenance"]["attempts"]) == 2
    assert read_json(tmp_path / "record.json") == json.loads(json.dumps(record))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["record.json"]


def test_a_kill_after_the_record_is_written_measures_nothing_again(tmp_path, monkeypatch):
    monkeypatch.setenv("QRU_HOME", str(tmp_path / "home"))
    given = scratch(tmp_path, only=["audit"], record=None)
    with monkeypatch.context() as patch:

        def killed(path, **_):
            if list((tmp_path / "home").rglob("record.json")):
                raise KeyboardInterrupt

        patch.setattr(ship_bench.shutil, "rmtree", killed)
        patch.setattr(ship_bench, "one", lambda folder, name, progress, run: pretend(progress, name))
        with pytest.raises(KeyboardInterrupt):
            ship_bench.measure(**given)
    (path,) = (tmp_path / "home" / "runs" / "ship").glob("tiny-*/record.json")
    before = path.read_bytes()
    monkeypatch.setattr(ship_bench, "one", lambda *_: pytest.fail("it was all there"))
    ship_bench.measure(**given)
    assert [path.read_bytes() for path in (tmp_path / "home" / "runs" / "ship").rglob("record.json")] == [before]
    assert not (tmp_path / "scratch").exists()


def pretend(progress, name):
    progress["output_bytes"] = 7
    return numbers(name) | {"wall": 2.0}


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "thesis.txt").write_text("kept")
    with pytest.raises(ValueError, match=r"is not empty \(it holds thesis\.txt\)"):
        ship_bench.measure(**scratch(tmp_path))
    assert (tmp_path / "scratch" / "thesis.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"shape": "8b"}, "unknown shape '8b'"),
        ({"scale": "smok"}, "Did you mean 'smoke'"),
        ({"only": ["quantise"]}, "Did you mean 'quantize'"),
        ({"only": ["llmcompressor"], "llmcompressor": "/nowhere/python"}, "make llmcompressor"),
        ({"rounds": -1}, "rounds is -1"),
    ],
)
def test_wrong_names_are_refused_before_any_work(tmp_path, given, named):
    with pytest.raises(ValueError, match=named):
        ship_bench.measure(**scratch(tmp_path) | given)
    assert list(tmp_path.iterdir()) == []


def test_the_time_that_is_left_is_the_medians():
    walls = {"a": [1.0, 9.0, 2.0], "b": [5.0]}
    assert ship_bench.eta(["a", "b", "a"], walls) == 2 + 5 + 2
    assert ship_bench.eta(["c"], walls) == 5
    assert ship_bench.eta(["c"], {}) == 0


def test_large_shapes_take_ours_alone_unless_others_are_named():
    chosen, missing = ship_bench.chosen_of("7b", [], False, None)
    assert (sorted(chosen), missing) == (sorted(OURS), {})
    chosen, missing = ship_bench.chosen_of("1.1b", [], False, "/nowhere/python")
    assert chosen == THERE
    assert missing["llmcompressor"] == "there is no /nowhere/python: make llmcompressor"


@pytest.mark.slow
def test_a_process_of_its_own_hands_back_what_it_took(made, monkeypatch):
    found = ship_bench.in_its_own_process("kernel", made, "tiny")
    assert set(found) == {"seconds", "before_mb", "peak_mb", "resident_mb", "threads"}
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(RuntimeError, match="disk failed"):
        ship_bench.in_its_own_process("disk", made, "tiny")


def test_a_process_that_is_killed_is_said_to_be(made, monkeypatch):
    script = made / "python"
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    with pytest.raises(RuntimeError, match="kernel was killed by signal 9"):
        ship_bench.in_its_own_process("kernel", made, "tiny")


@pytest.mark.parametrize("late", [False, True])
def test_a_contestant_ends_with_the_process_that_started_it(tmp_path, late):
    """The outer process starts an inner one that would sleep for a minute, and is killed: once the inner one has asked
    to end with it, and before."""
    at, late = str(tmp_path / "at"), "time.sleep(1); " * late
    inner = (
        f"import os, sys, time; from qru.watch import die_with_parent; parent = os.getppid(); open({at!r}, 'w'); "
        f"{late}die_with_parent(parent); time.sleep(60)"
    )
    outer = (
        f"import os, signal, subprocess, sys, time; from pathlib import Path\n"
        f"inner = subprocess.Popen([sys.executable, '-c', {inner!r}])\n"
        f"while not Path({str(tmp_path / 'at')!r}).exists(): time.sleep(0.01)\n"
        f"print(inner.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=50)
    state, deadline = Path(f"/proc/{int(done.stdout)}/status"), time.monotonic() + 40
    with suppress(FileNotFoundError, ProcessLookupError):  # gone altogether
        while "zombie" not in state.read_text():
            assert time.monotonic() < deadline, "it lives on"
            time.sleep(0.01)


@pytest.mark.slow
def test_smoke(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QRU_HOME", str(tmp_path))
    record = ship_bench.main(["--smoke"])
    (path,) = (tmp_path / "runs" / "ship").glob("tiny-*/record.json")
    assert read_json(path) == json.loads(json.dumps(record))
    assert list(record["results"]) == THERE
    assert all(len(one["seconds"]) == 1 for one in record["results"].values())
    assert record["input_bytes"] > 14 * 64 * 64
    assert record["config"]["weights"] == record["verified"]["total"]["weights"]
    assert f"record: {path}" in capsys.readouterr().out
    assert list((tmp_path / ".cache" / "ship-bench").iterdir()) == []
    with pytest.raises(SystemExit) as left:
        ship_bench.main(["--smoke", "--only", "peft"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "peft-nf4" in said


@pytest.mark.slow
@pytest.mark.skipif(not llmcompressor_python().is_file(), reason="make llmcompressor was not run")
def test_llmcompressor_takes_part_from_an_environment_of_its_own(tmp_path):
    record = ship_bench.measure(**scratch(tmp_path, only=["llmcompressor"]), report=lambda text: None)
    assert len(record["results"]["llmcompressor"]["seconds"]) == 1
    assert 0 < record["verified"]["llmcompressor"] < 0.05
    assert (
        record["provenance"]["llmcompressor"]["llmcompressor"] in (ROOT / "requirements-llmcompressor.lock").read_text()
    )


def test_both_environments_have_one_torch():
    def pin(name):
        return next(line for line in (ROOT / name).read_text().splitlines() if line.startswith("torch=="))

    assert pin("requirements-llmcompressor.lock") == pin("requirements.lock")
