"""What a record of the kernel's benchmark says, in words and tables. ``qru.ops.bench`` writes such records."""

from __future__ import annotations

from typing import Any

import pandas as pd

KIND = "kernel-benchmark"
# Contestants in the order they are shown, and what they do.
NAMES = {
    "ours": "qru, one pass",
    "dequantize": "qru, values instead of codes",
    "tensor-core": "qru on tensor cores",
    "call": "qru, waiting for counts",
    "product": "B @ A alone",
    "compile": "torch.compile",
    "peft-bnb": "peft + bitsandbytes NF4",
    "eager": "eager PyTorch",
}
NOTE = "peft + bitsandbytes NF4 merges and quantizes to another grid (blocks of 64) and counts nothing."


def checked(record: Any, name: str = "this") -> dict[str, Any]:
    """The record, if it is one of the kernel.

    Raises:
        ValueError: it is something else (names it).
    """
    if not isinstance(record, dict) or record.get("kind") != KIND or not record.get("results"):
        raise ValueError(f"{name} is no record of the kernel's benchmark. Make one: make bench")
    return record


def line(result: dict[str, Any]) -> str:
    """One shape and rank on one line of text."""
    rows, columns = result["shape"]
    ours = result["contestants"]["ours"]
    others = [
        f"{NAMES[name]} {value['ms']:.3g} ms, {ratio(value)}"
        for name, value in in_order(result).items()
        if name != "ours"
    ]
    binds, share = result["ceilings"]["binds"], result["share_of_ceiling"]
    return (
        f"{rows}x{columns} r={result['rank']}: {ours['ms']:.3g} ms (spread {ours['spread']:.0%}, "
        f"n={result['rounds']}), {result['gb_per_s']:.3g} GB/s, {result['gflop_per_s']:.3g} GFLOP/s, {share:.0%} of "
        f"the {binds} ceiling; {'; '.join(others)}"
    )


def ratio(value: dict[str, float]) -> str:
    """A contestant's time over ours, with its 95 % interval."""
    return f"{value['ratio']:.3g}x [{value['ratio_low']:.3g}, {value['ratio_high']:.3g}]"


def in_order(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The contestants of one result in the order of ``NAMES``."""
    return {name: result["contestants"][name] for name in NAMES if name in result["contestants"]}


def table(record: dict[str, Any]) -> pd.DataFrame:
    """A row a shape, rank and contestant: median in ms, spread (interquartile range over median), ratio to ours."""
    rows = [
        {
            "shape": "{} × {}".format(*result["shape"]),
            "rank": result["rank"],
            "contestant": NAMES[name],
            "ms": value["ms"],
            "spread %": 100 * value["spread"],
            "ratio": value["ratio"],
            "95 %": f"{value['ratio_low']:.3g} – {value['ratio_high']:.3g}",
        }
        for result in record["results"]
        for name, value in in_order(result).items()
    ]
    return pd.DataFrame(rows).set_index(["shape", "rank", "contestant"])


def ceiling_table(record: dict[str, Any]) -> pd.DataFrame:
    """A row a shape and rank: what ours reaches, what the machine could, and which ceiling binds."""
    rows = [
        {
            "shape": "{} × {}".format(*result["shape"]),
            "rank": result["rank"],
            "GB/s": result["gb_per_s"],
            "of": result["ceilings"]["bytes_per_s"] / 1e9,
            "GFLOP/s": result["gflop_per_s"],
            "of ": result["ceilings"]["flops_per_s"] / 1e9,
            "binds": result["ceilings"]["binds"],
            "% of ceiling": 100 * result["share_of_ceiling"],
        }
        for result in record["results"]
    ]
    return pd.DataFrame(rows).set_index(["shape", "rank"])


def machine(record: dict[str, Any]) -> str:
    """Where it was measured, in a few words."""
    hardware, config = record["provenance"]["hardware"], record["config"]
    if config["device"] == "cuda":
        return hardware["gpu"]
    threads = config["threads"]
    return (
        f"{threads} thread{'s' * (threads != 1)} of {hardware['processor']} ({record['provenance']['kernel']['isa']})"
    )


def origin(record: dict[str, Any]) -> str:
    """Commit, versions and how busy the machine was: one line."""
    source = record["provenance"]
    known = [name for name in ("torch", "peft", "bitsandbytes") if name in source["versions"]]
    versions = ", ".join(f"{name} {source['versions'][name]}" for name in known)
    changed = " with changes not committed" if source["dirty"] else ""
    return (
        f"commit {(source['commit'] or 'unknown')[:10]}{changed}; {versions}; load before {source['load_before']:.1f}"
    )


def summary(record: dict[str, Any]) -> str:
    """A Markdown paragraph and table: a row a shape and rank, contestants as multiples of our time."""
    results = record["results"]
    names = [
        name for name in ("eager", "compile", "peft-bnb", "product") if all(name in r["contestants"] for r in results)
    ]
    head = ["matrix", "rank", "ms", "of the ceiling", *(NAMES[name] for name in names)]
    lines = [
        f"{record['config']['dtype']} to {record['config']['quantizer']} on {machine(record)}; medians of "
        f"{results[0]['rounds']} interleaved runs, times ours with 95 % intervals; {origin(record)}.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for result in results:
        ours, ceiling = result["contestants"]["ours"], result["ceilings"]["binds"]
        cells = [
            "{} × {}".format(*result["shape"]),
            str(result["rank"]),
            f"{ours['ms']:.3g}",
            f"{result['share_of_ceiling']:.0%} ({'memory' if ceiling == 'memory' else 'multiply-adds'})",
            *(ratio(result["contestants"][name]).replace("x [", "× [") for name in names),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
