"""What each stage of a run takes."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from qru import records


class Clock:
    """Seconds and peak memory of each stage, kept in a file so that a resumed run still knows what was done before."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.stages: dict[str, dict[str, float]] = records.read_json(file) if file.is_file() else {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        _reset_peak()
        yield
        if name not in self.stages:  # else an earlier attempt did the work, and this one only read it back
            self.stages[name] = {"seconds": round(time.monotonic() - started, 3), "peak_memory_mb": round(_peak(), 1)}
            if torch.cuda.is_initialized():
                self.stages[name]["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
            records.write_json(self.file, self.stages)

    def put(self, name: str, cost: dict[str, float]) -> None:
        """Note what a stage took that another run went through."""
        self.stages[name] = dict(cost)
        records.write_json(self.file, self.stages)

    def drop(self, name: str) -> None:
        """Forget a stage, so that it is timed again."""
        if self.stages.pop(name, None):
            records.write_json(self.file, self.stages)


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # Linux only; elsewhere the peak is the process's so far
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def _peak() -> float:
    """Peak resident memory in MB since the last reset."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
