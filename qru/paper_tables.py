"""The paper's tables over seeds: records -> means with the range of their seeds, and published numbers beside them."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pandas as pd

from qru.config import WHOLE, later_defaults
from qru.records import Record, examples_of, load_record, load_records
from qru.registry import unknown
from qru.reported import reported
from qru.sheet import Block, Cell, Row, Sheet, cells
from qru.style import precision_label
from qru.tables import METRICS, number
from qru.typeset import SHOWN, method_title

METHODS = ("ga", "npo", "ga_gdr", "ga_klr", "npo_gdr", "npo_klr")
# adapter and weights -> how an arm is called; first the arms of the papers' question, in its order.
ARMS = {
    ("full", "bf16"): "full bf16",
    ("full", "fp32"): "full fp32",
    ("lora", "fp32"): "LoRA",
    ("lora", "bf16"): "LoRA bf16",
    ("delta", "bf16"): "ΔW bf16",
    ("sure", "bf16"): "SURE bf16",
    ("sure", "fp32"): "SURE fp32",
}
ABSENT = "–"
NO_BREAK = "\u00a0"
APART = "Published by others: other models, other corpora, other quantizers"
PUBLISHED = {"full": "full", "lora": "LoRA", "sure": "SURE"}
SAID = {
    "QRU": "QRU (arXiv 2602.13151), Table II; 4 bits: bitsandbytes FP4, block 64",
    "SURE": "SURE (arXiv 2410.16454); 4 bits: bitsandbytes FP4",
}
COUNTED = {"verbmem": "passages", "knowmem": "questions", "privleak": "forgotten texts", "utility": "kept questions"}
STAGES = {"unlearn": "unlearn", "quantize": "quantize, each", "score": "score, each precision"}

# --- runs and their cells -----------------------------------------------------------------------------------------


def arm_name(config: Mapping[str, Any]) -> str:
    """How the arm of a run is called in print: ``full bf16``."""
    arm = config["adapter"], config["weights"]
    name = ARMS.get(arm, " ".join(map(str, arm)))
    if config.get("moments") not in (None, config["weights"]):
        name += f", {config['moments']} moments"
    name += ", stochastic rounding" if config.get("rounding") == "stochastic" else ""
    return name + (f", {config['guard']} guard" if config.get("guard") else "")


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What runs of one cell share: everything but the seed. What came after a record was made is at its default."""
    return later_defaults() | {key: value for key, value in config.items() if key not in ("seed", "hash")}


def seeded(files: Sequence[str] = (), scale: str = "mini") -> list[Record]:
    """The records that a table over seeds shows.

    Args:
        files: record files; if there are none, for each corpus, method and arm the newest run on the whole forget set
            and every run that differs from it in the seed alone.
        scale: of the runs, if no file is named.

    Raises:
        LookupError: no file is named and there is no run at this scale.
    """
    if files:
        return [load_record(file) for file in files]
    newest: dict[tuple, Record] = {}
    found = [
        r for r in load_records() if r.config["scale"] == scale and r.config.get("forget_set", WHOLE) == WHOLE
    ]  # fmt: skip
    if not found:
        raise LookupError(f"no run at scale {scale}. Make one: papermill notebooks/02_unlearn.ipynb -p scale {scale}")
    for record in found:
        newest[cell_of(record)] = record
    return [record for record in found if settings(record.config) == settings(newest[cell_of(record)].config)]


Place = tuple[str, str, str]


def cell_of(record: Record) -> Place:
    """Corpus, method and arm of a run."""
    return record.config["corpus"], record.config["method"], arm_name(record.config)


def cells_over_seeds(records: Iterable[Record]) -> dict[Place, list[Record]]:
    """(corpus, method, arm) -> its runs, one a seed, by seed.

    Raises:
        ValueError: no record; records of two scales; two of one cell and seed; or runs of one cell whose settings
            differ, so that their mean would be of nothing (names what differs).
    """
    out: dict[Place, list[Record]] = {}
    for record in records:
        out.setdefault(cell_of(record), []).append(record)
    if not out:
        raise ValueError("no record was given.")
    scales = sorted({record.config["scale"] for found in out.values() for record in found})
    if len(scales) > 1:
        raise ValueError(f"records of the scales {' and '.join(scales)} cannot stand in one table.")
    for cell, found in out.items():
        found.sort(key=lambda record: record.config["seed"])
        first = settings(found[0].config)
        for before, record in itertools.pairwise(found):
            other = settings(record.config)
            if differing := [key for key in {**first, **other} if first.get(key) != other.get(key)]:
                raise ValueError(
                    f"{record.path} and {found[0].path} are both of {', '.join(cell)}, but with another "
                    f"{', '.join(differing)}: a cell is a mean over seeds alone. Give the records of one setting."
                )
            if before.config["seed"] == record.config["seed"]:
                raise ValueError(f"{record.path} and {before.path} are of one cell and seed; give one.")
    return out


def over_seeds(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One score of several seeds as one.

    Args:
        scores: of a record each: ``value`` and ``ci`` in percent; at least one.

    Returns:
        ``mean``, ``lowest`` and ``highest`` of the values; ``low`` and ``high``, means of the ends of the 95 %
        intervals over examples: how uncertain a single run is; ``seeds``, how many.
    """
    values = [score["value"] for score in scores]
    low, high = (statistics.fmean(score["ci"][end] for score in scores) for end in (0, 1))
    return {
        "mean": statistics.fmean(values), "lowest": min(values), "highest": max(values), "low": low, "high": high,
        "seeds": len(values),
    }  # fmt: skip


def score_means(records: Iterable[Record]) -> pd.DataFrame:
    """Scores over seeds, one a row.

    Target and retrained do not depend on the seed; they are those of the first record of their corpus.

    Args:
        records: of one scale, whole or slim, of any corpora, methods and arms.

    Returns:
        Columns ``corpus``, ``method`` (also ``target`` and ``retrained``), ``arm`` (empty for those two),
        ``precision``, ``metric``, those of ``over_seeds``, and ``examples`` (how many a score is of; NaN: unknown).
        What no run of a cell measured has no row.

    Raises:
        ValueError: see ``cells_over_seeds``; or records that report half of the examples (they had a goal to stop at)
            beside some that report all.
    """
    by_cell = cells_over_seeds(records)
    halved = {record.config.get("forget_goal") is not None: record for found in by_cell.values() for record in found}
    if len(halved) > 1:
        raise ValueError(
            f"{halved[True].path} had a forgetting goal and reports half of the examples, {halved[False].path} had "
            "none and reports all: their scores cannot stand in one table."
        )
    rows = []

    def add(place: Place, runs: Sequence[Mapping[str, Any]]) -> None:
        for precision in dict.fromkeys(precision for run in runs for precision in run):
            at = [run[precision] for run in runs if precision in run]
            for metric in dict.fromkeys(metric for scores in at for metric in scores):
                found = [scores[metric] for scores in at if metric in scores]
                told = {"precision": precision, "metric": metric, "examples": examples_of(found[0])}
                rows.append(dict(zip(("corpus", "method", "arm"), place, strict=True)) | told | over_seeds(found))

    for corpus in dict.fromkeys(corpus for corpus, _, _ in by_cell):
        first = next(found[0] for (at, _, _), found in by_cell.items() if at == corpus)
        for model in ("target", "retrained"):
            add((corpus, model, ""), [first.scores[model]] if model in first.scores else [])
    for place, found in by_cell.items():
        add(place, [record.scores["unlearned"] for record in found])
    return pd.DataFrame(rows)


def seed_range(row: Mapping[str, Any], digits: int = 0) -> str:
    """``15…22``, the lowest and highest seed, or ``100`` where both round to it; empty where there is one seed."""
    ends = dict.fromkeys(number(row[end], digits) for end in ("lowest", "highest"))
    return "…".join(ends) if row["seeds"] > 1 else ""


def returning(runs: Sequence[Record], precision: str) -> Cell:
    """In how many of the runs quantizing brings memory back: ``2/3``; bold if in any."""
    found = [record.extra["recovered"][precision] for record in runs if precision in record.extra.get("recovered", {})]
    if not found:
        return Cell(ABSENT)
    back = sum(one["recovers"]["recovers"] for one in found)
    return Cell(f"{back}/{len(found)}", strong=back > 0)


# --- notes ----------------------------------------------------------------------------------------------------------


def listed(words: Sequence[object]) -> str:
    """``a, b and c``."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def counted(count: int, one: str, more: str | None = None) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def seed_note(by_cell: Mapping[Place, Sequence[Record]], range_as: str = "") -> list[str]:
    """Which seeds the means are over, and where one is missing."""
    seeds = sorted({record.config["seed"] for found in by_cell.values() for record in found})
    if len(seeds) == 1:
        return [f"One seed ({seeds[0]})."]
    out = [f"Means over the seeds {listed(seeds)}{range_as}."]
    few = [
        f"{corpus} {method_title(method)} {arm} (seed {listed([record.config['seed'] for record in found])})"
        for (corpus, method, arm), found in by_cell.items()
        if len(found) < len(seeds)
    ]
    return out + ([f"Fewer seeds: {'; '.join(few)}."] if few else [])


def weights_note(arms: Sequence[str]) -> list[str]:
    """What the words for the arms mean."""
    meaning = {
        "full bf16": "bf16: the optimizer steps the stored bf16 weights",
        "full fp32": "fp32: it keeps fp32 master weights",
        "LoRA": "LoRA: fp32 adapters, merged",
        "LoRA bf16": "LoRA bf16: bf16 adapters, merged",
        "ΔW bf16": "ΔW bf16: a full-rank update in bf16 that starts at zero",
    }
    told = [meaning[arm] for arm in arms if arm in meaning]
    return [f"{'; '.join(told)}."] if told else []


def example_note(frame: pd.DataFrame) -> list[str]:
    """``n on books: 50 passages (VerbMem), …``; what records do not tell is left out."""
    corpora: dict[str, list[str]] = {}
    for corpus, rows in frame[frame["examples"].notna()].groupby("corpus", sort=False):
        counts = rows.groupby("metric")["examples"].unique()
        told = [
            f"{listed(sorted(map(int, counts[metric])))} {COUNTED[metric]} ({METRICS[metric].split()[0]})"
            for metric in SHOWN
            if metric in counts.index
        ]
        corpora.setdefault(", ".join(told), []).append(str(corpus))
    return [f"n on {listed(names)}: {told}." for told, names in corpora.items()]


def grid_note(precisions: Sequence[str]) -> list[str]:
    """What the short headings of the quantizers stand for."""
    named = zip(short_labels(precisions), precisions, strict=True)
    return [f"{short} is {precision}." for short, precision in named if short != precision_label(precision)]


def short_labels(precisions: Sequence[str]) -> list[str]:
    """``int4`` for ``rtn-int4-g128`` where no other of the precisions is called so."""
    long = [precision_label(precision) for precision in precisions]
    short = [label.split(" ")[0] for label in long]
    return [brief if short.count(brief) == 1 else label for brief, label in zip(short, long, strict=True)]


# --- Table I and Table II -------------------------------------------------------------------------------------------


def in_order(found: Iterable[str], known: Sequence[str]) -> list[str]:
    """Each once, the known ones first and in their order."""
    found = list(dict.fromkeys(found))
    return [name for name in known if name in found] + [name for name in found if name not in known]


def checked_precisions(frame: pd.DataFrame, precisions: Sequence[str]) -> None:
    for precision in precisions:
        if precision not in set(frame["precision"]):
            raise unknown("precision of these records", precision, frame["precision"].unique())


def score_cells(frame: pd.DataFrame, precisions: Sequence[str]) -> dict[tuple, dict[str, Any]]:
    """(corpus, method, arm, precision, metric) -> row of ``score_means``."""
    rows = frame[frame["precision"].isin(precisions)].to_dict("records")
    return {tuple(row[key] for key in ("corpus", "method", "arm", "precision", "metric")): row for row in rows}


def missing_note(blocks: Sequence[Block]) -> list[str]:
    texts = {cell.text for block in blocks for group in block.groups for row in group for cell in row}
    return [f"{ABSENT}: no such run, or not measured."] if ABSENT in texts else []


def shown_in_one(records: Iterable[Record]) -> list[Record]:
    """Those that Table I shows, and its text counts: full fine-tuning."""
    return [record for record in records if record.config["adapter"] == "full"]


def shown_in_two(records: Iterable[Record]) -> list[Record]:
    """Those that Table II shows, and its text counts: methods with a retain term."""
    return [record for record in records if "_" in record.config["method"]]


def run_at_all(by_cell: Mapping[Place, Sequence[Record]], corpus: str, method: str) -> bool:
    """Whether a method was run on a corpus in any arm: else a row of it would be empty."""
    return any((at, name) == (corpus, method) for at, name, _ in by_cell)


def table_one(records: Sequence[Record], precisions: Sequence[str]) -> Sheet:
    """Full fine-tuning: every method and both weight precisions, target and retrained, in bf16 and quantized.

    Args:
        records: of one scale; of arms other than full fine-tuning nothing is shown.
        precisions: the first is the one with intervals over examples.

    Raises:
        ValueError: no record of full fine-tuning, a precision that none has, or see ``score_means``.
    """
    records = shown_in_one(records)
    by_cell, frame = cells_over_seeds(records), score_means(records)
    checked_precisions(frame, precisions)
    known = score_cells(frame, precisions)
    arms = in_order((arm for _, _, arm in by_cell), list(ARMS.values()))
    methods = in_order((method for _, method, _ in by_cell), METHODS)

    def row(corpus: str, method: str, arm: str, labels: tuple[str, str]) -> Row:
        out = list(cells(labels))
        for metric in SHOWN:
            for precision in precisions:
                found = known.get((corpus, method, arm, precision, metric))
                interval = f"[{number(found['low'], 0)}, {number(found['high'], 0)}]" if found else ""
                beside = interval if precision == precisions[0] else ""
                out.append(Cell(number(found["mean"]), beside, seed_range(found)) if found else Cell(ABSENT))
        return tuple(out)

    blocks = []
    for corpus in dict.fromkeys(corpus for corpus, _, _ in by_cell):
        ends = tuple(row(corpus, model, "", (model, "")) for model in ("target", "retrained"))
        groups = [
            tuple(row(corpus, m, arm, (method_title(m) if i == 0 else "", arm.removeprefix("full ")))
                  for i, arm in enumerate(arms))
            for m in methods
            if run_at_all(by_cell, corpus, m)
        ]  # fmt: skip
        blocks.append(Block(corpus, (ends, *groups)))
    heads = tuple(short_labels(precisions))
    note = [
        "In percent.",
        *seed_note(by_cell, ", below them the lowest…highest; target and retrained model depend on none"),
        *weights_note(arms),
        f"In brackets beside {heads[0]}: 95 % bootstrap interval over the examples, its ends averaged over the seeds.",
        *example_note(frame),
        *grid_note(precisions),
        *missing_note(blocks),
    ]
    return Sheet(("Method", "Weights"), tuple((METRICS[m], heads) for m in SHOWN), tuple(blocks), tuple(note))


def table_two(records: Sequence[Record], quantizer: str, published: pd.DataFrame | None = None) -> Sheet:
    """Methods with a retain term, arms side by side, in bf16 and quantized; below, in blocks of their own, what is
    published.

    Args:
        records: of one scale; of methods without a retain term nothing is shown.
        quantizer: name of the one shown beside bf16.
        published: of ``qru.reported``; by default what the repository holds.

    Raises:
        ValueError: no record of such a method, a quantizer that none has, or see ``score_means``.
    """
    records = shown_in_two(records)
    by_cell, frame = cells_over_seeds(records), score_means(records)
    precisions = ("bf16", quantizer)
    checked_precisions(frame, precisions)
    known = score_cells(frame, precisions)
    arms = in_order((arm for _, _, arm in by_cell), list(ARMS.values()))
    methods = in_order((method for _, method, _ in by_cell), METHODS)
    everywhere = set.intersection(*(set(record.scores["unlearned"]) for record in records))
    rounded = [name for name in frame["precision"].unique() if name in everywhere and name != "bf16"]

    def row(corpus: str, method: str, arm: str, label: str) -> Row:
        out = list(cells((label, arm)))
        for metric in SHOWN:
            for precision in precisions:
                found = known.get((corpus, method, arm, precision, metric))
                spread = seed_range(found) if found else ""
                out.append(Cell(number(found["mean"]), spread) if found else Cell(ABSENT))
        runs = by_cell.get((corpus, method, arm), ())
        return (*out, *(returning(runs, name) for name in rounded))

    scale = records[0].config["scale"]
    blocks = [
        Block(
            f"Measured here: {corpus}, scale {scale}",
            tuple(tuple(row(corpus, m, arm, method_title(m) if i == 0 else "") for i, arm in enumerate(arms))
                  for m in methods if run_at_all(by_cell, corpus, m)),
        )
        for corpus in dict.fromkeys(corpus for corpus, _, _ in by_cell)
    ]  # fmt: skip
    missing = missing_note(blocks)
    table = reported() if published is None else published
    others = [block for source in SAID for block in published_blocks(table, source, len(rounded))]
    blocks += [replace(block, apart=APART) if block is others[0] else block for block in others]
    heads = tuple(short_labels(precisions))
    above = dict(zip(rounded, short_labels(rounded), strict=True)) | {quantizer: heads[1]}
    note = [
        "In percent.",
        *seed_note(by_cell, ", beside them the lowest…highest"),
        *weights_note(arms),
        "Returns: in how many seeds memory returns under each quantizer, by the rule of the text.",
        *example_note(frame),
        *grid_note(precisions),
        *(
            f"{label} is {name}."
            for name, label in above.items()
            if label != precision_label(name) and name != quantizer
        ),
        *missing,
        "What is published is copied from the papers named, to one decimal; it has no interval and is compared with "
        "nothing here. "
        f"Its 4 bits stand under {heads[1]}.",
    ]
    returns = tuple(above[name].replace(" ", NO_BREAK) for name in rounded)
    columns = (*((METRICS[metric], heads) for metric in SHOWN), ("Returns", returns))
    return Sheet(("Method", "Arm"), columns, tuple(blocks), tuple(note))


def published_blocks(table: pd.DataFrame, source: str, returns: int) -> list[Block]:
    """A block a corpus: a source's methods in bf16 and 4 bits, as published, to one decimal.

    Args:
        table: of ``qru.reported``.
        source: in it.
        returns: columns beside the scores, which stay empty.
    """
    chosen = table[(table["source"] == source) & table["method"].str.contains("_") & (table["table"] != "I")]
    cell = chosen.set_index(["corpus", "method", "arm", "precision"])[list(SHOWN)]
    blocks = []
    for corpus in in_order(chosen["corpus"], ("books", "news")):
        groups = []
        for method in in_order(chosen.loc[chosen["corpus"] == corpus, "method"], METHODS):
            rows = chosen[(chosen["corpus"] == corpus) & (chosen["method"] == method)]
            group = []
            for i, arm in enumerate(in_order(rows["arm"], list(PUBLISHED))):
                line = [Cell(method_title(method) if i == 0 else ""), Cell(PUBLISHED[arm])]
                for metric in SHOWN:
                    for precision in ("bf16", "4-bit"):
                        value = cell[metric].get((corpus, method, arm, precision))
                        line.append(Cell(ABSENT if value is None or pd.isna(value) else as_published(value)))
                group.append((*line, *[Cell()] * returns))
            groups.append(tuple(group))
        blocks.append(Block(f"{corpus.upper()}, {SAID[source]}", tuple(groups)))
    return blocks


def as_published(value: float) -> str:
    """To one decimal, a half away from zero, as a reader would round the printed number: ``−23.65`` -> ``−23.7``."""
    return str(Decimal(str(value)).quantize(Decimal("0.1"), ROUND_HALF_UP)).replace("-", "−")


# --- cost -----------------------------------------------------------------------------------------------------------


def cost_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Wall time and peak memory of every stage of every run, one a row.

    A run that took another's model did not train: it says what that took, and here only the other is charged with it.

    Returns:
        Columns ``arm``, ``run`` (folder), ``stage`` (a key of ``STAGES``), ``seconds``, ``memory`` and ``gpu`` (peak,
        MB; NaN without a GPU), and ``steps`` (of the optimizer; NaN but for ``unlearn``).
    """
    rows = []
    for record in records:
        history = record.extra.get("history") or []
        for name, cost in record.cost.items():
            stage = name.split(" ")[0]
            if stage == "unlearn" and "trained_by" in record.provenance:
                continue
            rows.append({
                "arm": arm_name(record.config), "run": record.run, "stage": stage, "seconds": cost["seconds"],
                "memory": cost["peak_memory_mb"], "gpu": cost.get("peak_gpu_memory_mb", float("nan")),
                "steps": history[-1]["step"] + 1 if history and stage == "unlearn" else float("nan"),
            })  # fmt: skip
    columns = ["arm", "run", "stage", "seconds", "memory", "gpu", "steps"]
    return pd.DataFrame(rows, columns=columns)


def table_cost(records: Sequence[Record]) -> Sheet:
    """Time and peak memory per stage and arm: the median over runs, with the least and the greatest.

    Raises:
        ValueError: no record.
    """
    if not records:
        raise ValueError("no record was given.")
    frame = cost_frame(records)
    frame["pace"] = frame["seconds"] / frame["steps"]
    with_gpu = frame["gpu"].notna().any()
    measures = {"seconds": "Seconds", "pace": "Seconds a step", "memory": "Peak memory (MB)"}
    measures |= {"gpu": "Peak GPU memory (MB)"} if with_gpu else {}
    groups = []
    for arm in in_order(frame["arm"], list(ARMS.values())):
        group = []
        of_arm = frame[frame["arm"] == arm]
        for stage in in_order(of_arm["stage"], list(STAGES)):
            rows = of_arm[of_arm["stage"] == stage]
            line = [Cell("" if group else arm), Cell(STAGES.get(stage, stage)), Cell(str(rows["run"].nunique()))]
            group.append((*line, *(median_cell(rows[name]) for name in measures)))
        groups.append(tuple(group))
    machines = {f"{r.provenance['hardware']['processor']}, {r.provenance['hardware']['cores']} cores"
                for r in records if "hardware" in r.provenance}  # fmt: skip
    note = [
        "Medians over runs, beside them the least…greatest; methods and corpora are pooled. Wall time: other runs may "
        "have shared the machine.",
        *([f"Measured on: {'; '.join(sorted(machines))}."] if machines else []),
    ]
    if taken := sum("trained_by" in record.provenance for record in records):
        note.append(f"{taken} run{'s' * (taken != 1)} took the model of another, where its training is counted.")
    heads = ("Runs", *measures.values())
    return Sheet(("Arm", "Stage"), (("", heads),), (Block("", tuple(groups)),), tuple(note))


def median_cell(values: pd.Series) -> Cell:
    """``61.2`` and beside it ``55.0…70.1``; empty without a value."""
    values = values.dropna()
    if values.empty:
        return Cell()
    beside = f"{three_digits(values.min())}…{three_digits(values.max())}" if len(values) > 1 else ""
    return Cell(three_digits(values.median()), beside)


def three_digits(value: float) -> str:
    """``1,081``, ``385``, ``12.0``, ``6.42``, ``0.06``: at most two decimals."""
    decimals = 2 if value < 0.01 else min(2, max(0, 2 - math.floor(math.log10(value))))
    return f"{value:,.{decimals}f}"
