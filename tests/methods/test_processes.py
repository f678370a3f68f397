"""Two processes train as one does: the same losses, the same weights; killed, they go on, and nobody is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import several_processes
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qru import launch, loop, models, objectives, pipeline, processes, train
from qru.config import RunConfig
from qru.defaults import resolve
from qru.unlearn import portions

RUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
KILLED = "bf16@killed"
SECONDS = 400  # a torchrun that has not ended by then never will, on a machine with much else to do, too


@pytest.fixture(scope="module")
def start(made, tokenizer, tmp_path_factory):
    """A tiny Llama with tied embeddings and the smoke models' tokenizer."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "tiny"
    models.save(LlamaForCausalLM(shape), tokenizer, folder)
    return folder


def torchrun(*arguments) -> subprocess.Popen:
    """Two processes of ``several_processes``, in a session of their own."""
    command = [*RUN, several_processes.__file__, *map(str, arguments)]
    accelerate = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}  # as accelerate launch sets
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | accelerate
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> str:
    """What a torchrun said by its end; none of its processes outlives this."""
    try:
        return process.communicate(timeout=SECONDS)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture(scope="module")
def killed(start, tmp_path_factory):
    """A training by two processes that was killed: where it was, its exit status, who was left, what it had saved."""
    folder = tmp_path_factory.mktemp("two")
    process = torchrun(start, KILLED, "--save", folder, "--die-at", 3)
    ended(process)
    pids = [int((folder / f"pid-{rank}").read_text()) for rank in (0, 1)]
    deadline = time.monotonic() + 20
    while (left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    saved = {file.name: torch.load(file)["history"] for file in folder.glob(f"{KILLED}.training*")}
    return folder, process.returncode, left, saved


@pytest.fixture(scope="module")
def by_two(start, killed):
    """Case -> history and weights, from two processes; the killed one goes on from where it was."""
    folder, cases = killed[0], [*several_processes.CASES, KILLED]
    process = torchrun(start, *cases, "--save", folder)
    said = ended(process)
    assert process.returncode == 0, said[-3000:]
    return {case: torch.load(folder / f"{case}.pt") for case in cases}


@pytest.mark.parametrize("case", several_processes.CASES)
def test_two_processes_train_as_one_does(case, start, by_two, monkeypatch):
    monkeypatch.setattr(loop, "compute_precision", lambda device: "fp32")
    history, weights = several_processes.trained(case, start)
    others_history, others_weights = by_two[case]
    assert ("verbmem" in history[0]) == (case == "fp32")  # also between steps, when the goal is looked at
    # Sums of fp32 in another order: 1e-7 of each gradient. Adam divides it by its size, so where a gradient is itself
    # no more than such a rest a weight goes the other way; a few in a thousand do, and bf16 weights then by a whole
    # spacing.
    for ours, theirs in zip(history, others_history, strict=True):
        assert theirs.keys() == ours.keys()
        for name in {"loss", "forget", "retain", "verbmem"} & ours.keys():
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-4), (ours["step"], name)
    before = models.load(start)[0].state_dict()
    assert list(weights) == list(others_weights)
    moved = torch.cat([(weights[name] - before.get(name, 0)).flatten() for name in weights])
    apart = torch.cat([(weights[name] - others_weights[name]).flatten() for name in weights])
    assert moved.norm() > 0
    assert apart.norm() < 0.03 * moved.norm()
    if "lm_head.weight" in weights:
        assert torch.equal(others_weights["lm_head.weight"], others_weights["model.embed_tokens.weight"])


def test_killed_processes_leave_nobody_and_resume_to_the_same_bits(killed, by_two):
    _, status, left, saved = killed
    assert status == -signal.SIGKILL
    assert not left
    assert {name: len(history) for name, history in saved.items()} == {
        f"{KILLED}.training.0-of-2": 3, f"{KILLED}.training.1-of-2": 2, f"{KILLED}.training.1-of-2{loop.NEWER}": 3,
    }  # fmt: skip
    (history, weights), (whole_history, whole_weights) = by_two[KILLED], by_two["bf16"]
    assert [row["loss"] for row in history] == [row["loss"] for row in whole_history]
    assert [row["seconds"] for row in history[:3]] == [row["seconds"] for row in saved[f"{KILLED}.training.0-of-2"]]
    for name, value in whole_weights.items():
        assert torch.equal(weights[name], value), name


def test_a_run_by_two_processes_ends_in_a_record(made, monkeypatch, capfd):
    """From the notebook's side: the stage is started, checks the goal in both processes, and its model is found."""
    settings = {"scale": "smoke", "method": "npo_gdr", "learning_rate": 1e-3, "forget_goal": 100.0, "epochs": 2}
    monkeypatch.setenv("QRU_PROCESSES", "2")
    record = pipeline.run(**settings, quantizers=("rtn-int4-g128",))
    history = record.extra["history"]
    assert history[-1]["stopped"]
    assert {"verbmem", "knowmem"} <= set(history[-1])
    left = {path.name for path in record.path.parent.iterdir() if not path.name.startswith(".")}
    assert left == {"record.json", "responses.json", "history.json", "model"}
    assert record.crossings["rtn-int4-g128"]["total"]["crossed"] > 0
    config = json.loads((record.path.parent / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "training by 2 processes" in capfd.readouterr().err


def test_an_error_in_the_processes_reaches_the_caller(made, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "wanted", lambda config: 1)  # started all the same; one is enough to fail
    config = resolve(RunConfig(scale="smoke", method="ga", weights="fp32", learning_rate=1e30, epochs=9))
    with pytest.raises(RuntimeError, match=r"by 1 processes failed: FloatingPointError: .*Lower learning_rate"):
        launch.train(config, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("QRU_PROCESSES", "0", "whole number, 1 or more"),
        ("QRU_PROCESSES", "two", "whole number, 1 or more"),
        ("QRU_PROCESSES", "5", "5 processes cannot share a batch of 4 documents"),
        ("QRU_DEVICE", "tpu", "must be 'cpu', 'cuda' or not set"),
    ],
)
def test_bad_input_stops_before_any_work(name, value, message, monkeypatch):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("qru.models.prepare", lambda *a: pytest.fail("prepared models"))
    with pytest.raises(ValueError, match=message):
        pipeline.run(scale="smoke", batch_size=4)


def test_stochastic_rounding_is_for_one_process(monkeypatch):
    """Each process draws its own numbers: copies of one adapter would drift apart."""
    config = resolve(RunConfig(scale="smoke", adapter="lora", weights="bf16", moments="fp32", rounding="stochastic"))
    assert launch.wanted(config) == 1
    monkeypatch.setenv("QRU_PROCESSES", "2")
    with pytest.raises(ValueError, match=r"rounding is 'stochastic' and 2 processes .* Set QRU_PROCESSES=1"):
        launch.wanted(config)
    assert launch.wanted(replace(config, rounding="nearest")) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_not_silently_replaced(monkeypatch):
    monkeypatch.setenv("QRU_DEVICE", "cuda")
    with pytest.raises(ValueError, match="torch sees no GPU"):
        loop.device()


def as_process(monkeypatch, rank, count):
    monkeypatch.setattr(processes, "rank", lambda: rank)
    monkeypatch.setattr(processes, "count", lambda: count)


@pytest.mark.parametrize(("documents", "count", "at_once"), [(5, 2, 3), (5, 2, 1), (1, 2, 4), (4, 4, 1), (7, 3, 2)])
def test_portions_make_up_the_batch(documents, count, at_once, monkeypatch):
    data = [torch.arange(length) for length in (3, 2, 9, 4, 30, 6, 5, 8)]
    chosen = [6, 2, 0, 7, 4, 1, 3][:documents]
    passes = -(-documents // (at_once * count))
    total = sum(len(data[i]) - 1 for i in chosen)
    for mean in ("tokens", "documents"):
        weight_of = dict.fromkeys(chosen, 0.0)
        for rank in range(count):
            as_process(monkeypatch, rank, count)
            found = portions(data, chosen, mean, at_once, passes)
            assert len(found) == passes
            for part in found:
                assert 1 <= len(part.rows) <= at_once
                for i in part.chosen:
                    tokens = sum(len(data[j]) - 1 for j in part.chosen)
                    own = (len(data[i]) - 1) / tokens if mean == "tokens" else 1 / len(part.chosen)
                    weight_of[i] += part.weight * own
        for i, weight in weight_of.items():
            expected = (len(data[i]) - 1) / total if mean == "tokens" else 1 / documents
            assert weight == pytest.approx(expected)


@pytest.mark.parametrize("name", [*objectives.forget_terms.names(), *objectives.retain_terms.names()])
def test_a_term_is_the_mean_that_it_says(name):
    """Over parts of unequal size, weighted by tokens or documents as the term is marked, it is what the whole gives."""
    forget = name in objectives.forget_terms.names()
    term = (objectives.forget_terms if forget else objectives.retain_terms)[name]
    torch.manual_seed(0)
    lengths = torch.tensor([9, 2, 5, 1, 7])
    mask = torch.arange(9)[None] < lengths[:, None]  # (B, T)

    def said():
        distribution = torch.randn(5, 9, 11, dtype=torch.float64).log_softmax(-1)
        preferred = objectives.Said(distribution[..., 1], mask)
        return objectives.Said(distribution[..., 0], mask, distribution, hidden=distribution, preferred=preferred)

    policy, reference = said(), said()

    def value(rows):
        ours, theirs = (one.rows(rows) for one in (policy, reference))
        settings = objectives.Settings(0.1, 0.5, torch.ones(11, dtype=torch.float64))
        return term(ours, theirs if term.reference else None, *([settings] if forget else [])).item()

    parts = [slice(0, 2), slice(2, 5)]
    amounts = [lengths[rows].sum().item() if term.mean == "tokens" else rows.stop - rows.start for rows in parts]
    together = sum(value(rows) * amount for rows, amount in zip(parts, amounts, strict=True)) / sum(amounts)
    assert together == pytest.approx(value(slice(0, 5)), rel=1e-9)


def test_shares_of_different_steps_go_back_to_the_last_common_one(tmp_path, monkeypatch):
    """One process was killed before its share was written, the other after: both have the step before."""
    checkpoint = tmp_path / "training.pt"
    as_process(monkeypatch, 0, 2)
    for name, steps in (("training.pt.0-of-2", 3), (f"training.pt.0-of-2{loop.NEWER}", 4), ("training.pt.1-of-2", 3)):
        loop._save(tmp_path / name, {"history": [{}] * steps})
    monkeypatch.setattr(processes, "agreed", lambda value: value)
    monkeypatch.setattr(processes, "gathered", lambda own: [own, {3}])
    assert len(loop.read_checkpoint(checkpoint)["history"]) == 3
    monkeypatch.setattr(processes, "gathered", lambda own: [own, {4}])
    assert len(loop.read_checkpoint(checkpoint)["history"]) == 4
    assert not (tmp_path / f"training.pt.0-of-2{loop.NEWER}").exists()


@pytest.mark.parametrize(("saved_by", "resumed_by"), [(2, 1), (1, 2), (2, 4)])
def test_another_number_of_processes_is_named(saved_by, resumed_by, tmp_path, monkeypatch):
    checkpoint = tmp_path / "training.pt"
    monkeypatch.setattr(processes, "agreed", lambda value: value)
    as_process(monkeypatch, 0, saved_by)
    loop._save(loop._own(checkpoint), {"history": [{}]})
    as_process(monkeypatch, 0, resumed_by)
    with pytest.raises(ValueError, match=rf"saved by {saved_by} process.*resumed by {resumed_by}"):
        loop.read_checkpoint(checkpoint)
    loop.delete_checkpoint(checkpoint)
    assert loop.read_checkpoint(checkpoint) is None if resumed_by == 1 else not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "value"),
    [("npo_klr", "npo_klr"), ("1e-4", 1e-4), ("7", 7), ("1.", 1.0), ("True", True), ("None", None), ("true", "true")],
)
def test_parameters_are_read_as_papermill_reads_them(text, value):
    assert train.value(text) == value
    assert type(train.value(text)) is type(value)


def test_a_process_leaves_with_the_one_that_wants_its_result():
    """The notebook is no parent of the processes: torchrun stands between them."""
    wanting = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    program = "import sys, time; from qru import parallel; parallel.leave_with(int(sys.argv[1])); print(1, flush=True)"
    command = [sys.executable, "-c", f"{program}; time.sleep(100)", str(wanting.pid)]
    working = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert working.stdout.readline() == "1\n"
        wanting.kill()
        wanting.wait()
        assert working.wait(timeout=30) == 1
    finally:
        working.kill()
        working.communicate()
