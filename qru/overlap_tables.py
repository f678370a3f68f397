"""QUAIL's analysis in print: how far weights moved beside the step, and how many stay in their bin (2601.15538)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qru.figures import MODULE_ORDER
from qru.method_tables import GUARDS, quantizer_title
from qru.paper_tables import arm_name, counted, in_order, listed
from qru.records import SECTIONS, named_or_all, read_json
from qru.sheet import Block, Cell, Row, Sheet
from qru.tables import layer_name, number
from qru.typeset import method_title

KIND = "weight-changes"
KEPT = Path(__file__).resolve().parent.parent / "paper" / "records" / "overlap"
MAKE = "Make one: python -m qru.overlap_record runs/<run>"
ALL = "all"
METHOD = "ga_gdr"
WAYS = ("full bf16", "full bf16, QUAIL", "LoRA")  # of QUAIL's question: the plain arm, the guarded one, and LoRA
QUANTITIES = {"median_change": "median\n|ΔW|/s", "rms": "rms\n|ΔW|/s", "overlap": "overlap"}


def load_overlaps(files: Sequence[str] = (), quantizer: str = "rtn-int4-g128", folder: Path = KEPT) -> list[dict]:
    """What was kept of changes of weights.

    Args:
        files: of ``overlap_record``, or records of runs that hold the counts of every layer; if there are none, all in
            the folder.
        quantizer: whose grid of a run's record is taken.
        folder: of committed ones.

    Returns:
        Each with ``config``, ``quantizer`` and ``layers``: rows as ``overlap_record.measure`` makes them, none where a
        record has no counts of layers under the quantizer. Of a run that is there in both ways, what was measured; and
        one of two runs whose models are the same, since they differ in what was measured of them alone.

    Raises:
        LookupError: there is none.
        ValueError: one is something else (names it).
    """
    paths = named_or_all(files, folder, f"no changes of weights in {folder}. {MAKE}")
    found = sorted((_kept(path, quantizer) for path in paths), key=lambda one: "run" not in one)
    by_run: dict[str, dict[str, Any]] = {}
    for one in found:
        by_run.setdefault(one["config"]["hash"], one)
    by_model: dict[tuple, dict[str, Any]] = {}
    for one in by_run.values():
        by_model.setdefault(_model(one), one)
    return list(by_model.values())


def _model(one: Mapping[str, Any]) -> tuple:
    """What tells models apart: their settings, and how many weights moved and crossed in each layer."""
    config = one["config"]
    if not one["layers"]:
        return (config["hash"],)
    layers = tuple(
        (row["layer"], *(round(row["weights"] * row[name] / 100) for name in ("moved", "overlap")))
        for row in one["layers"]
        if row["module"] != ALL  # counts over all layers have more digits than were kept
    )
    return way_of(config), *(config.get(key) for key in ("method", "corpus", "scale", "seed")), layers


def _kept(path: Path, quantizer: str) -> dict[str, Any]:
    value = read_json(path)
    if isinstance(value, dict) and value.get("kind") == KIND:
        return value
    if not isinstance(value, dict) or not set(SECTIONS) <= set(value):
        raise ValueError(f"{path} holds no changes of weights. {MAKE}")
    return {
        "kind": KIND,
        "config": value["config"],
        "quantizer": quantizer,
        "layers": from_counts(value, quantizer),
    }


def from_counts(record: Mapping[str, Any], quantizer: str) -> list[dict[str, Any]]:
    """The same of a run's record: what counts of layers do not say is left out (the median; rms of older records)."""
    crossings = record["crossings"].get(quantizer, {})
    if not crossings.get("layers"):
        return []
    known = record.get("prediction", {}).get(quantizer, {})
    steps = {name: found["zero_bin"] for name, found in known.get("layers", {}).items()} | {ALL: known.get("zero_bin")}
    rows = []
    for name, counts in (*crossings["layers"].items(), (ALL, crossings["total"])):
        weights, half = counts["weights"], steps.get(name)
        row = (layer_name(name) if name != ALL else {"layer": ALL, "block": -1, "module": ALL}) | {
            "weights": weights,
            "moved": 100 * counts["moved"] / weights,
            "expected": 100 * counts["predicted"] / weights,
            "overlap": 100 - 100 * counts["crossed"] / weights,
        }
        row |= {"step": 2 * half} if half is not None else {}
        row |= {"rms": math.sqrt(counts["sum_dw2"] / weights)} if "sum_dw2" in counts else {}
        rows.append(row)
    return rows


def way_of(config: Mapping[str, Any]) -> str:
    """``full bf16, QUAIL``: arm and guard."""
    arm, guard = arm_name(dict(config) | {"guard": None}), config.get("guard")
    return f"{arm}, {GUARDS.get(guard, guard)}" if guard else arm


def chosen(kept: Sequence[Mapping[str, Any]], method: str = METHOD, ways: Sequence[str] = WAYS) -> list[Mapping]:
    """Those of one method and of these arms and guards, as ``way_of`` calls them; in the order of ``ways``.

    What has no counts of layers is left out.

    Raises:
        ValueError: nothing is left.
    """
    of_method = [one for one in kept if one["config"]["method"] == method and one["layers"]]
    found = [one for way in ways for one in of_method if way_of(one["config"]) == way]
    if not found:
        there = sorted({f"{one['config']['method']}, {way_of(one['config'])}" for one in kept if one["layers"]})
        raise ValueError(
            f"no changes of weights of {method} in {listed(ways)}; there are: {'; '.join(there) or 'none'}. A record "
            "holds them under the quantizers that layers: of experiments.yaml names."
        )
    return found


def overlap_sheet(kept: Sequence[Mapping[str, Any]]) -> Sheet:
    """A row a module, medians over blocks and seeds with their range; a group of columns an arm.

    Args:
        kept: of ``chosen``: of one corpus, method, scale and quantizer.

    Raises:
        ValueError: they differ in one of those (names it).
    """
    for key in ("corpus", "method", "scale"):
        if len(found := sorted({str(one["config"][key]) for one in kept})) > 1:
            raise ValueError(f"changes of weights are shown of one {key}; these are of {listed(found)}.")
    if len(found := sorted({one["quantizer"] for one in kept})) > 1:
        raise ValueError(f"bins are those of one quantizer; these are of {listed(found)}.")
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for one in kept:
        by_arm.setdefault(way_of(one["config"]), []).append(one)
    arms = list(by_arm)
    rows = [row for one in kept for row in one["layers"]]
    modules = in_order((row["module"] for row in rows if row["module"] != ALL), MODULE_ORDER)
    quantities = [name for name in QUANTITIES if any(shown_of(row, name) is not None for row in rows)]

    def line(module: str) -> Row:
        label = Cell("all layers" if module == ALL else module)
        here = {arm: [r for one in by_arm[arm] for r in one["layers"] if r["module"] == module] for arm in arms}
        step = middle([r for of in here.values() for r in of], "step")
        return (label, step, *(middle(here[arm], name) for arm in arms for name in quantities))

    blocks = len({row["block"] for row in rows if row["module"] != ALL})
    config, seeds = kept[0]["config"], sorted({one["config"]["seed"] for one in kept})
    note = [
        f"{method_title(config['method'])} on {config['corpus']}, {counted(len(kept), 'run')}, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {listed(seeds)}; {quantizer_title(kept[0]['quantizer'])}.",
        f"A module stands in {counted(blocks, 'block')}: medians over blocks and seeds, below them the least…greatest.",
        "Sizes of changes and overlap in percent. |ΔW| is over all weights, also those that did not move; s is the "
        "median over weights. Overlap: weights in the bin that they were in before, on the grid of the target.",
        *_missing(rows),
    ]
    heads = tuple(QUANTITIES[name] for name in quantities)
    columns = (("", ("step s",)), *((arm, heads) for arm in arms))
    return Sheet(("Module",), columns, (Block("", (tuple(map(line, modules)), (line(ALL),))),), tuple(note))


def value_of(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    return None if value is None or math.isnan(value) else value


def shown_of(row: Mapping[str, Any], name: str) -> float | None:
    """A quantity as it is printed: sizes of changes in percent of the step."""
    value = value_of(row, name)
    if name not in ("median_change", "rms") or value is None:
        return value
    return 100 * value / row["step"] if value_of(row, "step") else None


def middle(rows: Iterable[Mapping[str, Any]], name: str) -> Cell:
    """Median of a quantity over rows, and below it the least and greatest, where they differ in print."""
    known = [value for row in rows if (value := shown_of(row, name)) is not None]
    if not known:
        return Cell("–")
    form = percent if name == "overlap" else two_digits
    ends = list(dict.fromkeys(form(end) for end in (min(known), max(known))))
    return Cell(form(statistics.median(known)), below="…".join(ends) if len(ends) > 1 else "")


def percent(value: float) -> str:
    """With as many decimals as tell it from all: ``94``, ``99.4``, ``99.982``."""
    return number(value, 0 if value < 95 else 1 if value < 99.5 else 3 if value < 100 else 0)


def two_digits(value: float) -> str:
    """``0.0011``, ``1.2e−5``, ``0``."""
    return f"{value:.2g}".replace("e-0", "e-").replace("-", "−")


def _missing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What these records do not say."""
    told = {"median_change": "the median of |ΔW|", "rms": "its root mean square", "step": "the step"}
    lacking = [words for name, words in told.items() if all(value_of(row, name) is None for row in rows)]
    return [f"Not kept in these records: {listed(lacking)}."] if lacking else []


def overlap_words(kept: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence an arm: overlap over layers, and how large changes are beside the step."""
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for one in kept:
        by_arm.setdefault(way_of(one["config"]), []).extend(row for row in one["layers"] if row["module"] != ALL)
    out = []
    for arm, rows in by_arm.items():
        told = f"{arm}: {_ends([row['overlap'] for row in rows], percent)} % of a layer's weights stay in their bin"
        for name, words in (("median_change", "median |ΔW|"), ("rms", "root mean square of ΔW")):
            known = [row for row in rows if value_of(row, name) is not None and value_of(row, "step")]
            if known:
                shares = [100 * row[name] / row["step"] for row in known]
                ends = _ends([row[name] for row in known], two_digits)
                told += f"; the {words} is {ends}, {_ends(shares, two_digits)} % of the step"
        out.append(f"{told[:1].upper()}{told[1:]}.")
    return out


def _ends(values: Sequence[float], form) -> str:
    return " to ".join(dict.fromkeys((form(min(values)), form(max(values)))))
