"""``qru unlearn`` and ``qru evaluate`` from end to end at smoke: exit codes, machine output, reuse, bad input."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qru.cli import main
from qru.records import load_records, read_json

ROOT = Path(__file__).resolve().parents[2]
RUN = ["unlearn", "--method", "ga_gdr", "--adapter", "lora", "--scale", "smoke", "-p", "epochs=1"]
RUN += ["-p", "quantizers=rtn-int4-g128"]


def said(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as left:  # argparse leaves by itself
            code = left.code
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def unlearned(made, qru_home, tmp_path_factory):
    """What the command said, the file that it was asked for, and the record of the run."""
    file = tmp_path_factory.mktemp("unlearned") / "new" / "result.json"
    code, out, _ = said(*RUN, "--json", file)
    assert code == 0
    (record,) = [r for r in load_records(qru_home / "runs") if str(r.path) in out]
    return out, file, record


@pytest.mark.slow
def test_unlearn_prints_the_verdict_and_where_the_record_is(unlearned):
    out, file, record = unlearned
    assert out == "\n".join(record.extra["verdict"]) + f"\n\n{record.path}\n"
    config = record.config
    assert (config["method"], config["adapter"], config["epochs"], config["scale"]) == ("ga_gdr", "lora", 1, "smoke")
    assert config["quantizers"] == ["rtn-int4-g128"]
    assert read_json(file) == read_json(record.path)
    assert [path.name for path in file.parent.iterdir()] == ["result.json"]
    assert (record.path.parent / "model" / "config.json").is_file()
    assert (record.path.parent / "adapter" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_a_run_that_is_complete_is_reused(unlearned, qru_home):
    record = unlearned[2]
    before, there = record.path.read_bytes(), {r.path for r in load_records(qru_home / "runs")}
    stamp = record.path.stat().st_mtime_ns
    code, out, _ = said(*RUN, "--json", "-")
    assert code == 0
    assert json.loads(out) == json.loads(before), "stdout is the record and nothing else"
    assert record.path.stat().st_mtime_ns == stamp
    assert {r.path for r in load_records(qru_home / "runs")} == there


@pytest.mark.slow
def test_the_command_of_a_terminal_does_the_same(unlearned, qru_home):
    command = [sys.executable, "-m", "qru.cli", *RUN]
    environment = os.environ | {"QRU_HOME": str(qru_home)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == unlearned[0]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_evaluate_scores_a_run_s_checkpoint_as_the_run_did(unlearned, made):
    record = unlearned[2]
    given = ["evaluate", record.path.parent / "model", "--scale", "smoke", "--retrained", made.retrained, "--quiet"]
    code, out, _ = said(*given, "--json", "-")
    assert code == 0
    found, expected = json.loads(out), record.scores["unlearned"]["bf16"]
    assert set(found) == set(expected)
    for name, score in found.items():
        assert score["value"] == pytest.approx(expected[name]["value"], abs=1e-9), name
        assert len(score["per_example"]) == len(expected[name]["per_example"])
    code, out, _ = said(*given[:-3], "--metrics", "utility", "--quiet")
    assert code == 0
    (line,) = out.splitlines()
    name, value, *_ = line.split()
    assert (name, value) == ("utility", f"{expected['utility']['value']:.1f}")
    assert f"n = {len(expected['utility']['per_example'])}" in line


@pytest.fixture
def damaged(unlearned, tmp_path):
    folder = shutil.copytree(unlearned[2].path.parent / "model", tmp_path / "damaged")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["evaluate", "{model}", "--metrics", "verbmem,knowme", "--scale", "smoke"], "knowmem"),
        (["evaluate", "{model}", "--metrics", "privleak", "--scale", "smoke"], "retrained"),
        (["evaluate", "{model}", "--scale", "smol"], "smoke"),
        (["evaluate", "{model}", "--tokenizer", "{home}", "--scale", "smoke"], "tokenizer"),
        (["evaluate", "{model}", "--corpus", "{home}", "--scale", "smoke"], "{home}"),
        (["evaluate", "{model}", "--json", "{model}/scores.json", "--scale", "smoke"], "never written to"),
        (["evaluate", "{adapter}", "--scale", "smoke"], "adapter"),
        (["evaluate", "{damaged}", "--scale", "smoke"], "model.safetensors"),
        (["evaluate", "{model}", "--retrained", "{damaged}", "--scale", "smoke"], "model.safetensors"),
        (["unlearn", "--scale", "smoke", "--corpus", "{home}/none.jsonl"], "none.jsonl"),
        (["unlearn", "--scale", "smoke", "-p", "batch_size=0"], "batch_size"),
        (["unlearn", "--scale", "smoke", "-p", "quantizers=rtn-int4-g96"], "96"),
        (["unlearn", "--scale", "smoke", "--target", "{damaged}", "--retrained", "{model}"], "model.safetensors"),
        (["unlearn", "--scale", "smoke", "--json", "{home}"], "is a folder"),
    ],
)
def test_bad_input_is_2_one_line_and_no_run(unlearned, damaged, qru_home, tmp_path, arguments, named):
    run = unlearned[2].path.parent
    places = {"model": run / "model", "adapter": run / "adapter", "damaged": damaged, "home": tmp_path}
    before = {path.name for path in (qru_home / "runs").iterdir()}
    code, out, err = said(*(argument.format(**places) for argument in arguments))
    assert code == 2, out + err
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("PrivLeak is left out")]
    assert len(lines) == 1, err
    assert lines[0].startswith(f"qru {arguments[0]}: ")
    assert named.format(**places) in lines[0]
    assert {path.name for path in (qru_home / "runs").iterdir()} == before
