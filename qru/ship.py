"""Ship a quantized checkpoint: merge, quantize, count and pack, tensor by tensor, to a folder that others load.

Two or three tensors are in memory at a time, whatever the size of the model. The new folder appears only when it is
complete: until then it grows in a hidden folder beside it, part by part. A part is done when it was brought to the disk
and reads back as it was written; if the process is killed, the same command goes on behind those that are done. After
an error nothing is left. What is read is never written to.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from qru.checkpoint import BESIDE, TOKENIZER_FILES, file_sha256
from qru.config import digest
from qru.counts import survival, total
from qru.formats import KEPT_DTYPES, Format, Part, Plan, Source, formats
from qru.models import without_weights
from qru.ops import QuantSpec
from qru.peft_adapter import CONFIG_FILE, Adapter, into_digest, open_adapter, update_of
from qru.quantizers import Update
from qru.records import file_size, fsync_folder, read_json, write_json
from qru.registry import unknown
from qru.shards import Shards, contained, linear_layers_of, same_layers, stream
from qru.ship_card import AUDIT, CARD, CERTIFICATE, card, certified

COPIED = ("generation_config.json", "chat_template*")
PART_BYTES = 1 << 30
PROGRESS, LOCK, GROWING = "progress.json", "lock", "checkpoint"  # what the hidden folder holds


class Inputs(NamedTuple):
    """What is read.

    Attributes:
        base: the checkpoint before.
        after: the checkpoint after full fine-tuning, or None.
        adapters: LoRA adapters of the base, merged in this order.
        layers: quantized layer -> its tensor in ``base``. after_layers: likewise in ``after``.
        sources: every tensor of the new checkpoint: layers in the model's order, then what is kept.
    """

    base: Shards
    after: Shards | None
    adapters: list[Adapter]
    layers: dict[str, str]
    after_layers: dict[str, str]
    sources: list[Source]

    @property
    def home(self) -> Shards:
        """The checkpoint that what is not quantized is taken from."""
        return self.base if self.after is None else self.after


def quantize_checkpoint(
    base: Path | str,
    out: Path | str,
    *,
    adapter: Path | str | Sequence[Path | str] | None = None,
    weights: Path | str | None = None,
    format: str = "compressed-tensors",
    spec: QuantSpec | str | None = None,
    dtype: str = "bfloat16",
    part_bytes: int = PART_BYTES,
    progress: bool = False,
) -> dict[str, Any]:
    """Quantize a checkpoint, with an adapter merged into it or its fine-tuned weights in its place, to a new folder.

    Args:
        base: folder of a safetensors checkpoint; what crossed a bin is counted against it.
        out: the new folder; made, or there and empty.
        adapter: folder of a peft LoRA adapter of ``base``, or several that are merged in this order.
        weights: folder of the checkpoint after full fine-tuning, in place of an adapter.
        format: ``"compressed-tensors"``, ``"gguf"`` or ``"safetensors"``.
        spec: a grid or its name, ``"Q4_0"`` or ``"Q8_0"`` for GGUF; ``rtn-int4-g128`` or ``Q4_0`` unless given.
        dtype: what embeddings, norms and head are stored in: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
        part_bytes: about how large a file (a stretch of the file, for GGUF) is; what a kill loses at most.
        progress: show a bar on stderr.

    Returns:
        Plain values: ``out``, ``format``, ``grid``, ``dtype``, ``bytes`` written, ``resumed`` parts, ``layers`` ->
        counts and their ``total`` as ``qru.audit`` gives them.

    Raises:
        ValueError: a checkpoint or an adapter cannot be read or used, they do not fit each other, the format cannot
            hold the model or the grid, NaN or Inf, a folder that is not empty or cannot be written, a full disk. No
            part of the new folder is left.

    Source: arXiv 2602.13151 (merge before quantization).
    """
    if format not in formats:
        raise unknown("format", format, formats.names())
    if dtype not in KEPT_DTYPES:
        raise unknown("dtype", dtype, KEPT_DTYPES)
    if part_bytes < 1:
        raise ValueError(f"part_bytes is {part_bytes}; give at least 1.")
    made: Format = formats[format](formats[format].default if spec is None else spec, dtype)
    inputs = open_inputs(base, adapter, weights)
    out = free_place(out, inputs)
    plan = made.plan(inputs.home.folder, inputs.sources, kept_linear(inputs), part_bytes)
    beside = copied(inputs)
    with growing(out, plan, job(inputs, format, made.grid, plan)) as place:
        resumed = len(place.done)
        write_parts(inputs, made, plan, place, progress)
        counts = place.counts(list(inputs.layers))
        result = {"format": format, "grid": made.grid, "dtype": dtype, "layers": counts, "total": total(counts)}
        write_beside(inputs, plan, beside, result, place.folder)
    return {"out": str(out), "bytes": sum(path.stat().st_size for path in out.iterdir()), "resumed": resumed} | result


def open_inputs(base, adapter, weights) -> Inputs:
    """Open and check everything that is read; no weights are."""
    if adapter is not None and weights is not None:
        raise ValueError("both an adapter and weights are given: give the one that holds the update.")
    before = Shards(base, "BASE")
    layers = linear_layers_of(before)
    shapes = {layer: before.shape(name) for layer, name in layers.items()}
    folders = [] if adapter is None else [adapter] if isinstance(adapter, str | Path) else list(adapter)
    adapters = [open_adapter(folder, shapes) for folder in folders]
    after, after_layers = None, {}
    if weights is not None:
        after = Shards(weights, "weights")
        after_layers = same_layers(before, layers, after)
    home, taken = (before, layers) if after is None else (after, after_layers)
    sources = [Source(name, home.shape(name), home.dtype(name), layer) for layer, name in taken.items()]
    quantized = set(taken.values())
    sources += [Source(name, home.shape(name), home.dtype(name)) for name in home.names if name not in quantized]
    return Inputs(before, after, adapters, layers, after_layers, sources)


def kept_linear(inputs: Inputs) -> list[str]:
    """Linear layers that keep their weights, such as the head, by the model's names."""
    modules = without_weights("", inputs.home.folder).named_modules()
    return [name for name, module in modules if isinstance(module, torch.nn.Linear) and name not in inputs.layers]


def free_place(out: Path | str, inputs: Inputs) -> Path:
    """The new folder's path.

    Raises:
        ValueError: something is there, or it lies in a folder that is read.
    """
    out = Path(out).expanduser().resolve()
    read = [inputs.base.folder, *(one.folder for one in inputs.adapters)]
    read += [] if inputs.after is None else [inputs.after.folder]
    for folder in read:
        if out.is_relative_to(folder) or folder.is_relative_to(out):
            raise ValueError(f"{out} is, holds or lies in {folder}, which is read and never written to.")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: give a new folder, or empty this one.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give the name of a new folder.")
    if not out.parent.is_dir():
        raise ValueError(f"{out.parent} is no folder: make it, or give the new folder another place.")
    return out


def job(inputs: Inputs, format: str, grid: str, plan: Plan) -> str:
    """What is written, by what it is made from: parts of another job are no parts of this one."""
    sides = [inputs.base] if inputs.after is None else [inputs.base, inputs.after]
    files = [path for side in sides for path in side.files]
    files += [path for one in inputs.adapters for path in (one.file.path, one.folder / CONFIG_FILE)]
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    parts = [(part.file, part.start, part.stop, hashlib.sha256(part.lead).hexdigest()) for part in plan.parts]
    small = {name: hashlib.sha256(content).hexdigest() for name, content in plan.files.items()}
    return digest([format, grid, stamps, parts, small])


class Place:
    """The hidden folder in which a checkpoint grows, and what of it is done.

    Attributes:
        folder: of the new checkpoint, until it takes its name.
        done: number of a part -> its SHA-256 and the counts of its layers.
    """

    def __init__(self, hidden: Path, job: str) -> None:
        self.hidden, self.job, self.folder = hidden, job, hidden / GROWING
        self.done: dict[int, dict] = {}

    def load(self, plan: Plan) -> None:
        """Take up the parts that an earlier process finished; those of another job, or damaged ones, are made again."""
        progress = self.hidden / PROGRESS
        known = {}
        with suppress(ValueError):  # damaged by whatever; it is made again
            known = read_json(progress) if progress.is_file() else {}
        if not isinstance(known, dict) or known.get("job") != self.job:
            shutil.rmtree(self.folder, ignore_errors=True)
            known = {"parts": {}}
        self.folder.mkdir(exist_ok=True)
        for at, record in known["parts"].items():
            part = plan.parts[int(at)]
            if sha256_of(self.folder / part.file, part) == record["sha256"]:
                self.done[int(at)] = record
        self.save()

    def finish(self, at: int, part: Part, written: PartWriter) -> None:
        """Bring a part to the disk, read it back, and record it as done."""
        sha256 = written.close()
        if sha256_of(self.folder / part.file, part) != sha256:
            raise ValueError(f"{part.file} reads back otherwise than it was written: look for a failing disk.")
        self.done[at] = {"sha256": sha256, "counts": written.counts}
        self.save()

    def save(self) -> None:
        write_json(self.hidden / PROGRESS, {"job": self.job, "parts": self.done})

    def counts(self, layers: list[str]) -> dict[str, dict]:
        """Counts of every layer, in the model's order."""
        found = {layer: counts for record in self.done.values() for layer, counts in record["counts"].items()}
        return {layer: found[layer] for layer in layers}


@contextmanager
def growing(out: Path, plan: Plan, job: str) -> Iterator[Place]:
    """A place to write to, which takes its name when the block ends; nothing of it is left after an error."""
    hidden = out.parent / f".{out.name}.unfinished"
    try:
        if hidden.is_symlink():
            raise ValueError(f"{hidden} is a link, and is not of this command: move it away.")
        hidden.mkdir(exist_ok=True)
        strangers = [path.name for path in hidden.iterdir() if not ours(path.name)]
        if strangers:
            raise ValueError(f"{hidden} holds {strangers[0]}, which is not of this command: move it away.")
        handle = open(hidden / LOCK, "w")  # noqa: SIM115 - closed below; the lock ends with the process
    except OSError as error:
        raise ValueError(f"{out} cannot be made ({error.strerror or error}): give another place.") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is writing {out}: wait for it, or give another place.") from None
        try:
            place = Place(hidden, job)
            place.load(plan)
            check_room(out.parent, plan, place)
            yield place
            fsync_folder(place.folder)
            os.rename(place.folder, out)  # an empty folder of this name gives way
            fsync_folder(out.parent)
        except OSError as error:
            shutil.rmtree(hidden, ignore_errors=True)
            raise ValueError(
                f"{out} could not be written ({error.strerror or error}): nothing of it is left."
            ) from error
        except Exception:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        shutil.rmtree(hidden, ignore_errors=True)


def ours(name: str) -> bool:
    return name in (PROGRESS, LOCK, GROWING) or (name.startswith(f".{PROGRESS}.") and name.endswith(".tmp"))


def check_room(folder: Path, plan: Plan, place: Place) -> None:
    """Refuse to begin what the disk has no room for."""
    needed = sum(part.stop - part.start for at, part in enumerate(plan.parts) if at not in place.done)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"the new checkpoint needs {file_size(needed)} more, and {folder} has {file_size(free)}.")


def write_parts(inputs: Inputs, made: Format, plan: Plan, place: Place, progress: bool) -> None:
    """Write the parts that are not done.

    A tensor is written while the next one is made and the one after is read; a part is brought to the disk and read
    back while the next one is written.
    """
    known = hashlib.sha256() if any(one.base_sha256 for one in inputs.adapters) else None
    todo = []  # parts, and within them steps; a base that an adapter knows is read whole, for its digest
    for at, part in enumerate(plan.parts):
        if at not in place.done:
            todo += [(at, part, source) for source in part.sources]
        elif known is not None:
            todo += [(at, None, source) for source in part.sources if source.layer]
    sides = [inputs.base] if inputs.after is None else [inputs.base, inputs.after]
    names = [step_names(inputs, source) for _, _, source in todo]
    size = sum(side.bytes(name) for step in names for side, name in zip(sides, step, strict=True) if name)
    with (
        ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
        ThreadPoolExecutor(1, thread_name_prefix="finish") as finisher,
        tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1000, disable=not progress) as bar,
    ):
        open_part: PartWriter | None = None
        finishing: Future | None = None
        try:
            for (at, part, source), tensors in zip(todo, stream(names, *sides), strict=True):
                bar.set_postfix_str(source.name, refresh=False)
                if part is None:
                    into_digest(known, source.layer, tensors[0])
                    continue
                if open_part is None:
                    open_part = PartWriter(place.folder, part, writer)
                open_part.put(*convert(inputs, made, source, tensors, known), source)
                if source is part.sources[-1]:
                    if finishing is not None:
                        finishing.result()
                    finishing = finisher.submit(place.finish, at, part, open_part)
                    open_part = None
                bar.update(sum(side.bytes(n) for side, n in zip(sides, step_names(inputs, source), strict=True) if n))
                del tensors
            if finishing is not None:
                finishing.result()
        finally:
            if open_part is not None:
                open_part.abandon()
    if known is not None:
        for one in inputs.adapters:
            one.check_base(known.hexdigest())


def step_names(inputs: Inputs, source: Source) -> tuple[str | None, ...]:
    """The tensors that one of the new checkpoint is made from: of the base, and of the weights after."""
    if inputs.after is None:
        return (source.name,)
    return (inputs.layers[source.layer] if source.layer else None, source.name)


def convert(inputs: Inputs, made: Format, source: Source, tensors: tuple, known) -> tuple[list[torch.Tensor], Any]:
    """What a tensor becomes, and the counts of a quantized one."""
    if source.layer is None:
        return made.keep(source, tensors[-1]), None
    weight = tensors[0]
    if known is not None:
        into_digest(known, source.layer, weight)
    if inputs.after is None:
        return made.quantize(source, weight, Update(**update_of(weight, source.layer, inputs.adapters)))
    dtype = torch.promote_types(weight.dtype, tensors[1].dtype)
    return made.quantize(source, weight.to(dtype), Update(new_weight=tensors[1].to(dtype)))


class PartWriter:
    """Writes one part, in a thread of its own: one tensor is written and hashed while the next is quantized."""

    def __init__(self, folder: Path, part: Part, writer: ThreadPoolExecutor) -> None:
        self.part, self.writer, self.sha256, self.counts = part, writer, hashlib.sha256(), {}
        path = folder / part.file
        # Not buffered: what did not fit on the disk would be tried again when the file is closed.
        self.file = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115 - closed below
        self.file.seek(part.start)
        self.last: Future = writer.submit(self.write, memoryview(part.lead))

    def put(self, tensors: list[torch.Tensor], counts: dict | None, source: Source) -> None:
        self.last.result()
        self.last = self.writer.submit(self.write_tensors, tensors)
        if counts is not None:
            self.counts[source.layer] = counts | survival(counts)

    def write_tensors(self, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            content = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
            self.write(content)
            self.write(memoryview(bytes(-len(content) % self.part.align)))

    def write(self, content: memoryview) -> None:
        self.sha256.update(content)
        while content:
            content = content[self.file.write(content) :]

    def close(self) -> str:
        """Bring the part to the disk; its SHA-256."""
        with self.file:
            self.last.result()
            end = self.file.tell()
            assert end == self.part.stop, f"{self.part.file} ends at {end}, not {self.part.stop}"
            os.fsync(self.file.fileno())
        return self.sha256.hexdigest()

    def abandon(self) -> None:
        self.last.exception()  # the thread must be done with the file
        self.file.close()


def sha256_of(path: Path, part: Part) -> str | None:
    """SHA-256 of a part's bytes; None if the file is not there or ends before it does."""
    if not path.is_file() or path.stat().st_size < part.stop:
        return None
    return file_sha256(path, part.start, part.stop)


def write_beside(inputs: Inputs, plan: Plan, beside: dict[str, bytes], result: dict[str, Any], folder: Path) -> None:
    """Everything but the weights: configuration, counts, model card, and what is copied."""
    files = plan.files | beside
    files[AUDIT] = (json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n").encode()
    files[CARD] = card(
        result,
        base=inputs.base.folder.name,
        weights=inputs.after.folder.name if inputs.after else None,
        adapters=[(one.folder.name, file_sha256(one.file.path)) for one in inputs.adapters],
        certificate=files.get(CERTIFICATE),
    ).encode()
    expected = {part.file for part in plan.parts} | set(files)
    for path in folder.iterdir():
        if path.name not in expected:  # of a part of another plan
            path.unlink()
    for name, content in files.items():
        with open(folder / name, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def copied(inputs: Inputs) -> dict[str, bytes]:
    """Tokenizer, generation settings and chat template (those beside the fine-tuned weights, or else the base's), and
    the certificate if there is one.

    Raises:
        ValueError: one is a link that leaves its folder; a certificate that is no JSON, or of other weights.
    """

    def matching(folder: Path, patterns: Sequence[str], role: str) -> list[Path]:
        paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
        for path in paths:
            contained(path, role)
        return paths

    home, base = inputs.home.folder, inputs.base.folder
    reader = home if any((home / name).is_file() for name in TOKENIZER_FILES) else base
    found = {path.name: path for folder in (base, home) for path in matching(folder, COPIED, "checkpoint")}
    for path in matching(reader, BESIDE, "tokenizer"):
        found[path.name] = path
    for place in (inputs.home.folder, *(one.folder for one in reversed(inputs.adapters))):
        for path in matching(place, (CERTIFICATE,), "certificate"):
            found[path.name] = path
            certified(path.read_bytes())
            if place == inputs.home.folder:  # one beside an adapter is of the merged weights, which are not there
                check_bound(path.read_bytes(), inputs.home.files)
    return {name: path.read_bytes() for name, path in found.items()}


def check_bound(content: bytes, files: Sequence[Path]) -> None:
    """Refuse a certificate that lies beside other weights than those it is of.

    Args:
        content: of the certificate; one that names no files, of whatever origin, says nothing that could be checked.
        files: the weights that it lies beside. They are read for their digests.

    Raises:
        ValueError: naming the first file that differs.
    """
    found = json.loads(content)
    runs = found.get("bound_to", {}) if isinstance(found, dict) else {}
    runs = runs.get("runs") if isinstance(runs, dict) else None
    if not isinstance(runs, dict) or not runs:
        return
    known = [one.get("files") for one in runs.values() if isinstance(one, dict)]
    for path in files:
        named = {one[path.name] for one in known if isinstance(one, dict) and path.name in one}
        if file_sha256(path) not in named:
            raise ValueError(
                f"{path.parent / CERTIFICATE} is of other weights than those it lies beside: {path.name} is not what "
                "it was. Certify these weights, or move it away."
            )
