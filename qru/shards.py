"""A checkpoint's tensors, one at a time, never the whole model.

A folder holds ``model.safetensors``, or several files and ``model.safetensors.index.json``. Everything is checked at
the door, before any weight is read; a tensor is then mapped from its file when it is asked for.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from qru.checkpoint import INDEX, SINGLE, brief, check_files, configuration
from qru.models import in_layers, layer_shapes
from qru.tensor_file import AGAIN, TensorFile, contained, open_file, parse_json

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Shards:
    """The tensors of a checkpoint folder.

    Args:
        folder: of an ordinary transformers checkpoint in safetensors; a snapshot in the Hub's cache is one.
        role: what it was given as, for messages: ``"BASE"`` or ``"UNLEARNED"``.

    Raises:
        ValueError: no whole checkpoint, damaged files, names or links that leave the folder, pickled weights, a model
            that is quantized already (names the file, the value and what to do).
    """

    def __init__(self, folder: Path | str, role: str) -> None:
        self.folder, self.role = Path(folder).expanduser().resolve(), role
        if not self.folder.is_dir():
            raise ValueError(f"{role} {folder} is no folder: give the folder of a checkpoint.")
        _check_configuration(self.folder, role)
        placed = _index(self.folder, role)
        self.files = [self.folder / name for name in sorted(set(placed.values()) or {SINGLE})]
        if placed or self.files[0].exists():
            for path in self.files:
                contained(path, role)
        check_files(self.folder, role)
        opened = [open_file(path, role) for path in self.files]
        self._home: dict[str, TensorFile] = {}
        for file in opened:
            for name in file.tensors:
                if name in self._home:
                    raise ValueError(
                        f"{role} {self.folder}: tensor {name!r} is in {self._home[name].path.name} and in "
                        f"{file.path.name}: {AGAIN}"
                    )
                self._home[name] = file
        for name, shard in placed.items():
            there = self._home[name].path.name if name in self._home else "no file"
            if there != shard:
                raise ValueError(
                    f"{role} {self.folder}: {INDEX} says that tensor {name!r} is in {shard}, and {there} has it: "
                    f"{AGAIN}"
                )

    @property
    def names(self) -> list[str]:
        """Every tensor, in the order of the files."""
        return list(self._home)

    def __contains__(self, name: str) -> bool:
        return name in self._home

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._stored(name).dtype

    def bytes(self, name: str) -> int:
        """How many bytes the tensor takes in its file."""
        return self._stored(name).stop - self._stored(name).start

    def read(self, name: str) -> torch.Tensor:
        """The tensor, mapped from its file; its memory is given back when it is no longer referred to.

        Raises:
            ValueError: there is none of this name, or the file was changed since the checkpoint was opened.
        """
        self._stored(name)
        return self._home[name].read(name)

    def fetch(self, name: str) -> None:
        """Ask the system to have the tensor's pages in memory soon."""
        self._home[name].fetch(name)

    def file_of(self, name: str) -> Path:
        """The file that holds the tensor."""
        self._stored(name)
        return self._home[name].path

    def _stored(self, name: str):
        if name not in self._home:
            raise ValueError(f"{self.role} {self.folder} has no tensor {name!r}.")
        return self._home[name].tensors[name]


def stream(names: Iterable[tuple[str | None, ...]], *sides: Shards, ahead: int = 2) -> Iterator[tuple]:
    """Tensors one after the other, the next being fetched from the disk while the caller works.

    Args:
        names: for each step the tensor of each side, ``None`` where a side has none to give.
        sides: checkpoints.
        ahead: steps that are fetched before they are asked for.

    Yields:
        For each step one tensor a side, ``None`` where no name was given. Let go of them before the next step, or their
        memory is kept.
    """

    def fetch(step: tuple[str | None, ...]) -> None:
        for side, name in zip(sides, step, strict=True):
            if name is not None:
                side.fetch(name)

    todo = iter(names)
    coming: deque = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as reader:
        while True:
            while len(coming) <= ahead and (step := next(todo, None)) is not None:
                coming.append((step, reader.submit(fetch, step)))
            if not coming:
                return
            step, fetched = coming.popleft()
            fetched.result()
            yield tuple(None if name is None else side.read(name) for side, name in zip(sides, step, strict=True))


def linear_layers_of(shards: Shards | Path | str, role: str = "checkpoint") -> dict[str, str]:
    """The layers of a checkpoint that are quantized, and the tensors that hold their weights (out, in).

    Linear layers of the decoder, found by type on a model without weights; embeddings, norms and head are left out.

    Args:
        shards: an opened checkpoint, or its folder.
        role: of a folder, for messages.

    Returns:
        Module name -> tensor name, in the model's order. They differ by more than ``.weight`` where a checkpoint was
        saved by a class that calls the layers' parent otherwise.

    Raises:
        ValueError: the architecture is unknown or holds other weights, such as a mixture of experts; a layer's weight
            is missing, of another shape than the configuration says, or of a type that is not fp32, bf16 or fp16.
    """
    shards = shards if isinstance(shards, Shards) else Shards(shards, role)
    where = f"{shards.role} {shards.folder}"
    blocks = getattr(configuration(shards.folder, shards.role).get_text_config(), "num_hidden_layers", 0)
    if isinstance(blocks, int) and blocks > len(shards.names):  # else a model of that many is begun
        raise ValueError(
            f"{where}: config.json makes num_hidden_layers {blocks}, and the checkpoint has {len(shards.names)} "
            "tensors in all: it is another model's configuration."
        )
    try:
        shapes = layer_shapes("", shards.folder)
    except Exception as error:  # values that make no model are found wherever the library comes to use them
        raise ValueError(f"{where}: its config.json makes no model: {brief(error)}") from error
    if not shapes:
        raise ValueError(f"{where}: its architecture has no linear layers to quantize.")
    by_tail: dict[str, list[str]] = {}
    for name in shards.names:
        if in_layers(name):
            by_tail.setdefault(_tail(name), []).append(name)
    found = {}
    for layer, shape in shapes.items():
        wanted = f"{layer}.weight"
        if wanted not in shards:
            others = by_tail.get(_tail(wanted), [])
            if len(others) != 1:
                has = f"has {', '.join(others)}" if others else "has none like it"
                raise ValueError(f"{where}: layer {layer} should be stored as {wanted}; the checkpoint {has}.")
            wanted = others[0]
        if shards.shape(wanted) != shape:
            raise ValueError(
                f"{where}: {wanted} is {shards.shape(wanted)}, and config.json makes it {shape}: it is another model's "
                "configuration, or the weights are packed; give the model as it was before it was quantized."
            )
        if shards.dtype(wanted) not in WEIGHT_DTYPES:
            raise ValueError(
                f"{where}: {wanted} is {shards.dtype(wanted)}: the model is quantized already; give it as it was "
                "before, in bf16, fp16 or fp32."
            )
        found[layer] = wanted
    return found


def same_layers(before: Shards, layers: dict[str, str], after: Shards) -> dict[str, str]:
    """The layers of the checkpoint after an update, as ``linear_layers_of`` gives them.

    Args:
        before: the checkpoint that the update started from.
        layers: its layers.
        after: the checkpoint after.

    Raises:
        ValueError: they are not those of the base (names the first that differs and both shapes).
    """
    theirs = linear_layers_of(after)
    for layer in [*layers, *(layer for layer in theirs if layer not in layers)]:
        pair = (
            before.shape(layers[layer]) if layer in layers else None,
            after.shape(theirs[layer]) if layer in theirs else None,
        )
        if pair[0] != pair[1]:
            raise ValueError(
                f"layer {layer} is {pair[0]} in {before.folder} and {pair[1]} in {after.folder}: these are not the "
                "same architecture. Give the model that the update started from."
            )
    return theirs


def _tail(name: str) -> str:
    """``"model.layers.3.mlp.up_proj.weight"`` -> ``"layers.3.mlp.up_proj.weight"``: without what stands before."""
    return re.search(r"[^.]+\.\d+\..*", name)[0] if re.search(r"\.\d+\.", name) else name


def _index(folder: Path, role: str) -> dict[str, str]:
    """Tensor -> file by the index; empty where there is none. Nothing that it names has been looked at before."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    contained(path, role)
    where = f"{role}: {path}"
    placed = parse_json(path.read_bytes(), where).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise ValueError(f"{where} is damaged: its weight_map is no table of tensors and files: {AGAIN}")
    for tensor, file in placed.items():
        plain = not re.search(r"[/\\\0]", file) and file.endswith(".safetensors")
        if not plain:
            raise ValueError(
                f"{where} says that tensor {tensor!r} is in {file!r}: only safetensors files of the folder itself are "
                "read."
            )
    if SINGLE not in placed.values() and (folder / SINGLE).exists():
        raise ValueError(
            f"{role}: {folder} has both {SINGLE} and {INDEX}, so it holds two models: move one of them away."
        )
    return placed


def _check_configuration(folder: Path, role: str) -> None:
    """Refuse a configuration that is no JSON, or of a model that is quantized already."""
    path = folder / "config.json"
    if not path.is_file():
        return  # said below, with what else is missing
    contained(path, role)
    parse_json(path.read_bytes(), f"{role}: {path}")
    stated = getattr(configuration(folder, role), "quantization_config", None)
    if stated:
        stated = stated.to_dict() if hasattr(stated, "to_dict") else stated
        method = stated.get("quant_method") if isinstance(stated, dict) else None
        raise ValueError(
            f"{role} {folder} is quantized already, by {method or 'a method that it does not name'}: "
            "give the model as it was before, in bf16, fp16 or fp32."
        )
