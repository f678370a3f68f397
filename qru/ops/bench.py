"""How fast ``merge_quantize`` is, against what people run today and against what this machine can do.

    python -m qru.ops.bench                       # 4096 x 4096, bfloat16, int4 in groups of 128, ranks 1 to 128
    python -m qru.ops.bench --shapes llama2-7b --device cuda
    python -m qru.ops.bench --smoke               # seconds: small, to keep this file honest

Results are verified before anything is timed. All contestants run once a round, in an order drawn anew for each, so
that a busy machine slows all of them alike. Reported are medians over rounds, quartiles, and ratios of medians with
95 % bootstrap intervals over rounds. Two ceilings are measured in the same rounds: bytes per second of reading or
copying, and float32 operations per second of a product. Weights are read once and codes and scales written once,
whatever happens in between; that is what GB/s and the ceilings count. The epilogue's own instructions they do not.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from qru import paths
from qru.kernel_record import KIND, checked, line
from qru.ops.extension import BUILD_COMMAND, build_info
from qru.ops.grid import QuantSpec, group_width
from qru.ops.kernel import merge_dequantize_op, merge_quantize_op
from qru.ops.merge_quantize import merge_dequantize, merge_quantize, merge_quantize_ref
from qru.records import provenance, read_json, write_json

SHAPES = {"llama2-7b": [(4096, 4096), (11008, 4096), (4096, 11008)]}  # attention, gate and up, down: (out, in)
SIZES = {
    "smoke": {"shapes": [(256, 256)], "ranks": [4, 16], "rounds": 3, "compiled": False},
    "mini": {"shapes": [(4096, 4096)], "ranks": [1, 4, 16, 64, 128], "rounds": 9, "compiled": True},
}
SPEC = QuantSpec()
FLUSHED = 2**28  # bytes read between timed runs on a GPU: several times its cache
SLEEP = 20_000_000  # GPU clocks, about 10 ms: time for the host to enqueue all runs of a round


def eager_pipeline(
    weight: torch.Tensor, lora_A: torch.Tensor, lora_B: torch.Tensor, group_size: int = 128, bits: int = 4
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What people run today, operation by operation: merge, quantize before and after, compare, pack.

    Args:
        weight: (out, in) bfloat16. lora_A: (r, in) float32. lora_B: (out, r) float32.
        group_size: divides in. bits: 4 (codes are packed two to a byte).
    Returns:
        crossed, changed (0-d counts) and packed, uint8 (out, in / 2). Symmetric, step max|W| / 2^(bits - 1).
    """
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    merged = (weight.float() + lora_B @ lora_A).to(weight.dtype)

    def quantize(x, step):
        return torch.clamp(torch.round(x / step), low, high).to(torch.int8)

    before, after = (w.float().view(w.shape[0], -1, group_size) for w in (weight, merged))
    step0, step1 = (w.abs().amax(-1, keepdim=True) / 2 ** (bits - 1) for w in (before, after))
    codes0, frozen, codes1 = quantize(before, step0), quantize(after, step0), quantize(after, step1)
    pairs = codes1.view(weight.shape[0], -1, 2)
    packed = ((pairs[..., 0] & 15) | ((pairs[..., 1] & 15) << 4)).to(torch.uint8)
    return (frozen != codes0).sum(), (codes1 != codes0).sum(), packed


def example(shape: tuple[int, int], rank: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A bfloat16 weight (out, in) and a float32 adapter whose update has a few per cent of its size."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(shape, generator=generator) * 0.02).bfloat16()
    lora_A = torch.randn(rank, shape[1], generator=generator) * 0.08 / rank**0.5
    lora_B = torch.randn(shape[0], rank, generator=generator) * 0.01
    return weight.to(device), lora_A.to(device), lora_B.to(device)


def verify(weight: torch.Tensor, lora_A: torch.Tensor, lora_B: torch.Tensor, precision: str = "exact") -> None:
    """Raise unless kernel, specification and eager pipeline agree.

    The first rows are held against the specification bit for bit (on the exact path), everything against the eager
    pipeline up to merges that round otherwise when summed in another order.
    """
    ours = merge_quantize(weight, lora_A, lora_B, precision=precision)
    if precision == "exact":
        slab = slice(0, 16)
        want = merge_quantize_ref(weight[slab], lora_A, lora_B[slab])
        got = merge_quantize(weight[slab], lora_A, lora_B[slab])
        same = torch.equal(ours.packed[slab], want.packed) and torch.equal(ours.scales[slab], want.scales)
        if not same or got.stats.histogram != want.stats.histogram or got.stats.crossed != want.stats.crossed:
            raise AssertionError("kernel and specification disagree on the first rows")
        if not torch.equal(merge_dequantize(weight, lora_A, lora_B), ours.dequantized(weight.dtype)):
            raise AssertionError("merge_dequantize and merge_quantize disagree")
    crossed, changed, packed = eager_pipeline(weight, lora_A, lora_B)
    low, high = (packed & 15).to(torch.int8), (packed >> 4).to(torch.int8)
    theirs = torch.stack([low, high], -1).view(weight.shape)
    differ = (theirs != (ours.codes & 15)).float().mean().item()
    counts = (ours.stats.crossed, crossed.item()), (ours.stats.changed, changed.item())
    # bfloat16 merges by another order of summation differ in about 2^-10 of the weights, codes in fewer
    if differ > 1e-3 or any(abs(a - b) > 1e-3 * weight.numel() for a, b in counts):
        raise AssertionError(f"kernel and eager pipeline disagree: {differ:.2%} of codes, counts {counts}")


class Contestant(NamedTuple):
    """``run`` is timed; ``prepare`` comes before each run and is not."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


def merged_by_peft(weight: torch.Tensor, lora_A: torch.Tensor, lora_B: torch.Tensor) -> Contestant:
    """peft's merge of a LoRA layer and NF4 in blocks of 64 by bitsandbytes: another grid than ours, and no counts.

    The merge writes into the layer, which is given its weight back before each run; that copy is not timed.

    Raises:
        AssertionError: if the merged weight is not the eager one, up to the order of summation.
    """
    import peft
    from bitsandbytes.functional import quantize_4bit

    rows, columns = weight.shape
    linear = torch.nn.utils.skip_init(
        torch.nn.Linear, columns, rows, bias=False, dtype=weight.dtype, device=weight.device
    )
    config = peft.LoraConfig(r=lora_A.shape[0], lora_alpha=lora_A.shape[0], target_modules=["layer"])
    layer = peft.get_peft_model(torch.nn.ModuleDict({"layer": linear}), config).get_submodule("base_model.model.layer")
    layer.lora_A["default"].weight.data = lora_A.clone()
    layer.lora_B["default"].weight.data = lora_B.clone()

    def restore():
        layer.merged_adapters.clear()
        linear.weight.data.copy_(weight)

    def run():
        layer.merge(safe_merge=False)
        return quantize_4bit(linear.weight.data, blocksize=64, quant_type="nf4")

    restore()
    layer.merge(safe_merge=False)
    differ = (linear.weight.data != (weight.float() + lora_B @ lora_A).to(weight.dtype)).float().mean().item()
    if differ > 1e-2:
        raise AssertionError(f"peft's merge differs from the eager one in {differ:.2%} of weights")
    return Contestant(run, restore)


def contestants_of(weight, lora_A, lora_B, compiled: bool) -> dict[str, Contestant]:
    """Everything that is timed at one shape and rank, by the names of ``qru.kernel_record.NAMES``."""
    on_cpu = weight.device.type == "cpu"
    name = SPEC.full_name

    def enqueued(precision):
        return merge_quantize_op(weight, lora_A, lora_B, None, 1.0, name, False, precision, 0)

    def call():
        return merge_quantize(weight, lora_A, lora_B)

    found = {"ours": Contestant(call if on_cpu else lambda: enqueued("exact"))}
    if not on_cpu:  # the call waits for its counts; a loop over layers need not
        found["call"] = Contestant(call)
        found["tensor-core"] = Contestant(lambda: enqueued("tensor-core"))
    found["dequantize"] = Contestant(lambda: merge_dequantize_op(weight, lora_A, lora_B, 1.0, name, "exact", 0))
    found["eager"] = Contestant(lambda: eager_pipeline(weight, lora_A, lora_B))
    if compiled:
        torch.compiler.reset()  # each shape gets code of its own, which is its best
        fused = torch.compile(eager_pipeline, fullgraph=True, dynamic=False)
        found["compile"] = Contestant(lambda: fused(weight, lora_A, lora_B))
    found["product"] = Contestant(lambda: lora_B @ lora_A)
    if importlib.util.find_spec("bitsandbytes"):
        found["peft-bnb"] = merged_by_peft(weight, lora_A, lora_B)
    return found


def ceilings_of(device: str, size: int) -> tuple[dict[str, Contestant], dict[str, float]]:
    """What this machine can do: runs to be timed among the others, and the bytes or operations of each.

    Args:
        device: "cpu" or "cuda".
        size: of the square product; the arrays read and copied hold 32 * size^2 bytes.
    """
    source = torch.randn(8 * size * size, device=device)
    target = torch.empty_like(source)
    a = torch.randn(size, size, device=device)
    runs = {
        "read": Contestant(lambda: torch.dot(source, source)),
        "copy": Contestant(lambda: target.copy_(source)),
        "fma": Contestant(lambda: a @ a),
    }
    return runs, {"read": source.numel() * 4, "copy": 2 * source.numel() * 4, "fma": 2 * size**3}


def once(contestant: Contestant) -> float:
    """Milliseconds of one run on the CPU."""
    contestant.prepare()
    start = time.perf_counter()
    contestant.run()
    return (time.perf_counter() - start) * 1e3


def once_on_cuda(contestant: Contestant, flushed: torch.Tensor, runs: int = 10) -> float:
    """Median milliseconds on the GPU of a few runs with a cold cache, without the host's time to launch them.

    The GPU first waits while the host enqueues everything; events around each run are then its time alone.
    """
    events = []
    torch.cuda._sleep(SLEEP)
    for _ in range(runs):
        contestant.prepare()
        flushed.sum()  # read, not written: dirty lines would be written back in the timed run
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        contestant.run()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


def interleaved(contestants: dict[str, Contestant], rounds: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each contestant in each round, after one round that does not count."""
    flushed = torch.ones(FLUSHED // 4, device="cuda") if device == "cuda" else None
    times = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        for name in random.Random(round_).sample(list(contestants), len(contestants)):
            contestant = contestants[name]
            elapsed = once(contestant) if device == "cpu" else once_on_cuda(contestant, flushed)
            if round_ > 0:
                times[name].append(elapsed)
    return times


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; of a single value, that value."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


def summary(times: Sequence[float], ours: Sequence[float], resamples: int = 1000) -> dict[str, float]:
    """Median, quartiles and relative spread of times in ms, and the ratio of medians to ours.

    ``ratio_low`` and ``ratio_high`` bound 95 % of the ratios of medians over rounds drawn with replacement.
    """
    low, median, high = quartiles(times)
    draw, pairs, ratios = random.Random(0), list(zip(times, ours, strict=True)), []
    for _ in range(resamples):
        drawn_times, drawn_ours = zip(*draw.choices(pairs, k=len(pairs)), strict=True)
        ratios.append(statistics.median(drawn_times) / statistics.median(drawn_ours))
    ratios.sort()
    return {
        "ms": median,
        "low": low,
        "high": high,
        "spread": (high - low) / median,
        "ratio": median / statistics.median(ours),
        "ratio_low": ratios[round(0.025 * (resamples - 1))],
        "ratio_high": ratios[round(0.975 * (resamples - 1))],
    }


def bench(shape: tuple[int, int], rank: int, rounds: int = 9, compiled: bool = True, device: str = "cpu") -> dict:
    """Verify and time one shape.

    Args:
        shape: (out, in), bfloat16. rank: of the adapter. rounds: timed, after one that is not.
        compiled: also time torch.compile of the eager pipeline (its compilation is not timed).
        device: "cpu" or "cuda".
    Returns:
        times of every contestant (see ``summary``), the ceilings, and ours against them: GB/s, GFLOP/s of the product,
        and the share of the ceiling, the larger of the times that memory and float32 products need over ours.
    Raises:
        AssertionError: if the results disagree; nothing is timed then.
    """
    weight, lora_A, lora_B = example(shape, rank, device)
    for precision in ("exact",) if device == "cpu" else ("exact", "tensor-core"):
        verify(weight, lora_A, lora_B, precision)
    contestants = contestants_of(weight, lora_A, lora_B, compiled)
    large = weight.numel() >= 2**22
    runs, work = ceilings_of(device, (1024 if device == "cpu" else 4096) if large else 256)
    times = interleaved(contestants | runs, rounds, device)

    fastest = {name: work[name] / min(times.pop(name)) * 1e3 for name in runs}
    bytes_per_s, flops_per_s = max(fastest["read"], fastest["copy"]), fastest["fma"]
    groups = weight.numel() // group_width(shape, SPEC)
    bytes_moved = weight.numel() * (2 + SPEC.bits / 8) + 4 * (groups + lora_A.numel() + lora_B.numel())
    flops = 2 * rank * weight.numel()
    memory_ms, fma_ms = bytes_moved / bytes_per_s * 1e3, flops / flops_per_s * 1e3
    ours = statistics.median(times["ours"])
    return {
        "shape": list(shape),
        "rank": rank,
        "rounds": rounds,
        "contestants": {name: summary(values, times["ours"]) for name, values in times.items()},
        "bytes": bytes_moved,
        "flops": flops,
        "ceilings": {
            **{f"{name}_per_s": value for name, value in fastest.items()},
            "bytes_per_s": bytes_per_s,
            "flops_per_s": flops_per_s,
            "memory_ms": memory_ms,
            "fma_ms": fma_ms,
            "binds": "memory" if memory_ms >= fma_ms else "fma",
        },
        "gb_per_s": bytes_moved / ours / 1e6,
        "gflop_per_s": flops / ours / 1e6,
        "share_of_ceiling": max(memory_ms, fma_ms) / ours,
    }


def measure(
    scale: str = "mini",
    rows: int | None = None,
    columns: int | None = None,
    ranks: Sequence[int | str] = (),
    shapes: str | None = None,
    threads: int | None = None,
    rounds: int | None = None,
    compiled: bool | None = None,
    device: str = "cpu",
    report: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Verify and time shapes and ranks one after another.

    Args:
        scale: "smoke" or "mini": what holds for all that is not given (``SIZES``).
        rows, columns: out and in of one matrix. shapes: "llama2-7b", in their place.
        ranks: of the adapter. threads: for all contestants alike; torch's own number when None.
        rounds: timed runs of each contestant. compiled: whether torch.compile takes part.
        device: "cpu" or "cuda". report: is given a line a result.
    Returns:
        a record: ``config``, ``results`` (see ``bench``) and ``provenance``; plain JSON.
    Raises:
        ValueError: for a name or number that makes no sense. RuntimeError: if the kernel is not built for the device.
        AssertionError: if results disagree.
    """
    for label, value, known in (
        ("scale", scale, SIZES),
        ("shapes", shapes, SHAPES),
        ("device", device, ("cpu", "cuda")),
    ):
        if value not in known and not (label == "shapes" and value is None):
            raise ValueError(f"{label} is {value!r}; choose one of {list(known)}")
    if shapes and (rows or columns):
        raise ValueError(f"shapes is {shapes!r} and rows, columns are {rows}, {columns}; give one or the other")
    size = SIZES[scale]
    default_rows, default_columns = size["shapes"][0]
    chosen = SHAPES[shapes] if shapes else [(rows or default_rows, columns or default_columns)]
    for shape in chosen:
        group_width(shape, SPEC)
    wanted = [int(rank) for rank in ranks] or size["ranks"]
    rounds = rounds or size["rounds"]
    compiled = size["compiled"] if compiled is None else compiled
    for label, value in (("rank", min(wanted)), ("rounds", rounds), ("rows", chosen[0][0]), ("threads", threads or 1)):
        if value < 1:
            raise ValueError(f"{label} is {value}; give at least 1")
    info = build_info()
    if not info["built"] or (device == "cuda" and not info["cuda"]):
        raise RuntimeError(f"the kernel is not built for {device}, there is nothing to time. Build: {BUILD_COMMAND}")

    load = os.getloadavg()[0]
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        results = []
        used = torch.get_num_threads()
        for shape in chosen:
            for rank in wanted:
                results.append(bench(shape, rank, rounds, compiled, device))
                report(line(results[-1]))
    finally:
        torch.set_num_threads(before)
    came_from = provenance()
    came_from["kernel"] = info
    came_from["load_before"] = load  # runnable processes, averaged over the minute before: near 0 on a quiet machine
    if device == "cuda":
        came_from["hardware"]["gpu"] = torch.cuda.get_device_name()
    if "peft-bnb" in results[0]["contestants"]:
        came_from["versions"]["bitsandbytes"] = importlib.metadata.version("bitsandbytes")
    config = {"scale": scale, "device": device, "threads": used, "dtype": "bfloat16", "quantizer": SPEC.name}
    return {"kind": KIND, "config": config, "results": results, "provenance": came_from}


def keep(record: dict[str, Any], path: Path | None = None) -> Path:
    """Write a record atomically, to a folder of its own below ``runs/kernel`` unless told where; returns its path."""
    config = record["config"]
    folder = f"{config['device']}-{config['threads']}-threads-{time.strftime('%Y%m%d-%H%M%S')}"
    path = path or paths.runs_dir() / "kernel" / folder / "record.json"
    write_json(path, record)
    return path


def read(path: str) -> dict[str, Any]:
    """The record at a path that is absolute or relative to the repository; ValueError if it is none of this kind."""
    return checked(read_json(paths.root() / path), path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Command line: a line a result, and a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--columns", type=int)
    parser.add_argument("--shapes", choices=list(SHAPES), help="a model's, in place of rows and columns")
    parser.add_argument("--ranks", type=int, nargs="+", default=[])
    parser.add_argument("--threads", type=int, help="of every contestant; torch's own number unless given")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--smoke", action="store_true", help="256 x 256, three rounds, no torch.compile")
    parser.add_argument("--json", type=Path, help="the record's path; runs/kernel/<device, time>/record.json otherwise")
    given = parser.parse_args(argv)
    record = measure(
        "smoke" if given.smoke else "mini",
        given.rows,
        given.columns,
        given.ranks,
        given.shapes,
        given.threads,
        given.rounds,
        False if given.no_compile else None,
        given.device,
        lambda text: print(text, flush=True),
    )
    print(f"record: {keep(record, given.json)}")
    return record


if __name__ == "__main__":
    main()
