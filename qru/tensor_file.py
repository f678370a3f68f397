"""One safetensors file: its header checked before any weight is read, its tensors mapped into memory one by one.

The layout is 8 bytes of header length (little endian), a JSON header (name -> dtype, shape, data_offsets), then the
tensors without gaps. Everything the header says is held against the file's size and against itself, so that a file
which is cut short, damaged or made to mislead is refused with its name, and never read out of bounds.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # bytes; the safetensors library draws the same line
MOST_DIMENSIONS = 64  # torch's own limit
FETCHED_AT_ONCE = 1 << 17  # bytes; the kernel reads no more than its read-ahead window for one request
AGAIN = "copy or download it again."


class Stored(NamedTuple):
    """Where a tensor lies in its file: ``start`` and ``stop`` are bytes from the file's beginning."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file whose header was checked.

    Attributes:
        path: of the file.
        tensors: name -> where it lies.
        metadata: the header's free texts, such as ``{"format": "pt"}``.
        stamp: inode, size and time of change when the header was read.
    """

    path: Path
    tensors: dict[str, Stored]
    metadata: dict[str, str]
    stamp: tuple[int, int, int]

    def read(self, name: str) -> torch.Tensor:
        """A tensor of the file, mapped: its pages are read when they are touched, and given back with it.

        The mapping is private: writing to the tensor never reaches the file.

        Raises:
            ValueError: the file was changed or cut since its header was read.
        """
        dtype, shape, start, stop = self.tensors[name]
        if start == stop:
            return torch.empty(shape, dtype=dtype)
        with open(self.path, "rb") as file:
            if _stamp(os.fstat(file.fileno())) != self.stamp:
                raise ValueError(f"{self.path} was changed while it was being read: start again when it is complete.")
            if start % dtype.itemsize:  # an unaligned tensor cannot be computed on in place
                file.seek(start)
                return torch.frombuffer(bytearray(file.read(stop - start)), dtype=dtype).view(shape)
            first = start - start % mmap.ALLOCATIONGRANULARITY
            pages = mmap.mmap(file.fileno(), stop - first, access=mmap.ACCESS_COPY, offset=first)
        return torch.frombuffer(pages, dtype=dtype, count=math.prod(shape), offset=start - first).view(shape)

    def fetch(self, name: str) -> None:
        """Ask the system to have a tensor's pages in memory soon; returns before they are."""
        if not hasattr(os, "posix_fadvise"):
            return
        stored = self.tensors[name]
        with open(self.path, "rb") as file:
            for at in range(stored.start, stored.stop, FETCHED_AT_ONCE):
                size = min(FETCHED_AT_ONCE, stored.stop - at)
                os.posix_fadvise(file.fileno(), at, size, os.POSIX_FADV_WILLNEED)


def open_file(path: Path, role: str) -> TensorFile:
    """Read and check the header of a safetensors file.

    Args:
        path: of the file.
        role: what it belongs to, for messages.

    Raises:
        ValueError: no regular file, cut short, no JSON header, a name twice, a type that is not known, a size that does
            not fit the shape, tensors that overlap, leave a gap or end elsewhere than the file (names file and tensor).
    """
    where = f"{role}: {path}"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise ValueError(f"{where} is no regular file: give a copy of the file itself.")
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            length = int.from_bytes(file.read(8), "little")
            if found.st_size < 8 or not 2 <= length <= min(LONGEST_HEADER, found.st_size - 8):
                raise ValueError(
                    f"{where} is damaged: its header should be {length} bytes long and the file has {found.st_size}: "
                    f"{AGAIN}"
                )
            header = file.read(length)
    except OSError as error:
        raise ValueError(f"{where} cannot be read ({error.strerror}): {AGAIN}") from error
    entries = parse_json(header, where)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{where} is damaged: __metadata__ in its header is no table of texts: {AGAIN}")
    tensors = {name: _stored(entry, 8 + length, f"{where}: tensor {name!r}") for name, entry in entries.items()}
    end, before = 8 + length, "the header"
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if stored.start != end:
            how = "overlaps" if stored.start < end else "leaves a gap after"
            raise ValueError(f"{where} is damaged: tensor {name!r} {how} {before} ({stored.start}, not {end}): {AGAIN}")
        end, before = stored.stop, f"tensor {name!r}"
    if end != found.st_size:
        how = "is cut short" if end > found.st_size else "has more bytes than its header says"
        raise ValueError(f"{where} {how}: {found.st_size} bytes, and its header says {end}: {AGAIN}")
    return TensorFile(path, tensors, metadata, _stamp(found))


def contained(path: Path, role: str) -> None:
    """Refuse a file that is a link out of its folder; a snapshot of the Hub's cache links into its own blobs.

    Raises:
        ValueError: naming the link and where it leads.
    """
    try:
        folder, real = path.parent, path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: what Python before 3.13 says of a loop of links
        raise ValueError(f"{role}: {path} is a link that leads nowhere ({error}): copy the file there.") from error
    allowed = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        allowed.append(folder.resolve().parent.parent / "blobs")
    if real.parent not in allowed:
        raise ValueError(
            f"{role}: {path} is a link that leaves its folder, to {real}: copy the file there, or give the folder that "
            "it is in."
        )


def parse_json(text: bytes, where: str) -> dict[str, Any]:
    """A JSON object in which no name stands twice.

    Raises:
        ValueError: it is none (says where).
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))
            raise ValueError(f"{twice!r:.80} stands in it twice")
        return found

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: what should be JSON is not ({error}): {AGAIN}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} is damaged: its JSON is {type(value).__name__}, not an object: {AGAIN}")
    return value


def _stored(entry: Any, data: int, where: str) -> Stored:
    """One entry of a header, its numbers held against each other; offsets become bytes from the file's beginning."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where} is not described by dtype, shape and data_offsets: {AGAIN}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{where} is of type {dtype!r:.60}; those that are read are {', '.join(DTYPES)}.")
    for label, numbers in (("shape", shape), ("data_offsets", offsets)):
        whole = isinstance(numbers, list) and len(numbers) <= MOST_DIMENSIONS
        if not whole or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise ValueError(f"{where}: {label} is {numbers!r:.80}, no list of sizes: {AGAIN}")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{where}: data_offsets is {offsets!r:.80}, no beginning and end: {AGAIN}")
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != size:
        raise ValueError(
            f"{where} should be {size} bytes by its shape {shape!r:.80} in {dtype} and lies in "
            f"{offsets[1] - offsets[0]}: {AGAIN}"
        )
    return Stored(DTYPES[dtype], tuple(shape), data + offsets[0], data + offsets[1])


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns
