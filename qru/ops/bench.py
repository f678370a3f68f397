"""How fast ``merge_quantize`` is, against eager PyTorch, torch.compile and the bare product of the adapter.

    python -m qru.ops.bench                       # 4096 x 4096, bfloat16, int4 in groups of 128, ranks 16 and 64
    python -m qru.ops.bench --smoke               # seconds: small, to keep this file honest

Results are verified before anything is timed. Timings of all contestants are interleaved, so that a busy machine slows
all of them alike; medians and the ratios of medians are reported, with the spread (interquartile range over median).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from qru.ops.extension import build_info
from qru.ops.grid import QuantSpec
from qru.ops.merge_quantize import merge_quantize

LLAMA2_7B_SHAPES = {"q_proj": (4096, 4096), "gate_proj": (11008, 4096), "down_proj": (4096, 11008)}


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


def verify(weight: torch.Tensor, lora_A: torch.Tensor, lora_B: torch.Tensor) -> None:
    """Raise unless kernel and eager pipeline agree, up to merges that round otherwise when summed in another order."""
    ours = merge_quantize(weight, lora_A, lora_B)
    crossed, changed, packed = eager_pipeline(weight, lora_A, lora_B)
    low, high = (packed & 15).to(torch.int8), (packed >> 4).to(torch.int8)
    theirs = torch.stack([low, high], -1).view(weight.shape)
    differ = (theirs != (ours.codes & 15)).float().mean().item()
    counts = (ours.stats.crossed, crossed.item()), (ours.stats.changed, changed.item())
    # bfloat16 merges by another order of summation differ in about 2^-10 of the weights, codes in fewer
    if differ > 1e-3 or any(abs(a - b) > 1e-3 * weight.numel() for a, b in counts):
        raise AssertionError(f"kernel and eager pipeline disagree: {differ:.2%} of codes, counts {counts}")


def interleaved(contestants: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each contestant, ``repeats`` rounds of one run each, after one round that does not count."""

    def once(run):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3

    times = {name: [] for name in contestants}
    for round_ in range(repeats + 1):
        for name, run in contestants.items():
            elapsed = once(run)
            if round_ > 0:
                times[name].append(elapsed)
    return times


def spread(times: list[float]) -> float:
    """Interquartile range over the median."""
    if len(times) < 2:
        return 0.0
    first, median, third = statistics.quantiles(times, n=4)
    return (third - first) / median


def machine_limits(device: str, size: int = 1024) -> dict[str, float]:
    """What this machine reaches now: bytes per second of a copy, float32 operations per second of a product."""
    source = torch.randn(32 * size * size // 4, device=device)
    target = torch.empty_like(source)
    a = torch.randn(size, size, device=device)
    times = interleaved({"copy": lambda: target.copy_(source), "product": lambda: a @ a}, 5, device)
    return {
        "bytes_per_s": 2 * source.numel() * 4 / min(times["copy"]) * 1e3,
        "flops_per_s": 2 * size**3 / min(times["product"]) * 1e3,
    }


def bench(shape: tuple[int, int], rank: int, repeats: int = 7, compiled: bool = True, device: str = "cpu") -> dict:
    """Verify and time one shape.

    Args:
        shape: (out, in), bfloat16. rank: of the adapter. repeats: timed rounds.
        compiled: also time torch.compile of the eager pipeline (its compilation takes a minute and is not timed).
        device: "cpu" or "cuda".
    Returns:
        medians in ms, spreads, ratios to ours, GB/s, and the share of the machine's limit (memory or float32 products,
        whichever binds) that we reach.
    Raises:
        AssertionError: if the results disagree; nothing is timed then.
    """
    weight, lora_A, lora_B = example(shape, rank, device)
    verify(weight, lora_A, lora_B)
    contestants = {
        "ours": lambda: merge_quantize(weight, lora_A, lora_B),
        "eager": lambda: eager_pipeline(weight, lora_A, lora_B),
        "product": lambda: lora_B @ lora_A,
    }
    if compiled:
        fused = torch.compile(eager_pipeline, fullgraph=True)
        contestants["compile"] = lambda: fused(weight, lora_A, lora_B)
    times = interleaved(contestants, repeats, device)
    medians = {name: statistics.median(values) for name, values in times.items()}
    limits = machine_limits(device)
    bytes_moved = weight.numel() * (2 + 0.5 + 4 / 128) + 4 * (lora_A.numel() + lora_B.numel())
    needed = {
        "memory_ms": bytes_moved / limits["bytes_per_s"] * 1e3,
        "product_ms": 2 * rank * weight.numel() / limits["flops_per_s"] * 1e3,
    }
    return {
        "shape": list(shape),
        "rank": rank,
        "spec": QuantSpec().name,
        "device": device,
        "threads": torch.get_num_threads(),
        "isa": build_info().get("isa"),
        "ms": medians,
        "spread": {name: spread(values) for name, values in times.items()},
        "ratio": {name: value / medians["ours"] for name, value in medians.items() if name != "ours"},
        "gb_per_s": bytes_moved / medians["ours"] / 1e6,
        "limits": {**limits, **needed},
        "share_of_limit": max(needed.values()) / medians["ours"],
    }


def main(argv: list[str] | None = None) -> list[dict]:
    """Command line; prints one line per rank and, with ``--json``, writes all results to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's own number")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--smoke", action="store_true", help="256 x 256, two rounds, no torch.compile")
    parser.add_argument("--json", help="write the results here")
    given = parser.parse_args(argv)
    if given.threads:
        torch.set_num_threads(given.threads)
    shape, repeats = ((256, 256), 2) if given.smoke else ((given.rows, given.columns), given.repeats)
    results = []
    for rank in given.ranks:
        result = bench(shape, rank, repeats, not (given.no_compile or given.smoke), given.device)
        results.append(result)
        ratios = ", ".join(f"{name} {value:.2f}x" for name, value in result["ratio"].items())
        print(
            f"{shape[0]}x{shape[1]} r={rank} {result['threads']} threads: {result['ms']['ours']:.2f} ms "
            f"(spread {result['spread']['ours']:.0%}), {result['gb_per_s']:.1f} GB/s, "
            f"{result['share_of_limit']:.0%} of the limit; {ratios}",
            flush=True,
        )
    if given.json:
        with open(given.json, "w") as file:
            json.dump(results, file, indent=1)
    return results


if __name__ == "__main__":
    main()
