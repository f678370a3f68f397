"""What the runs of ``qru.why`` say, in words and tables: every number is counted from records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from IPython.display import Markdown

from qru import why
from qru.paper_tables import counted, listed
from qru.prediction import scored
from qru.records import Record, say
from qru.tables import METRICS, with_interval

STILL, STEPPED, LOW = FAMILIES = "full rank with a dead zone", "full rank without one", "LoRA"
UNDECIDED = "not said"


def outcomes(found: Iterable[Record]) -> pd.DataFrame:
    """``why.table`` and three columns more.

    Returns:
        ``back``: whether the forgotten text comes back by the rule of ``qru.metrics.recovers`` (VerbMem up by at least
        10 points, paired interval above zero); ``knowledge_back``: likewise KnowMem, by 5 points; both ``None`` where
        a run missed the goal, or forgot nothing of it. ``family``: ``STILL``, ``STEPPED`` or ``LOW``.
    """
    frames = []
    for record in found:
        frame = why.table([record])
        adapter = why.ARMS[frame["arm"].iloc[0]]["adapter"]
        frames.append(
            frame.assign(
                back=_risen(record, "verbmem"),
                knowledge_back=_risen(record, "knowmem"),
                family=LOW if adapter == "lora" else STILL if frame["edge"].notna().any() else STEPPED,
            )
        )
    return pd.concat(frames, ignore_index=True)


def _risen(record: Record, metric: str) -> pd.Series:
    """Of each quantizer: ``True``, ``False`` or ``None``."""
    reached = why.reached(record)
    shares = [record.extra["recovered"][quantizer] for quantizer in record.crossings]
    return pd.Series(
        [
            bool(share["recovers"]["metrics"][metric]["recovers"]) if reached and share[metric]["defined"] else None
            for share in shares
        ],
        dtype=object,
    )


# --- words ------------------------------------------------------------------------------------------------------


def sentences(found: Sequence[Record]) -> list[str]:
    """The verdict over all runs: what is compared, what each quantizer brings back, why, and was it foreseen."""
    table = outcomes(found)
    lines = [*_compared(table), *_retrained(found)]
    if table["back"].isna().all():
        return [*lines, "No run forgot anything that could come back: there is nothing to say."]
    for quantizer in finest_first(table):
        lines.append(f"under {quantizer} {_returns(table[table['quantizer'] == quantizer])}.")
    return [*lines, families(table), _knowledge(table), _foreseen(table)]


def quoted(arm: str) -> str:
    """An arm's name, which may hold a comma, inside a sentence."""
    return f"“{arm}”"


def _share_of(rows: pd.DataFrame) -> str:
    """``11 of 12 runs, median 88 %`` of the forgotten text."""
    back = rows["back"].astype(bool)
    share = rows.loc[back, "text_regained"].median()
    return f"{back.sum()} of {counted(len(rows), 'run')}, median {share:.0f} %"


def size(table: pd.DataFrame) -> str:
    """``7 arms, 2 methods, 2 corpora, 3 seeds``."""
    seeds = table.groupby(["corpus", "method", "arm"])["seed"].nunique()
    many = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    words = {"arm": ("arm", "arms"), "method": ("method", "methods"), "corpus": ("corpus", "corpora")}
    told = [counted(table[column].nunique(), *names) for column, names in words.items()]
    return ", ".join([*told, f"{many} {'seed' if many == '1' else 'seeds'}"])


def _compared(table: pd.DataFrame) -> list[str]:
    """How many runs are at equal forgetting, and what of them is not equal."""
    runs = table.drop_duplicates("run")
    reached = runs[runs["reached"]]
    line = f"{counted(len(runs), 'run')} ({size(table)}); {len(reached)} reached the forgetting goal"
    by_arm = runs.groupby("arm", sort=False)["reached"]
    missed = [f"{quoted(arm)} {(~met).sum()} of {len(met)}" for arm, met in by_arm if not met.all()]
    lines = [f"{line}{f'; missed, and left out below: {listed(missed)}' if missed else ''}."]
    if len(reached):
        medians = reached.groupby("arm")[[f"{m}_bf16" for m in METRICS if f"{m}_bf16" in reached]].median()
        names = {f"{metric}_bf16": name.rstrip(" ↓↑") for metric, name in METRICS.items()}
        told = ", ".join(f"{names[column]} {_span(values)}" for column, values in medians.items())
        lines.append(f"In bf16 (percent, medians of the arms): {told}. Only VerbMem was matched.")
    return lines


def _retrained(found: Sequence[Record]) -> list[str]:
    """What models that never saw the forgotten text score on the same examples."""
    levels: dict[str, list[float]] = {}
    for record in found:
        for metric, score in record.scores["retrained"]["bf16"].items():
            levels.setdefault(metric, []).append(score["value"])
    told = ", ".join(
        f"{name.rstrip(' ↓↑')} {_span(pd.Series(levels[metric]))}"
        for metric, name in METRICS.items()
        if metric in levels
    )
    return [f"Retrained models, which never saw the text: {told}."] if told else []


def _span(values: pd.Series) -> str:
    low, high = f"{values.min():.0f}", f"{values.max():.0f}"
    return low if low == high else f"{low} to {high}"


def _returns(table: pd.DataFrame) -> str:
    """Of one quantizer: in which arms the text comes back, in how many of how many runs."""
    said = table[table["back"].notna()]
    if said.empty:
        return "there is nothing to say, since no run forgot anything that could come back"
    by_arm = dict(list(said.groupby("arm", sort=False)))
    parts = [f"{quoted(arm)} ({_share_of(rows)})" for arm, rows in by_arm.items() if rows["back"].any()]
    others = [rows for rows in by_arm.values() if not rows["back"].any()]
    none = f"none of {counted(sum(map(len, others)), 'run')}"
    if not parts:
        return f"the text comes back in {none}"
    return f"the text comes back in {listed(parts)}" + (f", and in {none} of the other arms" if others else "")


def families(table: pd.DataFrame) -> str:
    """Dead zone against rank: in how many runs some quantizer brings the text back, by family of arms, and what of it
    tells the two apart.

    The share of runs is not split into points for either: what one explains depends on which is changed first.
    """
    back = _by_family(table, "back")
    line = f"Under one quantizer or another text comes back in {_of_families(back)}."
    if len(back) < 3:
        return line
    fails = tuple(back[family][0] > 0 for family in FAMILIES)
    return f"{line} {TOLD.get(fails, 'The families divide neither by the dead zone nor by rank.')}"


# Whether text comes back in a family of arms, of STILL, STEPPED and LOW -> what this tells.
TOLD = {
    (True, False, False): (
        "Full rank does not suffice for a return, and low rank is not needed to prevent one: "
        "what the failing arms share is the dead zone."
    ),
    (True, True, False): "Full rank fails with a dead zone and without one, low rank holds: rank tells them apart.",
    (True, False, True): "Low rank fails as a dead zone does, full rank without one holds.",
    (True, True, True): "Every family fails somewhere: neither the dead zone nor rank tells them apart.",
    (False, False, False): "No family fails: there is nothing to tell apart.",
}


def _knowledge(table: pd.DataFrame) -> str:
    back = _by_family(table, "knowledge_back")
    if not back:
        return "No run lost knowledge that could come back."
    return f"Of knowledge, which no goal matched, something comes back in {_of_families(back)}."


def _by_family(table: pd.DataFrame, column: str) -> dict[str, tuple[int, int]]:
    """Family -> how many runs regain something under some quantizer, of how many that could."""
    said = table[table[column].notna()]
    by_run = said.groupby(["family", "run"])[column].any()
    return {family: (int(by_run[family].sum()), len(by_run[family])) for family in FAMILIES if family in by_run}


def _of_families(counts: dict[str, tuple[int, int]]) -> str:
    return listed([f"{risen} of {counted(runs, 'run')} of {family}" for family, (risen, runs) in counts.items()])


def _foreseen(table: pd.DataFrame) -> str:
    found = scored(zip(table["predicted"], table["back"], strict=True))
    decided = found["n"] - found["undecided"]
    if not decided:
        return "No prediction could be scored."
    returned = int(table["back"].eq(True).sum())
    # Arms without a dead zone are easy to foresee; and seeds, methods and arms of one rate share what is foreseen.
    still = table[table["edge"].notna() & table["back"].notna()]
    right = still["predicted"].eq(still["back"].astype(bool))
    distinct = right.groupby([still["corpus"], still["quantizer"], still["learning_rate"]]).all()
    apart = (
        f"; {len(distinct)} of them are distinct and of arms with a dead zone, and {distinct.sum()} of these were right"
    )
    left_out = f"; {found['undecided']} more could not be scored" if found["undecided"] else ""
    return (
        f"Of {decided} predictions (a run under a quantizer) from learning rate, weights and quantization step alone, "
        f"{found['right']} were right, {found['false_alarms']} false alarms and {found['missed']} missed a return; "
        f"it came back in {returned}{left_out}{apart}."
    )


def finest_first(table: pd.DataFrame) -> list[str]:
    """Quantizers by the size of their zero bin."""
    return list(table.groupby("quantizer", sort=False)["zero_bin"].median().sort_values(kind="stable").index)


# --- tables -----------------------------------------------------------------------------------------------------


def protocol_table(found: Sequence[Record]) -> pd.DataFrame:
    """What each arm was run with, a row a corpus, method and arm: rates, λ, looks, edge, steps to the goal."""
    table = why.table(found)
    looks = pd.Series([record.config["check_steps"] for record in found], [record.run for record in found])
    runs = table.drop_duplicates("run")
    runs = runs.assign(look=looks.reindex(runs["run"]).to_numpy())
    rows = []
    for (corpus, method, arm), group in runs.groupby(["corpus", "method", "arm"], sort=False):
        steps = group.loc[group["reached"], "steps"]
        rows.append({
            "corpus": corpus, "method": method, "arm": arm,
            "learning rate": _several(group["learning_rate"]), "λ": _several(group["retain_weight"]),
            "moves |w| <": _several(group["edge"]), "a look every": _several(group["look"]),
            "steps to the goal": _span(steps) if len(steps) else "–",
            "reached": f"{len(steps)} of {len(group)}",
        })  # fmt: skip
    return pd.DataFrame(rows).set_index(["corpus", "method", "arm"])


def _several(values: pd.Series) -> str:
    there = values.dropna().unique()
    return ", ".join(f"{value:g}" for value in sorted(there)) if len(there) else "–"


def share_table(found: Sequence[Record], metric: str = "verbmem") -> pd.DataFrame:
    """Recovered share over seeds, percent with 95 % intervals over examples: rows corpus × method × arm.

    Columns are the quantizers, finest first; ``seeds``; and ``reached``, those of them that met the goal: the mean is
    over these alone.
    """
    table, index = why.table(found), ["corpus", "method", "arm"]
    runs = table.drop_duplicates("run").groupby(index, sort=False)["reached"].agg(seeds="size", reached="sum")
    shares = why.over_seeds(why.met(found), metric)
    values = shares[["share", "low", "high"]].to_numpy()
    cells = ["–" if math.isnan(value[0]) else with_interval(*_finite(value), digits=0) for value in values]
    wide = shares.assign(cell=cells).pivot(index=index, columns="quantizer", values="cell")
    wide = wide.reindex(index=runs.index, columns=finest_first(table)).fillna("–")
    return wide.assign(**runs).rename_axis(columns=None)


def _finite(values: np.ndarray) -> list[float]:
    """An interval that is unbounded on a side is shown at a number that nobody takes for a measurement."""
    return [float(np.clip(value, -999, 999)) for value in values]


def regained_table(found: Sequence[Record], setting: str = "scale") -> pd.DataFrame:
    """Text regained by single runs, percent with 95 % intervals over examples: a row a run, with one setting and rate.

    Columns are the quantizers, finest first; ``*`` marks those under which it was predicted to come back.
    """
    rows, index = [], []
    for record in found:
        table = why.table([record])
        first = table.iloc[0]
        cells = {}
        for _, row in table.sort_values("zero_bin", kind="stable").iterrows():
            values = _finite(row[["text_regained", "text_low", "text_high"]].to_numpy(float))
            shown = "–" if math.isnan(values[0]) else with_interval(*values, digits=0)
            cells[row["quantizer"]] = shown + ("*" if row["predicted"] else "")
        edge = "–" if math.isnan(first["edge"]) else f"{first['edge']:g}"
        about = {"moves |w| <": edge, "steps": first["steps"], "reached": "yes" if first["reached"] else "no"}
        index.append((record.config[setting], first["arm"], f"{first['learning_rate']:g}", first["seed"]))
        rows.append(about | cells)
    return pd.DataFrame(rows, pd.MultiIndex.from_tuples(index, names=[setting, "arm", "learning rate", "seed"]))


def prediction_table(found: Sequence[Record]) -> pd.DataFrame:
    """Predicted against measured: counts of runs under a quantizer, by family of arms."""
    table = outcomes(found)
    said = table["back"].map({True: "came back", False: "did not"}).fillna(UNDECIDED)
    predicted = table["predicted"].map({True: "will come back", False: "will not"})
    counts = pd.crosstab([table["family"], predicted], said)
    index = [(family, told) for family in FAMILIES for told in ("will come back", "will not")]
    index = pd.MultiIndex.from_tuples([at for at in index if at in counts.index], names=["arms", "predicted"])
    columns = [column for column in ("came back", "did not", UNDECIDED) if column in counts]
    return counts.reindex(index)[columns].rename_axis(columns=None)


def mistakes(found: Sequence[Record]) -> pd.DataFrame:
    """The predictions that were wrong, one a row, with what they were made from and what came back."""
    table = outcomes(found)
    decided = table[table["back"].notna()]
    wrong = decided[decided["back"].astype(bool) != decided["predicted"].astype(bool)]
    columns = {
        "corpus": "corpus", "method": "method", "arm": "arm", "seed": "seed", "quantizer": "quantizer",
        "predicted": "predicted", "hidden": "hidden (% of movable)", "projection": "projection",
        "text_regained": "text regained (%)",
    }  # fmt: skip
    return wrong[list(columns)].rename(columns=columns).reset_index(drop=True).round(2)


def shown(found: Sequence[Record]) -> Markdown:
    """The verdict in a notebook, and on the terminal."""
    lines = sentences(found)
    say("\n".join(["", *lines]))
    return Markdown("\n".join(f"- {line}" for line in lines))
