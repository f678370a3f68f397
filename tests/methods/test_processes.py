"""Two processes train as one does: the same losses, the same weights; killed, they go on, and nobody is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import several_processes
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qru import loop, models

RUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
SECONDS = 150  # a torchrun that has not ended by then never will


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
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
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
def by_two(start, tmp_path_factory):
    """Case -> history and weights, from two processes."""
    folder = tmp_path_factory.mktemp("two")
    process = torchrun(start, *several_processes.CASES, "--save", folder)
    said = ended(process)
    assert process.returncode == 0, said[-3000:]
    return {case: torch.load(folder / f"{case}.pt") for case in several_processes.CASES}


@pytest.mark.parametrize("case", several_processes.CASES)
def test_two_processes_train_as_one_does(case, start, by_two, monkeypatch):
    monkeypatch.setattr(loop, "compute_precision", lambda device: "fp32")
    history, weights = several_processes.trained(case, start)
    others_history, others_weights = by_two[case]
    # Sums of fp32 in another order: 1e-7 of each gradient. Adam divides it by its size, so where a gradient is itself
    # no more than such a rest a weight goes the other way; a few in a thousand do, and bf16 weights then by a whole
    # spacing.
    for ours, theirs in zip(history, others_history, strict=True):
        for name in ("loss", "forget", "retain"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-4), (ours["step"], name)
    before = models.load(start)[0].state_dict()
    assert list(weights) == list(others_weights)
    moved = torch.cat([(weights[name] - before.get(name, 0)).flatten() for name in weights])
    apart = torch.cat([(weights[name] - others_weights[name]).flatten() for name in weights])
    assert moved.norm() > 0
    assert apart.norm() < 0.03 * moved.norm()
    if "lm_head.weight" in weights:
        assert torch.equal(others_weights["lm_head.weight"], others_weights["model.embed_tokens.weight"])


@pytest.mark.parametrize("case", ["bf16"])
def test_killed_processes_leave_nobody_and_resume_to_the_same_bits(case, start, by_two, tmp_path):
    process = torchrun(start, case, "--save", tmp_path, "--die-at", 3)
    ended(process)
    assert process.returncode == -signal.SIGKILL
    pids = [int((tmp_path / f"pid-{rank}").read_text()) for rank in (0, 1)]
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)

    saved = {file.name: torch.load(file)["history"] for file in tmp_path.glob(f"{case}.training*")}
    assert {name: len(history) for name, history in saved.items()} == {
        f"{case}.training.0-of-2": 3, f"{case}.training.1-of-2": 2, f"{case}.training.1-of-2{loop.NEWER}": 3,
    }  # fmt: skip
    resumed = torchrun(start, case, "--save", tmp_path)
    said = ended(resumed)
    assert resumed.returncode == 0, said[-3000:]
    (history, weights), (whole_history, whole_weights) = torch.load(tmp_path / f"{case}.pt"), by_two[case]
    assert [row["loss"] for row in history] == [row["loss"] for row in whole_history]
    assert [row["seconds"] for row in history[:3]] == [row["seconds"] for row in saved[f"{case}.training.0-of-2"]]
    for name, value in whole_weights.items():
        assert torch.equal(weights[name], value), name
