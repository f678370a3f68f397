"""Independent jobs side by side, one process and one thread each.

Small models keep two cores busy better as two processes of one thread than as one process of two: a step is many
short operations, and threads spend it waiting for each other. One thread each also makes results independent of how
many cores a machine has.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
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


def leave_with(*pids: int) -> None:
    """End this process soon after any of the given ones has ended."""

    def there(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent and all(map(there, pids)):
            time.sleep(1)
        os._exit(1)  # nobody will read the result, and who comes next wants the locks

    threading.Thread(target=watch, daemon=True).start()


def _start_worker(parent: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C, and a kernel that is shut down, signal the whole process group; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leave_with(parent)


@functools.cache
def _pool() -> ProcessPoolExecutor:
    """Workers stay for the life of this process: starting one costs seconds of imports."""
    context = multiprocessing.get_context("spawn")  # a fork of a process whose threads have run may hang
    return ProcessPoolExecutor(cores(), mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))


def side_by_side(job: Callable[..., Any], arguments: Sequence[tuple], short: bool = False) -> list[Any]:
    """Call ``job`` once for each tuple of arguments, as many at a time as there are cores, one thread each.

    Args:
        job: a function of a module (it is named, not sent, to the other processes).
        arguments: one tuple a call; they and the results are pickled.
        short: the jobs take less time than starting a process; they run one after another in this one.

    Returns:
        The results in the order of ``arguments``. The first error is raised once all have ended.
    """
    if short or min(len(arguments), cores()) <= 1:
        with threads(1):
            return [job(*values) for values in arguments]
    try:
        futures = [_pool().submit(job, *values) for values in arguments]
        wait(futures)
        return [future.result() for future in futures]
    except BrokenProcessPool:
        _pool.cache_clear()
        raise RuntimeError(
            "a worker process was killed, most likely because memory ran out. Run again: what was finished is kept."
        ) from None
