"""What a piece of work takes in this process: seconds, and memory by what it is.

Only the standard library: ``qru/ship_llmcompressor.py`` reads this file by its path in an environment without qru.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SAMPLE_SECONDS = 0.005
DIES_WITH = 1  # PR_SET_PDEATHSIG


@contextmanager
def watched(found: dict[str, float]) -> Iterator[None]:
    """Put to ``found`` what the block took.

    ``seconds``; ``before_mb``, the process's own memory (anonymous pages; what is mapped from files is page cache and
    can be dropped at any time) when the block begins; ``peak_mb``, the most of it that is seen meanwhile;
    ``resident_mb``, the peak of all that is in memory for it, mapped files included, since the process began. A MB is
    10^6 bytes.
    """
    done = threading.Event()
    found["before_mb"] = found["peak_mb"] = own_mb()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            found["peak_mb"] = max(found["peak_mb"], own_mb())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    try:
        yield
    finally:
        found["seconds"] = time.perf_counter() - started
        done.set()
        watcher.join()
        found["peak_mb"] = max(found["peak_mb"], own_mb())
        found["resident_mb"] = status_mb("VmHWM")


def own_mb() -> float:
    """MB of this process that are not mapped from files."""
    return status_mb("RssAnon") + status_mb("RssShmem")


def status_mb(name: str) -> float:
    """A line of ``/proc/self/status`` in MB."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def die_with_parent(parent: int) -> None:
    """End this process when the one of this number, which started it, does, killed or not: nothing may write on unseen.

    It may be gone already: a process that imports for seconds comes to this late.
    """
    ctypes.CDLL(None).prctl(DIES_WITH, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
