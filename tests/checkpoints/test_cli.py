"""The command: exit codes, what goes to stdout and what to stderr, files that are whole or not there."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from qru.checkpoint_audit import audit_checkpoint
from qru.cli import main
from qru.ops import QuantSpec
from tests.checkpoints.made import model, nudged, write, write_adapter

SPEC = ("--spec", "rtn-int8-g64")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A base and a fine-tune that moves every weight by several steps of eight bits."""
    home = tmp_path_factory.mktemp("cli")
    return str(write(home / "base", shard="60KB")), str(write(home / "tuned", change=nudged(0.2)))


@pytest.fixture
def tiny(pair, tmp_path):
    """A fine-tune that no grid sees: one weight in a layer, moved by one spacing of bf16."""
    folder = tmp_path / "tiny"
    shutil.copytree(pair[0], folder)
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if "proj" in name:
                tensor[0, tensor[0].abs().argmin()] *= 1 + 2**-7
        save_file(tensors, path, metadata={"format": "pt"})
    return str(folder)


def test_an_update_that_survives_is_0_and_one_that_dies_is_1(pair, tiny, capsys):
    assert main(["audit", *pair, *SPEC, "--no-sha256"]) == 0
    said = capsys.readouterr()
    assert said.out.endswith("\nholds\n")
    assert "survives int8 g64" in said.out
    assert "100%" in said.err, "progress goes to stderr"
    assert main(["audit", pair[0], tiny, *SPEC, "--no-sha256", "--quiet"]) == 1
    said = capsys.readouterr()
    assert said.out.endswith("\ndoes not hold\n")
    assert said.err == ""
    assert main(["audit", pair[0], pair[0], *SPEC, "--no-sha256", "--quiet"]) == 1, "there is no update"


def test_machine_output_is_the_result_alone(pair, capsys):
    both = ["--spec", "rtn-int8-g64,rtn-int4-g64", "--spec", "rtn-int3-row"]
    code = main(["audit", *pair, *both, "--json", "-", "--quiet"])
    found = json.loads(capsys.readouterr().out)
    specs = [QuantSpec.parse(name) for name in ("rtn-int8-g64", "rtn-int4-g64", "rtn-int3-row")]
    assert found == json.loads(json.dumps(audit_checkpoint(*pair, specs, progress=False)))
    assert list(found["specs"]) == [spec.name for spec in specs]
    assert code == (0 if found["holds"] else 1)


def test_files_are_written_whole(pair, tmp_path, capsys):
    files = {kind: tmp_path / "new" / f"audit.{kind}" for kind in ("json", "csv", "html")}
    given = [part for kind, path in files.items() for part in (f"--{kind}", str(path))]
    assert main(["audit", *pair, *SPEC, *given, "--quiet"]) == 0
    assert capsys.readouterr().out.endswith("holds\n")
    result = json.loads(files["json"].read_text())
    with open(files["csv"], newline="") as file:
        rows = list(csv.DictReader(file))
    layers = result["specs"]["rtn-int8-g64"]["layers"]
    assert [row["layer"] for row in rows] == list(layers)
    for row in rows:
        assert int(row["crossed"]) == layers[row["layer"]]["crossed"]
        assert float(row["projection"]) == layers[row["layer"]]["projection"]
    assert files["html"].read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["audit.csv", "audit.html", "audit.json"]


def test_adapters_are_merged_in_their_order(pair, tmp_path, capsys):
    first = write_adapter(tmp_path / "first", model())
    second = write_adapter(tmp_path / "second", model(), seed=4)
    main(["audit", pair[0], str(first), "--adapter", str(second), *SPEC, "--json", "-", "--quiet"])
    found = json.loads(capsys.readouterr().out)
    assert found["adapters"] == [str(first), str(second)]
    spec = QuantSpec.parse("rtn-int8-g64")
    expected = audit_checkpoint(pair[0], first, [spec], [second], progress=False, digests=False)
    assert found["specs"]["rtn-int8-g64"]["total"] == json.loads(json.dumps(expected["specs"][spec.name]["total"]))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["audit", "{base}", "nowhere"], "UNLEARNED nowhere is no folder"),
        (["audit", "nowhere", "{tuned}"], "BASE nowhere is no folder"),
        (["audit", "{base}", "{tuned}", "--spec", "rtn-int5-g64"], "bits is 5"),
        (["audit", "{base}", "{tuned}", "--spec", "int4"], "nearest known form is 'rtn-int4"),
        (["audit", "{base}", "{tuned}", "--spec", "rtn-int4-g48"], "group_size 48 does not divide"),
        (["audit", "{base}", "{tuned}", "--adapter", "{base}"], "has no adapter_config.json"),
        (["audit", "{base}", "{tuned}", "--json", "{tuned}/config.json"], "is read and never written to"),
        (["audit", "{base}", "{tuned}", "--html", "{home}"], "is a folder"),
        (["audit", "{base}", "{tuned}", "--csv", "/proc/none/x.csv"], "cannot be written"),
        (["audit", "{base}", "{tuned}", "--html", "{pipe}"], "is no regular file"),
        (["audit", "{base}"], "required: UNLEARNED"),
        (["audit", "{base}", "{tuned}", "--spek", "x"], "unrecognized arguments: --spek"),
        (["audot"], "invalid choice: 'audot'"),
        ([], "required: COMMAND"),
        (["unlearn", "-p", "epochs"], "-p 'epochs' is no NAME=VALUE"),
        (["unlearn", "-p", "epoch=2"], "epochs"),
        (["unlearn", "--method", "npo_gdp"], "npo_gdr"),
        (["unlearn", "--seed", "much"], "seed is 'much'"),
        (["evaluate", "nowhere"], "model is 'nowhere'"),
        (["evaluate", "{base}", "--corpus", "book"], "books"),
    ],
)
def test_bad_input_is_2_and_one_clear_line(pair, tmp_path, capsys, arguments, named):
    os.mkfifo(tmp_path / "pipe")  # as /dev/null would be replaced by a file, where the user may
    places = {"base": pair[0], "tuned": pair[1], "home": str(tmp_path), "pipe": str(tmp_path / "pipe")}
    try:
        code = main([argument.format(**places) for argument in arguments])
    except SystemExit as left:  # argparse leaves by itself
        code = left.code
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    lines = said.err.strip().splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("qru")
    assert named in lines[0]
    assert "Traceback" not in said.err


def test_a_defect_does_not_read_as_a_verdict(pair, capsys, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("not enough memory: you tried to allocate 99 bytes")

    monkeypatch.setattr("qru.checkpoint_audit.audit_checkpoint", broken)
    assert main(["audit", *pair, "--quiet"]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" in said.err
    assert "99 bytes" in said.err


def test_a_full_disk_leaves_no_file(pair, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for kind in ("json", "csv", "html"):
        assert main(["audit", *pair, *SPEC, f"--{kind}", str(tmp_path / "out"), "--no-sha256", "--quiet"]) == 2
        assert "No space left on device" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_kill_before_the_end_leaves_no_half_file(tmp_path, kind):
    """Killed when everything is written but the name: what was there before is still there, whole."""
    out = tmp_path / "out"
    out.write_text("before")
    write_it = {"json": "put_json(OUT, [1, 2])", "csv": "write_csv(Path(OUT), [{'a': 1}])"}[kind]
    code = f"""
import os, signal
from pathlib import Path
from qru.cli import put_json, write_csv
OUT = {str(out)!r}
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
{write_it}
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert out.read_text() == "before"


def test_help_is_instant_and_has_examples():
    """It imports neither torch nor what takes long to."""
    code = """
import sys
from qru.cli import main
for arguments in (["--help"], ["audit", "--help"], ["unlearn", "--help"], ["evaluate", "--help"]):
    try:
        main(arguments)
    except SystemExit as left:
        assert left.code == 0
heavy = {"torch", "transformers", "peft", "numpy", "pandas", "matplotlib", "tqdm"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("examples:") == 3
    for word in ("--spec", "--json", "--html", "--adapter", "at least 0.5 under every grid", "convention", "exit code"):
        assert word in done.stdout


def test_the_command_is_installed_under_its_name():
    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert '[project.scripts]\nqru = "qru.cli:main"\n' in project


def test_evaluate_and_unlearn_call_what_the_notebooks_call(monkeypatch, capsys, tmp_path):
    """Both are thin: what they give to the package, and what they print of its answer."""
    from qru.metrics import Score
    from qru.records import Record

    record = Record(tmp_path / "record.json", {}, {}, {}, {}, {}, {"verdict": ["it was forgotten.", "it stays so."]})
    (tmp_path / "record.json").write_text('{"config": {}}')
    given = {}
    monkeypatch.setattr("qru.pipeline.run", lambda **parameters: given.update(parameters) or record)
    arguments = ["unlearn", "--method", "ga_klr", "--seed", "3", "-p", "learning-rate=1e-4", "-p", "forget_goal=None"]
    assert main(arguments) == 0
    assert given == {"method": "ga_klr", "seed": 3, "learning_rate": 1e-4, "forget_goal": None}
    assert capsys.readouterr().out.startswith("it was forgotten.\nit stays so.\n")
    assert main([*arguments, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == {"config": {}}

    base = write(tmp_path / "base")
    monkeypatch.setattr(
        "qru.models.load", lambda folder, tokenizer: (f"model in {folder}", f"tokenizer in {tokenizer}")
    )
    scored = {}

    def evaluate(model, tokenizer, corpus, **options):
        scored.update(options, model=model, tokenizer=tokenizer, corpus=corpus)
        return {"verbmem": Score(12.5, (10.0, 15.0), [0.1, 0.15])}

    monkeypatch.setattr("qru.metrics.evaluate", evaluate)
    assert main(["evaluate", str(base), "--scale", "smoke", "--quiet"]) == 0
    said = capsys.readouterr()
    assert scored["model"] == f"model in {base}"
    assert scored["tokenizer"] == f"tokenizer in {base}"
    assert scored["corpus"].name == "books"
    assert scored["metrics"] == ["verbmem", "knowmem", "utility", "disjoint"]
    assert "PrivLeak is left out" in said.err
    assert "verbmem" in said.out
    assert "12.5   [10.0, 15.0]   n = 2" in said.out
    both = ["--retrained", str(base), "--metrics", "verbmem,privleak", "--json", "-"]
    assert main(["evaluate", str(base), "--scale", "smoke", *both]) == 0
    assert scored["retrained"] == f"model in {base}"
    assert scored["metrics"] == ["verbmem", "privleak"]
    assert json.loads(capsys.readouterr().out)["verbmem"]["value"] == 12.5
