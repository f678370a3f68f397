"""One training loop, used to make the models and to unlearn. It checkpoints, resumes and is deterministic.

What happens at step n depends only on the state after step n − 1 and on n itself (batches are a function of the
step, random state is saved), so a run that was killed and resumed ends in the same bits.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import auto, tqdm

from qru.records import atomic_file

log = logging.getLogger(__name__)

IGNORED = -100  # label of padding, as in transformers


def seed_everything(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)


def compute_precision(device: torch.device) -> str:
    """``"bf16"`` where the device has bf16 arithmetic, else ``"fp32"``: what matrix products are computed in.

    What is *stored* is decided by the arm, not here. A CPU without AVX512-BF16 or AMX emulates bf16 many times
    slower than it computes fp32, so there fp32 is computed on the same, bf16-valued weights.
    """
    if device.type == "cuda":
        return "bf16"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def autocast(device: torch.device) -> torch.autocast:
    """The context that losses are computed in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=compute_precision(device) == "bf16")


ROUNDED_TO = 32  # tokens; rows of a batch are padded to a multiple of it


def order(documents: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Indices of the documents of one step: each epoch a new permutation, the last short batch kept.

    Returns:
        Up to ``batch_size`` indices under ``documents``; a function of its arguments alone.
    """
    per_epoch = -(-documents // batch_size)
    epoch, within = divmod(step, per_epoch)
    shuffled = torch.randperm(documents, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
    return shuffled[within * batch_size : (within + 1) * batch_size]


def pad(rows: Sequence[torch.Tensor], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token rows of different lengths -> input ids (B, T) padded on the right, and labels with padding ignored.

    T is rounded up to ``ROUNDED_TO``: a CPU compiles its bf16 kernels once a shape, and with a new T at every step that
    takes longer than the arithmetic (measured: half the throughput). No attention mask is needed: under a causal mask
    no token sees the padding that follows it.
    """
    width = -(-max(map(len, rows)) // ROUNDED_TO) * ROUNDED_TO
    ids = torch.full((len(rows), width), padding)
    labels = torch.full((len(rows), width), IGNORED)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = labels[i, : len(row)] = row
    return ids, labels


def _save(path: Path, state: dict[str, Any]) -> None:
    with atomic_file(path) as temporary:
        torch.save(state, temporary)


def _restore(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # whatever a half-written pickle raises: the work is redone, not lost silently
        log.warning("checkpoint %s cannot be read (%s); starting this stage again.", path, error)
        return None


def fit(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[torch.nn.Module, int], tuple[torch.Tensor, dict[str, float]]],
    steps: int,
    *,
    label: str,
    seed: int = 0,
    schedule: Callable[[int], float] | None = None,
    clip: float | None = 1.0,
    check: Callable[[int], tuple[bool, dict[str, float]] | None] | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 30.0,
) -> list[dict[str, float]]:
    """Minimise a loss for a number of steps.

    Args:
        model: trained in place; parameters with ``requires_grad`` are saved in checkpoints.
        optimizer: over those parameters.
        loss_of: (model, step) -> scalar loss and numbers to log.
        steps: how many at most.
        label: shown beside the progress bar.
        seed: of dropout.
        schedule: step -> factor on the learning rate; ``None``: constant.
        clip: largest gradient norm; ``None``: not clipped.
        check: called after every step; (stop?, numbers to log), or ``None`` where there is nothing to check.
        checkpoint: file to resume from and to write to; kept until the caller removes it.
        checkpoint_seconds: between checkpoints.

    Returns:
        One dict per step: ``step``, ``loss``, ``seconds`` and what ``loss_of`` and ``check`` logged.

    Raises:
        FloatingPointError: the loss is NaN or infinite (names the step).
    """
    accelerator = Accelerator(cpu=True)  # models this small gain nothing from a GPU, and results stay comparable
    model, optimizer = accelerator.prepare(model, optimizer)
    bare = accelerator.unwrap_model(model)
    trainable = {name: p for name, p in bare.named_parameters() if p.requires_grad}
    rates = [group["lr"] for group in optimizer.param_groups]
    history: list[dict[str, float]] = []
    seed_everything(seed)

    if checkpoint and (state := _restore(checkpoint)):
        with torch.no_grad():
            for name, value in state["parameters"].items():
                trainable[name].copy_(value)
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        history = state["history"]
    saved = time.monotonic()
    stopped = bool(history and history[-1].get("stopped"))

    bars = [tqdm(total=steps, initial=len(history), desc=label, file=sys.__stderr__, mininterval=1.0)]
    if auto.tqdm is not tqdm and "ipykernel" in sys.modules:  # someone may be watching the notebook, too
        bars.append(auto.tqdm(total=steps, initial=len(history), desc=label, leave=False))
    for step in range(len(history), 0 if stopped else steps):
        started = time.monotonic()
        if schedule:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(step)
        model.train()
        with autocast(accelerator.device):
            loss, logged = loss_of(model, step)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{label}: the loss is {loss.item()} at step {step}. Lower learning_rate, or raise retain_weight."
            )
        accelerator.backward(loss)
        if clip is not None:
            accelerator.clip_grad_norm_(trainable.values(), clip)
        optimizer.step()
        optimizer.zero_grad()
        entry = {"step": step, "loss": loss.item(), **logged}
        checked = check(step) if check else None
        if checked:
            entry |= checked[1]
            if checked[0]:
                entry["stopped"] = 1.0
        entry["seconds"] = time.monotonic() - started
        history.append(entry)
        shown = {k: f"{v:.3g}" for k, v in entry.items() if k not in ("step", "seconds", "stopped")}
        for bar in bars:
            bar.set_postfix(shown, refresh=False)
            bar.update()
        if checked and checked[0]:
            break
        if checkpoint and (time.monotonic() - saved > checkpoint_seconds):
            _save(
                checkpoint,
                {
                    "parameters": {name: p.detach().cpu() for name, p in trainable.items()},
                    "optimizer": optimizer.state_dict(),
                    "rng": torch.get_rng_state(),
                    "history": history,
                },
            )
            saved = time.monotonic()
    for bar in bars:
        bar.close()
    return history
