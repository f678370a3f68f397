"""GPTQ and AWQ by the text that they were calibrated on, in print: retained, held-out or forgotten."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from qru.config import MEASURING, digest, later_defaults
from qru.method_tables import (
    RECORDS,
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
from qru.paper_tables import counted, listed, missing_note, score_means
from qru.records import Record
from qru.sheet import Block, Row, Sheet
from qru.typeset import method_title

TEXTS = {"": "retained", "-heldout": "held-out", "-forget": "forgotten"}  # how a name ends -> text it was calibrated on
HEADS = ("re-\ntained", "held-\nout", "for-\ngotten")
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


def by_text(records: Iterable[Record]) -> list[Contender]:
    """Arms of the models that were measured on other texts than the retained: of each model one record, of all of it.

    Runs that differ in what is measured alone are one model. Those of a seed that was measured on retained text alone
    are left out, so that the columns of a row are of the same models.
    """
    models: dict[str, Record] = {}
    for record in records:
        config = later_defaults() | record.config
        key = digest({name: value for name, value in config.items() if name not in (*MEASURING, "hash")})
        models[key] = _joined(models[key], record) if key in models else record
    some = [model for model in models.values() if any(name != bare(name) for name in quantizers_of([model]))]
    return contenders(some) if some else []


def _joined(one: Record, other: Record) -> Record:
    """One record of a model, under the quantizers of both."""
    scores = {who: one.scores[who] | other.scores[who] for who in one.scores}
    recovered = one.extra.get("recovered", {}) | other.extra.get("recovered", {})
    return replace(one, scores=scores, extra=one.extra | {"recovered": recovered})


def calibrated_names(arms: Iterable[Contender]) -> list[str]:
    """Calibrated quantizers without the text, those first that have more bits."""
    return in_rank(bare(name) for one in arms for name in quantizers_of(one.runs) if family_of(name) in CALIBRATED)


def calibration_sheet(records: Iterable[Record]) -> Sheet:
    """A row an arm; under each calibrated quantizer a column a text: what comes back.

    Raises:
        ValueError: no run was calibrated on anything but retained text, or one is of a classifier (names it).
    """
    arms = by_text(records)
    if not arms:
        raise ValueError("no run was calibrated on held-out or forget text: see calibration in paper/experiments.yaml.")
    for run in (run for one in arms for run in one.runs):
        if "verbmem" not in run.scores["unlearned"]["bf16"]:
            raise ValueError(
                f"{run.path} has no VerbMem: this table is of forgotten text. Give runs of language models."
            )
    names = calibrated_names(arms)
    plain = in_rank({f"rtn-{name.partition('-')[2]}" for name in names})
    columns = [(quantizer_title(name), HEADS) for name in names]

    def row(one: Contender) -> Row:
        shares = (share_cell(one.shown, name) for name in (*plain, *(n + end for n in names for end in TEXTS)))
        return (arm_cell(one), score_cell(one.shown, "bf16", "verbmem"), *shares)

    heads = tuple(quantizer_title(name).removeprefix("RTN ").replace(" ", "\n", 1) for name in plain)
    blocks = []
    for corpus, method in dict.fromkeys((one.corpus, one.method) for one in arms):
        here = [one for one in arms if (one.corpus, one.method) == (corpus, method)]
        blocks.append(Block(f"{corpus}, {method_title(method)}", (tuple(map(row, here)),)))
    note = [
        "In percent.",
        *seeds_note(arms, ", below them the lowest…highest"),
        "Recovered share: 0 what the model says in bf16, 100 what the target says under the same quantizer, calibrated "
        "on the same text. Bold: memory returns in at least one seed, by the rule of the text.",
        *example_note(score_means(run for one in arms for run in one.shown)),
        *missed_note(arms),
        *missing_note(blocks),
    ]
    return Sheet(("Arm",), (("bf16", ("Verb-\nMem ↓",)), ("RTN", heads), *columns), tuple(blocks), tuple(note))


def calibration_words(records: Iterable[Record]) -> list[str]:
    """In how many runs memory returns by calibrated quantizer and text, and whether the text changes that number.

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
    return [
        f"Memory returns, by the text of calibration, under {'; under '.join(out)}. The text changes that number under "
        f"{listed(apart) if apart else 'none of them'}."
    ]


def _returns(arms: Iterable[Contender], name: str, end: str) -> dict[tuple[str, int], bool]:
    """(arm, seed) of the runs that met the goal -> whether memory returns under a quantizer on one text."""
    return {
        (f"{one.corpus} {one.name}", run.config["seed"]): bool(found["recovers"]["recovers"])
        for one in arms
        for run in one.met
        for found in recovered_of([run], name + end)
    }
