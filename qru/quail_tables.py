"""Readings of QUAIL's margin in print: what Δ_q comes to, and what returns when training asks for it (2601.15538)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qru.method_tables import (
    KEPT,
    MISSED,
    RECORDS,
    Contender,
    contenders,
    grid_of,
    in_rank,
    mark,
    quantizer_title,
    quantizers_of,
    recovered_of,
    score_cell,
    share_cell,
    undefined_note,
)
from qru.paper_tables import ABSENT, arm_name, counted, listed
from qru.records import Record, load_record, read_json
from qru.sheet import Block, Cell, Row, Sheet
from qru.tables import HEADINGS
from qru.typeset import method_title

MARGINS = RECORDS / "margins"
FOLDERS = ("methods", "tweets", "quail", MARGINS.name)
STEPS = "quail-steps"
METHOD, ARM = "ga_gdr", "full bf16"  # what every reading guards here
SAID = {"mean": "of the weights", "carried": "carried to the logits", "measured": "measured on the logits"}
OPTIONS = ("quail_norm", "quail_positions", "quail_step", "quail_quantizer", "guard_weight")


@dataclass(frozen=True)
class Reading:
    """Runs of one corpus with one reading of the margin; or, without ``options``, the plain runs beside them.

    Attributes:
        options: fields of the configuration that say how QUAIL is read; empty for the plain arm.
        runs: one a seed.
        step: Δ_q in logits; ``None`` where it is not known.
    """

    options: dict[str, Any]
    runs: Contender
    step: float | None = None

    @property
    def name(self) -> str:
        """``carried to the logits, RTN int4 tensor, γ 10``; ``none`` of the plain arm."""
        if not self.options:
            return "none"
        step, weight = self.options["quail_step"], self.options["guard_weight"]
        told = [
            SAID[step] if isinstance(step, str) else f"{step:g} logits",
            *([quantizer_title(self.options["quail_quantizer"])] if isinstance(step, str) else []),
            *([f"γ {weight:g}"] if weight != 1 else []),
            *([self.options["quail_norm"]] if self.options["quail_norm"] != "abs" else []),
            *(["answers"] if self.options["quail_positions"] != "all" else []),
        ]
        return ", ".join(told)


def load_readings(files: Sequence[str] = ()) -> tuple[list[Record], list[dict[str, Any]]]:
    """Records of the runs that are compared, and what Δ_q comes to.

    Args:
        files: of both; records of other methods and arms are left out. If there are none, the committed ones.

    Raises:
        LookupError: there is no file.
    """
    paths = [Path(file) for file in files] or [
        path for name in FOLDERS for path in sorted((RECORDS / name).glob("*.json"))
    ]
    if not paths:
        raise LookupError(f"no record in {listed(FOLDERS)} of {RECORDS}. Make them: make paper FRESH=1 GRID=full")
    runs, steps = [], []
    for path in paths:
        value = read_json(path)
        if isinstance(value, dict) and value.get("kind") == STEPS:
            steps.append(value)
        else:
            runs.append(load_record(path))
    return [run for run in runs if _of_quail(run.config)], steps


def _of_quail(config: Mapping[str, Any]) -> bool:
    plain = arm_name(dict(config) | {"guard": None})
    return (config["method"], plain) == (METHOD, ARM) and config.get("guard") in (None, "quail")


def readings(records: Iterable[Record], steps: Iterable[Mapping[str, Any]] = ()) -> list[Reading]:
    """Runs by corpus and reading: of each corpus the plain arm, then readings by the size of Δ_q and γ.

    Raises:
        ValueError: runs of two scales; of a corpus runs with another rate or λ, so that more than the reading differs;
            two of one reading and seed, or of settings that differ in more (see ``contenders``).
    """
    records, steps = list(records), list(steps)
    if len(scales := sorted({record.config["scale"] for record in records})) > 1:
        raise ValueError(f"records of the scales {listed(scales)} cannot stand in one table.")
    groups: dict[tuple, list[Record]] = {}
    trained: dict[str, Record] = {}
    for record in records:
        config = record.config
        first = trained.setdefault(config["corpus"], record)
        for name in ("learning_rate", "retain_weight"):
            if config[name] != first.config[name]:
                raise ValueError(
                    f"{record.path} has {name} {config[name]:g} and {first.path} {first.config[name]:g}: readings are "
                    "compared where nothing else differs. Give the records of one setting."
                )
        options = {name: config[name] for name in OPTIONS} if config.get("guard") else {}
        groups.setdefault((config["corpus"], *options.items()), []).append(record)
    found = []
    for (corpus, *options), runs in groups.items():
        (one,) = contenders(runs)
        found.append(Reading(dict(options), one, _step(steps, corpus, runs[0].config["scale"], dict(options))))
    corpora = list(dict.fromkeys(one.runs.corpus for one in found))

    def place(one: Reading) -> tuple:
        return corpora.index(one.runs.corpus), bool(one.options), one.step or 0.0, one.options.get("guard_weight", 0)

    return sorted(found, key=place)


def _step(steps: Iterable[Mapping[str, Any]], corpus: str, scale: str, options: Mapping[str, Any]) -> float | None:
    """Δ_q of a reading: the number that was given, or what was measured of the target."""
    given = options.get("quail_step")
    if given not in SAID:
        return given
    rows = [row for kept in steps if (kept["corpus"], kept["scale"]) == (corpus, scale) for row in kept["rows"]]
    wanted = options["quail_quantizer"], given
    return next((row["logits"] for row in rows if (row["quantizer"], row["step"]) == wanted), None)


def pushed(run: Record) -> tuple[float, float] | None:
    """The guard's term at the first and at the last look at the goal; ``None`` where no look is kept."""
    terms = [row["guard"] for row in run.extra.get("history", ()) if "guard" in row]
    return (terms[0], terms[-1]) if terms else None


# --- the table ------------------------------------------------------------------------------------------------------


def quail_sheet(found: Sequence[Reading], steps: Sequence[Mapping[str, Any]] = ()) -> Sheet:
    """A row a reading, a block a corpus: Δ_q, the hinge, and what returns under each quantizer.

    Args:
        found: of ``readings``.
        steps: for the note: how large logits are.

    Raises:
        ValueError: there is no run with QUAIL.
    """
    if not any(one.options for one in found):
        raise ValueError(f"no run of {method_title(METHOD)}, {ARM}, with QUAIL's guard is among the records.")
    guarded = {one.runs.corpus: [other for other in found if other.runs.corpus == one.runs.corpus] for one in found}
    shared = [set.intersection(*(set(quantizers_of(one.runs.runs)) for one in some)) for some in guarded.values()]
    names = in_rank(set.union(*shared))

    def row(one: Reading) -> Row:
        shown = one.runs.shown
        forgotten, kept = measured_of(one)
        ends = [ends for run in shown if (ends := pushed(run))]
        return (
            Cell(one.name + mark(one.runs)),
            Cell(digits(one.step) if one.step is not None else ABSENT if one.options else ""),
            *(hinge_cell([pair[i] for pair in ends], bool(one.options)) for i in (0, 1)),
            *(score_cell(shown, "bf16", metric) for metric in (forgotten, kept)),
            *(share_cell(shown, name, forgotten) for name in names),
        )

    blocks = [Block(corpus, (tuple(map(row, some)),)) for corpus, some in guarded.items()]
    columns = (
        ("Logits", ("step",)), ("Hinge", ("first\nlook", "last\nlook")), ("In bf16", ("Forget\n↓", "Keep\n↑")),
        ("Recovered share", tuple(heading(name) for name in names)),
    )  # fmt: skip
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for one in found:
        by_seeds.setdefault(tuple(run.config["seed"] for run in one.runs.runs), []).append(
            f"{one.runs.corpus}, {one.name}"
        )
    said = {
        corpus: [HEADINGS[name].rsplit(" ", 1)[0] for name in measured_of(some[0])] for corpus, some in guarded.items()
    }
    missed = [f"{one.runs.corpus}, {one.name} {_met(one.runs)}" for one in found if mark(one.runs)]
    note = [
        f"{method_title(METHOD)}, {ARM}. In percent but for logits; means over seeds, below them the lowest…highest.",
        *(f"{'Seed' if len(s) == 1 else 'Seeds'} {listed(s)}: {'; '.join(names)}." for s, names in by_seeds.items()),
        "Hinge: the guard's term without γ, between 0 and half the step.",
        *(f"On {corpus} forget and keep are {forgotten} and {kept}." for corpus, (forgotten, kept) in said.items()),
        "Bold: it returns in at least one seed, by the rule of the text.",
        *spacing_words(steps),
        *([f"{MISSED}: runs missed the forgetting goal (met: {'; '.join(missed)}); shown are those that met it, or all "
           "where none did."] if missed else []),
        *undefined_note(blocks),
    ]  # fmt: skip
    return Sheet(("Margin is the step",), columns, tuple(blocks), tuple(note))


def measured_of(one: Reading) -> tuple[str, str]:
    """The metric of what was to be forgotten, and that of what was to be kept."""
    return next(pair for pair in KEPT.items() if pair[0] in one.runs.runs[0].scores["unlearned"]["bf16"])


def _met(runs: Contender) -> str:
    """``1 of 3, seed 2``: how many runs met the goal, and which."""
    seeds = [run.config["seed"] for run in runs.met]
    told = f", {'seed' if len(seeds) == 1 else 'seeds'} {listed(seeds)}" if seeds else ""
    return f"{len(seeds)} of {len(runs.runs)}{told}"


def heading(name: str) -> str:
    """``RTN int4\ntensor``, ``FP4``."""
    return "\n".join(part for part in (quantizer_title(name).removesuffix(f" {grid_of(name)}"), grid_of(name)) if part)


def hinge_cell(values: Sequence[float], guarded: bool) -> Cell:
    """Mean over runs, and below it the lowest and highest."""
    if not values:
        return Cell(ABSENT if guarded else "")
    lowest, highest = digits(min(values)), digits(max(values))
    return Cell(digits(sum(values) / len(values)), below="" if lowest == highest else f"{lowest}…{highest}")


def digits(value: float) -> str:
    """Two digits, without an exponent: ``0.63``, ``0.0081``, ``0``."""
    if not value:
        return "0"
    return f"{value:.2g}" if abs(value) >= 1e-4 else "< 0.0001"


def spacing_words(steps: Iterable[Mapping[str, Any]]) -> list[str]:
    """How large logits are, and how far apart neighbouring numbers of bf16 are there."""
    return [
        f"On {kept['corpus']} half of the target's logits are over {digits(kept['logit'])} in size, where neighbouring "
        f"numbers of bf16 are {digits(kept['spacing'])} apart."
        for kept in steps
    ]


# --- sentences ------------------------------------------------------------------------------------------------------


def quail_words(found: Sequence[Reading]) -> list[str]:
    """What Δ_q comes to, and what each reading changes beside the plain arm; true of any outcome."""
    out = []
    for corpus in dict.fromkeys(one.runs.corpus for one in found):
        here = [one for one in found if one.runs.corpus == corpus]
        known = sorted({one.step for one in here if one.step})
        if len(known) > 1:
            out.append(f"On {corpus}, the step is {digits(known[0])} to {digits(known[-1])} logits by these readings.")
        plain = next((one for one in here if not one.options), None)
        for one in here:
            if one.options:
                out.append(_told(one, plain))
    return out


def _told(one: Reading, plain: Reading | None) -> str:
    """One reading: how far it got, what returns, and under which quantizers it does where the plain run's does not."""
    runs, corpus = one.runs.runs, one.runs.corpus
    head = f"{corpus[:1].upper()}{corpus[1:]}, margin {one.name} ({counted(len(runs), 'run')})"
    missed = len(runs) - len(one.runs.met)
    if missed == len(runs):
        return f"{head}: none met the goal, so nothing is compared."
    part = f" {missed} missed the goal;" if missed else ""
    names = quantizers_of(one.runs.met)
    back = returning(one.runs.met, names)
    told = f"it returns under {listed(list(map(quantizer_title, back)))}" if back else (
        f"it returns under none of {counted(len(names), 'quantizer')}"
    )  # fmt: skip
    return f"{head}:{part} {told}{_beside(one, plain) if plain else ''}."


def _beside(one: Reading, plain: Reading) -> str:
    """Under which quantizers it returns otherwise than in the plain runs of the same seeds."""
    seeds = sorted(set.intersection(*({run.config["seed"] for run in side.runs.met} for side in (one, plain))))
    if not seeds:
        return "; without QUAIL the goal was met with no seed with which it was here, so nothing is compared"
    ours, theirs = ([run for run in side.runs.met if run.config["seed"] in seeds] for side in (one, plain))
    both = [name for name in quantizers_of(ours) if recovered_of(theirs, name)]
    if not both:
        return ""
    back, of_plain = returning(ours, both), returning(theirs, both)
    less, more = ([name for name in some if name not in rest] for some, rest in ((of_plain, back), (back, of_plain)))
    parts = [f"{words} under {listed(list(map(quantizer_title, some)))}"
             for words, some in (("not any more", less), ("other than without QUAIL", more)) if some]  # fmt: skip
    scope = [
        *([f"{'seed' if len(seeds) == 1 else 'seeds'} {listed(seeds)}"] if len(seeds) < len(one.runs.met) else []),
        *([f"by the {counted(len(both), 'quantizer')} that both have"] if both != quantizers_of(one.runs.met) else []),
    ]
    told = f" ({', '.join(scope)})" if scope else ""
    same = f"{'the same quantizers ' if back else ''}as without QUAIL"
    return f", {listed(parts) if parts else same}{told}"


def returning(runs: Sequence[Record], names: Sequence[str]) -> list[str]:
    """Quantizers under which what was forgotten returns in any of the runs."""
    return [name for name in names if any(r["recovers"]["recovers"] for r in recovered_of(runs, name))]
