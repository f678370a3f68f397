"""Which weights of a checkpoint cross a quantization bin, and what is left of the update: any size, tensor by tensor.

Base and unlearned checkpoint (or the base with adapters merged) are read side by side from their files; two or three
tensors are in memory at a time, whatever the size of the model. Nothing here is about unlearning alone: any fine-tune
is audited so.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from qru.checkpoint import INDEX, file_sha256
from qru.counts import survival, total
from qru.ops import QuantSpec, merge_quantize
from qru.ops.grid import grid_of, group_width
from qru.peft_adapter import CONFIG_FILE, Adapter, into_digest, is_adapter, merged, open_adapter, update_of
from qru.records import provenance
from qru.shards import Shards, linear_layers_of, same_layers, stream

# Conventions, ours. A projection under the first: the update to a layer died. At least the second, over all layers and
# under every grid asked for: the update survives ("holds").
DIED, HOLDS = 0.1, 0.5
STILL = 0.5  # share of weights that did not move at all, from which the reading says what that looks like
# |ΔW|/s by powers of two: bin i counts [2^(LOWEST+i), 2^(LOWEST+i+1)); smaller and larger ones are in the end bins.
LOWEST, HIGHEST = -12, 3
# ||dW|| / ||W|| from which two checkpoints look like two models; of two that know nothing of each other it is near 1.4.
ANOTHER = 0.7
SAMPLED = 1 << 16  # weights of a layer that the distribution of |ΔW|/s is taken from, in evenly spaced rows
COMPARED = 1 << 20  # numbers of a tensor that is not quantized that are compared at a time: they stay in the cache


def audit_checkpoint(
    base: Path | str,
    unlearned: Path | str,
    specs: Sequence[QuantSpec] = (QuantSpec(),),
    adapters: Sequence[Path | str] = (),
    *,
    digests: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Audit an update between two checkpoints, or that of adapters, under one or several grids in one pass.

    Args:
        base: folder of the checkpoint before.
        unlearned: folder of the checkpoint after, or of a peft adapter of the base.
        specs: the grids.
        adapters: folders of further adapters, merged into ``unlearned`` in this order.
        digests: also compute the SHA-256 of every file that is read. Reads them a second time.
        progress: show a bar on stderr.

    Returns:
        Plain values, as JSON takes them:
        ``base``, ``unlearned``, ``adapters``: where they lie, and their files with size and SHA-256;
        ``specs``: spec -> ``{"layers": {layer: counts}, "total": counts, "died": [layer], "holds": bool}``, where
        counts is what ``CrossingStats`` holds, with ``projection`` and ``cosine``;
        ``movement``: spec -> layer -> ``{"unmoved": n, "bins": [n], "sampled": n}``, the distribution of |ΔW|/s (s: the
        base's step) in powers of two from ``lowest``; ``relative``: ||ΔW|| / ||W|| over all layers, from those rows;
        ``kept``: the tensors that are not quantized, ``{"changed": {name: {"values", "moved", "relative"}}, "same": n,
        "only_before": [name], "only_after": [name]}``;
        ``dtypes``: type -> weights that are stored in it; ``holds``; ``reading``: sentences; ``provenance``.

    Raises:
        ValueError: a checkpoint or adapter cannot be read or used, the two do not fit, a grid does not divide a row,
            NaN or Inf (each names file, layer and value).

    Source: arXiv 2602.13151 (grid, merge before quantization), arXiv 2601.15538 (bucket overlap).
    """
    specs = _distinct(specs)
    before = Shards(base, "BASE")
    layers = linear_layers_of(before)
    shapes = {layer: before.shape(name) for layer, name in layers.items()}
    folders = [*([unlearned] if is_adapter(unlearned) else []), *adapters]
    merging = [open_adapter(folder, shapes) for folder in folders]
    after = None if is_adapter(unlearned) else Shards(unlearned, "UNLEARNED")
    after_layers = {} if after is None else same_layers(before, layers, after)
    _check_groups(shapes, specs)

    squares = [0.0, 0.0]  # of dW and of W
    found = {spec.name: {} for spec in specs}
    moved = {spec.name: {} for spec in specs}
    known = hashlib.sha256() if any(adapter.base_sha256 for adapter in merging) else None
    kept = None if after is None else _kept_names(before, layers, after, after_layers)
    steps = [(layers[layer], after_layers.get(layer)) for layer in layers]
    shared = [] if kept is None else kept["shared"]
    sides = (before,) if after is None else (before, after)
    names = [step[: len(sides)] for step in steps] + [(name, name) for name in shared]
    size = sum(side.bytes(name) for step in names for side, name in zip(sides, step, strict=True))
    dtypes: dict[str, int] = {}
    changed: dict[str, dict] = {}
    with ThreadPoolExecutor(1, thread_name_prefix="digest") as reader:
        files = _files(before, after, merging)
        given_up = threading.Event()
        hashed = [reader.submit(file_sha256, path, given_up=given_up) if digests else None for path in files]
        try:
            with tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1000, disable=not progress) as bar:
                todo = iter([*layers, *shared])
                for tensors in stream(names, *sides):
                    name = next(todo)
                    bar.set_postfix_str(name, refresh=False)
                    if name in layers:
                        weight = tensors[0]
                        dtype = str(weight.dtype).removeprefix("torch.")
                        dtypes[dtype] = dtypes.get(dtype, 0) + weight.numel()
                        if known is not None:  # of what the adapters are merged into
                            into_digest(known, name, weight if after is None else tensors[1])
                        weight, update = _both(name, weight, tensors[1] if after is not None else None, merging)
                        for spec in specs:
                            found[spec.name][name] = _counted(name, weight, update, spec)
                        every = max(1, weight.numel() // SAMPLED)
                        rows, now = _rows(name, weight, update, every)
                        for spec in specs:
                            moved[spec.name][name] = _movement(name, weight, rows, now, spec)
                        for at, part in enumerate((now.float() - rows.float(), rows.float())):
                            squares[at] += weight.shape[0] / rows.shape[0] * float((part * part).sum())
                        del weight, update, rows, now, part
                    elif (difference := _difference(name, *tensors)) is not None:
                        changed[name] = difference
                    bar.update(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
                    del tensors
            if known is not None:
                for adapter in merging:
                    adapter.check_base(known.hexdigest())
        except BaseException:
            given_up.set()
            raise
        sums = [None if one is None else one.result() for one in hashed]
    result = {
        "base": str(before.folder),
        "unlearned": str(Path(unlearned).expanduser().resolve()),
        "adapters": [str(adapter.folder) for adapter in merging],
        "files": [
            {"path": str(path), "bytes": path.stat().st_size, "sha256": one}
            for path, one in zip(files, sums, strict=True)
        ],
        "dtypes": dtypes,
        "specs": {spec.name: _judged(found[spec.name], shapes) for spec in specs},
        "movement": moved,
        "lowest": LOWEST,
        "relative": math.sqrt(squares[0] / squares[1]) if squares[0] < math.inf > squares[1] > 0 else None,
        "kept": None if kept is None else _kept(kept, changed),
        "thresholds": {"died": DIED, "holds": HOLDS},
    }
    result["holds"] = _holds(result)
    result["reading"] = reading(result)
    result["provenance"] = provenance()
    return result


def block_of(layer: str) -> tuple[int, str]:
    """``"model.layers.3.mlp.up_proj"`` -> ``(3, "mlp.up_proj")``: which block a layer is in, and which module there."""
    match = re.search(r"\.(\d+)\.(.+)$", f".{layer}")
    return int(match[1]), match[2]


def by_module(layers: dict[str, dict]) -> dict[str, dict]:
    """Counts of the layers of one name in all blocks together: ``"mlp.up_proj"`` -> counts."""
    groups: dict[str, dict[str, dict]] = {}
    for layer, counts in layers.items():
        groups.setdefault(block_of(layer)[1], {})[layer] = counts
    return {module: total(those) for module, those in groups.items()}


def table(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each grid and layer, for a CSV file; the histogram of code changes is left out."""
    rows = []
    for spec, audited in result["specs"].items():
        for layer, counts in audited["layers"].items():
            block, module = block_of(layer)
            numbers = {key: value for key, value in counts.items() if not isinstance(value, list)}
            rows.append({"spec": spec, "layer": layer, "block": block, "module": module} | numbers)
    return rows


def reading(result: dict[str, Any]) -> list[str]:
    """What an audit found, in sentences."""
    one = next(iter(result["specs"].values()))["total"]
    layers = len(next(iter(result["specs"].values()))["layers"])
    by_adapter = bool(result["adapters"]) and result["kept"] is None
    lines = []
    if (result["relative"] or 0) >= ANOTHER:
        lines.append(
            f"The difference is {percent(result['relative'])} of the base's own size: these look like two models, and "
            "not like one before and after training. See that BASE is what the update started from; what follows "
            "holds of these two files."
        )
    if one["moved"] == 0:
        lines.append(
            f"None of the {one['weights']:,} weights of the {layers} quantized layers moved: there is nothing that "
            "quantization could lose in them."
        )
    for spec, audited in result["specs"].items():
        counts = audited["total"]
        if counts["projection"] is None:
            continue
        left, crossed = counts["projection"], counts["crossed"] / counts["weights"]
        lines.append(
            f"Of the update to these {layers} layers {percent(left)} survives {plain(spec)} (projection {left:.3f}, "
            f"cosine {number(counts['cosine'])}): {'it holds' if left >= HOLDS else 'it does not hold'}. "
            f"A bin is crossed by {percent(crossed)} of the weights; by "
            f"{percent(counts['predicted'] / counts['weights'])} if residuals were uniform in their bins."
        )
        if died := audited["died"]:
            named = ", ".join(died[:3]) + (f" and {len(died) - 3} more" if len(died) > 3 else "")
            lines.append(f"Under {plain(spec)} the update died in {len(died)} of {layers} layers: {named}.")
    still = 1 - one["moved"] / one["weights"]
    if still >= STILL and one["moved"]:
        like = (
            ": nothing was added to them, or less than half a spacing of the type they are stored in"
            if by_adapter
            else ", as in training that steps bf16 weights"
            if set(result["dtypes"]) == {"bfloat16"}
            else ""
        )
        lines.append(f"{percent(still)} of the weights did not move at all{like}.")
    if (kept := result["kept"]) and (alone := len({*kept["only_before"], *kept["only_after"]})):
        lines.append(
            f"{alone} tensor{'s' * (alone > 1)} that {'are' if alone > 1 else 'is'} not quantized "
            f"{'stand' if alone > 1 else 'stands'} on one side alone, or in another shape: see that both are one "
            "architecture."
        )
    if kept is None:
        lines.append("Embeddings, norms and head are the base's: the adapter leaves them as they are.")
    elif kept["changed"]:
        lines.append(
            f"{len(kept['changed'])} of {len(kept['changed']) + kept['same']} tensors that are not quantized "
            "(embeddings, norms, head) changed, too: that part of the update survives any of these grids."
        )
    else:
        lines.append("The tensors that are not quantized (embeddings, norms, head) did not change.")
    return lines


def percent(share: float) -> str:
    """A share in percent; what is not zero never reads as zero, nor what is not all as all."""
    value = 100 * share
    if value != 0 and abs(value) < 0.01:
        return "under 0.01 %" if value > 0 else "about 0 %"
    if 99.5 <= value < 100:
        return f"{min(value, 99.99):.2f} %"
    return f"{value:.2f} %" if abs(value) < 1 else f"{value:.1f} %" if abs(value) < 10 else f"{value:.0f} %"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def plain(spec: str) -> str:
    """``rtn-int4-g128`` -> ``int4 g128``."""
    return spec.removeprefix("rtn-").replace("-", " ", 1)


def _distinct(specs: Sequence[QuantSpec]) -> list[QuantSpec]:
    if not specs or not all(isinstance(spec, QuantSpec) for spec in specs):
        raise ValueError(f"specs is {specs!r}; give at least one QuantSpec (QuantSpec.parse reads a name).")
    return list(dict.fromkeys(specs))


def _check_groups(shapes: dict[str, tuple[int, int]], specs: Sequence[QuantSpec]) -> None:
    for spec in specs:
        for layer, shape in shapes.items():
            group_width(shape, spec, layer)


def _both(
    layer: str, weight: torch.Tensor, after: torch.Tensor | None, adapters: list[Adapter]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """A layer's weight before and what was done to it, in one type that holds both sides exactly."""
    if after is None:
        return weight, update_of(weight, layer, adapters)
    after = merged(after, layer, adapters)
    dtype = torch.promote_types(weight.dtype, after.dtype)
    return weight.to(dtype), {"new_weight": after.to(dtype)}


def _counted(layer: str, weight: torch.Tensor, update: dict[str, Any], spec: QuantSpec) -> dict[str, Any]:
    stats = merge_quantize(weight, **update, spec=spec, name=layer).stats.as_dict()
    return stats | survival(stats)


def _rows(layer: str, weight: torch.Tensor, update: dict[str, Any], every: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every so many rows of a layer, before and after its update."""
    rows = weight[::every].contiguous()
    if "lora_B" in update:
        few = update | {"lora_B": update["lora_B"][::every]}
        return rows, merge_quantize(rows, **few, spec=QuantSpec(bits=8, group_size=-1), merged=True, name=layer).merged
    return rows, update["new_weight"][::every] if "new_weight" in update else rows


def _movement(
    layer: str, weight: torch.Tensor, rows: torch.Tensor, now: torch.Tensor, spec: QuantSpec
) -> dict[str, Any]:
    """|ΔW|/s of some rows of a layer, by powers of two; weights of groups without a step are left out."""
    if spec.group_size == "tensor":  # the step of the whole matrix, not of these rows
        ends = torch.stack(torch.aminmax(weight))[None]
        steps = grid_of(ends, replace(spec, group_size=-1), layer)[0].expand(rows.shape[0], 1)
    else:
        steps = grid_of(rows, spec, layer)[0]
    distance = (now.float() - rows.float()).abs().view(*steps.shape, -1)
    distance = (distance / steps[..., None])[steps > 0]
    exponent = torch.frexp(distance)[1].long() - 1  # x = m 2^e with m in [1/2, 1): floor(log2 x) = e - 1, exactly
    still = distance == 0
    bins = (exponent[~still].clamp(LOWEST, HIGHEST) - LOWEST).flatten()
    counted = torch.bincount(bins, minlength=HIGHEST - LOWEST + 1).tolist()
    return {"unmoved": int(still.sum()), "bins": counted, "sampled": distance.numel()}


def _kept_names(before: Shards, layers: dict, after: Shards, after_layers: dict) -> dict[str, list[str]]:
    """The names of tensors that are not quantized: on both sides with one shape, or not."""
    mine = [name for name in before.names if name not in set(layers.values())]
    theirs = [name for name in after.names if name not in set(after_layers.values())]
    shared = [name for name in mine if name in after and before.shape(name) == after.shape(name)]
    return {
        "shared": shared,
        "only_before": [name for name in mine if name not in set(shared)],
        "only_after": [name for name in theirs if name not in set(shared)],
    }


def _difference(name: str, before: torch.Tensor, after: torch.Tensor) -> dict[str, Any] | None:
    """How far a tensor that is not quantized moved, or ``None`` if it did not."""
    if before.dtype == after.dtype and torch.equal(before, after):
        return None
    dtype = torch.promote_types(torch.promote_types(before.dtype, after.dtype), torch.float32)
    moved, change, size = 0, 0.0, 0.0
    for start in range(0, before.numel(), COMPARED):
        old, new = (side.reshape(-1)[start : start + COMPARED].to(dtype) for side in (before, after))
        for label, part in (("BASE", old), ("UNLEARNED", new)):
            if not part.isfinite().all():
                raise ValueError(f"{label}: tensor {name} holds NaN or Inf; mend the checkpoint before quantizing it.")
        size += float(torch.dot(old, old))
        if differs := int((old != new).sum()):
            moved += differs
            change += float(torch.dot(new - old, new - old))
    if not moved:
        return None
    relative = math.sqrt(change / size) if 0 < size < math.inf and change < math.inf else None
    return {"values": before.numel(), "moved": moved, "relative": relative}


def _kept(kept: dict[str, list[str]], changed: dict[str, dict]) -> dict[str, Any]:
    return {
        "changed": changed,
        "same": len(kept["shared"]) - len(changed),
        "only_before": kept["only_before"],
        "only_after": kept["only_after"],
    }


def _judged(layers: dict[str, dict], shapes: dict) -> dict[str, Any]:
    """The counts of one grid in the model's order, their sum, the layers where the update died, and the verdict."""
    ordered = {layer: layers[layer] for layer in shapes}
    summed = total(ordered)
    died = [layer for layer, counts in ordered.items() if (counts["projection"] or 0) < DIED and counts["moved"]]
    return {
        "layers": ordered,
        "total": summed,
        "modules": by_module(ordered),
        "died": died,
        "holds": summed["projection"] is None or summed["projection"] >= HOLDS,
    }


def _holds(result: dict[str, Any]) -> bool:
    """Whether the update survives every grid; where nothing at all changed there is no update, and that is no."""
    moved = any(audited["total"]["moved"] for audited in result["specs"].values())
    if not moved and not (result["kept"] and result["kept"]["changed"]):
        return False
    return all(audited["holds"] for audited in result["specs"].values())


def _files(before: Shards, after: Shards | None, adapters: list[Adapter]) -> list[Path]:
    """Every file that an audit reads: configurations, indexes, weights."""
    found = []
    for side in (before, after):
        if side is not None:
            beside = (side.folder / "config.json", side.folder / INDEX)
            found += [*(path for path in beside if path.is_file()), *side.files]
    for adapter in adapters:
        found += [adapter.folder / CONFIG_FILE, adapter.file.path]
    return list(dict.fromkeys(found))
