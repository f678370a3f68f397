"""How far the weights of a recorded run moved, in the units of the quantizer that comes after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from qru import checkpoint, compress, models, paths
from qru.ops import QuantSpec, merge_quantize
from qru.ops.grid import codes_on
from qru.records import Record
from qru.registry import unknown
from qru.tables import layer_name, shares


def checkpoints(record: Record) -> tuple[Path, Path]:
    """Folders of the target and of the unlearned model of a run.

    Raises:
        FileNotFoundError: one is gone (names it and how to make it again).
        ValueError: the target that the run was given is not found, or is not what it was.
    """
    known, unlearned = record.provenance["models"]["target"], record.path.parent / "model"
    if named := record.config.get("target"):
        # Where it was; or, for a record that came from elsewhere, where its name leads here.
        target = Path(record.provenance["folders"]["target"])
        target = target if target.is_dir() else checkpoint.located(named, "target")
        if checkpoint.content_digest(target) != known:
            raise ValueError(f"target {named} is not what {record.path} was made from. Run the experiment again.")
    else:
        target = paths.cache_dir() / "models" / known
    for folder in (target, unlearned):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is gone. Delete {record.path} and run the experiment again.")
    return target, unlearned


def stored_pairs(record: Record) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> its weight before and after, (out, in) in bf16, for every linear layer."""
    before, after = (
        compress.stored_layers(models.load_weights(folder, torch.bfloat16)) for folder in checkpoints(record)
    )
    return {name: (weight, after[name]) for name, weight in before.items()}


def steps_of(weight: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """The step of every weight's group, (out, in), from the kernel."""
    scales = merge_quantize(weight, spec=spec).scales
    return scales.repeat_interleave(weight.numel() // scales.numel()).view(weight.shape)


def powers_of_two(values: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """How many values lie in [2^k, 2^(k+1)) for k = low … high − 1; those outside count to the nearest bin."""
    exponents = torch.frexp(values.float()).exponent - 1  # exact, where log2 may round up at an edge
    return torch.bincount((exponents.clamp(low, high - 1) - low).flatten().long(), minlength=high - low)


def weight_changes(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]], spec: QuantSpec) -> pd.DataFrame:
    """QUAIL's analysis (arXiv 2601.15538): how far weights moved, in steps, and how many are in the bin they were in.

    Args:
        pairs: layer -> its weight before and after, (out, in) in one dtype: ``stored_pairs`` of a run, or those of two
            models by ``compress.stored_layers``.
        spec: the grid; bins are those of the weights before.

    Returns:
        A row a layer and a last one, ``layer`` "all": ``layer``, ``block``, ``module``, ``weights`` (count), ``moved``
        (percent, changed at all), ``median_change`` (of |ΔW| over all weights), ``median_moved`` (over those that
        moved; NaN where none did), ``step`` (median over weights), ``ratio`` (median_moved / step) and ``overlap``
        (bucket overlap: 100 less the percent of weights that crossed).
    """
    rows, every = [], []
    for name, (before, after) in pairs.items():
        size, steps = (after.float() - before.float()).abs().flatten(), steps_of(before, spec).flatten()
        crossed = merge_quantize(before, new_weight=after, spec=spec, name=name).stats.crossed
        rows.append(layer_name(name) | _change(size, steps, crossed))
        every.append((size, steps, crossed))
    sizes, steps, crossed = zip(*every, strict=True)
    total = _change(torch.cat(sizes), torch.cat(steps), sum(crossed))
    return pd.DataFrame([*rows, {"layer": "all", "block": -1, "module": "all"} | total])


def _change(size: torch.Tensor, steps: torch.Tensor, crossed: int) -> dict[str, float]:
    moved = size[size > 0]
    middle, step = (moved.median().item() if len(moved) else float("nan")), steps.median().item()
    return {
        "weights": len(size),
        "moved": 100 * len(moved) / len(size),
        "median_change": size.median().item(),
        "median_moved": middle,
        "step": step,
        "ratio": middle / step if step else float("nan"),
        "overlap": 100 * (1 - crossed / len(size)),
    }


def moved_by_magnitude(record: Record, low: int = -14, high: int = 1) -> pd.DataFrame:
    """How many weights changed at all, by their size before.

    A bf16 number in [2^k, 2^(k+1)) has spacing 2^(k−7), and a step under half of that is rounded away: weights that
    the optimizer steps in bf16 stop moving above a certain size.

    Args:
        low, high: exponents of the first bin and of the end of the last.

    Returns:
        Columns ``magnitude`` (lower edge of a bin, 2^k), ``weights`` and ``moved`` (counts).
    """
    weights, moved = (torch.zeros(high - low, dtype=torch.long) for _ in range(2))
    for before, after in stored_pairs(record).values():
        size = before.float().abs()
        weights += powers_of_two(size[size > 0], low, high)
        moved += powers_of_two(size[(size > 0) & (before != after)], low, high)
    edges = [2.0**k for k in range(low, high)]
    return pd.DataFrame({"magnitude": edges, "weights": weights.tolist(), "moved": moved.tolist()})


def update_sizes(record: Record, spec: QuantSpec, low: int = -14, high: int = 5) -> pd.DataFrame:
    """The distribution of |ΔW|/s over all weights that moved.

    Args:
        spec: whose step s is taken, on the weights before unlearning.
        low, high: exponents of the first bin and of the end of the last.

    Returns:
        Columns ``steps`` (lower edge of a bin, 2^k) and ``share`` (percent of all weights); what is missing to 100
        did not move.
    """
    counts, total = torch.zeros(high - low, dtype=torch.long), 0
    for before, after in stored_pairs(record).values():
        difference = (after.float() - before.float()).abs()
        steps = steps_of(before, spec)
        seen = (difference > 0) & (steps > 0)
        counts += powers_of_two(difference[seen] / steps[seen], low, high)
        total += before.numel()
    edges = [2.0**k for k in range(low, high)]
    return pd.DataFrame({"steps": edges, "share": (100 * counts / total).tolist()})


def reports(record: Record, quantizers: Sequence[str]) -> dict[str, dict]:
    """``qru.audit`` of a run's saved weights: quantizer (``"rtn-int4-g128"``) -> report."""
    target, unlearned = (models.load_weights(folder, torch.bfloat16) for folder in checkpoints(record))
    return {name: compress.audit(target, unlearned, QuantSpec.parse(name)) for name in quantizers}


def grid_table(record: Record, bits: Sequence[int | str], groups: Sequence[str]) -> pd.DataFrame:
    """Crossings of the whole model over bits × groups, computed from its saved weights.

    Args:
        bits: of 2, 3, 4, 8.
        groups: as quantizer names write them: ``"g64"``, ``"row"``, ``"tensor"``.

    Returns:
        One row a grid: ``bits``, ``group``, and the columns of ``qru.tables.shares``.
    """
    names = {f"rtn-int{n}-{group}": (int(n), group) for n in bits for group in groups}
    found = reports(record, list(names))
    rows = [{"bits": n, "group": group, **shares(found[name]["total"])} for name, (n, group) in names.items()]
    return pd.DataFrame(rows)


def on_grid(before: torch.Tensor, after: torch.Tensor, spec: QuantSpec, row: int = 0, count: int = 48) -> dict:
    """The first weights of one row, as the kernel rounds them before and after unlearning.

    Args:
        before, after: (out, in), in one dtype.
        spec: a symmetric grid.
        row, count: which row, and how many of its weights; they must lie in one group.

    Returns:
        The arguments of ``qru.figures.weight_row``.
    """
    known = merge_quantize(before, spec=spec)
    codes_after = codes_on(after, known.scales, known.zeros, spec)
    return {
        "before": before[row, :count].tolist(),
        "after": after[row, :count].tolist(),
        "codes_before": known.codes[row, :count].tolist(),
        "codes_after": codes_after[row, :count].tolist(),
        "step": float(known.scales[row, 0] if known.scales.shape[0] > 1 else known.scales[0, 0]),
    }


def typical_row(record: Record, spec: QuantSpec, layer: str | None = None, count: int = 48) -> dict:
    """``on_grid`` for the row of a layer in which a median number of these weights cross.

    Args:
        layer: name of a linear layer; the one in the middle of the model unless given.

    Raises:
        ValueError: no layer has that name.
    """
    pairs = stored_pairs(record)
    layer = list(pairs)[len(pairs) // 2] if layer is None else layer
    if layer not in pairs:
        raise unknown("layer", layer, pairs)
    before, after = pairs[layer]
    known = merge_quantize(before, spec=spec)
    crossed = (codes_on(after, known.scales, known.zeros, spec) != known.codes)[:, :count].sum(1)
    return on_grid(before, after, spec, int(crossed.argsort(stable=True)[len(crossed) // 2]), count)
