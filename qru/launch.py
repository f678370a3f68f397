"""How the training stage of a run is started: in this process, or by several that train one model.

A notebook cannot be started by ``torchrun``, so it starts the stage: ``qru.train``, in as many processes as asked for,
into the folder where it then finds the model. How a run is computed is no part of what it is: it is set in the
environment, and the run's key does not depend on it.

    QRU_DEVICE                  cpu or cuda; not set: the GPU where there is one
    QRU_PROCESSES               that share each batch; not set: one for each GPU at scale muse, else one
    QRU_AT_ONCE                 forget documents (and as many retain documents) in one pass of one process
    QRU_GRADIENT_CHECKPOINTING  1 or 0; less memory for a third more arithmetic
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from qru import loop, processes, records
from qru.config import RunConfig

AT_ONCE = 4  # at scale muse: four and four documents of 2048 tokens, whose logits alone take 2 GB in fp32
LAUNCHED_BY, FAILURE = "QRU_LAUNCHED_BY", "QRU_FAILURE"  # set for the processes, not by users


def _whole(name: str) -> int | None:
    """A whole number of at least 1 from the environment."""
    given = os.environ.get(name, "").strip()
    if given and (not given.isdigit() or int(given) < 1):
        raise ValueError(f"{name} is {given!r}; it must be a whole number, 1 or more, or not set.")
    return int(given) if given else None


def wanted(config: RunConfig) -> int:
    """How many processes are to train a run.

    Args:
        config: resolved.

    Raises:
        ValueError: more than there are GPUs, more than documents in a batch, or no number; or several for stochastic
            rounding, whose random numbers would differ between copies of one adapter, or for a guard or SURE, which
            look at whole weights, gradients or models.
    """
    count = _asked_for(config)
    if count > 1 and config.rounding == "stochastic":
        raise ValueError(
            f"rounding is 'stochastic' and {count} processes are to share a batch: it is made for one. Set "
            "QRU_PROCESSES=1, or rounding to 'nearest'."
        )
    for name, value in (("guard", config.guard), ("adapter", config.adapter if config.adapter == "sure" else None)):
        if count > 1 and value:
            raise ValueError(
                f"{name} is {value!r} and {count} processes are to share a batch: it is made for one. Set "
                f"QRU_PROCESSES=1, or another {name}."
            )
    return count


def _asked_for(config: RunConfig) -> int:
    if processes.count() > 1:
        return processes.count()  # they have been started already
    given = _whole("QRU_PROCESSES")
    gpus = torch.cuda.device_count() if loop.device().type == "cuda" else None
    if given is None:
        return min(gpus, config.batch_size) if gpus and config.scale == "muse" else 1
    if gpus is not None and given > gpus:
        raise ValueError(f"QRU_PROCESSES is {given}, but there are {gpus} GPUs: set {gpus} or less, or QRU_DEVICE=cpu.")
    processes.check_share(given, config.batch_size)
    return given


def memory(config: RunConfig) -> dict[str, Any]:
    """What of a batch is held at once: keyword arguments for ``unlearn``; results do not depend on them."""
    muse = config.scale == "muse"
    given = os.environ.get("QRU_GRADIENT_CHECKPOINTING", "").strip()
    if given not in ("", "0", "1"):
        raise ValueError(f"QRU_GRADIENT_CHECKPOINTING is {given!r}; it must be 1, 0 or not set.")
    return {
        "at_once": _whole("QRU_AT_ONCE") or (AT_ONCE if muse else None),
        "gradient_checkpointing": given == "1" if given else muse,
    }


def train(config: RunConfig, folder: Path) -> None:
    """Run the training stage by ``wanted(config)`` processes on this machine, and wait for it.

    Args:
        config: resolved, with everything that the run's folder depends on.
        folder: of the run.

    Raises:
        RuntimeError: the stage failed (says how). What it had saved is resumed from by the next attempt.
    """
    count = wanted(config)
    job, failure = folder / "training.json", folder / "training.failure"
    records.write_json(job, config.to_dict())
    failure.unlink(missing_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = os.environ | {LAUNCHED_BY: str(os.getpid()), FAILURE: str(failure)}
    environment.setdefault("OMP_NUM_THREADS", "1")
    if torch.cuda.is_initialized():  # what was scored here leaves memory behind that the first GPU's process needs
        gc.collect()
        torch.cuda.empty_cache()
    records.say(f"training by {count} processes")
    process = subprocess.Popen([*command, "-m", "qru.train", str(job)], env=environment, stdout=2)
    try:
        status = process.wait()
    except BaseException:  # the notebook was interrupted
        process.terminate()  # torchrun ends its processes before it goes
        process.wait()
        raise
    if status:
        said = failure.read_text() if failure.is_file() else f"exit status {status}; it may have run out of memory"
        failure.unlink(missing_ok=True)
        raise RuntimeError(f"training by {count} processes failed: {said}")
    job.unlink()
