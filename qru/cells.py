"""Cells of a certificate: models as they are deployed; every set of weights is made, named by its bits, scored once.

Scores are kept under the SHA-256 of the weights that they are of, and under whatever else they depend on. So two
quantizers or transforms that give the same bits share them, all runs share those of the retrained model, and what was
scored before a kill is not scored again. The weights themselves are made anew every time, which costs little: what they
were made by may have changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from qru import checkpoint, loop, models, paths, records, scoring, transforms
from qru.config import digest
from qru.corpora import Corpus
from qru.parallel import side_by_side
from qru.quantizers import activations_of, load_quantizer
from qru.transforms import Transform

UNQUANTIZED = "bf16"
# What a certificate measures: of these, what the corpus has. All are means over examples of values in [0, 1].
FORGET = ("verbmem", "knowmem", "forget_accuracy")
UTILITY = ("utility", "retain_accuracy")


class Setting(NamedTuple):
    """What all cells of a certificate share.

    Attributes:
        positions: metric -> examples that are scored; a metric that is not there is scored on all.
        passages: texts of relearning, or (text, label) pairs, as many as the transform that takes most.
        others: examples beside them, which are scored then.
    """

    corpus: Corpus
    tokenizer: Path
    scale: str
    chat_template: bool
    positions: dict[str, list[int]]
    passages: list[str] | list[tuple[str, str]]
    others: list[int]


class Cell(NamedTuple):
    """One model as it is deployed, and what is to be measured of it."""

    folder: Path
    transform: str
    quantizer: str
    metrics: tuple[str, ...]


def measure_all(cells: list[Cell], setting: Setting, progress: bool) -> list[tuple[str, dict[str, list[float]]]]:
    """``measure`` of each, on all cores."""
    with tempfile.NamedTemporaryFile(prefix="qru-certify-") as done, _bar(Path(done.name), len(cells), progress):
        one_process = setting.scale == "smoke" or loop.device().type == "cuda"
        return side_by_side(measure, [(cell, setting, Path(done.name)) for cell in cells], short=one_process)


@contextlib.contextmanager
def _bar(done: Path, total: int, progress: bool) -> Iterator[None]:
    """A bar over cells that other processes finish; each adds a byte to the file ``done``."""
    shown = {"file": sys.__stderr__, "mininterval": 1.0, "disable": not progress}  # papermill keeps a notebook's own
    with tqdm(total=total, unit="cell", desc="certify", smoothing=0.1, **shown) as bar:
        over = threading.Event()

        def look() -> None:
            bar.update(done.stat().st_size - bar.n)

        def watch() -> None:
            while not over.wait(0.5):
                look()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            look()


def measure(cell: Cell, setting: Setting, done: Path | None = None) -> tuple[str, dict[str, list[float]]]:
    """Make the weights of one cell and score them, unless weights of the same bits were scored so before.

    Args:
        done: a file that a byte is added to at the end.

    Returns:
        SHA-256 of the deployed weights, and metric -> scores of the examples.
    """
    model, tokenizer = models.load(cell.folder, setting.tokenizer)
    transform = Transform.parse(cell.transform)
    quantizer = None if cell.quantizer == UNQUANTIZED else cell.quantizer
    transforms.deploy(model, transform, quantizer, setting.corpus, tokenizer)
    weights = weights_digest(model)
    files = {name: _scores_file(weights, name, cell, setting, transform, tokenizer) for name in cell.metrics}
    with records.locked(next(iter(files.values())).parent / ".lock"):
        if missing := [name for name, file in files.items() if not _whole(file)]:
            if transform.steps:
                texts = setting.passages[: transform.passages]
                transforms.relearn(model, tokenizer, texts, transform.steps, setting.scale)
            positions = {name: _positions(name, transform, setting) for name in missing}
            scores = scoring.scored(
                model, tokenizer, setting.corpus, setting.chat_template, metrics=missing, examples=positions
            )
            for name in missing:
                records.write_json(files[name], scores[name].per_example)
        found = {name: records.read_json(file) for name, file in files.items()}
    if done is not None:
        with open(done, "ab") as file:
            file.write(b".")
    return weights, found


def keep(model: torch.nn.Module, tokenizer, cell: Cell, setting: Setting, scores: dict[str, list[float]]) -> None:
    """Put scores that a run made of a cell where ``measure`` looks for them: under the bits that they are of.

    Args:
        model: as it was scored.
        scores: metric -> scores of the examples that ``setting`` names; what no certificate asks for is left out.
    """
    weights = weights_digest(model)
    for name in (*FORGET, *UTILITY):
        if name in scores:
            file = _scores_file(weights, name, cell, setting, Transform.parse(cell.transform), tokenizer)
            records.write_json(file, scores[name])


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names, types, shapes and bits of all parameters: what a deployed model computes with."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        value = parameter.detach().contiguous().cpu()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _positions(metric: str, transform: Transform, setting: Setting) -> list[int] | None:
    return setting.others if transform.steps else setting.positions.get(metric)


def _scores_file(weights: str, metric: str, cell: Cell, setting: Setting, transform: Transform, tokenizer) -> Path:
    """Where the scores of these weights are kept: by everything that they depend on, and not by how they were made."""
    attack = []
    if transform.steps:
        attack = [setting.passages[: transform.passages], transform.steps, transforms.rate(setting.scale)]
    parts = [
        checkpoint.file_sha256(cell.folder / "config.json"), checkpoint.vocabulary_digest(tokenizer),
        tokenizer.chat_template if setting.chat_template else None, setting.corpus.fingerprint,
        metric, _positions(metric, transform, setting), attack,
        loop.computed_as(), metadata.version("torch"), metadata.version("transformers"),
    ]  # fmt: skip
    if not transform.steps and cell.quantizer != UNQUANTIZED and activations_of(load_quantizer(cell.quantizer)):
        parts.append(cell.quantizer)  # it rounds activations, too, which no weight says
    return paths.cache_dir() / "certificates" / weights[:32] / f"{metric}-{digest(parts)[:16]}.json"


def _whole(file: Path) -> bool:
    try:
        return file.is_file() and bool(records.read_json(file))
    except ValueError as error:
        records.say(f"{error} Scoring again.")
        return False
