"""The training stage of one run alone, by one process or by all that were started together.

    torchrun --nproc-per-node 8 -m qru.train -p method npo_klr -p scale muse -p corpus muse-bench/MUSE-Books
    accelerate launch --num_processes 8 -m qru.train run.json

Parameters are those of ``notebooks/02_unlearn.ipynb`` that describe a run, by ``-p`` as there or in a JSON file. The
notebook with the same parameters then finds the trained model and goes on from it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch

from qru import launch, loop, parallel, pipeline, processes, records
from qru.config import RunConfig

WORDS = {"True": True, "False": False, "None": None}


def value(text: str) -> Any:
    """A parameter's value as papermill reads it: a truth value, ``None``, a number, or else text."""
    if text in WORDS:
        return WORDS[text]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="qru.train", description=__doc__.partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, help="JSON with the parameters of a run")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="one parameter")
    given = parser.parse_args(arguments)
    parameters = records.read_json(given.file) if given.file else {}
    parameters |= {name: value(text) for name, text in given.p}

    device = loop.device()
    if device.type == "cpu":
        torch.set_num_threads(1)  # as in a notebook: results depend on the number, and two on a busy core are slower
    else:
        torch.cuda.set_device(device)
    if launcher := os.environ.get(launch.LAUNCHED_BY):
        parallel.leave_with(int(launcher), os.getppid())
    processes.join(device)
    try:
        pipeline.train(RunConfig.from_dict(parameters))
    except Exception as error:
        if file := os.environ.get(launch.FAILURE):
            Path(file).write_text(f"{type(error).__name__}: {error}")
        raise
    processes.leave()


if __name__ == "__main__":
    main(sys.argv[1:])
