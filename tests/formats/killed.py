"""Quantize again and again, killed at random points, until it is complete; for tests.

``python killed.py FORMAT KILLS SEED BASE ADAPTER FOLDER`` writes ``FOLDER/whole`` without being killed, then
``FOLDER/killed`` as often as it takes for KILLS kills, and prints how many parts were taken up. Forked, so that the
imports are paid once.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from qru.ship import quantize_checkpoint


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def forked(act) -> int:
    child = os.fork()
    if child == 0:
        act()
        os._exit(0)
    return child


def main(format: str, kills: int, seed: int, base: Path, adapter: Path, folder: Path) -> None:
    spec = "Q4_0" if format == "gguf" else "rtn-int4-g32"

    def quantize(out: Path) -> dict:
        return quantize_checkpoint(base, out, adapter=adapter, format=format, spec=spec, part_bytes=20_000)

    started = time.monotonic()
    assert os.waitpid(forked(lambda: quantize(folder / "whole")), 0)[1] == 0
    took = time.monotonic() - started
    whole, out = contents(folder / "whole"), folder / "killed"
    draw = random.Random(seed)
    killed = resumed = 0
    while killed < kills:
        child = forked(lambda: quantize(out))
        time.sleep(draw.uniform(0, took))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        killed += os.WIFSIGNALED(status)
        assert os.WIFSIGNALED(status) or status == 0, "an attempt after a kill failed"
        if out.exists():  # complete, or not there
            assert contents(out) == whole
            shutil.rmtree(out)
    resumed += quantize(out)["resumed"]
    assert contents(out) == whole
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["killed", "whole"], left
    print(f"resumed {resumed}")


if __name__ == "__main__":
    name, kills, seed, base, adapter, folder = sys.argv[1:]
    main(name, int(kills), int(seed), Path(base), Path(adapter), Path(folder))
