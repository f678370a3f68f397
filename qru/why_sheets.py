"""What the paper prints of the experiment in ``qru.why``: its records by part, its tables, and words under figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import pandas as pd

from qru import records, why, why_records, why_verdict
from qru.paper_tables import listed
from qru.prediction import scored
from qru.records import Record
from qru.sheet import Block, Cell, Row, Sheet, cells
from qru.style import precision_label
from qru.tables import number
from qru.typeset import method_title
from qru.why_records import LAYERS, MAIN, PARTS

# Parts of the experiment in which one setting is varied, and that setting.
SLICES = {"alpha": "lora_alpha", "layers": "lora_targets", "rate": "learning_rate", "beta2": "adam_beta2"}
FORESEEN = {MAIN: "Arms at equal forgetting", "dial": "The dial", "size": "Other sizes of the model"}
FAMILIES = {
    why_verdict.STILL: "full rank, dead zone",
    why_verdict.STEPPED: "full rank, none",
    why_verdict.LOW: "LoRA",
}
TOLD = {"will come back": "comes back", "will not": "does not"}
ABSENT = "–"


def parts(files: Sequence[str] = (), scale: str = "mini") -> dict[str, list[Record]]:
    """The records of every part of the experiment.

    Args:
        files: of the records, which are runs of mini; if there are none, the committed ones.
        scale: if no file is named: at another scale than mini, of which none are committed, what was run here.

    Returns:
        Part -> records, in the order of its grid; those of no part are left out.

    Raises:
        LookupError: there is no record of the comparison (says what makes them).
    """
    if files:
        found, scale = [records.load_record(file) for file in files], "mini"
    else:
        found = records.kept(why_records.KEPT) if scale == "mini" else records.load_records()
    grids = {MAIN: partial(why.grid, scale=scale)}
    grids |= {part: partial(grid, scale) for part, grid in PARTS.items()}
    out = {part: why_records.of_grid(grid(), found) for part, grid in grids.items()}
    if not out[MAIN]:
        raise LookupError(f"no record of the comparison is among {len(found)}. Make them: {why_records.command(MAIN)}")
    return out


# --- the table of shares ----------------------------------------------------------------------------------------


def share_sheet(found: Sequence[Record], metric: str = "verbmem") -> Sheet:
    """Recovered share of each arm under each quantizer, means over those seeds that met the goal.

    Args:
        found: records of the comparison.
        metric: ``"verbmem"`` (text) or ``"knowmem"`` (knowledge).

    Returns:
        A row a corpus, method and arm; intervals beside the shares, in percent. Bold: in at least one of these runs it
        comes back by the rule of ``why_verdict.outcomes``.
    """
    if metric not in ("verbmem", "knowmem"):
        raise ValueError(f"metric is {metric!r}; it must be verbmem or knowmem.")
    index = ["corpus", "method", "arm"]
    reached = why.met(found)
    table = why_verdict.outcomes(found)
    quantizers = why_verdict.finest_first(table)
    shares = why.over_seeds(reached, metric).set_index([*index, "quantizer"])
    rose = table["back" if metric == "verbmem" else "knowledge_back"].eq(True)
    back = rose.groupby([*(table[name] for name in index), table["quantizer"]]).any()
    runs = table.drop_duplicates("run").groupby(index, sort=False)["reached"].agg(["sum", "size"])
    blocks = []
    for corpus, of_corpus in runs.groupby("corpus", sort=False):
        groups = []
        for method, rows in of_corpus.groupby("method", sort=False):
            group: list[Row] = []
            for i, (at, row) in enumerate(rows.iterrows()):
                places = [(*at, quantizer) for quantizer in quantizers]
                shown = [_share(shares.loc[p], back[p]) if row["sum"] else Cell(ABSENT) for p in places]
                first = method_title(method) if i == 0 else ""
                group.append((Cell(first), Cell(at[2]), *shown, Cell(f"{row['sum']}/{row['size']}")))
            groups.append(tuple(group))
        blocks.append(Block(str(corpus), tuple(groups)))
    what = {"verbmem": "Text", "knowmem": "Knowledge"}[metric]
    return Sheet(
        labels=("Method", "Arm"),
        columns=((f"{what} regained (%) under", tuple(map(precision_label, quantizers))), ("", ("Reached",))),
        blocks=tuple(blocks),
        note=tuple(_share_note(found, reached, metric)),
    )


def _share(row: pd.Series, back: bool) -> Cell:
    if math.isnan(row["share"]):
        return Cell(ABSENT)
    value, low, high = (number(max(-999.0, min(999.0, row[name])), 0) for name in ("share", "low", "high"))
    return Cell(value, beside=f"[{low}, {high}]", strong=bool(back))


def _share_note(found: Sequence[Record], reached: Sequence[Record], metric: str) -> list[str]:
    rule = {"verbmem": "VerbMem rises by at least 10 points", "knowmem": "KnowMem rises by at least 5 points"}[metric]
    note = [
        "0 % is what the unlearned model says in bf16, 100 % what the target says under the same quantizer.",
        f"Means over seeds ({listed(seeds_of(found))}) that reached the forgetting goal; intervals: 95 % over "
        f"{examples_of(found, metric)}.",
        f"Bold: in at least one seed {rule} and the paired interval lies above zero.",
    ]
    if len(reached) < len(found):
        note.append(f"{len(found) - len(reached)} of {len(found)} runs missed the goal and are left out.")
    return note


def seeds_of(found: Sequence[Record]) -> list[int]:
    return sorted({record.config["seed"] for record in found})


def examples_of(found: Sequence[Record], metric: str = "verbmem") -> str:
    """``50 passages``: how many examples scores are of."""
    counts = {records.examples_of(record.scores["unlearned"]["bf16"][metric]) for record in found}
    what = {"verbmem": "passages", "knowmem": "questions"}[metric]
    return f"{' or '.join(str(count) for count in sorted(c for c in counts if c is not None))} {what}"


# --- the table of predictions -----------------------------------------------------------------------------------


def prediction_sheet(found: Mapping[str, Sequence[Record]]) -> Sheet:
    """Predicted against measured, counts of runs under a quantizer: a block a part of the experiment.

    Args:
        found: part -> records; parts without any, and those that ``FORESEEN`` does not name, are left out.

    Raises:
        ValueError: there is no record.
    """
    shown = {part: found[part] for part in FORESEEN if found.get(part)}
    if not shown:
        raise ValueError(f"there is no record of any of {', '.join(FORESEEN)}.")
    columns = ("came back", "did not", why_verdict.UNDECIDED)
    blocks, note = [], ["Counted: runs under a quantizer; seeds of one setting share a prediction."]
    for part, runs in shown.items():
        counts = why_verdict.prediction_table(runs)
        rows, before = [], ""
        for (family, told), row in counts.iterrows():
            first = "" if family == before else FAMILIES[family]
            rows.append(cells([first, TOLD[told], *(str(int(row.get(column, 0))) for column in columns)]))
            before = family
        blocks.append(Block(FORESEEN[part], (tuple(rows),)))
        note.append(_hits(FORESEEN[part], runs))
    note.append("Not said: the run missed the forgetting goal, or forgot no text that could come back.")
    return Sheet(("Arms", "Predicted"), (("Measured", columns),), tuple(blocks), tuple(note))


def _hits(title: str, runs: Sequence[Record]) -> str:
    table = why_verdict.outcomes(runs)
    counts = scored(zip(table["predicted"], table["back"], strict=True))
    decided = counts["n"] - counts["undecided"]
    alarms = f"{counts['false_alarms']} false alarm{'s' * (counts['false_alarms'] != 1)}"
    return f"{title}: {counts['right']} of {decided} right, {alarms}, {counts['missed']} missed."


# --- figures ----------------------------------------------------------------------------------------------------


def slice_frames(found: Mapping[str, Sequence[Record]], quantizer: str = LAYERS) -> dict[str, pd.DataFrame]:
    """Setting -> rows of ``why.table`` under one quantizer, and the setting beside.

    Runs without a goal count as having reached it: there is none that they missed.
    """
    out = {}
    for part, factor in SLICES.items():
        rows = []
        for record in found.get(part, ()):
            table = why.table([record])
            row = dict(table[table["quantizer"] == quantizer].iloc[0])
            free = record.config["forget_goal"] is None
            rows.append(row | {factor: record.config[factor], "reached": free or row["reached"]})
        out[factor] = pd.DataFrame(rows)
    return out


def caption(found: Sequence[Record], metric: str = "verbmem") -> list[str]:
    """How many runs a figure shows, of which seeds, over how many examples its intervals are, and what was missed."""
    if not found:
        return []
    seeds = seeds_of(found)
    missed = len([r for r in found if r.config["forget_goal"] is not None]) - len(why.met(found))
    one = "" if len(found) == 1 else "s"
    out = [
        f"{len(found)} run{one}, {'seeds' if len(seeds) > 1 else 'seed'} {listed(seeds)};",
        f"n = {examples_of(found, metric)}.",
    ]
    return out + ([f"{missed} missed the forgetting goal."] if missed > 0 else [])
