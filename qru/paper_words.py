"""Sentences of the paper: every claim and every number in them is counted from records when the paper is made.

Each function reads records and returns plain sentences. They are built so that any outcome reads truly: what came back
is told where it came back, and what did not is told, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from qru import kernel_record, models, why, why_verdict
from qru.config import MEASURING
from qru.defaults import BETA2, MINI
from qru.optimizers import largest_step, movable_below
from qru.paper_figures import chosen_row, grid_frame
from qru.paper_tables import arm_name, cost_frame, counted, listed
from qru.prediction import HIDDEN, scored
from qru.records import Record
from qru.reported import reported
from qru.style import precision_label
from qru.tables import METRICS, number, with_interval
from qru.typeset import method_title

MAIN_GRID = "rtn-int4-g128"  # the 4 bits that people deploy; of several quantizers the one spoken of
FAMILIES = {
    why_verdict.STILL: "where stored bf16 weights are stepped and rounded to nearest",
    why_verdict.STEPPED: "with full rank and no dead zone",
    why_verdict.LOW: "with LoRA",
}
BINDS = {"fma": "multiply-adds"}  # what sets a ceiling, in words
SHORT = {why_verdict.STILL: "dead zone", why_verdict.STEPPED: "no dead zone", why_verdict.LOW: "LoRA"}
MIDDLE = ["zero_bin", "hidden", "crossed", "predicted_crossed", "projection", "cosine"]
NONE = "There is no record of this part of the experiment."


def short(text: str) -> str:
    """Names of quantizers inside a sentence as they are printed: ``rtn-int4-g128`` -> ``int4 g128``."""
    return re.sub(r"rtn-int\d[\w-]*", lambda found: precision_label(found[0]), text)


def sentence(text: str) -> str:
    """With a capital, where a sentence begins with a word, and a full stop."""
    text = (text[:1].upper() if text[:1].isascii() else text[:1]) + text[1:]
    return text if text.endswith(".") else f"{text}."


def span(values: Iterable[float], digits: int = 0, unit: str = "") -> str:
    """``3 to 17``, or the one value; ``unknown`` without any."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "unknown"
    ends = list(dict.fromkeys(number(value, digits) for value in (min(known), max(known))))
    return " to ".join(ends) + unit


def general(value: float, digits: int = 2) -> str:
    """A number of any size with a few digits: ``0.0071``, ``1.2e-4``, ``38``."""
    told = f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    return re.sub(r"e([+-])0*(\d)", r"e\1\2", told).replace("e+", "e").replace("-", "−")


def cell_name(row: Mapping[str, Any]) -> str:
    """``LoRA fp32, GA+KLR, books, int4 g128``."""
    return ", ".join((row["arm"], method_title(row["method"]), row["corpus"], precision_label(row["quantizer"])))


# --- why it comes back --------------------------------------------------------------------------------------------


def said(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``why_verdict.outcomes`` that say whether text came back."""
    return table[table["back"].notna()]


def family_returns(found: Sequence[Record]) -> dict[str, str]:
    """Family of arms -> under which quantizers its text comes back, in how many of how many runs, and under which not.

    Runs with a dead zone are told apart by their edge, on which the outcome depends.
    """
    table = why_verdict.outcomes(found)
    out = {}
    for family, words in FAMILIES.items():
        of = table[table["family"] == family]
        if of.empty:
            continue
        if said(of).empty:
            out[family] = f"{words}, no run forgot anything that could come back"
            continue
        rows = said(of)
        if not rows["back"].any():
            runs, grids = counted(rows["run"].nunique(), "run"), counted(rows["quantizer"].nunique(), "quantizer")
            out[family] = f"{words}, it comes back in none of {runs} under any of {grids}"
            continue
        edges = [(None, rows)] if rows["edge"].isna().all() else list(rows.groupby("edge"))
        told = [_returned(part, None if len(edges) == 1 else edge) for edge, part in edges]
        alone = len(edges) == 1
        out[family] = f"{words}{told[0]}" if alone else f"{words}, the forgotten text comes back {'; '.join(told)}"
    return out


def _returned(rows: pd.DataFrame, edge: float | None) -> str:
    """Of runs of one edge: the quantizers under which text comes back, and those under which it does not."""
    parts, none = [], []
    for quantizer in why_verdict.finest_first(rows):
        of = rows[rows["quantizer"] == quantizer]
        back, name = of["back"].astype(bool), precision_label(quantizer)
        if back.any():
            share = number(of.loc[back, "text_regained"].median(), 0)
            parts.append(f"under {name} in {back.sum()} of {len(of)} (median {share} %)")
        else:
            none.append(name)
    parts += [f"under {listed(none)} in none"] if none else []
    runs = counted(rows["run"].nunique(), "run")
    if edge is None:
        return f" ({runs}), the forgotten text comes back {listed(parts)}"
    return f"where only weights under {general(edge)} can move ({runs}) {listed(parts)}"


def abstract(found: Sequence[Record]) -> str:
    """In how many runs of each family of arms text comes back, under which quantizers, and how much of it."""
    table = said(why_verdict.outcomes(found))
    out, never = [], []
    for family, words in FAMILIES.items():
        rows = table[table["family"] == family]
        if rows.empty:
            continue
        back = rows[rows["back"].astype(bool)]
        runs = counted(rows["run"].nunique(), "run")
        if back.empty:
            never.append(f"in none of {runs} {words}")
            continue
        risen = [name for name in why_verdict.finest_first(rows) if name in set(back["quantizer"])]
        medians = back.groupby("quantizer")["text_regained"].median()
        out.append(
            f"{sentence(words).rstrip('.')}, text comes back in {back['run'].nunique()} of {runs} under "
            f"{either([precision_label(name) for name in risen])}; there, medians of "
            f"{span(medians, 0, ' %')} of it are regained, by quantizer."
        )
    return " ".join([*out, *([f"It comes back {listed(never)}."] if never else [])])


def either(names: Sequence[str]) -> str:
    """``a, b or c``."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def finding(found: Sequence[Record]) -> str:
    """The result in two sentences, for a page that nobody reads to the end."""
    if not found:
        return "There is no record of it yet: `make why`."
    table = why_verdict.outcomes(found)
    score = scored(zip(table["predicted"], table["back"], strict=True))
    if score["n"] == score["undecided"]:
        return f"No run ({why_verdict.size(table)}) forgot anything that could come back."
    rows = said(table)
    dead = rows[rows["family"] == why_verdict.STILL]
    right = int(dead["predicted"].eq(dead["back"].astype(bool)).sum())
    never, never_dead = (int((~part["back"].astype(bool)).sum()) for part in (rows, dead))
    forgotten = span(table.drop_duplicates("run").query("reached")["verbmem_bf16"], unit=" %")
    return (
        f"At equal forgetting of text ({why_verdict.size(table)}; VerbMem {forgotten} in bf16; {_beta2s(found)}), "
        f"{'; '.join(family_returns(found).values())}. Predicted from learning rate, weights and quantization step "
        f"alone, {score['right']} of {len(rows)} outcomes were right, with {score['false_alarms']} false alarms and "
        f"{score['missed']} missed returns, where saying “never” is right in {never}; in arms with a dead zone "
        f"{right} of {len(dead)}, and “never” in {never_dead}."
    )


def _beta2s(found: Sequence[Record]) -> str:
    values = sorted({record.config["adam_beta2"] for record in found})
    return f"AdamW with β₂ {listed([f'{value:g}' for value in values])}"


def usual_beta2(found: Sequence[Record], usual: float = BETA2) -> str:
    """Whether text comes back at AdamW's own β₂, in one sentence; empty without such runs.

    Args:
        found: of the part that varies β₂.
        usual: AdamW's own.
    """
    dead = _dead(found, usual)
    if dead.empty:
        return ""
    back = int(dead["back"].astype(bool).sum())
    return (
        f"With AdamW's own β₂ of {usual:g}, at the same rate, text comes back in {back} "
        f"of {len(dead)} outcomes of {counted(dead['run'].nunique(), 'run')} with weights stepped in bf16 "
        f"({listed(sorted(set(dead['corpus'])))}, {counted(dead['seed'].nunique(), 'seed')})."
    )


def second_moment(found: Sequence[Record], usual: float = BETA2) -> list[str]:
    """What of the update is left at AdamW's own β₂, where text returned at the lower; none without both."""
    dead, low = _dead(found, usual), _dead([r for r in found if r.config["adam_beta2"] != usual])
    if dead.empty:
        return []
    out = [usual_beta2(found, usual)]
    risen = [] if low.empty else [q for q, of in low.groupby("quantizer", sort=False) if of["back"].any()]
    kept = [
        f"{span(dead.loc[dead['quantizer'] == q, 'projection'], 2)} under {precision_label(q)} "
        f"({span(low.loc[low['quantizer'] == q, 'projection'], 2)} at the lower β₂)"
        for q in risen
    ]
    if kept:
        out.append(f"Of the update the projection is {listed(kept)}.")
    inside = span(dead["hidden"], 0, " %")
    return [
        *out,
        f"The bound on a step is then {largest_step(usual):.1f} learning rates and the edge by it "
        f"{span(dead['edge'], 4)}, under which {inside} of the movable weights are hidden; steps that are "
        "mostly shorter would put it lower.",
    ]


def _dead(found: Sequence[Record], beta2: float | None = None) -> pd.DataFrame:
    """Outcomes that are said of runs with a dead zone, at one β₂ or at all."""
    runs = [record for record in found if beta2 is None or record.config["adam_beta2"] == beta2]
    table = said(why_verdict.outcomes(runs)) if runs else pd.DataFrame({"family": []})
    return table[table["family"] == why_verdict.STILL]


def cause(found: Sequence[Record]) -> str:
    """What the families of arms tell of dead zone and rank, and whether storing in bf16 alone suffices."""
    table = why_verdict.outcomes(found)
    rows = said(table)
    free = [arm for arm, fields in why.ARMS.items() if fields["weights"] == "bf16"]
    stored = rows[rows["arm"].isin(free) & (rows["family"] != why_verdict.STILL)]
    told = short(why_verdict.families(table))
    if stored.empty:
        return told
    back = stored.groupby("run")["back"].any()
    return (
        f"{told} In the arms that keep weights, adapters or a difference in bf16 and yet have no dead zone in the "
        f"weights, text comes back in {int(back.sum())} of {counted(len(back), 'run')}."
    )


def share_ranges(found: Sequence[Record]) -> list[str]:
    """The recovered shares of the cells of the table, least and greatest, with their intervals over examples.

    A cell is a corpus, method, arm and quantizer: the mean over those seeds that met the goal.
    """
    table = why_verdict.outcomes(found)
    known = why.over_seeds(why.met(found))
    known = known[known["share"].notna()]
    known["family"] = known["arm"].map(table.drop_duplicates("arm").set_index("arm")["family"])
    still, free = (known[(known["family"] == why_verdict.STILL) == dead] for dead in (True, False))
    out, parts = [], []
    for quantizer in why_verdict.finest_first(table):
        of = still[still["quantizer"] == quantizer]
        if len(of):
            ends = dict.fromkeys(_share(of.loc[at]) for at in (of["share"].idxmin(), of["share"].idxmax()))
            parts.append(f"{' to '.join(ends)} under {precision_label(quantizer)}")
    if parts:
        out.append(
            f"The share of the text regained in {_cells(still)} with a dead zone is {listed(parts)}: least to greatest "
            "mean over seeds, in percent with 95 % intervals over examples."
        )
    if len(free):
        ends = {"least": free.loc[free["share"].idxmin()], "greatest": free.loc[free["share"].idxmax()]}
        told = listed([f"the {word} is {_share(end)} ({cell_name(end)})" for word, end in ends.items()])
        out.append(f"In {_cells(free)} without one, over all quantizers, {told}.")
    return out


def _cells(shares: pd.DataFrame) -> str:
    """How many arms × methods × corpora."""
    return (
        counted(len(shares[["corpus", "method", "arm"]].drop_duplicates()), "combination")
        + " of arm, method and corpus"
    )


def _share(row: Mapping[str, Any]) -> str:
    low, high = (max(-999.0, min(999.0, row[end])) for end in ("low", "high"))
    return with_interval(row["share"], low, high, digits=0)


def foreseen(found: Sequence[Record]) -> list[str]:
    """The prediction scored, beside what saying "never" would have scored; and what was wrong."""
    table = why_verdict.outcomes(found)
    score = scored(zip(table["predicted"], table["back"], strict=True))
    decided = score["n"] - score["undecided"]
    if not decided:
        return ["No prediction could be scored."]
    rows = said(table)
    back = int(rows["back"].astype(bool).sum())
    different = len(rows.drop_duplicates(["corpus", "method", "arm", "quantizer"]))
    out = [
        f"Of {decided} predictions, one for each run and quantizer, {score['right']} were right; "
        f"{score['false_alarms']} announced a return that did not come, {score['missed']} missed one.",
        f"Text came back in {back} of the {decided}, so always saying that nothing comes back would have been right "
        f"in {decided - back}.",
        f"Seeds share a prediction: {different} are of different settings.",
    ]
    dead = rows[rows["family"] == why_verdict.STILL]
    if len(dead):
        returned = dead["back"].astype(bool)
        out.append(
            f"In arms with a dead zone, the only ones where a return is ever predicted, "
            f"{int((dead['predicted'].astype(bool) == returned).sum())} of {len(dead)} were right, and text came back "
            f"in {int(returned.sum())}."
        )
    out += _outside(rows)
    if score["undecided"]:
        out.append(f"Another {score['undecided']} could not be scored, because the run missed the goal.")
    wrong = why_verdict.mistakes(found)
    if 0 < len(wrong) <= 6:
        told = "; ".join(f"{cell_name(row)}, seed {row['seed']}" for _, row in wrong.iterrows())
        out.append(f"The wrong ones: {told}.")
    return out


def _outside(rows: pd.DataFrame) -> list[str]:
    """How many of the returns were foreseen, and whether "and nowhere else" stands; nothing where none came."""
    back = rows[rows["back"].astype(bool)]
    if back.empty:
        return []
    right = int(back["predicted"].astype(bool).sum())
    told = f"{right} of the {counted(len(back), 'return')} {'was' if right == 1 else 'were'} foreseen"
    if right < len(back):
        return [f"{told}: that it comes back there and nowhere else is, as stated, wrong."]
    return [f"{told}."]


def equal_forgetting(found: Sequence[Record]) -> list[str]:
    """What was compared, and what of it is not equal: the first sentences of the verdict."""
    lines = why_verdict.sentences(found)
    at = next((i for i, line in enumerate(lines) if line.startswith("under ")), len(lines))
    # Where every run did, the same number need not be read twice.
    lines = [re.sub(r"^(\d+)( runs .*; )\1 reached", r"\1\2all reached", line) for line in lines]
    return [short(sentence(line)) for line in lines[:at]]


def limits(found: Sequence[Record]) -> str:
    """How many epochs the runs were given, and where some were given more."""
    by_epochs: dict[int, list[Record]] = {}
    for record in found:
        by_epochs.setdefault(record.config["epochs"], []).append(record)
    usual, *others = sorted(by_epochs, key=lambda epochs: -len(by_epochs[epochs]))
    told = f"A run was given {usual} epochs at most"
    for epochs in others:
        arms = [f"“{arm}”" for arm in dict.fromkeys(why.arm_of(record.config) for record in by_epochs[epochs])]
        corpora = list(dict.fromkeys(record.config["corpus"] for record in by_epochs[epochs]))
        told += f"; on {listed(corpora)}, {listed(arms)} were given {epochs}, since a first run had missed the goal"
    return f"{told}."


def knowledge(found: Sequence[Record]) -> str:
    """What comes back of knowledge, which no goal matched."""
    return next((line for line in why_verdict.sentences(found) if line.startswith(("Of knowledge", "No run lost"))), "")


def zone(found: Sequence[Record]) -> dict[str, Any]:
    """Where the edge of the dead zone lies, over the runs that have one.

    Returns:
        ``powers`` (exponents of two), ``edge`` (as numbers), ``movable`` (percent of weights) and ``sigma`` (root mean
        square of the weights, of all runs).
    """
    known = [prediction for record in found for prediction in record.extra["prediction"].values()]
    dead = [prediction for prediction in known if prediction["edge"] is not None]
    edges = sorted({prediction["edge"] for prediction in dead})
    return {
        "powers": [str(round(math.log2(value))).replace("-", "−") for value in edges],
        "edge": listed([general(value) for value in edges]) if edges else "unknown",
        "movable": span([prediction["movable"] for prediction in dead], 0, " %"),
        "sigma": span([prediction["sigma"] for prediction in known], 3),
    }


def mechanism(found: Sequence[Record]) -> dict[str, Any]:
    """What of the update is left in the codes, of runs that met the goal.

    Returns:
        ``rows``: family, quantizer, half a step, percent of the movable weights that are hidden, percent of all that
        crossed and that were expected to, the projection, and the cosine: medians over runs. ``told``:
        sentences on the least and greatest of single runs.
    """
    table = why_verdict.outcomes(found)
    table = table[table["reached"]]
    rows, told = [], []
    for family, words in FAMILIES.items():
        of = table[table["family"] == family]
        if of.empty:
            continue
        middle = of.groupby("quantizer")[MIDDLE].median()
        for i, quantizer in enumerate(why_verdict.finest_first(table)):
            if quantizer in middle.index:
                zero_bin, hidden, crossed, expected, projection, cosine = middle.loc[quantizer]
                inside = number(hidden, 0) if family == why_verdict.STILL else "–"
                left = [number(projection, 2), number(cosine, 2)]
                cells = [number(zero_bin, 4), inside, general(crossed), general(expected), *left]
                rows.append(["" if i else SHORT[family], precision_label(quantizer), *cells])
        told.append(
            f"{words}, {span(of['moved'])} % of the weights have moved in the end, {_between(of['crossed'])} % cross "
            f"into another bin, and the projection is {span(of['projection'], 2)}"
        )
    return {"rows": rows, "told": [sentence(text) for text in told]}


def _between(values: pd.Series) -> str:
    return " to ".join(dict.fromkeys(general(value) for value in (values.min(), values.max())))


def missing(found: Sequence[Record], quantizer: str = MAIN_GRID) -> dict[str, str]:
    """What others report and these runs do not show, or show: a sentence each.

    Returns:
        ``plain`` (text under plain 4-bit groups), ``knowledge``, and ``overlap`` (weights that stay in their bin).
    """
    table = why_verdict.outcomes(found)
    table = table[table["reached"]]
    of = table[table["quantizer"] == quantizer]
    still, name = of[of["family"] == why_verdict.STILL], precision_label(quantizer)
    rows = said(still)
    back = rows["back"].astype(bool)
    plain = (
        f"Under {name} text comes back in {back.sum()} of {counted(len(rows), 'run')} with a dead zone "
        f"({span(rows['text_regained'])} % of it). The edge is {span(rows['edge'], 4)}, half a step in the median "
        f"{span(rows['zero_bin'], 4)}, and {span(rows['hidden'])} % of the movable weights are hidden."
        if len(rows)
        else f"No run with a dead zone forgot any text that could come back under {name}."
    )
    runs = table.drop_duplicates("run")
    asked = said(table.assign(back=table["knowledge_back"]))
    risen = asked.groupby("run")["back"].any()
    knowledge = (
        f"Where text is forgotten, knowledge is {span(runs['knowmem_bf16'])} in bf16 (the target's: "
        f"{levels(found, 'knowmem', model='target')})"
        if len(runs) and "knowmem_bf16" in runs
        else "No knowledge was measured"
    )
    knowledge += (
        f"; in {len(risen)} of {counted(len(runs), 'run')} enough was forgotten to tell, and in {int(risen.sum())} of "
        "those some quantizer brings knowledge back."
    )
    overlap = (
        f"Under {name} we find {span(100 - still['crossed'], 1)} % with a dead zone, and "
        f"{span(100 - of.loc[of['family'] != why_verdict.STILL, 'crossed'], 1)} % without one."
    )
    return {"plain": plain, "knowledge": knowledge, "overlap": overlap}


def _trained(record: Record) -> str:
    """What a run's training depends on: parts of the experiment may measure one training in two ways."""
    return repr({k: v for k, v in sorted(record.config.items()) if k not in {"hash", *MEASURING}})


def elsewhere(found: Sequence[Record], compared: Sequence[Record] = (), quantizer: str = MAIN_GRID) -> list[str]:
    """Does text come back under plain 4-bit groups at other rates and sizes, where a dead zone is?

    Args:
        found: of the parts beside the comparison that change rate or size.
        compared: of the comparison, whose runs are no further ones.
        quantizer: that is spoken of.

    Returns:
        How many; which, with their shares; and what is regained of runs that missed the goal and are not counted.
    """
    counted_in, missed = _further(found, compared, quantizer)
    back = [row for row in counted_in if row["back"]]
    name = precision_label(quantizer)
    out = [
        f"Among {counted(len(counted_in), 'further run')} with a dead zone, at other rates or of models of other "
        f"sizes, it comes back under {name} in {len(back)}."
    ]
    if back:
        out.append(f"The share of the text that is regained there: {'; '.join(map(_at_rate, back))}.")
    if missed:
        told = "; ".join(f"{_at_rate(row)}, from VerbMem {number(row['verbmem_bf16'], 0)} in bf16" for row in missed)
        out.append(f"Not counted, since the goal was missed, but measured: {told}.")
    return out


def _further(found: Sequence[Record], compared: Sequence[Record], quantizer: str) -> tuple[list, list]:
    """Rows of further runs with a dead zone that are counted, and those that missed the goal but were measured."""
    rows = []
    known = {_trained(record) for record in compared}
    for record in {_trained(record): record for record in found if _trained(record) not in known}.values():
        table = why_verdict.outcomes([record])
        rows += table[(table["quantizer"] == quantizer) & table["edge"].notna()].to_dict("records")
    missed = [row for row in rows if not row["reached"] and not math.isnan(row["text_regained"])]
    return [row for row in rows if row["back"] is not None], missed


def plain_groups(found: Sequence[Record], compared: Sequence[Record], quantizer: str = MAIN_GRID) -> str:
    """Plain 4-bit groups in a sentence: runs that met the goal, of the comparison and beyond, and those that did not.

    Args:
        found, compared, quantizer: as of ``elsewhere``.
    """
    table = said(why_verdict.outcomes(compared))
    inside = table[(table["family"] == why_verdict.STILL) & (table["quantizer"] == quantizer)]
    beyond, missed = _further(found, compared, quantizer)
    back = int(inside["back"].astype(bool).sum()) + sum(bool(row["back"]) for row in beyond)
    out = (
        f"Under plain {precision_label(quantizer)} it comes back in {back} of "
        f"{counted(len(inside) + len(beyond), 'run')} with a dead zone, at these and other rates and sizes, that met "
        "the goal"
    )
    if missed:
        out += (
            f"; in {len(missed)} that missed it, with VerbMem {span(row['verbmem_bf16'] for row in missed)} in bf16, "
            f"{span((row['text_regained'] for row in missed), 0, ' %')} of the text is regained"
        )
    return f"{out}."


def _at_rate(row: Mapping[str, Any]) -> str:
    """A run by its rate, and what it regains."""
    low, high = (max(-999.0, min(999.0, row[end])) for end in ("text_low", "text_high"))
    share = with_interval(row["text_regained"], low, high, digits=0)
    rate, edge = general(row["learning_rate"], 3), general(row["edge"])
    return f"{row['corpus']}, rate {rate}, edge {edge}, {counted(int(row['steps']), 'step')}: {share} %"


def dial(found: Sequence[Record]) -> list[str]:
    """Does recovery switch on where the edge falls into the zero bin, as the learning rate is turned?"""
    if not found:
        return [NONE]
    table = why_verdict.outcomes(found)
    rows = said(table)
    runs = table.drop_duplicates("run")
    out = [
        f"{counted(len(runs), 'run')} of {listed(list(dict.fromkeys(table['arm'])))} at rates from "
        f"{general(table['learning_rate'].min())} to {general(table['learning_rate'].max())} "
        f"(edges from {general(table['edge'].min())} to {general(table['edge'].max())}), of which "
        f"{int(runs['reached'].sum())} met the goal, under {counted(table['quantizer'].nunique(), 'grid')}."
    ]
    if rows.empty:
        return [*out, "None forgot anything that could come back."]
    score = scored(zip(rows["predicted"], rows["back"], strict=True))
    back = rows["back"].astype(bool)
    out.append(
        f"Of {len(rows)} pairs of rate and grid, text came back in {back.sum()}; the prediction was right in "
        f"{score['right']}, with {score['false_alarms']} false alarms and {score['missed']} missed."
    )
    out += _outside(rows)
    wrong = rows[rows["predicted"].astype(bool) != back]
    if 0 < len(wrong) <= 6:
        told = "; ".join(
            f"rate {general(row['learning_rate'], 3)} under {precision_label(row['quantizer'])} "
            f"({number(row['hidden'], 0)} % hidden, {number(row['text_regained'], 0)} % regained)"
            for _, row in wrong.iterrows()
        )
        out.append(f"The wrong ones: {told}.")
    for words, of in (("over", rows[rows["hidden"] > HIDDEN]), ("at most", rows[rows["hidden"] <= HIDDEN])):
        if len(of):
            regained = f"{span(of['text_regained'])} % of the text" + (
                f", median {number(of['text_regained'].median(), 0)} %" if len(of) > 1 else ""
            )
            out.append(
                f"Where {words} {HIDDEN:g} % of the movable weights are hidden ({counted(len(of), 'pair')}), "
                f"{regained}, is regained."
            )
    return out


def series(values: Iterable[float], digits: int = 0) -> str:
    return listed([number(value, digits) for value in values])


def factor(found: Sequence[Record], field: str, quantizer: str = MAIN_GRID) -> pd.DataFrame:
    """One row a run: ``why.table`` under one quantizer, and a setting beside; by the setting, then the seed."""
    rows = []
    for record in found:
        table = why.table([record])
        chosen = table[table["quantizer"] == quantizer]
        rows.append(dict((chosen if len(chosen) else table).iloc[0]) | {field: record.config[field]})
    return pd.DataFrame(rows).sort_values([field, "seed"], kind="stable")


def alpha(found: Sequence[Record], quantizer: str = MAIN_GRID) -> list[str]:
    """LoRA's α, at equal steps: how much more moves, crosses and is forgotten."""
    if not found:
        return [NONE]
    rows = factor(found, "lora_alpha", quantizer)
    return [
        f"At α = {series(rows['lora_alpha'])}, each with {span(rows['steps'])} steps and no goal "
        f"({counted(len(rows), 'run')}, seed {listed(sorted(set(rows['seed'])))}), the update is "
        f"{series(100 * rows['update'], 1)} % of the weights (root mean squares), VerbMem in bf16 comes to "
        f"{series(rows['verbmem_bf16'])}, Utility to {series(rows['utility_bf16'])}; under "
        f"{precision_label(quantizer)} {series(rows['crossed'], 1)} % of the weights cross, and the projection is "
        f"{series(rows['projection'], 2)}."
    ]


def _levels(found: Sequence[Record], field: str, named: Mapping[Any, str]) -> list[str]:
    """At each value of a setting: runs that met the goal, steps, and the scores in bf16, least to greatest seed."""
    rows = factor(found, field)
    every = said(why_verdict.outcomes(found))
    out = []
    for value in dict.fromkeys(rows[field]):
        of = rows[rows[field] == value]
        back = every[every["run"].isin(of["run"])]
        met = of[of["reached"]]
        told = f"{named.get(value, value)}: "
        told += f"{len(met)} of {counted(len(of), 'run')} met the goal"
        if len(met):
            scores = [
                f"{METRICS[metric].rstrip(' ↓↑')} {span(met[f'{metric}_bf16'])}"
                for metric in ("knowmem", "utility", "disjoint")
                if f"{metric}_bf16" in met
            ]
            told += f" in {span(met['steps'])} steps, with {listed(scores)} in bf16"
        if len(back):
            returned = back.groupby("run")["back"].any()
            told += f"; text comes back under some quantizer in {int(returned.sum())} of {len(returned)}"
        out.append(sentence(told))
    return out


def layers(found: Sequence[Record]) -> list[str]:
    names = {"all": "All linear layers", "mlp": "MLPs alone", "attention": "Attention alone"}
    return _levels(found, "lora_targets", names) if found else [NONE]


def rates(found: Sequence[Record]) -> list[str]:
    if not found:
        return [NONE]
    values = {record.config["learning_rate"] for record in found}
    return _levels(found, "learning_rate", {value: f"Rate {general(value, 3)}" for value in values})


def beta2(found: Sequence[Record]) -> list[str]:
    """Does the dead zone hold at other β₂ than the one that the comparison was run with?"""
    if not found:
        return [NONE]
    every = [why_verdict.outcomes([record]).assign(beta2=record.config["adam_beta2"]) for record in found]
    out = []
    for (value, arm), of in pd.concat(every).groupby(["beta2", "arm"], sort=False):
        rows, runs = said(of), of["run"].nunique()
        told = []
        for quantizer, under in rows.groupby("quantizer", sort=False):
            back = under[under["back"].astype(bool)]
            if len(back):
                told.append(
                    f"{precision_label(quantizer)} in {len(back)} of {len(under)} ({span(back['text_regained'])} %)"
                )
        where = f"text comes back under {listed(told)}" if told else "text comes back under no quantizer"
        head = f"β₂ = {value:g}, {arm} ({counted(runs, 'run')})"
        out.append(sentence(f"{head}: {where if len(rows) else 'the goal was missed'}"))
    return out


def sizes(found: Sequence[Record]) -> dict[str, list]:
    """Models of other width and depth, a run a row: how far weights had to move, and what came back.

    Returns:
        ``heads`` and ``rows`` of a table; no row without a record. ``told``: sentences on it.
    """
    outcomes = [(models.sizes(record.config["scale"]), why_verdict.outcomes([record])) for record in found]
    bins: dict[str, float] = {}
    for _, table in outcomes:
        bins = dict(zip(table["quantizer"], table["zero_bin"], strict=True)) | bins
    quantizers = sorted(bins, key=bins.__getitem__)
    rows = []
    for size, table in outcomes:
        first = table.iloc[0]
        regained = dict(zip(table["quantizer"], table["text_regained"], strict=True))
        known = [regained.get(quantizer, math.nan) for quantizer in quantizers]
        shares = ["–" if math.isnan(share) else number(share, 0) for share in known]
        rows.append([
            f"{size.hidden} × {size.layers}", first["arm"], general(first["learning_rate"], 3),
            str(int(first["steps"])), number(100 * first["update"], 1), number(first["verbmem_bf16"], 0),
            "yes" if first["reached"] else "no", *shares,
        ])  # fmt: skip
    told = []
    if outcomes:
        every = pd.concat([table.assign(run=number) for number, (_, table) in enumerate(outcomes)])
        for words, of in (("with", every[every["edge"].notna()]), ("without", every[every["edge"].isna()])):
            met = of[of["reached"]].drop_duplicates("run")
            if len(met):
                back = said(of)[lambda known: known["back"].astype(bool)]
                grids = [
                    precision_label(name) for name in why_verdict.finest_first(of) if name in set(back["quantizer"])
                ]
                told.append(
                    f"{len(met)} of {counted(of['run'].nunique(), 'run')} {words} a dead zone met the goal; forgetting "
                    f"took updates of {span(100 * met['update'], 1)} % of the weights, and text comes back in "
                    f"{back['run'].nunique()} of them{f' (under {either(grids)})' if grids else ''}."
                )
    heads = ["Width × layers", "Arm", "Rate", "Steps", "Update (%)", "VerbMem", "Goal met"]
    return {"heads": [*heads, *map(precision_label, quantizers)], "rows": rows, "told": told}


# --- Tables I and II, and what is published -----------------------------------------------------------------------


def met(record: Record) -> bool | None:
    """Did a run reach its forgetting goal? ``None``: it had none."""
    history = record.extra.get("history")
    return None if record.config.get("forget_goal") is None or not history else why.reached(record)


def returns(records: Sequence[Record], quantizers: Sequence[str]) -> list[str]:
    """Of each arm: runs that met the goal, and in how many memory returns under each quantizer."""
    by_arm: dict[str, list[Record]] = {}
    for record in records:
        by_arm.setdefault(arm_name(record.config), []).append(record)
    out = []
    for arm, found in by_arm.items():
        goals = [goal for record in found if (goal := met(record)) is not None]
        told = f"{arm} ({counted(len(found), 'run')}"
        told += f", {_all_or(sum(goals), len(goals))} met the goal)" if goals else ")"
        counts = {}
        for quantizer in quantizers:
            known = [r.extra["recovered"][quantizer]["recovers"] for r in found if quantizer in r.extra["recovered"]]
            if known:
                counts[quantizer] = sum(one["recovers"] for one in known), len(known)
        parts = [f"{back} of {n} under {precision_label(q)}" for q, (back, n) in counts.items() if back]
        others = [precision_label(q) for q, (back, _) in counts.items() if not back]
        if counts:
            told += f": memory returns in {listed([*parts, *([f'none under {listed(others)}'] if others else [])])}"
        out.append(sentence(told if counts else f"{told}: not quantized"))
    return out


def _all_or(some: int, many: int) -> str:
    """``all``, or ``of which 3``."""
    return "all" if some == many else f"of which {some}"


def largest_rise(records: Sequence[Record], quantizer: str = MAIN_GRID, metric: str = "verbmem") -> str:
    """The largest paired rise of a score from bf16 to a quantizer, with its interval and whose it is."""
    rises = []
    for record in records:
        found = record.extra["recovered"].get(quantizer, {}).get("recovers", {}).get("metrics", {}).get(metric, {})
        if "rise" in found and "ci" in found:
            rises.append((found["rise"], found["ci"], record))
    if not rises:
        return "No rise was measured."
    rise, ci, record = max(rises, key=lambda one: one[0])
    config = record.config
    whose = f"{method_title(config['method'])}, {arm_name(config)}, {config['corpus']}, seed {config['seed']}"
    return (
        f"The largest rise of {METRICS[metric].rstrip(' ↓↑')} from bf16 to {precision_label(quantizer)} among "
        f"{counted(len(rises), 'run')} is {with_interval(rise, *ci)} points ({whose})."
    )


def levels(records: Sequence[Record], metric: str, precision: str = "bf16", model: str = "unlearned") -> str:
    """Least to greatest value of a score over runs."""
    scores = [record.scores.get(model, {}).get(precision, {}).get(metric) for record in records]
    return span(score["value"] for score in scores if score)


def published() -> list[str]:
    """What others report of text that rises between bf16 and 4 bits; theirs, not measured here."""
    table = reported()
    rows = table[table["method"].str.contains("_") & (table["table"] != "I")]
    cell = rows.set_index(["source", "corpus", "method", "arm", "precision"])
    out = []
    for source, of in rows.groupby("source", sort=False):
        for arm, words in (("full", "full fine-tuning"), ("lora", "LoRA")):
            rises, changes = [], []
            for corpus, method in (
                of.loc[of["arm"] == arm, ["corpus", "method"]].drop_duplicates().itertuples(index=False)
            ):
                try:
                    before, after = (cell.loc[(source, corpus, method, arm, p)] for p in ("bf16", "4-bit"))
                except KeyError:
                    continue
                if not math.isnan(after["verbmem"] - before["verbmem"]):
                    rises.append((after["verbmem"] - before["verbmem"], method, corpus))
                    changes.append(after["utility"] - before["utility"])
            if rises:
                rise, method, corpus = max(rises)
                out.append(
                    f"{source}, {words} ({counted(len(rises), 'row')}): the largest rise of VerbMem at 4 bits is "
                    f"{number(rise, 2)} points ({method_title(method)}, {corpus.upper()}); Utility changes by "
                    f"{span(changes, 1)} points."
                )
    return out


def grid(records: Sequence[Record], quantizer: str = MAIN_GRID) -> list[str]:
    """What LoRA's settings change, around the chosen one."""
    frame = grid_frame(records, quantizer)
    if frame.empty:
        return [NONE]
    out = []
    for (corpus, method), of in frame.groupby(["corpus", "method"], sort=False):
        try:
            at = chosen_row(of)
            centre = (
                f"around rank {at['lora_rank']:g}, α {at['lora_alpha']:g}, rate {general(at['learning_rate'], 3)}, "
                f"λ {at['retain_weight']:g}"
            )
        except ValueError:
            centre = "without one that all others surround"
        ends = {
            (metric, precision): span(of[metric, precision])
            for metric in ("verbmem", "utility")
            for precision in ("bf16", quantizer)
        }
        here = [r for r in records if (r.config["corpus"], r.config["method"]) == (corpus, method)
                and r.config["adapter"] == "lora"]  # fmt: skip
        back = sum(r.extra["recovered"].get(quantizer, {}).get("recovers", {}).get("recovers", False) for r in here)
        out.append(
            f"{method_title(method)} on {corpus}, {counted(len(of), 'setting')} {centre}: VerbMem is "
            f"{ends['verbmem', 'bf16']} in bf16 and {ends['verbmem', quantizer]} under {precision_label(quantizer)}, "
            f"Utility {ends['utility', 'bf16']} and {ends['utility', quantizer]}; memory returns in {back} of "
            f"{counted(len(here), 'run')}."
        )
    return out


def requests(records: Sequence[Record]) -> list[str]:
    """Larger forget sets, and request after request: rate and edge, text asked for and not, knowledge, and returns."""
    kinds = {"scal": "Scalability (nested sets)", "sust": "Sustainability (one request after another)"}
    out = []
    for kind, words in kinds.items():
        of = [r for r in records if str(r.config.get("forget_set", "")).startswith(f"{kind}_")]
        by_arm: dict[tuple[str, str, str], list[Record]] = {}
        for record in of:
            key = (record.config["corpus"], method_title(record.config["method"]), arm_name(record.config))
            by_arm.setdefault(key, []).append(record)
        for cell, found in by_arm.items():
            found.sort(key=lambda record: (record.config["forget_set"], record.config["seed"]))
            documents = listed([str(record.extra["forget_set"]["documents"]) for record in found])
            scores = {
                metric: series(r.scores["unlearned"]["bf16"][metric]["value"] for r in found)
                for metric in ("knowmem", "utility")
                if all(metric in r.scores["unlearned"]["bf16"] for r in found)
            }
            told = [f"{METRICS[metric].rstrip(' ↓↑')} {values}" for metric, values in scores.items()]
            quantizers = list(dict.fromkeys(q for record in found for q in record.extra["recovered"]))
            back = {
                q: sum(r.extra["recovered"][q]["recovers"]["recovers"] for r in found if q in r.extra["recovered"])
                for q in quantizers
            }
            risen = [f"{count or 'none'} of {len(found)} under {precision_label(q)}" for q, count in back.items()]
            out += [
                f"{words}, {', '.join(cell)}, after {documents} documents "
                f"({_seeds(found)}; {_pace(found)}): {listed(_parts(found) + told)} "
                f"in bf16.",
                f"Memory returns in {listed(risen)}.",
            ]
    return out or [NONE]


def _seeds(found: Sequence[Record]) -> str:
    """``seed 0``, or ``seeds 0, 1 and 2``."""
    seeds = sorted({record.config["seed"] for record in found})
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {listed(seeds)}"


def _parts(found: Sequence[Record]) -> list[str]:
    """VerbMem in bf16 of the passages that were asked for, and of those that are not asked for yet."""
    told = {"forgotten": "of what was asked for", "remaining": "of what was not asked for yet"}
    out = []
    for part, words in told.items():
        scores = [record.extra["parts"]["unlearned"]["bf16"].get(part) for record in found]
        if values := [score["value"] for score in scores if score]:
            out.append(f"VerbMem {words} {series(values)}")
    return out


def _pace(found: Sequence[Record]) -> str:
    """Rate, edge, epochs and goal of runs, where they say them."""
    configs = [record.config for record in found]
    rates = sorted({config["learning_rate"] for config in configs if "learning_rate" in config})
    told = []
    if rates:
        times = [number(rate / MINI[configs[0]["adapter"]][0], 1).removesuffix(".0") for rate in rates]
        told.append(f"rate {listed([general(rate, 3) for rate in rates])}, {listed(times)} times the usual")
    edges = {edge for config in configs if (edge := edge_of(config))}
    told += [f"edge {listed([general(edge) for edge in sorted(edges)])}"] if edges else []
    epochs = sorted({config["epochs"] for config in configs if "epochs" in config})
    told += [f"{listed(epochs)} epochs"] if epochs else []
    goals = {config.get("forget_goal") for config in configs} - {None}
    return ", ".join([*told, f"goal {listed(sorted(goals))}" if goals else "no goal"])


def edge_of(config: Mapping[str, Any]) -> float | None:
    """The edge of a configuration's dead zone by the bound on a step; ``None`` where there is none, or no rate."""
    stepped = config.get("adapter") == "full" and config.get("weights") == "bf16"
    if not stepped or config.get("rounding", "nearest") != "nearest" or not config.get("learning_rate"):
        return None
    return movable_below(largest_step(config.get("adam_beta2") or BETA2) * config["learning_rate"])


# --- settings and coverage -------------------------------------------------------------------------------------------


VARIED = {"lora_rank": "rank", "lora_alpha": "α", "lora_targets": "layers", "scale": "size"}


def part_settings(parts: Mapping[str, Sequence[Record]], usual: Sequence[str] = ()) -> dict[str, list]:
    """What the runs of each part were given: ``heads`` and ``rows`` of a table, those without a record left out.

    Args:
        parts: name -> records.
        usual: quantizers that are not listed anew.
    """
    rows = []
    for part, found in parts.items():
        if not found:
            continue
        configs = [record.config for record in found]

        def values(field: str, configs: Sequence[Mapping[str, Any]] = configs) -> str:
            known = list(dict.fromkeys(config.get(field) for config in configs))
            return ", ".join(
                "none" if value is None else general(value, 3) if isinstance(value, float) else str(value)
                for value in (sorted(known) if all(isinstance(value, int | float) for value in known) else known)
            )

        methods = ", ".join(dict.fromkeys(method_title(config["method"]) for config in configs))
        arms = "; ".join(dict.fromkeys(arm_name(config) for config in configs))
        fields = [values(field) for field in ("learning_rate", "retain_weight", "adam_beta2", "epochs", "forget_goal")]
        varied = [f"{words} {values(field)}" for field, words in VARIED.items() if ", " in values(field)]
        grids = dict.fromkeys(precision_label(name) for config in configs for name in config["quantizers"])
        told = "as compared" if list(grids) == [precision_label(name) for name in usual] else ", ".join(grids)
        ends = [values("seed"), "; ".join(varied) or "–", told, str(len(found))]
        rows.append([part, values("corpus"), methods, arms, *fields, *ends])
    heads = ["Part", "Corpus", "Method", "Arms", "Rate", "λ", "β₂", "Epochs", "Goal (%)", "Seed", "Varied, too"]
    heads += ["Quantizers", "Runs"]
    return {"heads": heads, "rows": rows}


def coverage(one: Sequence[Record], two: Sequence[Record]) -> str:
    """Which corpora and methods the first two tables have, since it is not all of each."""

    def by_corpus(found: Sequence[Record]) -> dict[str, list[str]]:
        out: dict[str, list[str]] = {}
        for record in found:
            methods, method = out.setdefault(record.config["corpus"], []), method_title(record.config["method"])
            methods += [] if method in methods else [method]
        return out

    told = [
        f"{name} has {listed([f'{listed(methods)} on {corpus}' for corpus, methods in by_corpus(found).items()])}"
        for name, found in (("the first table", one), ("the second", two))
    ]
    return sentence(f"{told[0]}; {told[1]}")


def attempts(tried: Sequence[Mapping[str, Any]], hopeless: float) -> str:
    """When an attempt at a rate was given up, and how many steps it could have taken."""
    most = sorted({attempt["at_most"] for attempt in tried})
    looks = sorted({attempt["looked_every"] for attempt in tried})
    return (
        "An attempt ends where the goal is met, or is given up half way if VerbMem is then over "
        f"{general(hopeless)} %. It had {either([str(steps) for steps in most])} steps at most, with a look every "
        f"{either([str(steps) for steps in looks])}."
    )


def measured(records: Sequence[Record], metric: str) -> str:
    """``48 of 66 runs``: how many have a score."""
    known = [metric in record.scores["unlearned"]["bf16"] for record in records]
    return f"{sum(known)} of {counted(len(known), 'run')}"


def whose(records: Sequence[Record]) -> str:
    """``GA+KLR on books``: method and corpus under a figure."""
    methods = dict.fromkeys(method_title(record.config["method"]) for record in records)
    return f"{', '.join(methods)} on {', '.join(dict.fromkeys(record.config['corpus'] for record in records))}:"


# --- speed ----------------------------------------------------------------------------------------------------------


def kernel(found: Sequence[Mapping[str, Any]], ranks: Sequence[int] = (16, 64)) -> dict[str, Any]:
    """Time of the fused pass and of what people run today, as multiples of it with 95 % intervals.

    Args:
        found: records of the benchmark.
        ranks: that are spoken of; of a record without any of them, the last.

    Returns:
        ``heads`` and ``rows`` of a table, a row a machine and rank; ``told``: least and greatest multiples.
    """
    names = {"eager": "eager PyTorch", "compile": "torch.compile", "peft-bnb": "peft + bitsandbytes NF4"}
    rows, ratios = [], {name: [] for name in names}
    for record in found:
        for result in [r for r in record["results"] if r["rank"] in ranks] or record["results"][-1:]:
            there = result["contestants"]
            for name in names:
                ratios[name] += [there[name]["ratio"]] if name in there else []
            binds = result["ceilings"]["binds"]
            rows.append([
                kernel_record.machine(record), "{} × {}".format(*result["shape"]), str(result["rank"]),
                f"{there['ours']['ms']:.1f}", f"{100 * result['share_of_ceiling']:.0f} % ({BINDS.get(binds, binds)})",
                *(kernel_record.ratio(there[name]).replace("x [", " [") if name in there else "–" for name in names),
            ])  # fmt: skip
    of_rank = listed(list(dict.fromkeys(row[2] for row in rows)))
    told = [f"{span(values, 1)} times that of {names[name]}" for name, values in ratios.items() if values]
    return {
        "heads": ["Machine", "Matrix", "Rank", "ms", "Of the ceiling", *names.values()],
        "rows": rows,
        "told": f"Its speed is {listed(told)}, over {counted(len(rows), 'case')} of rank {of_rank}." if told else NONE,
    }


def evaluation(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Speed of scoring against one example at a time, and that both say the same."""
    out = []
    for record in found:
        total, verified, config = record["metrics"]["total"], record["verified"], record["config"]
        out.append(
            f"Scoring the {config['model']} model on {config['corpus']} takes {total['seconds']['ours']:.1f} s in "
            f"place of {total['seconds']['alone']:.0f} s, {total['ratio']:.1f} times as fast (medians of "
            f"{record['rounds']} rounds, spread {100 * max(total['spread'].values()):.0f} %), with "
            f"{verified['strings']:,} generated strings equal and {verified['log_probs']:,} log-probabilities within "
            f"{general(verified['largest_log_prob_difference'])}."
        )
    return out or [NONE]


def cost(records: Sequence[Record]) -> str:
    """What the runs took."""
    frame = cost_frame(records)
    if frame.empty:
        return "No cost was recorded."
    trained = frame[frame["run"].isin(frame.loc[frame["stage"] == "unlearn", "run"])]  # others took a run's model
    minutes = trained.groupby("run")["seconds"].sum() / 60
    training = frame[frame["stage"] == "unlearn"]["seconds"].sum() / frame["seconds"].sum()
    return (
        f"A run takes {number(minutes.median(), 1)} minutes in the median ({span(minutes, 1)}; "
        f"{counted(len(minutes), 'run')}), {100 * training:.0f} % of it unlearning, and at most "
        f"{frame['memory'].max() / 1000:.1f} GB of memory."
    )
