"""Independent jobs side by side, one process and one thread each.

Small models keep two cores busy better as two processes of one thread than as one process of two: a step is many
short operations, and threads spend it waiting for each other. One thread each also makes results independent of how
many cores a machine has.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Use ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(job: Callable[..., Any], arguments: Sequence[tuple]) -> list[Any]:
    """Call ``job`` once for each tuple of arguments, as many at a time as there are cores, one thread each.

    Args:
        job: a function of a module (it is named, not sent, to the other processes).
        arguments: one tuple a call; they and the results are pickled.

    Returns:
        The results in the order of ``arguments``. The first error is raised once all have ended.
    """
    workers = min(len(arguments), cores())
    if workers <= 1 or torch.cuda.is_available():  # one GPU is one queue
        with threads(1):
            return [job(*values) for values in arguments]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(job, *values) for values in arguments]
        return [future.result() for future in futures]
