"""How fast a checkpoint is audited and quantized, and in how much memory, against what people run today.

    python -m qru.ship_bench --folder /scratch/bench                  # 1.1B weights in TinyLlama's shapes, rank 64
    python -m qru.ship_bench --folder /scratch/bench --shape 7b --only audit quantize
    python -m qru.ship_bench --folder /scratch/bench --smoke          # seconds: tiny, to keep this file honest

Random weights and a random adapter are written first. Every contestant then runs once a round in a process of its own,
in an order drawn anew for each round, after the input was dropped from the page cache. Seconds are those of the work,
without Python's start and the imports. Memory is the process's own (anonymous pages; what is mapped from files is page
cache and can be dropped at any time), sampled while it works; the resident peak stands beside it. Two floors are
measured in the same rounds: reading the input and writing as many bytes as the quantized checkpoint has; and the
kernel's own time over all layers, on matrices in memory. Results are verified before they count.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from qru.checkpoint import INDEX
from qru.formats.layout import Entry, header
from qru.models import layer_shapes, quiet
from qru.ops import QuantSpec, merge_quantize, merge_quantize_ref
from qru.ops.pack import unpack
from qru.records import provenance, write_json
from qru.shards import Shards, linear_layers_of

KIND = "ship-benchmark"
SHAPES = {  # hidden, intermediate, layers, heads, key heads, vocabulary
    "tiny": (64, 128, 2, 4, 2, 96),
    "1.1b": (2048, 5632, 22, 32, 4, 32000),
    "7b": (4096, 11008, 32, 32, 32, 32000),
}
SHARD = 5 * 10**9  # bytes; what the Hub's checkpoints have
DRAWN = 1 << 24  # random numbers that all tensors are cut from, at places of their own
SPEC = "rtn-int4-g128"
SAMPLE_SECONDS = 0.005
CHUNK = 1 << 23


def make_input(folder: Path, shape: str, rank: int) -> None:
    """Write ``base``, a checkpoint of random weights, and ``adapter``, of all its layers; never holds the model."""
    hidden, intermediate, layers, heads, key_heads, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, vocab_size=vocabulary, tie_word_embeddings=False, dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    base, adapter = folder / "base", folder / "adapter"
    config.save_pretrained(base)
    shapes = layer_shapes("", base)
    drawn = torch.randn(DRAWN, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    kept = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    kept["model.norm.weight"] = (hidden,)
    for at in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            kept[f"model.layers.{at}.{norm}.weight"] = (hidden,)
    entries = [Entry(f"{layer}.weight", torch.bfloat16, size) for layer, size in shapes.items()]
    entries += [Entry(name, torch.bfloat16, size) for name, size in kept.items()]
    groups: list[list[Entry]] = [[]]
    for entry in entries:
        if groups[-1] and sum(one.bytes for one in groups[-1]) + entry.bytes > SHARD:
            groups.append([])
        groups[-1].append(entry)
    names = [f"model-{at:05d}-of-{len(groups):05d}.safetensors" for at in range(1, len(groups) + 1)]
    for name, group in zip(names, groups, strict=True):
        write_tensors(base / name, group, drawn)
    placed = {entry.name: name for name, group in zip(names, groups, strict=True) for entry in group}
    index = {"metadata": {"total_size": sum(entry.bytes for entry in entries)}, "weight_map": placed}
    (base / INDEX).write_text(json.dumps(index))
    adapter.mkdir()
    prefix = "base_model.model."
    factors = []
    for layer, (rows, columns) in shapes.items():
        factors.append(Entry(f"{prefix}{layer}.lora_A.weight", torch.float32, (rank, columns)))
        factors.append(Entry(f"{prefix}{layer}.lora_B.weight", torch.float32, (rows, rank)))
    write_tensors(adapter / "adapter_model.safetensors", factors, drawn)
    targets = sorted({layer.rpartition(".")[2] for layer in shapes})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))


def write_tensors(path: Path, entries: list[Entry], drawn: torch.Tensor) -> None:
    """A safetensors file of numbers cut from ``drawn``, each tensor from a place of its own."""
    with open(path, "wb") as file:
        file.write(header(entries))
        for entry in entries:
            left, at = math.prod(entry.shape), random.Random(entry.name).randrange(DRAWN)
            while left:
                piece = drawn[at : at + left].to(entry.dtype)
                file.write(memoryview(piece.view(torch.uint8).numpy()))
                left, at = left - len(piece), 0
        os.fsync(file.fileno())


def by_qru(folder: Path) -> None:
    from qru.ship import quantize_checkpoint

    quantize_checkpoint(folder / "base", folder / "out", adapter=folder / "adapter", spec=spec_for(folder))


def by_audit(folder: Path) -> None:
    from qru.checkpoint_audit import audit_checkpoint

    spec = QuantSpec.parse(spec_for(folder))
    audit_checkpoint(folder / "base", folder / "adapter", [spec], digests=False, progress=False)


def by_peft(folder: Path) -> None:
    """What people run: load, merge, save, load again in NF4."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
        merged = PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload()
        merged.save_pretrained(folder / "out")
        del model, merged
        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        AutoModelForCausalLM.from_pretrained(folder / "out", quantization_config=nf4, dtype=torch.bfloat16)


def by_disk(folder: Path) -> None:
    """Read what is read, and write as many bytes as the quantized checkpoint has."""
    for path in inputs(folder):
        with open(path, "rb", buffering=0) as file:
            while file.read(CHUNK):
                pass
    left = int((folder / "out_bytes").read_text())
    (folder / "out").mkdir()
    zeros = memoryview(bytes(CHUNK))
    with open(folder / "out" / "zeros", "wb", buffering=0) as file:
        while left:
            left -= file.write(zeros[: min(left, CHUNK)])
        os.fsync(file.fileno())


def by_kernel(folder: Path) -> None:
    """Merge and quantize one matrix of each layer's shape, again and again, as often as the model has it."""
    shapes = layer_shapes("", folder / "base")
    rank = json.loads((folder / "adapter" / "adapter_config.json").read_text())["r"]
    spec = QuantSpec.parse(f"{spec_for(folder)}-bfloat16")
    for shape in set(shapes.values()):
        weight = torch.full(shape, 0.02, dtype=torch.bfloat16)
        a, b = torch.full((rank, shape[1]), 0.01), torch.full((shape[0], rank), 0.01)
        for _ in range(list(shapes.values()).count(shape)):
            merge_quantize(weight, a, b, 1.0, spec)


# The floors come first in no round but the one that says how many bytes there are to write.
CONTESTANTS: dict[str, Callable[[Path], None]] = {
    "quantize": by_qru, "audit": by_audit, "peft-nf4": by_peft, "disk": by_disk, "kernel": by_kernel,
}  # fmt: skip


def spec_for(folder: Path) -> str:
    """Groups of 128, or of 32 where rows are too short for these."""
    hidden = json.loads((folder / "base" / "config.json").read_text())["hidden_size"]
    return SPEC if hidden % 128 == 0 else "rtn-int4-g32"


def inputs(folder: Path) -> list[Path]:
    return sorted(path for part in ("base", "adapter") for path in (folder / part).glob("*.safetensors"))


def evict(paths: Sequence[Path]) -> None:
    """Drop files from the page cache, as far as they are on the disk."""
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def watched(found: dict[str, float]):
    """Put to ``found`` how much memory the process has before, and the most that is seen meanwhile."""
    done = threading.Event()
    found["before_mb"] = anonymous()
    found["peak_mb"] = found["before_mb"]

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            found["peak_mb"] = max(found["peak_mb"], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        found["resident_mb"] = status("VmHWM")


def anonymous() -> float:
    """MB of this process that are not mapped from files."""
    return status("RssAnon") + status("RssShmem")


def status(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def contestant(name: str, folder: Path) -> dict[str, float]:
    """Run one in this process: seconds and memory."""
    import peft  # noqa: F401 - imports are nobody's work
    import transformers

    import qru.checkpoint_audit
    import qru.ship  # noqa: F401

    transformers.utils.logging.disable_progress_bar()
    found: dict[str, float] = {}
    with watched(found):
        started = time.perf_counter()
        CONTESTANTS[name](folder)
        found["seconds"] = time.perf_counter() - started
    return found


def in_its_own_process(name: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "qru.ship_bench", "--folder", str(folder), "--contestant", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def verify(folder: Path) -> int:
    """Hold rows of the quantized checkpoint against the specification; how many bytes it has.

    Raises:
        AssertionError: a code or a step differs.
    """
    spec = QuantSpec.parse(f"{spec_for(folder)}-bfloat16")
    base = Shards(folder / "base", "BASE")
    from safetensors import safe_open

    found = {}
    for path in sorted((folder / "out").glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    layers = list(linear_layers_of(base))
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as adapter:
        for layer in (layers[0], layers[-1]):
            a, b = (adapter.get_tensor(f"base_model.model.{layer}.lora_{side}.weight") for side in "AB")
            weight = base.read(f"{layer}.weight")
            want = merge_quantize_ref(weight[:8], a, b[:8], 1.0, spec)
            packed, scale = f"{layer}.weight_packed", f"{layer}.weight_scale"
            with safe_open(found[packed], "pt") as file:
                got = file.get_slice(packed)[:8], file.get_slice(scale)[:8]
            same = torch.equal(unpack(got[0], spec.bits, weight.shape[1]), want.codes)
            if not same or not torch.equal(got[1].float(), want.scales):
                raise AssertionError(f"{layer}: the quantized checkpoint is not what the specification gives")
    return sum(path.stat().st_size for path in (folder / "out").iterdir())


def measure(
    folder: Path,
    shape: str = "1.1b",
    rank: int = 64,
    rounds: int = 3,
    only: Sequence[str] = (),
    run: Callable[[str, Path], dict[str, float]] = in_its_own_process,
    report: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Make the input, verify, and run every contestant in each round.

    Args:
        folder: scratch; must be empty or absent. About eight times the size of the model's weights is not too much.
        shape: a key of ``SHAPES``. rank: of the adapter. rounds: of every contestant.
        only: contestants; all unless given, NF4 where bitsandbytes is installed. The floors always run.
        run: runs one; in this process (``contestant``) what is seen of memory is everybody's.
        report: is given a line a result.

    Returns:
        a record: ``config``, ``input_bytes``, ``output_bytes``, ``results`` (contestant -> lists of seconds and
        memory), ``ratios`` (against ``quantize``, medians) and ``provenance``.

    Raises:
        ValueError: a name that is not known, or a folder that is not empty. AssertionError: results are wrong.
    """
    for name in only:
        if name not in CONTESTANTS:
            raise ValueError(f"unknown contestant {name!r}; choose among {', '.join(CONTESTANTS)}")
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r}; choose one of {', '.join(SHAPES)}")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give a new folder.")
    make_input(folder, shape, rank)
    report(f"input: {sum(path.stat().st_size for path in inputs(folder)) / 1e9:.3g} GB")
    run("quantize", folder)
    output = verify(folder)
    (folder / "out_bytes").write_text(str(output))
    there = [name for name in CONTESTANTS if name != "peft-nf4" or importlib.util.find_spec("bitsandbytes")]
    chosen = [name for name in there if not only or name in only or name in ("disk", "kernel")]
    results: dict[str, dict[str, list[float]]] = {name: {} for name in chosen}
    for round_ in range(rounds):
        for name in random.Random(round_).sample(chosen, len(chosen)):
            shutil.rmtree(folder / "out", ignore_errors=True)
            evict(inputs(folder))
            found = run(name, folder)
            for key, value in found.items():
                results[name].setdefault(key, []).append(value)
            report(f"{name}: {found['seconds']:.3g} s, {found['peak_mb']:.0f} MB of its own")
    shutil.rmtree(folder / "out", ignore_errors=True)
    return {
        "kind": KIND,
        "config": {"shape": shape, "rank": rank, "rounds": rounds, "threads": torch.get_num_threads(), "spec": SPEC},
        "input_bytes": sum(path.stat().st_size for path in inputs(folder)),
        "output_bytes": output,
        "results": results,
        "ratios": ratios(results),
        "provenance": provenance(),
    }


def ratios(results: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Medians of the others over ours, and ours over the larger floor."""
    middle = {name: {key: statistics.median(found) for key, found in one.items()} for name, one in results.items()}
    floor = max(middle["disk"]["seconds"], middle["kernel"]["seconds"])
    found = {name: {"of_floor": middle[name]["seconds"] / floor} for name in ("quantize", "audit") if name in middle}
    if "peft-nf4" in middle and "quantize" in middle:
        theirs, ours = middle["peft-nf4"], middle["quantize"]
        found["peft-nf4"] = {key: theirs[key] / ours[key] for key in ("seconds", "peak_mb")}
    return found


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Command line: a line a result, and a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="scratch; left there but for what was written last")
    parser.add_argument("--shape", choices=list(SHAPES), default="1.1b")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], choices=list(CONTESTANTS))
    parser.add_argument("--smoke", action="store_true", help="tiny, one round, all in this process")
    parser.add_argument("--json", type=Path, help="the record's path; record.json in the folder otherwise")
    parser.add_argument("--contestant", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.contestant:
        found = contestant(given.contestant, given.folder)
        print(json.dumps(found))
        return found
    shape, rank, rounds = ("tiny", 4, 1) if given.smoke else (given.shape, given.rank, given.rounds)
    run = contestant if given.smoke else in_its_own_process
    record = measure(given.folder, shape, rank, rounds, given.only, run, lambda text: print(text, flush=True))
    path = given.json or given.folder / "record.json"
    write_json(path, record)
    print(f"record: {path}")
    return record


if __name__ == "__main__":
    main()
