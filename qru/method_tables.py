"""Methods that are to survive quantization by construction: records and certificates -> Tables III and IV."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qru.config import MEASURING, later_defaults
from qru.paper_tables import (
    ABSENT,
    ARMS,
    METHODS,
    arm_name,
    cells_over_seeds,
    counted,
    example_note,
    in_order,
    listed,
    missing_note,
    over_seeds,
    score_means,
    seed_range,
)
from qru.records import Record, examples_of, load_record, read_json
from qru.registry import unknown
from qru.sheet import Block, Cell, Row, Sheet
from qru.tables import HEADINGS, OF_CLASSIFIERS, number
from qru.typeset import method_title

RECORDS = Path(__file__).resolve().parent.parent / "paper" / "records"
GUARDS = {"quail": "QUAIL", "bin_margin": "bin-margin", "sam": "SAM", "ste": "STE"}
FAMILIES = {"rtn": "RTN", "llm": "LLM.int8()", "nf4": "NF4", "fp4": "FP4", "gptq": "GPTQ", "awq": "AWQ"}
KEPT = {"verbmem": "utility", "forget_accuracy": "retain_accuracy"}  # what is to be forgotten -> what is to be kept
SAYS = ("method", "adapter", "weights", "guard")  # what a certificate is found by
CERTIFIED = {"holds": "yes", "does not hold": "no", "refused": "refused"}
MISSED = "†"
UNDEFINED = "n.d."
FOUR = ("rtn-int8-g128", "rtn-int4-g128", "nf4-b64", "rtn-int4-tensor", "rtn-int3-g128")

# --- what is compared -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """A method in one arm, with or without a guard.

    Attributes:
        corpus, method: of the runs. arm: as ``paper_tables.arm_name`` calls it, without the guard. guard: or empty.
        runs: of it, one a seed, by seed.
        certificate: of these runs; ``None`` if there is none.
    """

    corpus: str
    method: str
    arm: str
    guard: str
    runs: tuple[Record, ...]
    certificate: dict[str, Any] | None = None

    @property
    def met(self) -> tuple[Record, ...]:
        """The runs that met the forgetting goal, or had none."""
        return tuple(run for run in self.runs if met_goal(run))

    @property
    def shown(self) -> tuple[Record, ...]:
        """Those that a table takes its means over: that met the goal; if no run did, all."""
        return self.met or self.runs

    @property
    def way(self) -> str:
        """``full bf16, QUAIL``: the arm and what guards it."""
        return f"{self.arm}, {GUARDS.get(self.guard, self.guard)}" if self.guard else self.arm

    @property
    def name(self) -> str:
        """``GA+GDR, full bf16, QUAIL``."""
        return f"{method_title(self.method)}, {self.way}"


def met_goal(record: Record) -> bool:
    """Whether a run met its forgetting goal; one that had none cannot miss it."""
    history = record.extra.get("history")
    return record.config.get("forget_goal") is None or not history or bool(history[-1].get("stopped"))


def load_compared(
    files: Sequence[str] = (), folders: Sequence[str] = ("methods", "certificates"), home: Path = RECORDS
) -> tuple[list[Record], list[dict[str, Any]]]:
    """Records of runs, and the certificates among the files.

    Args:
        files: of both; if there are none, all in the folders.
        folders: of committed ones, below ``home``.

    Raises:
        LookupError: there is no record of a run.
    """
    paths = [Path(file) for file in files] or [p for name in folders for p in sorted((home / name).glob("*.json"))]
    runs, certificates = [], []
    for path in paths:
        value = read_json(path)
        if isinstance(value, dict) and "certificate" in value:
            certificates.append(value)
        else:
            runs.append(load_record(path))
    if not runs:
        raise LookupError(f"no record of a run in {listed(folders)}. Make them: make paper")
    return runs, certificates


def contenders(records: Iterable[Record], certificates: Iterable[Mapping[str, Any]] = ()) -> list[Contender]:
    """Runs by corpus, method, arm and guard, each with its certificate; plain arms first.

    Runs of one contender may have been measured under different quantizers.

    Raises:
        ValueError: see ``paper_tables.cells_over_seeds`` and ``certificate_of``.
    """
    bare = [replace(r, config={k: v for k, v in r.config.items() if k not in MEASURING}) for r in records]
    certificates = list(certificates)
    found = []
    for (corpus, method, _), runs in cells_over_seeds(bare).items():
        config = runs[0].config
        arm, guard = arm_name(config | {"guard": None}), config.get("guard") or ""
        found.append(Contender(corpus, method, arm, guard, tuple(runs), certificate_of(runs, certificates)))
    return ordered(found)


def ordered(found: Sequence[Contender]) -> list[Contender]:
    """By corpus, method, guard and arm, each in the order of the papers; plain arms first."""
    corpora = list(dict.fromkeys(one.corpus for one in found))
    methods = in_order((one.method for one in found), ("ga_gdr", *METHODS))
    arms, guards = (in_order((getattr(one, key) for one in found), known)
                    for key, known in (("arm", list(ARMS.values())), ("guard", ("", *GUARDS))))  # fmt: skip

    def place(one: Contender) -> tuple:
        at = (guards.index(one.guard), arms.index(one.arm))
        return corpora.index(one.corpus), methods.index(one.method), *at

    return sorted(found, key=place)


def certificate_of(runs: Sequence[Record], certificates: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The certificate of runs of one contender, by its configuration and the corpus that it is of.

    Raises:
        ValueError: it is of runs with another setting than these, so not of these models (names it); or there are two.
    """
    config = later_defaults() | runs[0].config
    corpus = runs[0].provenance.get("corpus")
    found = [
        one
        for one in certificates
        if all(one["configuration"].get(key) == config.get(key) for key in SAYS) and corpus in (None, one["corpus"])
    ]
    whose = ", ".join(str(config[key]) for key in SAYS if config.get(key))
    if len(found) > 1:
        raise ValueError(f"{len(found)} certificates are of {whose}; give one.")
    for one in found:
        if other := [k for k, v in one["configuration"].items() if k in config and plain(config[k]) != plain(v)]:
            raise ValueError(
                f"the certificate of {whose} is of runs with another {', '.join(other)} than {runs[0].path}: certify "
                "the runs that are shown."
            )
    return dict(found[0]) if found else None


def plain(value: Any) -> Any:
    """A value as JSON would give it back."""
    return list(value) if isinstance(value, tuple) else value


# --- quantizers -----------------------------------------------------------------------------------------------------


def bits_of(name: str) -> int:
    """``rtn-int4-g128``, ``nf4-b64``: 4. Of a name that does not say: 0."""
    found = re.search(r"(?:int|nf|fp)(\d)", name)
    return int(found[1]) if found else 0


def family_of(name: str) -> str:
    return name.partition("-")[0]


def grid_of(name: str) -> str:
    """What a name says beside family and bits: ``g128``, ``tensor``; nothing of families that have one grid."""
    family, *rest = name.split("-")
    return "" if family not in ("rtn", "gptq", "awq") else " ".join(part for part in rest if part[:3] != "int")


def quantizer_title(name: str) -> str:
    """``RTN int4 g128``, ``GPTQ int3 g128``, ``NF4``, ``LLM.int8()``."""
    family, grid = family_of(name), grid_of(name)
    title = FAMILIES.get(family, name)
    return f"{title} int{bits_of(name)} {grid}" if grid else title


def in_rank(names: Iterable[str]) -> list[str]:
    """Each once: by bits from the most, then families in their order, then by the size of groups."""
    families = [*FAMILIES]

    def rank(name: str) -> tuple[int, int, float]:
        family, size = family_of(name), re.search(r"-g(\d+)", name)
        groups = int(size[1]) if size else math.inf if name.endswith("tensor") else 1e9
        return -bits_of(name), families.index(family) if family in families else len(families), groups

    return sorted(dict.fromkeys(names), key=rank)


def quantizers_of(records: Iterable[Record]) -> list[str]:
    """Those that any of the runs was measured under."""
    return in_rank(name for record in records for name in record.scores["unlearned"] if name != "bf16")


def columns_of(names: Sequence[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Quantizers in rank as columns of a sheet, under their bits; a head is a family and, below it, a grid."""
    out: dict[str, list[str]] = {}
    for name in names:
        head = FAMILIES.get(family_of(name), name).removesuffix(".int8()")
        out.setdefault(f"{bits_of(name) or '?'} bits", []).append(f"{head}\n{grid_of(name)}".strip())
    return tuple((bits, tuple(heads)) for bits, heads in out.items())


# --- cells ----------------------------------------------------------------------------------------------------------


def recovered_of(runs: Iterable[Record], quantizer: str) -> list[dict[str, Any]]:
    """What the runs that were measured under a quantizer say of what it brings back."""
    return [run.extra["recovered"][quantizer] for run in runs if quantizer in run.extra.get("recovered", {})]


def score_cell(runs: Sequence[Record], precision: str, metric: str) -> Cell:
    """Mean over the runs, and below it the lowest and highest."""
    scores = [run.scores["unlearned"].get(precision, {}).get(metric) for run in runs]
    if not (scores := [score for score in scores if score]):
        return Cell(ABSENT)
    found = over_seeds(scores)
    return Cell(number(found["mean"], 0), below=seed_range(found))


def share_cell(runs: Sequence[Record], quantizer: str, metric: str = "verbmem") -> Cell:
    """Recovered share, mean over the runs that have one; bold where memory returns in any of them."""
    found = recovered_of(runs, quantizer)
    if not found:
        return Cell(ABSENT)
    strong = any(one["recovers"]["recovers"] for one in found)
    shares = [max(-999.0, min(999.0, one[metric]["value"])) for one in found if one[metric]["defined"]]
    if not shares:
        return Cell(UNDEFINED, strong=strong)
    ends = {"lowest": min(shares), "highest": max(shares), "seeds": len(shares)}
    return Cell(number(statistics.fmean(shares), 0), below=seed_range(ends), strong=strong)


def least(runs: Sequence[Record], quantizers: Sequence[str], metric: str) -> str:
    """The quantizer under which the mean of a score over the runs is lowest; empty where it was not measured."""
    means = {}
    for name in quantizers:
        scores = [run.scores["unlearned"].get(name, {}).get(metric) for run in runs]
        if values := [score["value"] for score in scores if score]:
            means[name] = statistics.fmean(values)
    return min(means, key=means.__getitem__) if means else ""


def certificate_cells(certificate: Mapping[str, Any] | None) -> tuple[Cell, Cell]:
    """The largest upper bound of what is given away beyond the retrained model, in points, and the outcome."""
    if certificate is None:
        return Cell(ABSENT), Cell(ABSENT)
    return Cell(number(certificate["worst_excess"], 0)), Cell(CERTIFIED[certificate["outcome"]])


def mark(one: Contender) -> str:
    return f" {MISSED}" if len(one.met) < len(one.runs) else ""


def arm_cell(one: Contender) -> Cell:
    """The arm, marked where a run missed the goal; below it what guards it."""
    return Cell(one.arm + mark(one), below=f"with {GUARDS.get(one.guard, one.guard)}" if one.guard else "")


# --- Table III ------------------------------------------------------------------------------------------------------


def table_three(records: Sequence[Record], certificates: Sequence[Mapping[str, Any]] = ()) -> Sheet:
    """Methods × quantizers: what comes back, the utility that is left, and whether a certificate holds.

    A method is a block, below the one of target and retrained model, which has the name of the corpus.

    Args:
        records: of language models, of one scale.
        certificates: of some of them.

    Raises:
        ValueError: no record, one without VerbMem, or see ``contenders``.
    """
    for record in records:
        if "verbmem" not in record.scores["unlearned"]["bf16"]:
            raise ValueError(f"{record.path} has no VerbMem: this table is of forgotten text. Classifiers: table_four.")
    found = contenders(records, certificates)
    quantizers = quantizers_of(records)

    def row(one: Contender) -> Row:
        runs, worst = one.shown, least(one.shown, quantizers, "utility")
        return (
            arm_cell(one), *(score_cell(runs, "bf16", metric) for metric in ("verbmem", "utility")),
            *(share_cell(runs, name) for name in quantizers),
            score_cell(runs, worst, "utility") if worst else Cell(ABSENT), *certificate_cells(one.certificate),
        )  # fmt: skip

    def baseline(corpus: str, model: str) -> Row:
        scores = next(one for one in found if one.corpus == corpus).runs[0].scores[model]
        values = [scores["bf16"].get(metric) for metric in ("verbmem", "utility")]
        under = [scores[name]["utility"]["value"] for name in quantizers if "utility" in scores.get(name, {})]
        told = [number(value["value"], 0) if value else ABSENT for value in values]
        worst = number(min(under), 0) if under else ABSENT
        return tuple(map(Cell, (model, *told, *[""] * len(quantizers), worst, "", "")))

    blocks = []
    for corpus in dict.fromkeys(one.corpus for one in found):
        blocks.append(Block(corpus, (tuple(baseline(corpus, model) for model in ("target", "retrained")),)))
        for method in dict.fromkeys(one.method for one in found if one.corpus == corpus):
            here = [one for one in found if (one.corpus, one.method) == (corpus, method)]
            blocks.append(Block(method_title(method), (tuple(map(row, here)),)))
    columns = (("In bf16", ("Verb-\nMem ↓", "Utility\n↑")), *columns_of(quantizers))
    columns += (("Worst case", ("Utility\n↑", "Excess\nat most", "Certi-\nfied")),)
    note = [
        "In percent.",
        *seeds_note(found, ", below them the lowest…highest"),
        "Under each quantizer: the recovered share, 0 what the model says in bf16, 100 what the target says under the "
        "same quantizer. Bold: memory returns in at least one seed, by the rule of the text.",
        *undefined_note(blocks),
        *example_note(score_means(row for one in found for row in one.shown)),
        f"From the left: {', '.join(quantizers)}.",
        *certificate_note(found),
        *missed_note(found),
        *missing_note(blocks),
    ]
    return Sheet(("Arm",), columns, tuple(blocks), tuple(note))


def seeds_note(found: Sequence[Contender], range_as: str = "") -> list[str]:
    """Which seeds the means are over, and where one is missing."""
    seeds = sorted({run.config["seed"] for one in found for run in one.runs})
    if len(seeds) == 1:
        return [f"One seed ({seeds[0]})."]
    return [f"Means over the seeds {listed(seeds)}{range_as}.", *fewer_seeds(found)]


def fewer_seeds(found: Sequence[Contender]) -> list[str]:
    """Whose runs are not of every seed, by the seeds that they are of."""
    every = {run.config["seed"] for one in found for run in one.runs}
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for one in found:
        if len(one.runs) < len(every):
            by_seeds.setdefault(tuple(run.config["seed"] for run in one.runs), []).append(one.name)
    return [
        f"{'Seed' if len(seeds) == 1 else 'Seeds'} {listed(seeds)} alone: {'; '.join(names)}."
        for seeds, names in by_seeds.items()
    ]


def undefined_note(blocks: Sequence[Block]) -> list[str]:
    texts = {cell.text for block in blocks for group in block.groups for row in group for cell in row}
    told = "not defined: under this quantizer the target itself says no more than the unlearned model in bf16"
    return [f"{UNDEFINED}: {told}."] if UNDEFINED in texts else []


def missed_note(found: Iterable[Contender]) -> list[str]:
    """What the mark means, and how many runs of each that has it met the goal."""
    told = [f"{one.name} {len(one.met)} of {len(one.runs)}" for one in found if len(one.met) < len(one.runs)]
    if not told:
        return []
    return [
        f"{MISSED}: runs missed the forgetting goal (met: {'; '.join(told)}); shown are those that met it, or all "
        "where none did."
    ]


def certificate_note(found: Sequence[Contender]) -> list[str]:
    """What was certified: metrics, precisions and transforms, the ceiling and the floor; and seeds that differ."""
    known = [one for one in found if one.certificate]
    if not known:
        return []
    told = {
        f"{listed([HEADINGS[name].split(' ')[0] for name in made['declared']['metrics']['forget']])}, "
        f"{counted(len(made['declared']['quantizers']), 'precision')}, "
        f"{counted(len(made['declared']['transforms']), 'transform')} ({', '.join(made['declared']['transforms'])}) "
        f"and the seeds of the row; allowed are {made['forget_ceiling']:g} points, with "
        f"{100 * made['utility_floor']:g} % of the target’s Utility"
        for made in (one.certificate for one in known)
    }
    return [
        "Excess at most: what is given away beyond the retrained model, in points, the largest of the 95 % upper "
        f"bounds over {'; or over '.join(sorted(told))}.",
        *other_seeds_note(known),
    ]


def other_seeds_note(certified: Iterable[Contender]) -> list[str]:
    """Whose certificates are of other seeds than their runs are."""
    seeds = [f"{one.name} of {listed(one.certificate['declared']['seeds'])}" for one in filter(other_seeds, certified)]
    return [f"Certificates of other seeds than the row's: {'; '.join(seeds)}."] if seeds else []


def other_seeds(one: Contender) -> bool:
    """Whether its certificate is of other seeds than its runs are."""
    return one.certificate["declared"]["seeds"] != [run.config["seed"] for run in one.runs]


# --- Table IV -------------------------------------------------------------------------------------------------------


def table_four(records: Sequence[Record], quantizers: Sequence[str] = ()) -> Sheet:
    """Classifiers: a block a metric; target, retrained and every method in bf16 and quantized.

    Args:
        records: of classifiers, of one corpus and scale.
        quantizers: shown beside bf16; if none is named, those of ``FOUR`` that there are.

    Raises:
        ValueError: no record, one of a language model or of another corpus, a quantizer that none has, or see
            ``contenders``.
    """
    for record in records:
        if "forget_accuracy" not in record.scores["unlearned"]["bf16"]:
            raise ValueError(f"{record.path} has no forget accuracy: this table is of classifiers. Text: table_three.")
    found = contenders(records)
    if len(corpora := sorted({one.corpus for one in found})) > 1:
        raise ValueError(f"a table of classifiers is of one corpus; these are of {listed(corpora)}.")
    there = quantizers_of(records)
    for name in quantizers:
        if name not in there:
            raise unknown("quantizer of these records", name, there)
    shown = ("bf16", *in_rank(quantizers or [name for name in there if name in FOUR] or there))
    metrics = [m for m in OF_CLASSIFIERS if any(m in one.runs[0].scores["unlearned"]["bf16"] for one in found)]
    baselines = found[0].runs[0].scores

    def row(one: Contender, metric: str, first: bool) -> Row:
        cells = [beside(score_cell(one.shown, precision, metric)) for precision in shown]
        if metric == "forget_accuracy":
            back = [any(r["recovers"]["recovers"] for r in recovered_of(one.shown, name)) for name in shown]
            cells = [replace(cell, strong=strong) for cell, strong in zip(cells, back, strict=True)]
        return (Cell(method_title(one.method) if first else ""), Cell(one.way + mark(one)), *cells)

    def baseline(model: str, metric: str) -> Row:
        scores = [baselines[model].get(precision, {}).get(metric) for precision in shown]
        return (Cell(model), Cell(), *(Cell(number(s["value"], 0)) if s else Cell(ABSENT) for s in scores))

    blocks = []
    for metric in metrics:
        groups = [tuple(baseline(model, metric) for model in ("target", "retrained"))]
        for method in dict.fromkeys(one.method for one in found):
            here = [one for one in found if one.method == method]
            groups.append(tuple(row(one, metric, i == 0) for i, one in enumerate(here)))
        blocks.append(Block(OF_CLASSIFIERS[metric], tuple(groups)))
    counts = {metric: examples(found, metric) for metric in metrics}
    told = [f"{listed(values)} texts ({OF_CLASSIFIERS[metric].rsplit(' ', 1)[0].removesuffix(' →')})"
            for metric, values in counts.items() if values]  # fmt: skip
    note = [
        "In percent.",
        *seeds_note(found, ", beside them the lowest…highest"),
        "Bold: labels return in at least one seed, by the rule of the text.",
        "MIA: how often a forgotten text has the lower loss of the two, beside an unseen one; it should come to what "
        "the retrained model has.",
        *([f"n on {found[0].corpus}: {', '.join(told)}."] if told else []),
        f"From the left: {', '.join(shown)}.",
        *missed_note(found),
        *missing_note(blocks),
    ]
    first, *rest = ("bf16", ("",)), *columns_of(shown[1:])
    return Sheet(("Method", "Arm"), (first, *rest), tuple(blocks), tuple(note))


def beside(cell: Cell) -> Cell:
    """A cell of one line: what stood below, beside."""
    return Cell(cell.text, cell.below, strong=cell.strong)


def examples(found: Iterable[Contender], metric: str) -> list[int]:
    """How many examples a score in bf16 is of, over all runs."""
    scores = [run.scores["unlearned"]["bf16"].get(metric, {}) for one in found for run in one.runs]
    return sorted({n for score in scores if (n := examples_of(score)) is not None})
