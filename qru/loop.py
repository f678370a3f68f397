"""One training loop, used to make the models and to unlearn. It checkpoints, resumes and is deterministic.

What happens at step n depends only on the state after step n − 1 and on n itself (batches are a function of the
step, random state is saved), so a run that was killed and resumed ends in the same bits.

Started by several processes (``qru.train``), each takes its share of every batch; losses and gradients are those of the
whole batch, up to the order in which floats are added.
"""

from __future__ import annotations

import logging
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import auto, tqdm

from qru import processes
from qru.records import atomic_file

log = logging.getLogger(__name__)

IGNORED = -100  # label of padding, as in transformers
NEWER = ".new"  # a share of a checkpoint that not all processes are known to have written
SAVING = 20  # so that at most a twentieth of the time goes into checkpoints


def seed_everything(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)


def device() -> torch.device:
    """Where models are trained: the GPU if there is one, else the CPU; ``QRU_DEVICE=cpu`` or ``cuda`` decides.

    Raises:
        ValueError: ``QRU_DEVICE`` is something else, or asks for a GPU that is not there.
    """
    wanted = os.environ.get("QRU_DEVICE", "").strip().lower()
    if wanted not in ("", "cpu", "cuda"):
        raise ValueError(f"QRU_DEVICE is {wanted!r}; it must be 'cpu', 'cuda' or not set.")
    if wanted == "cpu" or (not wanted and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("QRU_DEVICE is 'cuda', but torch sees no GPU: unset it, or install a torch built for CUDA.")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def compute_precision(device: torch.device) -> str:
    """``"bf16"`` where the device has bf16 arithmetic, else ``"fp32"``: what matrix products are computed in.

    What is *stored* is decided by the arm, not here. A CPU without AVX512-BF16 or AMX emulates bf16 many times
    slower than it computes fp32, so there fp32 is computed on the same, bf16-valued weights.
    """
    if device.type == "cuda":
        return "bf16"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def computed_as() -> str:
    """What the bits of a trained model depend on, of the machine: the precision, and the device if it is no CPU."""
    where = device()
    precision = compute_precision(where)
    return precision if where.type == "cpu" else f"{where.type} {precision}"


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


class Labelled(NamedTuple):
    """A training row of a classifier: what it reads, and what it is to answer.

    Attributes:
        tokens: (T,).
        label: index of the class.
    """

    tokens: torch.Tensor
    label: int


Row = torch.Tensor | Labelled  # of a language model: tokens (T,), each to be told from those before it


def answers(row: Row) -> int:
    """How many answers a training row asks for: every token but the first, or one class."""
    return 1 if isinstance(row, Labelled) else len(row) - 1


def pad(rows: Sequence[Row], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths -> input ids (B, T) padded on the right, and labels: (B, T) with padding ignored, or
    the classes of labelled rows, (B, 1).

    T is rounded up to ``ROUNDED_TO``: a CPU compiles its bf16 kernels once a shape, and with a new T at every step that
    takes longer than the arithmetic (measured: half the throughput). No attention mask is needed: under a causal mask
    no token sees the padding that follows it.
    """
    if isinstance(rows[0], Labelled):
        ids, _ = pad([row.tokens for row in rows], padding)
        return ids, torch.tensor([[row.label] for row in rows])
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
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever a half-written pickle raises: the work is redone, not lost silently
        log.warning("checkpoint %s cannot be read (%s); starting this stage again.", path, error)
        return None


def _saved_by(checkpoint: Path) -> set[int]:
    """By how many processes there are shares of a checkpoint; alone a process saves to the checkpoint itself."""
    alone = (checkpoint, checkpoint.with_name(checkpoint.name + NEWER))
    shares = checkpoint.parent.glob(f"{checkpoint.name}.*-of-*")
    several = {int(file.name.removesuffix(NEWER).rpartition("-")[2]) for file in shares}
    return several | ({1} if any(file.is_file() for file in alone) else set())


def _own(checkpoint: Path) -> Path:
    """Where this process keeps its share: state is not gathered, so saving takes no longer with more processes."""
    n = processes.count()
    return checkpoint if n == 1 else checkpoint.with_name(f"{checkpoint.name}.{processes.rank()}-of-{n}")


def save_checkpoint(checkpoint: Path, state: dict[str, Any]) -> None:
    """Save this process's share, so that a kill at any moment leaves all shares of one step.

    Every process writes beside its old share, and replaces it when all have written.
    """
    own = _own(checkpoint)
    newer = own.with_name(own.name + NEWER)
    _save(newer, state)
    processes.gathered(None)
    os.replace(newer, own)


def read_checkpoint(checkpoint: Path) -> dict[str, Any] | None:
    """This process's share of the newest step that every process has; ``None`` where there is none.

    Raises:
        ValueError: the checkpoint was saved by another number of processes.
    """
    n = processes.count()
    if others := processes.agreed(_saved_by(checkpoint)) - {n}:
        raise ValueError(
            f"{checkpoint} was saved by {max(others)} process(es) and is resumed by {n}: "
            f"set QRU_PROCESSES={max(others)}, or delete {checkpoint}* to start again."
        )
    own = _own(checkpoint)
    found = {}
    for file in (own, own.with_name(own.name + NEWER)):
        if state := _restore(file):
            found[len(state["history"])] = file, state
    common = set.intersection(*processes.gathered(set(found)))
    if not common:
        return None
    file, state = found[max(common)]
    os.replace(file, own)
    return state


def delete_checkpoint(checkpoint: Path) -> None:
    """Delete every process's share, and what a kill left of one that was being written."""
    home, name = checkpoint.parent, checkpoint.name
    for file in (checkpoint, *home.glob(f"{name}.*"), *home.glob(f".{name}.*.tmp")):
        file.unlink(missing_ok=True)


def fit(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[torch.nn.Module, int], Iterable[tuple[torch.Tensor, dict[str, float]]]],
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
        model: trained in place where it is; parameters with ``requires_grad`` are saved in checkpoints.
        optimizer: over those parameters.
        loss_of: (model, step) -> parts of the loss, one after the other, each with numbers to log. Loss and numbers are
            sums over the parts and over the processes; each part's graph is freed before the next is made.
        steps: how many at most.
        label: shown beside the progress bar.
        seed: of dropout.
        schedule: step -> factor on the learning rate; ``None``: constant.
        clip: largest gradient norm; ``None``: not clipped.
        check: called after every step; (stop?, numbers to log), or ``None`` where there is nothing to check. Every
            process calls it, since a sharded model computes in all; what the first one finds counts.
        checkpoint: file to resume from and to write to; kept until the caller removes it (``delete_checkpoint``).
        checkpoint_seconds: between checkpoints, at least; a large model waits ``SAVING`` times what its last one took.

    Returns:
        One dict per step: ``step``, ``loss``, ``seconds`` and what ``loss_of`` and ``check`` logged.

    Raises:
        FloatingPointError: the loss is NaN or infinite (names the step).
    """
    here = next(model.parameters()).device
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rates = [group["lr"] for group in optimizer.param_groups]
    history: list[dict[str, float]] = []
    seed_everything(seed + 1_000_003 * processes.rank())  # or every process would drop the same units

    if checkpoint and (state := read_checkpoint(checkpoint)):
        with torch.no_grad():
            for name, value in state["parameters"].items():
                processes.own_part(trainable[name]).copy_(value)
        optimizer.load_state_dict(processes.spread_again(state["optimizer"], optimizer))
        torch.set_rng_state(state["rng"])
        if here.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], here)
        history = state["history"]
    saved, wait = time.monotonic(), checkpoint_seconds
    stopped = bool(history and history[-1].get("stopped"))

    quiet = processes.rank() > 0
    bars = [tqdm(total=steps, initial=len(history), desc=label, file=sys.__stderr__, mininterval=1.0, disable=quiet)]
    if auto.tqdm is not tqdm and "ipykernel" in sys.modules:  # someone may be watching the notebook, too
        bars.append(auto.tqdm(total=steps, initial=len(history), desc=label, leave=False))
    for step in range(len(history), 0 if stopped else steps):
        started = time.monotonic()
        if schedule:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(step)
        model.train()
        summed = _backward(model, loss_of, step, here)
        if not math.isfinite(summed["loss"]):
            raise FloatingPointError(
                f"{label}: the loss is {summed['loss']} at step {step}. Lower learning_rate, or raise retain_weight."
            )
        processes.average_gradients(trainable.values())
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(trainable.values(), clip)
        optimizer.step()
        optimizer.zero_grad()
        entry = {"step": step, **summed}
        checked = processes.agreed(check(step)) if check else None
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
        if checkpoint and processes.agreed(time.monotonic() - saved > wait):
            started = time.monotonic()
            state = {
                "parameters": {name: processes.own_part(p).cpu() for name, p in trainable.items()},
                "optimizer": processes.own_part(optimizer.state_dict()),
                "rng": torch.get_rng_state(),
                "history": history,
            }
            if here.type == "cuda":
                state["cuda_rng"] = torch.cuda.get_rng_state(here)
            save_checkpoint(checkpoint, state)
            saved = time.monotonic()
            wait = checkpoint_seconds and max(checkpoint_seconds, SAVING * (saved - started))
    for bar in bars:
        bar.close()
    return history


def _backward(model: torch.nn.Module, loss_of, step: int, here: torch.device) -> dict[str, float]:
    """Gradients of one step, summed over the parts of its loss; ``loss`` and what was logged, over processes too."""
    summed: dict[str, float] = {}
    parts = iter(loss_of(model, step))
    while True:
        with autocast(here):  # the generator's own code runs here, backwards outside
            part = next(parts, None)
        if part is None:
            break
        loss, logged = part
        (loss * processes.count()).backward()  # gradients are averaged over processes, and the sum is wanted
        for name, value in {"loss": loss.item(), **logged}.items():
            summed[name] = summed.get(name, 0.0) + value
        del loss, part
    return dict(zip(summed, processes.totals(list(summed.values())), strict=True))
