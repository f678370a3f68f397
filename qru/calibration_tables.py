"""GPTQ and AWQ by the text that they were calibrated on, in print: retained, held-out or forgotten."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from qru.method_tables import (
    Contender,
    arm_cell,
    contenders,
    example_note,
    family_of,
    in_rank,
    load_compared,
    missed_note,
    quantizer_title,
    quantizers_of,
    recovered_of,
    score_cell,
    seeds_note,
    share_cell,
)
from qru.paper_tables import ABSENT, counted, listed, missing_note, score_means
from qru.records import Record
from qru.sheet import Block, Cell, Row, Sheet
from qru.typeset import method_title

RECORDS = Path(__file__).resolve().parent.parent / "paper" / "records"
TEXTS = {"": "retained", "-heldout": "held-out", "-forget": "forgotten"}  # how a name ends -> text it was calibrated on
CALIBRATED = ("gptq", "awq")


def load_calibrated(files: Sequence[str] = (), home: Path = RECORDS) -> list[Record]:
    """Runs under GPTQ and AWQ on any text, and the same runs under the quantizers of Table III.

    Args:
        files: of their records; if there are none, the committed ones.

    Raises:
        LookupError: there is none.
    """
    return load_compared(files, ("calibration", "methods"), home)[0]


def bare(name: str) -> str:
    """A quantizer's name without the text: ``gptq-int4-g128-forget`` -> ``gptq-int4-g128``."""
    return re.sub("-(heldout|forget)$", "", name)


def by_text(records: Iterable[Record]) -> list[list[Contender]]:
    """Arms that were measured on other texts than the retained, each as often as there are sets of quantizers.

    Runs of one arm and seed are one model, which was quantized in several ways and recorded for each of them.
    """
    parts: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        parts.setdefault(tuple(quantizers_of([record])), []).append(record)
    found: dict[str, list[Contender]] = {}
    for runs in parts.values():
        for one in contenders(runs):
            found.setdefault(f"{one.corpus} {one.name}", []).append(one)
    return [some for some in found.values() if any(n != bare(n) for one in some for n in quantizers_of(one.runs))]


def of(some: Sequence[Contender], name: str) -> Contender | None:
    """The one of these that was measured under a quantizer."""
    return next((one for one in some if name in quantizers_of(one.runs)), None)


def calibrated_names(arms: Iterable[Sequence[Contender]]) -> list[str]:
    """Calibrated quantizers without the text, those first that have more bits."""
    names = {bare(name) for some in arms for one in some for name in quantizers_of(one.runs)}
    return in_rank(name for name in names if family_of(name) in CALIBRATED)


def calibration_sheet(records: Iterable[Record]) -> Sheet:
    """A row an arm; under each calibrated quantizer a column a text: what comes back.

    Raises:
        ValueError: no run was calibrated on anything but retained text.
    """
    arms = by_text(records)
    if not arms:
        raise ValueError("no run was calibrated on held-out or forget text: see calibration in paper/experiments.yaml.")
    names = calibrated_names(arms)
    plain = in_rank({f"rtn-{bare(n).partition('-')[2]}" for n in names})
    columns = [(quantizer_title(name), tuple(text for text in TEXTS.values())) for name in names]

    def share(some: Sequence[Contender], name: str) -> Cell:
        one = of(some, name)
        return share_cell(one.shown, name) if one else Cell(ABSENT)

    def row(some: Sequence[Contender]) -> Row:
        return (
            arm_cell(some[0]), score_cell(some[0].shown, "bf16", "verbmem"), *(share(some, name) for name in plain),
            *(share(some, name + end) for name in names for end in TEXTS),
        )  # fmt: skip

    heads = tuple(quantizer_title(name).removeprefix("RTN ").replace(" ", "\n", 1) for name in plain)
    blocks = []
    for corpus, method in dict.fromkeys((some[0].corpus, some[0].method) for some in arms):
        here = [some for some in arms if (some[0].corpus, some[0].method) == (corpus, method)]
        blocks.append(Block(f"{corpus}, {method_title(method)}", (tuple(map(row, here)),)))
    note = [
        "In percent.",
        *seeds_note([some[0] for some in arms], ", below them the lowest…highest"),
        "Recovered share: 0 what the model says in bf16, 100 what the target says under the same quantizer, calibrated "
        "on the same text. Bold: memory returns in at least one seed, by the rule of the text.",
        *example_note(score_means(run for some in arms for run in some[0].shown)),
        *missed_note(some[0] for some in arms),
        *missing_note(blocks),
    ]
    return Sheet(("Arm",), (("bf16", ("Verb-\nMem ↓",)), ("RTN", heads), *columns), tuple(blocks), tuple(note))


def calibration_words(records: Iterable[Record]) -> list[str]:
    """In how many runs memory returns under each calibrated quantizer and text, and whether the text changes it.

    Counted are the runs that met the goal and were measured on every text.
    """
    arms = by_text(records)
    out, apart = [], []
    for name in calibrated_names(arms):
        back = {text: _returns(arms, name, end) for end, text in TEXTS.items()}
        every = set.intersection(*(set(found) for found in back.values()))
        told = {text: sum(found[run] for run in every) for text, found in back.items()}
        if not every:
            continue
        counts = listed([f"{some} on {text} text" for text, some in told.items()])
        out.append(f"{quantizer_title(name)} in {counts} of {counted(len(every), 'run')}")
        if len(set(told.values())) > 1:
            apart.append(quantizer_title(name))
    if not out:
        return []
    verdict = f"the text changes the outcome under {listed(apart)}" if apart else (
        "under none of them does the text change in how many runs"
    )  # fmt: skip
    return [f"Memory returns, by the text of calibration, under {'; under '.join(out)}. So {verdict}."]


def _returns(arms: Iterable[Sequence[Contender]], name: str, end: str) -> dict[tuple[str, int], bool]:
    """(arm, seed) of the runs that met the goal -> whether memory returns under a quantizer on one text."""
    return {
        (f"{one.corpus} {one.name}", run.config["seed"]): bool(found["recovers"]["recovers"])
        for some in arms
        if (one := of(some, name + end))
        for run in one.met
        for found in recovered_of([run], name + end)
    }
