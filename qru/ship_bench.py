"""How fast a checkpoint is audited and quantized, and in how much memory, against what people run today.

    python -m qru.ship_bench                                 # 1.1B weights in TinyLlama's shapes, rank 64
    python -m qru.ship_bench --shape 7b --folder /scratch    # audit and quantize alone
    python -m qru.ship_bench --warm                          # the input is in the page cache already
    python -m qru.ship_bench --smoke                         # seconds: tiny, to keep this file honest

Random weights and a random adapter are written first. Every contestant then runs once a round in a process of its own,
in an order drawn anew for each round, after the input was dropped from the page cache, or, if asked for, read into it:
from a disk slower than memory nobody is faster than reading. Seconds are those of the work,
without Python's start and the imports. Memory is the process's own (anonymous pages; what is mapped from files is page
cache and can be dropped at any time), sampled while it works; the resident peak stands beside it. Floors are measured
in the same rounds: reading the input; reading it and writing as many bytes as the quantized checkpoint has; and the
kernel's own time over all layers, on matrices in memory. Every result is verified before it counts. What is done is
kept in the scratch folder: the same command goes on behind it, and takes the folder away when all rounds are done.

``audit`` computes no digests of the files (``qru audit --no-sha256``); ``quantize`` is ``qru quantize``, all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from qru import paths
from qru.models import quiet
from qru.ops import QuantSpec, build_info, merge_quantize, merge_quantize_ref
from qru.ops.extension import BUILD_COMMAND
from qru.ops.pack import unpack
from qru.records import file_size, fsync_folder, locked, provenance, read_json, write_json
from qru.registry import unknown
from qru.ship_card import AUDIT
from qru.ship_input import PREFIX, SHAPES, base_of, factors_of, layers_of, make_input
from qru.ship_record import FLOORS, KIND, checked
from qru.watch import die_with_parent, watched

SIZES = {
    "smoke": {"shape": "tiny", "rank": 4, "rounds": 1},
    "mini": {"shape": "1.1b", "rank": 64, "rounds": 5},
}
LARGE = {"7b": ("quantize", "audit")}  # the others hold the whole model in memory: they take part where they are named
BITS = 4
PROGRESS, LOCK, MAKING = "progress.json", "lock", "making"
MADE = ("out", ".out.unfinished")  # by a contestant; what a killed one left would be taken up by the next
CHUNK = 1 << 23
ROWS = 8  # of a layer, that are held against the specification
# Share of values that may differ from the specification: peft sums its products in another order; llmcompressor divides
# in bf16, so that what lies near the middle between two codes falls otherwise.
DIFFER = {"peft-nf4": 0.01, "llmcompressor": 0.05}


def by_qru(folder: Path, shape: str) -> None:
    from qru.ship import quantize_checkpoint

    quantize_checkpoint(folder / "base", folder / "out", adapter=folder / "adapter", spec=spec_of(shape).name)


def by_audit(folder: Path, shape: str) -> None:
    from qru.checkpoint_audit import audit_checkpoint

    found = audit_checkpoint(folder / "base", folder / "adapter", [spec_of(shape)], digests=False, progress=False)
    (folder / "out").mkdir()
    write_json(folder / "out" / AUDIT, next(iter(found["specs"].values())))


def by_peft(folder: Path, shape: str) -> None:
    """What people run: load, merge, save, load again in NF4."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
        merged = PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload()
        merged.save_pretrained(folder / "out")
        del model, merged
        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        found = AutoModelForCausalLM.from_pretrained(folder / "out", quantization_config=nf4, dtype=torch.bfloat16)
    kinds = {type(found.get_submodule(layer).weight).__name__ for layer in layers_of(shape)}
    if kinds != {"Params4bit"}:
        raise AssertionError(f"layers loaded as {kinds}, not in 4 bits")


def by_reading(folder: Path, shape: str) -> None:
    warm_up(inputs(folder))


def by_disk(folder: Path, shape: str) -> None:
    """Read what is read, and write as many bytes as the quantized checkpoint has."""
    by_reading(folder, shape)
    left = read_json(folder / PROGRESS)["output_bytes"]
    (folder / "out").mkdir()
    zeros = memoryview(bytes(CHUNK))
    with open(folder / "out" / "zeros", "wb", buffering=0) as file:
        while left:
            left -= file.write(zeros[: min(left, CHUNK)])
        os.fsync(file.fileno())


def by_kernel(folder: Path, shape: str) -> None:
    """Merge and quantize one matrix of each layer's size, again and again, as often as the model has it."""
    sizes = list(layers_of(shape).values())
    rank = read_json(folder / "adapter" / "adapter_config.json")["r"]
    for size in dict.fromkeys(sizes):
        weight = torch.full(size, 0.02, dtype=torch.bfloat16)
        a, b = torch.full((rank, size[1]), 0.01), torch.full((size[0], rank), 0.01)
        for _ in range(sizes.count(size)):
            merge_quantize(weight, a, b, 1.0, spec_of(shape))


def spec_of(shape: str) -> QuantSpec:
    """Groups of 128, or of 32 where rows are too short for these; steps in bf16, as they are stored."""
    return QuantSpec.parse(f"rtn-int{BITS}-g{128 if SHAPES[shape][0] % 128 == 0 else 32}-bfloat16")


CONTESTANTS: dict[str, Callable[[Path, str], None]] = {
    "quantize": by_qru, "audit": by_audit, "peft-nf4": by_peft, "read": by_reading, "disk": by_disk,
    "kernel": by_kernel,
}  # fmt: skip
FOREIGN = "llmcompressor"  # in an environment of its own
NAMES = (*CONTESTANTS, FOREIGN)


def inputs(folder: Path) -> list[Path]:
    return sorted(path for part in ("base", "adapter") for path in (folder / part).glob("*.safetensors"))


def evict(files: Sequence[Path]) -> None:
    """Drop files from the page cache, as far as they are on the disk."""
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm_up(files: Sequence[Path]) -> None:
    """Read files into the page cache."""
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.read(CHUNK):
                pass


def llmcompressor_python(given: str | None = None) -> Path:
    """The interpreter of llmcompressor's environment: the one given or named by ``LLMCOMPRESSOR_PYTHON``, or that of
    ``make llmcompressor``."""
    place = given or os.environ.get("LLMCOMPRESSOR_PYTHON")
    return Path(place).expanduser() if place else Path(__file__).parents[1] / ".venv-llmcompressor" / "bin" / "python"


def in_this_process(name: str, folder: Path, shape: str) -> dict[str, Any]:
    """Run one here: what is seen of memory is everybody's."""
    import peft  # noqa: F401 - imports are nobody's work
    import transformers

    import qru.checkpoint_audit
    import qru.ship  # noqa: F401

    transformers.utils.logging.disable_progress_bar()
    found: dict[str, Any] = {}
    with watched(found):
        CONTESTANTS[name](folder, shape)
    return found | {"threads": torch.get_num_threads()}


def in_its_own_process(name: str, folder: Path, shape: str, llmcompressor: str | None = None) -> dict[str, Any]:
    """Run one as people would start it.

    Raises:
        RuntimeError: it failed (with the end of what it said), or was killed.
    """
    command = [sys.executable, "-m", "qru.ship_bench", "--folder", folder, "--shape", shape, "--contestant", name]
    command += ["--parent", os.getpid()]
    if name == FOREIGN:
        script = Path(__file__).with_name("ship_llmcompressor.py")
        command = [llmcompressor_python(llmcompressor), "-I", script, folder, spec_of(shape).group_size, os.getpid()]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode < 0:
        raise RuntimeError(f"{name} was killed by signal {-done.returncode}: 9 says that memory ran out.")
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def verify(name: str, folder: Path, shape: str) -> dict[str, Any]:
    """Hold what a contestant left against the specification; what was found.

    Raises:
        AssertionError: it is something else. The floors leave nothing to look at.
    """
    if name == "quantize":
        if differ := codes_that_differ(folder, shape, spec_of(shape).step):
            raise AssertionError(f"{differ:.2%} of the codes are not those of the specification")
        size = sum(path.stat().st_size for path in (folder / "out").iterdir())
        return {"total": read_json(folder / "out" / AUDIT)["total"], "output_bytes": size}
    if name == "audit":
        return {"total": read_json(folder / "out" / AUDIT)["total"]}
    if name == "peft-nf4":
        differ = weights_that_differ(folder, shape)
    elif name == FOREIGN:  # its step is max|W| / 7.5
        differ = codes_that_differ(folder, shape, "2^(N-1)-1/2")
    else:
        return {}
    if differ > DIFFER[name]:
        raise AssertionError(f"{name}: {differ:.2%} of what it made are not what its rule gives")
    return {"differ": differ}


def ends(folder: Path, shape: str):
    """First and last layer: name, some rows of the weight and of B, A."""
    layers = list(layers_of(shape))
    base = found_in(folder / "base")
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as adapter:
        for layer in (layers[0], layers[-1]):
            a, b = (adapter.get_slice(f"{PREFIX}{layer}.lora_{side}.weight") for side in "AB")
            yield layer, rows_of(base, f"{layer}.weight"), a[:], b[:ROWS]


def found_in(folder: Path) -> dict[str, Path]:
    """Tensor -> file of a checkpoint."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def rows_of(found: dict[str, Path], name: str) -> torch.Tensor:
    with safe_open(found[name], "pt") as file:
        return file.get_slice(name)[:ROWS]


def codes_that_differ(folder: Path, shape: str, step: str) -> float:
    """Share of the codes and steps of some rows that are not those of the specification with this step."""
    spec, out = replace(spec_of(shape), step=step), found_in(folder / "out")
    wrong = numbers = 0
    for layer, weight, a, b in ends(folder, shape):
        want = merge_quantize_ref(weight, a, b, 1.0, spec)
        codes = unpack(rows_of(out, f"{layer}.weight_packed"), BITS, weight.shape[1])
        scales = rows_of(out, f"{layer}.weight_scale").float()
        wrong += int((codes != want.codes).sum()) + int((scales != want.scales).sum())
        numbers += codes.numel() + scales.numel()
    return wrong / numbers


def weights_that_differ(folder: Path, shape: str) -> float:
    """Share of the merged weights of some rows that are not the specification's."""
    out = found_in(folder / "out")
    wrong = numbers = 0
    for layer, weight, a, b in ends(folder, shape):
        want = merge_quantize_ref(weight, a, b, 1.0, spec_of(shape), merged=True).merged
        wrong += int((rows_of(out, f"{layer}.weight") != want).sum())
        numbers += want.numel()
    return wrong / numbers


def chosen_of(shape: str, only: Sequence[str], smoke: bool, llmcompressor: str | None) -> tuple[list[str], dict]:
    """The contestants, and why those are missing that are.

    Raises:
        ValueError: a name that is not known, or of one that cannot take part.
    """
    for name in only:
        if name not in NAMES:
            raise unknown("contestant", name, NAMES)
    missing = {}
    if not util.find_spec("bitsandbytes"):
        missing["peft-nf4"] = "bitsandbytes is not installed"
    if not llmcompressor_python(llmcompressor).is_file():
        missing[FOREIGN] = f"there is no {llmcompressor_python(llmcompressor)}: make llmcompressor"
    for name in only:
        if name in missing:
            raise ValueError(f"{name} cannot take part: {missing[name]}.")
    floors = {floor for pair in FLOORS.values() for floor in pair}
    wanted = {*(only or LARGE.get(shape, NAMES)), *floors, "quantize"}
    if smoke and FOREIGN not in only:
        missing.setdefault(FOREIGN, "at smoke it takes part where it is named")
    return [name for name in NAMES if name in wanted and name not in missing], {
        name: why for name, why in missing.items() if name in wanted
    }


def needed(shape: str, rank: int, chosen: Sequence[str]) -> int:
    """Bytes of disk: the input, and the largest of what is made of it."""
    base = sum(entry.bytes for entry in base_of(shape))
    adapter = sum(entry.bytes for entry in factors_of(shape, rank))
    weights = sum(rows * columns for rows, columns in layers_of(shape).values())
    packed = base - 2 * weights + weights * BITS // 8 + 2 * weights // spec_of(shape).group_size
    return int(1.01 * (base + adapter + (base if "peft-nf4" in chosen else packed))) + 10**7


def measure(
    scale: str = "mini",
    shape: str | None = None,
    rank: int | None = None,
    rounds: int | None = None,
    only: Sequence[str] = (),
    folder: Path | str | None = None,
    llmcompressor: str | None = None,
    record: Path | None = None,
    warm: bool = False,
    report: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Make the input, run every contestant in each round, verify, and keep the record.

    Args:
        scale: "smoke" (all in this process) or "mini": what holds for all that is not given (``SIZES``).
        shape: a key of ``qru.ship_input.SHAPES``. rank: of the adapter. rounds: of every contestant.
        only: contestants; all unless given, for 7b only ours. The floors and ``quantize`` always run.
        folder: scratch; absent, empty, or what an earlier call with the same settings left when it was killed.
        llmcompressor: the interpreter of its environment.
        record: the record's path; a folder of its own below ``runs/ship`` unless given.
        warm: with the input in the page cache.
        report: is given a line a result.

    Returns:
        a record: ``config``, ``input_bytes``, ``output_bytes``, ``results`` (contestant -> lists of ``seconds``,
        ``before_mb``, ``peak_mb``, ``resident_mb``), ``verified``, ``missing`` and ``provenance``. The scratch folder
        is gone.

    Raises:
        ValueError: a name or number that makes no sense, a folder of something else, a disk without room.
        RuntimeError: a contestant failed, or the kernel is not built. AssertionError: a result is wrong.
    """
    if scale not in SIZES:
        raise unknown("scale", scale, SIZES)
    size, smoke = SIZES[scale], scale == "smoke"
    shape, rank, rounds = shape or size["shape"], rank or size["rank"], rounds or size["rounds"]
    if shape not in SHAPES:
        raise unknown("shape", shape, SHAPES)
    if rank < 1 or rounds < 1:
        raise ValueError(f"rank is {rank} and rounds is {rounds}; give at least 1.")
    if not smoke and not build_info()["built"]:
        raise RuntimeError(f"the kernel is not built, there is nothing to time. Build: {BUILD_COMMAND}")
    chosen, missing = chosen_of(shape, list(only), smoke, llmcompressor)
    folder = Path(folder).expanduser().resolve() if folder else paths.cache_dir() / "ship-bench" / shape
    job = {"shape": shape, "rank": rank, "contestants": chosen, "threads": torch.get_num_threads(), "apart": not smoke}
    job |= {"warm": True} if warm else {}

    def run(name: str) -> dict[str, Any]:
        if smoke and name != FOREIGN:
            return in_this_process(name, folder, shape)
        return in_its_own_process(name, folder, shape, llmcompressor)

    begun(folder, job, shape, rank, chosen)  # what is wrong is said before a lock is put there
    with locked(folder / LOCK):
        progress = begun(folder, job, shape, rank, chosen)
        measure_rounds(folder, progress, rounds, run, report)
        made = record_of(progress, rounds, missing)
        started = time.strftime("%Y%m%d-%H%M%S", time.localtime(progress["attempts"][0]["time"]))
        path = record or paths.runs_dir() / "ship" / f"{shape}-{job['threads']}-threads-{started}" / "record.json"
        write_json(path, made)
        report(f"record: {path}")
        for part in ("base", "adapter", *MADE, MAKING):
            shutil.rmtree(folder / part, ignore_errors=True)
        (folder / PROGRESS).unlink()
    (folder / LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # something of somebody else's may lie there
        folder.rmdir()
    return made


def begun(folder: Path, job: dict[str, Any], shape: str, rank: int, chosen: Sequence[str]) -> dict[str, Any]:
    """What earlier calls did, held against the settings of this one and the room on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / PROGRESS
    if place.is_file():
        progress = read_json(place)
        if progress["job"] != job:
            raise ValueError(f"{folder} holds rounds of {progress['job']}, not of {job}: give another, or delete it.")
    elif strangers := [path.name for path in folder.iterdir() if path.name not in (LOCK, MAKING)]:
        raise ValueError(f"{folder} is not empty (it holds {strangers[0]}): give a new folder.")
    else:
        progress = {"job": job, "attempts": [], "results": {}, "verified": {}}
    there = sum(path.stat().st_size for path in inputs(folder))
    free, need = shutil.disk_usage(folder).free, needed(shape, rank, chosen) - there
    if need > free:
        raise ValueError(
            f"{shape} needs {file_size(need)} of disk (input and the largest output), and {folder} has "
            f"{file_size(free)}: give another folder."
        )
    return progress


def measure_rounds(
    folder: Path, progress: dict[str, Any], rounds: int, run: Callable[[str], dict], report: Callable[[str], object]
) -> None:
    """Run what is missing, round after round, and keep each result at once."""
    job, results = progress["job"], progress["results"]
    todo = [
        (round_, name)
        for round_ in range(rounds)
        for name in random.Random(round_).sample(job["contestants"], len(job["contestants"]))
        if str(round_) not in results.get(name, {})
    ]
    if not todo:
        return
    came_from = provenance()
    progress.setdefault("provenance", came_from)
    now = {"time": time.time(), "load_before": os.getloadavg()[0], "commit": came_from["commit"]}
    progress["attempts"].append(now | {"dirty": came_from["dirty"]})
    if not (folder / "adapter").is_dir():
        entries = [*base_of(job["shape"]), *factors_of(job["shape"], job["rank"])]
        report(f"writing {file_size(sum(entry.bytes for entry in entries))} of random weights")
        shutil.rmtree(folder / MAKING, ignore_errors=True)
        (folder / MAKING).mkdir()
        make_input(folder / MAKING, job["shape"], job["rank"])
        shutil.rmtree(folder / "base", ignore_errors=True)
        os.rename(folder / MAKING / "base", folder / "base")
        os.rename(folder / MAKING / "adapter", folder / "adapter")  # last: it says that both are whole
        fsync_folder(folder)
    progress["input_bytes"] = sum(path.stat().st_size for path in inputs(folder))
    write_json(folder / PROGRESS, progress)
    if "output_bytes" not in progress:  # how much there is to write, and whether it works; not counted
        one(folder, "quantize", progress, run)
        write_json(folder / PROGRESS, progress)
    walls = {name: [found["wall"] for found in rounds_.values()] for name, rounds_ in results.items()}
    for at, (round_, name) in enumerate(todo):
        found = one(folder, name, progress, run)
        results.setdefault(name, {})[str(round_)] = found
        write_json(folder / PROGRESS, progress)
        walls.setdefault(name, []).append(found["wall"])
        left = eta([name for _, name in todo[at + 1 :]], walls)
        report(
            f"round {round_ + 1} of {rounds}, {name}: {found['seconds']:.3g} s, {found['peak_mb']:.0f} MB of its own; "
            f"{len(todo) - at - 1} to go, about {left / 60:.0f} min"
        )


def one(folder: Path, name: str, progress: dict[str, Any], run: Callable[[str], dict]) -> dict[str, Any]:
    """One run of one contestant, verified; what it leaves is taken away."""
    shape = progress["job"]["shape"]
    clear(folder)
    (warm_up if progress["job"].get("warm") else evict)(inputs(folder))
    started = time.monotonic()
    try:
        found = run(name)
        checked_ = verify(name, folder, shape)
    finally:
        clear(folder)
    progress["output_bytes"] = checked_.pop("output_bytes", progress.get("output_bytes"))
    expected = progress["verified"].setdefault("total", checked_["total"]) if "total" in checked_ else None
    if expected is not None and checked_["total"] != expected:
        raise AssertionError(f"{name} counts {checked_['total']}, and the first run of quantize {expected}")
    if "differ" in checked_:
        progress["verified"][name] = checked_["differ"]
    return found | {"wall": time.monotonic() - started}


def clear(folder: Path) -> None:
    for name in MADE:
        shutil.rmtree(folder / name, ignore_errors=True)


def eta(names: Sequence[str], walls: dict[str, list[float]]) -> float:
    """Seconds that these runs will take, by the medians of those before; an unknown one as long as the longest."""
    middle = {name: statistics.median(found) for name, found in walls.items() if found}
    longest = max(middle.values(), default=0.0)
    return sum(middle.get(name, longest) for name in names)


def record_of(progress: dict[str, Any], rounds: int, missing: dict[str, str]) -> dict[str, Any]:
    """The record of rounds that are all done."""
    job = progress["job"]
    numbers = ("seconds", "before_mb", "peak_mb", "resident_mb")
    results = {
        name: {key: [progress["results"][name][str(round_)][key] for round_ in range(rounds)] for key in numbers}
        for name in job["contestants"]
    }
    came_from = progress["provenance"] | {"attempts": progress["attempts"]}
    came_from["kernel"] = build_info()
    if "peft-nf4" in results:
        came_from["versions"] = came_from["versions"] | {"bitsandbytes": metadata.version("bitsandbytes")}
    foreign = progress["results"].get(FOREIGN, {}).get("0")
    if foreign:
        came_from[FOREIGN] = foreign["versions"] | {"threads": foreign["threads"]}
    sizes = layers_of(job["shape"]).values()
    return checked(
        {
            "kind": KIND,
            "config": {key: job[key] for key in ("shape", "rank", "threads", "apart", "warm") if key in job}
            | {"rounds": rounds, "spec": spec_of(job["shape"]).name, "layers": len(sizes)}
            | {"weights": sum(rows * columns for rows, columns in sizes)},
            "input_bytes": progress["input_bytes"],
            "output_bytes": progress["output_bytes"],
            "results": results,
            "verified": progress["verified"],
            "missing": missing,
            "provenance": came_from,
        }
    )


def read(path: str) -> dict[str, Any]:
    """The record at a path that is absolute or relative to the repository; ValueError if it is none of this kind."""
    return checked(read_json(paths.root() / path), path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Command line: a line a result, and a record."""
    parser = argparse.ArgumentParser(prog="python -m qru.ship_bench", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="scratch; .cache/ship-bench/SHAPE unless given")
    parser.add_argument("--shape", choices=list(SHAPES))
    parser.add_argument("--rank", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--llmcompressor", metavar="PYTHON", help="of its environment; .venv-llmcompressor's")
    parser.add_argument("--warm", action="store_true", help="with the input in the page cache")
    parser.add_argument("--smoke", action="store_true", help="tiny, one round, all in this process")
    parser.add_argument("--json", type=Path, help="the record's path; below runs/ship unless given")
    parser.add_argument("--contestant", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, default=os.getppid(), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.contestant:
        die_with_parent(given.parent)
        found = in_this_process(given.contestant, given.folder, given.shape)
        print(json.dumps(found))
        return found
    try:
        return measure(
            "smoke" if given.smoke else "mini",
            given.shape,
            given.rank,
            given.rounds,
            given.only,
            given.folder,
            given.llmcompressor,
            given.json,
            given.warm,
            lambda text: print(text, flush=True),
        )
    except (ValueError, RuntimeError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; the same command goes on from here.\n")


if __name__ == "__main__":
    main()
