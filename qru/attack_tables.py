"""Attacks in print: how much of the forgotten text a model gives away when more is done to it than quantizing.

Read from certificates alone (``qru.certificate``), which hold every score. What is done is named as ``qru.transforms``
names it; relearning is the attack among them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qru.method_tables import CERTIFIED, RECORDS, Contender, arm_cell, ordered, quantizer_title
from qru.paper_tables import ABSENT, arm_name, counted, in_order, listed, seed_range
from qru.records import named_or_all, read_json
from qru.sheet import Block, Cell, Row, Sheet
from qru.tables import HEADINGS, number
from qru.typeset import method_title

KEPT = RECORDS / "attacks"
METRIC = "verbmem"
ATTACK = "relearn"
PLAIN = "merged"
# What certificates of one table have in common: in words, and read from a certificate.
SHARED: dict[str, Callable[[Mapping[str, Any]], object]] = {
    "ceiling": lambda made: f"{made['forget_ceiling']:g} points",
    "floor": lambda made: f"{made['utility_floor']:g}",
    "precisions": lambda made: ",".join(made["declared"]["quantizers"]),
    "metrics of forgetting": lambda made: ",".join(made["declared"]["metrics"]["forget"]),
    "corpus": lambda made: made["corpus"][:12],
    "retrained model": lambda made: made["bound_to"]["retrained"]["content"][:12],
}


def load_attacks(files: Sequence[str] = (), folder: Path = KEPT) -> list[dict[str, Any]]:
    """Certificates.

    Args:
        files: of them; if there are none, all in the folder.
        folder: of committed ones.

    Raises:
        LookupError: there is none.
        ValueError: a file is no certificate (names it).
    """
    paths = named_or_all(files, folder, f"no certificate in {folder}. Make them: make paper FRESH=1 GRID=full")
    found = []
    for path in paths:
        value = read_json(path)
        if not isinstance(value, dict) or value.get("certificate") != 1:
            raise ValueError(f"{path} is no certificate of version 1: give what qru certify wrote.")
        found.append(value)
    return found


def attacked(certificates: Iterable[Mapping[str, Any]]) -> list[Contender]:
    """A row a certificate, without runs; in the order of Table III.

    Raises:
        ValueError: there is none, one is not of VerbMem, two are of one row, or they differ in what a table shares
            (``SHARED``), so that one retrained model, one mean and one ceiling would not be of all rows (names it).
    """
    certificates = list(certificates)
    if not certificates:
        raise ValueError("no certificate was given.")
    for words, of in SHARED.items():
        if len(found := list(dict.fromkeys(map(of, certificates)))) > 1:
            raise ValueError(
                f"certificates in one table share their {words}; these have {listed(found)}. Certify them alike, or "
                "show them apart."
            )
    if METRIC not in (declared := certificates[0]["declared"]["metrics"]["forget"]):
        raise ValueError(f"these certificates are of {listed(declared)}; this table is of forgotten text: {METRIC}.")
    rows = [_row_of(one) for one in certificates]
    names = [one.name for one in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{names.count(twice[0])} certificates are of {twice[0]}; give one.")
    return ordered(rows)


def _row_of(certificate: Mapping[str, Any]) -> Contender:
    settings = certificate["configuration"]
    arm, guard = arm_name(settings | {"guard": None}), settings.get("guard") or ""
    return Contender("", settings["method"], arm, guard, (), dict(certificate))


# --- what is done to a model ------------------------------------------------------------------------------------------


def transforms_of(rows: Iterable[Contender]) -> list[str]:
    """Those of any certificate: nothing done first, relearning last."""
    names = in_order((name for one in rows for name in one.certificate["declared"]["transforms"]), (PLAIN,))
    return sorted(names, key=is_attack)


def is_attack(transform: str) -> bool:
    return transform.startswith(ATTACK)


def transform_title(name: str) -> str:
    """As a heading: ``Merged``, ``RTN int8 row first``, ``10 % pruned``, ``Relearned 4×8``."""
    kind, _, rest = name.partition("-")
    titles = {"twice": f"{quantizer_title(rest)} first", "prune": f"{rest} % pruned",
              ATTACK: f"Relearned {rest.replace('x', '×')}"}  # fmt: skip
    return titles.get(kind, name[:1].upper() + name[1:])


def transform_words(name: str) -> str:
    """In a sentence: ``merged``, ``stored under RTN int8 row first``, ``pruned by 10 %``."""
    kind, _, rest = name.partition("-")
    passages, _, steps = rest.partition("x")
    words = {"twice": f"stored under {quantizer_title(rest)} first", "prune": f"pruned by {rest} %",
             ATTACK: f"trained again for {steps} steps on {passages} of the forgotten passages"}  # fmt: skip
    return words.get(kind, name)


# --- scores -----------------------------------------------------------------------------------------------------------


def leaks(one: Contender, transforms: Iterable[str]) -> list[dict[str, Any]]:
    """What is said of forgotten text under some transforms: one a model, precision and transform."""
    wanted = set(transforms)
    return [cell["forget"][METRIC] for cell in one.certificate["cells"] if cell["transform"] in wanted]


def baseline(rows: Iterable[Contender], transform: str) -> list[float]:
    """VerbMem of the retrained model, one value a precision, however many certificates have it."""
    cells = [cell for one in rows for cell in one.certificate["cells"] if cell["transform"] == transform]
    return [value for _, value in dict.fromkeys((c["quantizer"], c["forget"][METRIC]["retrained"]) for c in cells)]


def examples(rows: Iterable[Contender], transform: str) -> list[int]:
    """How many passages are scored."""
    return sorted({leak["n"] for one in rows for leak in leaks(one, [transform])})


# --- the table --------------------------------------------------------------------------------------------------------


def attack_sheet(certificates: Iterable[Mapping[str, Any]]) -> Sheet:
    """A row a configuration; for each thing that is done VerbMem, and what it is at most beyond the retrained model.

    Raises:
        ValueError: see ``attacked``.
    """
    rows = attacked(certificates)
    names = transforms_of(rows)

    def retrained(name: str) -> tuple[Cell, Cell]:
        return _text(baseline(rows, name)), Cell()

    def line(one: Contender) -> Row:
        cells = [cell for name in names for cell in _text_and_bound(leaks(one, [name]))]
        return (arm_cell(one), *cells, _utility(one.certificate), Cell(CERTIFIED[one.certificate["outcome"]]))

    first: Row = (Cell("retrained"), *(cell for name in names for cell in retrained(name)), Cell(), Cell())
    corpora = [one.certificate.get("config", {}).get("corpus") for one in rows]  # only those of the notebook say it
    blocks = [Block(next(filter(None, corpora), ""), ((first,),))]
    for method in dict.fromkeys(one.method for one in rows):
        blocks.append(Block(method_title(method), (tuple(line(one) for one in rows if one.method == method),)))
    heads = ("Verb-\nMem ↓", "Excess\nat most")
    columns = (*((transform_title(name), heads) for name in names), ("Certificate", ("Utility\nat least", "Holds")))
    return Sheet(("Arm",), columns, tuple(blocks), tuple(_note(rows, names)))


def _text(values: Sequence[float]) -> Cell:
    """Mean, and below it the lowest and highest."""
    ends = {"lowest": min(values), "highest": max(values), "seeds": len(values)}
    return Cell(number(statistics.fmean(values), 0), below=seed_range(ends))


def _text_and_bound(found: Sequence[Mapping[str, Any]]) -> tuple[Cell, Cell]:
    """VerbMem over models and precisions, and the largest upper bound in points, bold where one is over the ceiling."""
    if not found:
        return Cell(ABSENT), Cell(ABSENT)
    over = not all(one["holds"] for one in found)
    bound = Cell(number(max(one["upper"] for one in found), 0), strong=over)
    return _text([one["unlearned"] for one in found]), bound


def _utility(certificate: Mapping[str, Any]) -> Cell:
    least = certificate["least_utility"]
    return Cell(number(100 * least, 0), strong=least < certificate["utility_floor"])


def _note(rows: Sequence[Contender], names: Sequence[str]) -> list[str]:
    made = rows[0].certificate
    declared = {name: words for one in rows for name, words in one.certificate["declared"]["transforms"].items()}
    counts: dict[str, list[str]] = {}
    for name in names:
        counts.setdefault(listed(examples(rows, name)), []).append(transform_title(name))
    if len(counts) == 1:
        told = f"n = {next(iter(counts))}"
    else:
        told = "; ".join(f"n = {n} ({', '.join(titles)})" for n, titles in counts.items())
    others = [HEADINGS[name].split(" ")[0] for name in made["declared"]["metrics"]["forget"] if name != METRIC]
    texts = {cell.text for one in rows for name in names for cell in _text_and_bound(leaks(one, [name]))}
    return [
        f"VerbMem in percent: the mean over {_precisions(made)} and {_models(rows)}, below it the lowest…highest.",
        f"Passages: {told}.",
        *_apart(rows),
        "Excess at most, in points: the largest of the 95 % upper bounds, one a model and precision, of what is given "
        "away beyond the retrained model after the same was done to it. Bold: over the ceiling of "
        f"{made['forget_ceiling']:g} points.",
        "Utility at least: the smallest lower bound of the share of the target’s Utility in bf16 that is left, in "
        f"percent; under {100 * made['utility_floor']:g} (bold) a certificate is refused, and what is said of text "
        "supports nothing. It is not measured after relearning. Ceiling and floor are ours.",
        *([f"A certificate holds only if {listed(others)}, not shown, is under the ceiling, too."] if others else []),
        *(f"{transform_title(name)}: {declared[name]}." for name in names),
        *([f"{ABSENT}: not done."] if ABSENT in texts else []),
    ]


def _precisions(certificate: Mapping[str, Any]) -> str:
    names = certificate["declared"]["quantizers"]
    return f"{counted(len(names), 'precision')} ({listed(list(map(quantizer_title, names)))})"


def _seeds(one: Contender) -> tuple[int, ...]:
    return tuple(one.certificate["declared"]["seeds"])


def _models(rows: Iterable[Contender]) -> str:
    seeds = sorted({seed for one in rows for seed in _seeds(one)})
    return f"the models of {'seed' if len(seeds) == 1 else 'seeds'} {listed(seeds)}"


def _apart(rows: Sequence[Contender]) -> list[str]:
    """Rows that are not of every seed."""
    every = {seed for one in rows for seed in _seeds(one)}
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for one in rows:
        if len(_seeds(one)) < len(every):
            by_seeds.setdefault(_seeds(one), []).append(one.name)
    return [f"Of {'seed' if len(s) == 1 else 'seeds'} {listed(s)} alone: {'; '.join(n)}." for s, n in by_seeds.items()]


# --- sentences --------------------------------------------------------------------------------------------------------


def attack_words(certificates: Iterable[Mapping[str, Any]], broader: Iterable[Mapping[str, Any]] = ()) -> list[str]:
    """What holds when more is done than quantizing, what relearning brings out, and whether it tells rows apart.

    Of a row whose certificate is refused only that is said.

    Args:
        certificates: as for ``attack_sheet``.
        broader: of the same rows without relearning and over more precisions, such as those of Table III.

    Raises:
        ValueError: see ``attacked``.
    """
    every = attacked(certificates)
    rows = [one for one in every if one.certificate["outcome"] != "refused"]
    calm, attacks = ([name for name in transforms_of(rows) if is_attack(name) is way] for way in (False, True))
    out = _kept(rows, calm)
    for attack in attacks:
        out += [_relearned(rows, attack), *_survivors(rows, calm, attack, list(broader))]
    if len(attacks) == 1:
        out.append("That is one attack of one strength; others were not tried.")
    elif not any(map(is_attack, transforms_of(every))):
        out.append("Relearning was not tried.")
    return out + _refused(every)


def attack_abstract(certificates: Iterable[Mapping[str, Any]]) -> str:
    """One sentence an attack: how many rows that are not refused are over the ceiling after it."""
    rows = [one for one in attacked(certificates) if one.certificate["outcome"] != "refused"]
    out = []
    for attack in filter(is_attack, transforms_of(rows)):
        tried = [one for one in rows if leaks(one, [attack])]
        over = sum(not holds(one, [attack]) for one in tried)
        now = ends([leak["unlearned"] for one in tried for leak in leaks(one, [attack])])
        out.append(
            f"Once quantized models are {transform_words(attack)}, in {over} of {counted(len(tried), 'combination')} "
            f"more of the others may be given away than a ceiling of {rows[0].certificate['forget_ceiling']:g} points "
            f"over the retrained model allows (VerbMem {now}, retrained {ends(baseline(tried, attack))})."
        )
    return " ".join(out)


def _kept(rows: Sequence[Contender], calm: Sequence[str]) -> list[str]:
    """Whose bounds stay at or under the ceiling; one sentence for all transforms of which the same is true."""
    alike: dict[tuple, list[str]] = {}
    for name in calm:
        alike.setdefault(tuple(holds(one, [name]) for one in rows), []).append(name)
    out = []
    for names in alike.values():
        *first, last = map(transform_words, names)
        done = f"{', '.join(first)} or {last}" if first else last
        over = "" if out else f" over {_precisions(rows[0].certificate)},"
        out.append(f"Of models {done},{over} {_split(rows, names)}.")
    return out


def holds(one: Contender, transforms: Iterable[str]) -> bool | None:
    """Whether every bound of text under these transforms is at or under the ceiling; ``None``: nothing was measured."""
    found = leaks(one, transforms)
    return all(leak["holds"] for leak in found) if found else None


def _split(rows: Sequence[Contender], names: Sequence[str]) -> str:
    """Rows at or under the ceiling and over it, each with its largest bound."""

    def told(outcome: bool) -> str:
        some = [one for one in rows if holds(one, names) is outcome]
        tops = [number(max(leak["upper"] for leak in leaks(one, names)), 0) for one in some]
        return listed([f"{one.name} ({top})" for one, top in zip(some, tops, strict=True)]) if some else "none"

    untried = [one.name for one in rows if holds(one, names) is None]
    return (
        "the largest upper bound of what is given away beyond the retrained model is at or under the ceiling of "
        f"{rows[0].certificate['forget_ceiling']:g} points for {told(True)}, and over it for {told(False)}"
        f"{f'; not tried: {listed(untried)}' if untried else ''}"
    )


def _relearned(rows: Sequence[Contender], attack: str) -> str:
    """VerbMem after the attack, of the retrained model and of each row, beside what it was with nothing done."""
    merged, counts = baseline(rows, PLAIN), [examples(rows, name) for name in (attack, PLAIN)]
    of_merged = f"; merged, of {ends(merged)}" if merged else ""
    of_merged += f" (n = {listed(counts[1])})" if merged and counts[1] != counts[0] else ""
    parts = []
    for one in rows:
        now, was = ([leak["unlearned"] for leak in leaks(one, [name])] for name in (attack, PLAIN))
        parts += [f"{ends(now)} for {one.name}{f' (merged {ends(was)})' if was else ''}"] if now else []
    return (
        f"Quantized and then {transform_words(attack)}, the retrained model has a VerbMem of "
        f"{ends(baseline(rows, attack))} on the others (n = {listed(counts[0])}){of_merged}. After the same, the "
        f"unlearned models have, lowest to highest, {listed(parts)}. Then {_split(rows, [attack])}."
    )


def _survivors(
    rows: Sequence[Contender], calm: Sequence[str], attack: str, broader: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Whether what stays under the ceiling without relearning does after it, and is told apart by it from the rest."""
    tried = [one for one in rows if leaks(one, [attack]) and leaks(one, calm)]
    if not tried:
        return []
    firm = [one for one in tried if holds(one, calm)]
    left = [one for one in firm if holds(one, [attack])]
    out = [
        f"{len(firm) or 'None'} of {counted(len(tried), 'configuration')} {_is(firm)} at or under the ceiling without "
        f"relearning{_after(firm, left)}."
    ]
    out += _told_apart(tried, firm, attack, "at or under the ceiling without it")
    corpus = rows[0].certificate["corpus"]
    quiet = [
        made for made in broader if made["corpus"] == corpus and not any(map(is_attack, made["declared"]["transforms"]))
    ]
    known = {one.name: one.certificate for one in map(_row_of, quiet)}
    judged = [one for one in tried if one.name in known]
    sound = [one for one in judged if known[one.name]["outcome"] == "holds"]
    if sound and sound != firm:
        counts = listed(sorted({len(known[one.name]["declared"]["quantizers"]) for one in judged}))
        words = f"whose certificate over {counts} precisions without it holds"
        out += _told_apart(judged, sound, attack, words)
    return out


def _after(firm: Sequence[Contender], left: Sequence[Contender]) -> str:
    """What becomes of those that were under the ceiling."""
    if not firm:
        return ""
    if len(left) == len(firm):
        return f", and {'all of them are' if len(firm) > 1 else 'it is'} after it, too"
    names = f" ({listed([one.name for one in left])})" if left else ""
    return (
        f", and of these {len(left) or 'none'} {_is(left)} after it{names}: surviving these precisions is not "
        "surviving relearning"
    )


def _is(some: Sequence[Contender]) -> str:
    return "are" if len(some) > 1 else "is"


def _told_apart(rows: Sequence[Contender], some: Sequence[Contender], attack: str, words: str) -> list[str]:
    """Whether all models of some rows give away less after the attack than all of the others."""
    others = [one for one in rows if one not in some]
    if not some or not others:
        return []
    these, those = ([leak["unlearned"] for one in part for leak in leaks(one, [attack])] for part in (some, others))
    if max(these) < min(those):
        verdict = "every model of the former gives away less, under every precision"
    elif min(these) > max(those):
        verdict = "every model of the former gives away more, under every precision"
    else:
        verdict = f"the ranges overlap{_in_places(some, others, attack)}"
    return [
        f"VerbMem after relearning is {ends(these)} for {counted(len(some), 'configuration')} {words}, and "
        f"{ends(those)} for the {'other' if len(others) == 1 else f'{len(others)} others'}: {verdict}."
    ]


def _in_places(some: Sequence[Contender], others: Sequence[Contender], attack: str) -> str:
    """In how many of the pairs of seed and precision that both have the ranges do not overlap, and which way."""
    these, those = (by_place(part, attack) for part in (some, others))
    shared = these.keys() & those.keys()
    if not shared:
        return ""
    less = sum(max(these[at]) < min(those[at]) for at in shared)
    more = sum(min(these[at]) > max(those[at]) for at in shared)
    return (
        "; compared under one precision and with one seed at a time, every model of the former gives away less in "
        f"{less} of {counted(len(shared), 'case')}{f', and more in {more}' if more else ''}"
    )


def by_place(rows: Iterable[Contender], transform: str) -> dict[tuple[int, str], list[float]]:
    """(seed, precision) -> VerbMem of each row."""
    out: dict[tuple[int, str], list[float]] = {}
    for one in rows:
        for cell in one.certificate["cells"]:
            if cell["transform"] == transform:
                place = (cell["seed"], cell["quantizer"])
                out.setdefault(place, []).append(cell["forget"][METRIC]["unlearned"])
    return out


def _refused(rows: Iterable[Contender]) -> list[str]:
    told = [f"{one.name} (at least {number(100 * one.certificate['least_utility'], 0)} % of Utility is left)"
            for one in rows if one.certificate["outcome"] == "refused"]  # fmt: skip
    return [f"Refused, so that nothing is said of their text: {listed(told)}."] if told else []


def ends(values: Sequence[float]) -> str:
    """``40 to 57``, or the one value that both round to."""
    return " to ".join(dict.fromkeys(number(end, 0) for end in (min(values), max(values))))
