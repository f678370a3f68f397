"""Sentences of the paper on methods that are to survive by construction: all counted from records and certificates.

As in ``paper_words``: built so that any outcome reads truly. An arm is said to hold better than another only by the
rule of ``contrast``.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qru.attack_tables import attack_abstract, attack_words, load_attacks
from qru.calibration_tables import calibration_words, load_calibrated
from qru.certificate import UTILITY_FLOOR
from qru.config import GUARD_OPTIONS
from qru.guard_record import guard_cost_words, load_guard_costs
from qru.method_tables import (
    GUARDS,
    KEPT,
    Contender,
    bits_of,
    contenders,
    family_of,
    fewer_seeds,
    grid_of,
    in_rank,
    load_compared,
    met_goal,
    other_seeds,
    quantizer_title,
    quantizers_of,
    recovered_of,
)
from qru.metrics import paired_difference
from qru.metrics.bootstrap import RECOVERY_POINTS
from qru.overlap_tables import chosen, load_overlaps, overlap_words
from qru.paper_tables import counted, listed
from qru.paper_words import either, general, sentence, span
from qru.quail_tables import load_readings, quail_words, readings
from qru.records import Record, examples_of
from qru.style import precision_label
from qru.tables import HEADINGS, number
from qru.typeset import method_title

BETA_OF = ("npo", "simnpo", "dpo", "idkdpo")
TEXT, LABELS = "verbmem", "forget_accuracy"
WHAT = {TEXT: "memory returns", LABELS: "labels return"}
LEVEL = {TEXT: "VerbMem", LABELS: "forget accuracy"}
ARTEFACTS = {
    "text": "tables/three", "labels": "tables/four", "overlap": "tables/overlap", "calibration": "tables/calibration",
    "readings": "tables/quail", "attacks": "tables/attacks",
}  # fmt: skip


def method_facts(shown: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Everything that ``paper.typ`` says of these methods; ``None`` for what this build has no record of.

    Args:
        shown: artefact -> the files that it shows.

    Returns:
        One key an artefact, as in ``ARTEFACTS``: ``text`` of Table III, ``labels`` of Table IV, ``overlap`` of QUAIL's
        analysis, ``calibration`` of its texts, ``readings`` of QUAIL's margin, ``attacks`` of certificates over
        transforms; with these ``relearned``, the abstract's sentence on them. ``calibrated``: whether any run was
        measured under GPTQ or AWQ. ``quail``: whether any of Table III was guarded by QUAIL. ``cost``: sentences on
        what a step costs with each guard, of committed records that no artefact shows; empty without one.
    """
    files = {key: shown.get(name) or () for key, name in ARTEFACTS.items()}
    out: dict[str, Any] = dict.fromkeys(ARTEFACTS)
    runs: list[Record] = []
    certificates: list[dict[str, Any]] = []
    if files["text"]:
        runs, certificates = load_compared(files["text"])
        out["text"] = text_facts(runs, certificates)
    if files["labels"]:
        classifiers, _ = load_compared(files["labels"])
        out["labels"] = label_facts(classifiers)
        runs = [*runs, *classifiers]
    if files["overlap"]:
        out["overlap"] = overlap_words(chosen(load_overlaps(files["overlap"])))
    if files["calibration"]:
        out["calibration"] = calibration_words(load_calibrated(files["calibration"]))
    if files["readings"]:
        guarded, margins = load_readings(files["readings"])
        out["readings"] = quail_words(readings(guarded, margins))
    if files["attacks"]:
        attacked = load_attacks(files["attacks"])
        out["attacks"] = attack_words(attacked, broader=certificates)
        out["relearned"] = attack_abstract(attacked)
    families = {family_of(name) for name in quantizers_of(runs)}
    out["calibrated"] = listed(
        [{"gptq": "GPTQ", "awq": "AWQ"}[f] for f in ("gptq", "awq") if f in families] or ["none"]
    )
    out["quail"] = bool(out["text"]) and "quail" in out["text"]["options"]
    out["cost"] = guard_cost_words(load_guard_costs())
    return out


def compared_runs(shown: Mapping[str, Sequence[str]]) -> list[Record]:
    """Every run behind these facts."""
    files = [shown.get(ARTEFACTS[name]) or () for name in ("text", "labels")]
    return [run for some in files if some for run in load_compared(some)[0]]


def text_facts(runs: Sequence[Record], certificates: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Facts of Table III."""
    found = contenders(runs, certificates)
    return common(runs, found, TEXT) | {
        "abstract": abstract(found),
        "options": options(found),
        "calibration": calibrated(found),
        "quail": against(found, TEXT),
        "robust": robust(found),
        "certified": certified(found),
    }


def label_facts(runs: Sequence[Record]) -> dict[str, Any]:
    """Facts of Table IV."""
    found = contenders(runs)
    scores = runs[0].scores

    def of(model: str, metric: str) -> str:
        score = scores[model]["bf16"].get(metric)
        return number(score["value"], 0) if score else "unknown"

    levels = {f"{model}_{m}": of(model, m) for model in ("target", "retrained") for m in (LABELS, "mia")}
    return (
        common(runs, found, LABELS)
        | levels
        | {
            "threshold": f"{RECOVERY_POINTS[LABELS]:g}",
            "quail": against(found, LABELS),
        }
    )


def common(runs: Sequence[Record], found: Sequence[Contender], metric: str) -> dict[str, Any]:
    """What both tables are of, which runs met the goal, and what returns."""
    told = {
        key: listed(list(dict.fromkeys(run.config[key] for run in runs))) for key in ("corpus", "scale")
    } | {"seeds": listed(sorted({run.config["seed"] for run in runs}))}  # fmt: skip
    goals = sorted({run.config["forget_goal"] for run in runs if run.config.get("forget_goal") is not None})
    met = [run for run in runs if met_goal(run)]
    counts = {examples_of(run.scores["unlearned"]["bf16"].get(metric, {})) for run in runs}
    return told | {
        "runs": str(len(runs)),
        "rows": str(len(found)),
        "methods": listed([method_title(name) for name in dict.fromkeys(one.method for one in found)]),
        "quantizers": listed([quantizer_title(name) for name in quantizers_of(runs)]),
        "quantizer_count": str(len(quantizers_of(runs))),
        "goal": listed([f"{goal:g}" for goal in goals]) if goals else "none",
        "fewer": " ".join(fewer_seeds(found)),
        "met": reached(found),
        "n": listed(sorted(count for count in counts if count is not None)),
        "bf16": {m: span(values(met, "bf16", m)) for m in (metric, KEPT[metric])},
        "returns": returns(found, metric),
        "anyway": anyway(found, metric),
        "settings": settings(found),
    }


def values(runs: Iterable[Record], precision: str, metric: str) -> list[float]:
    """A score of each run that has it, percent."""
    scores = [run.scores["unlearned"].get(precision, {}).get(metric) for run in runs]
    return [score["value"] for score in scores if score]


def reached(found: Sequence[Contender]) -> str:
    """How many runs met the goal, and whose did not."""
    runs, met = (sum(len(part) for part in parts) for parts in
                 ([one.runs for one in found], [one.met for one in found]))  # fmt: skip
    if runs == met:
        return f"All {runs} runs met the goal."
    missed = [f"{one.name} ({len(one.runs) - len(one.met)} of {len(one.runs)})" for one in found
              if len(one.met) < len(one.runs)]  # fmt: skip
    return f"{met} of {runs} runs met the goal; missed by {listed(missed)}, which count for nothing below."


def abstract(found: Sequence[Contender]) -> str:
    """In how many configurations memory returns at all, and in how many runs with QUAIL and with plain LoRA."""
    met = [one for one in found if one.met]
    back = [one for one in met if any(risen(one, name)[0] for name in quantizers_of(one.met))]
    told = (
        f"When runs stop at one goal of forgetting in bf16, memory returns under some quantizer in {len(back)} of "
        f"{counted(len(met), 'combination')} of method, arm and guard"
    )
    parts = []
    for words, chosen_ in (
        ("with QUAIL's hinge", [one for one in met if one.guard == "quail"]),
        ("with plain LoRA", [one for one in met if (one.arm, one.guard) == ("LoRA", "")]),
    ):
        runs = [run for one in chosen_ for run in one.met]
        if runs:
            some = sum(any(r["recovers"]["recovers"] for r in run.extra["recovered"].values()) for run in runs)
            parts.append(f"{words} in {some} of {counted(len(runs), 'run')}")
    return f"{told}{f'; {listed(parts)}' if parts else ''}."


# --- what returns ---------------------------------------------------------------------------------------------------


def returns(found: Sequence[Contender], metric: str) -> list[str]:
    """Under which quantizers memory returns, contender by contender; those of which nothing does, together."""
    never, out = [], []
    for one in found:
        back = {name: counts for name in quantizers_of(one.met) if (counts := risen(one, name))[0]}
        if not one.met:
            continue
        if not back:
            never.append(f"{one.name} ({counted(len(one.met), 'run')})")
            continue
        told = listed([f"{quantizer_title(name)} in {some} of {many}{median_share(one, name, metric)}"
                       for name, (some, many) in back.items()])  # fmt: skip
        out.append(sentence(f"{one.name} ({counted(len(one.met), 'run')}): {WHAT[metric]} under {told}"))
    if never:
        out.append(sentence(f"{WHAT[metric]} under no quantizer that they were measured under: {'; '.join(never)}"))
    return out


def anyway(found: Sequence[Contender], metric: str) -> list[str]:
    """What the runs that missed the goal did under quantizers: measured, and counted nowhere."""
    out = []
    for one in found:
        missed = [run for run in one.runs if not met_goal(run)]
        if not missed:
            continue
        told = {name: recovered_of(missed, name) for name in quantizers_of(missed)}
        back = {name: sum(r["recovers"]["recovers"] for r in rows) for name, rows in told.items()}
        parts = [f"{quantizer_title(name)} in {some} of {len(told[name])}" for name, some in back.items() if some]
        level = span(values(missed, "bf16", metric))
        where = f"under {listed(parts)}" if parts else "under none"
        out.append(f"{one.name} ({counted(len(missed), 'run')}, {LEVEL[metric]} {level} in bf16) {where}")
    if not out:
        return []
    return [f"Not counted, since the goal was missed, but measured, {WHAT[metric]} in {'; in '.join(out)}."]


def risen(one: Contender, quantizer: str) -> tuple[int, int]:
    """In how many of how many runs that met the goal memory returns."""
    told = recovered_of(one.met, quantizer)
    return sum(found["recovers"]["recovers"] for found in told), len(told)


def median_share(one: Contender, quantizer: str, metric: str) -> str:
    """`` (median 97 %)`` of what was forgotten, over the runs where it is defined."""
    shares = [found[metric]["value"] for found in recovered_of(one.met, quantizer) if found[metric]["defined"]]
    return f" (median {number(statistics.median(shares), 0)} %)" if shares else ""


# --- calibrated quantizers ------------------------------------------------------------------------------------------


def calibrated(found: Sequence[Contender]) -> list[str]:
    """What GPTQ and AWQ do where rounding to nearest on the same grid brings memory back, and where it does not."""
    runs = [run for one in found for run in one.met]
    names = quantizers_of(runs)
    out = []
    for plain in [name for name in names if family_of(name) == "rtn"]:
        alike = [n for n in names if family_of(n) in ("gptq", "awq") and _grid(n) == _grid(plain)]
        both = [run for run in runs if {plain, *alike} <= set(run.extra["recovered"])]
        if alike and both:
            out.append(_beside(both, plain, alike))
    return out


def _grid(name: str) -> tuple[int, str]:
    """Bits and groups, whatever text it was calibrated on."""
    return bits_of(name), grid_of(name).removesuffix(" heldout").removesuffix(" forget")


def _beside(runs: Sequence[Record], plain: str, others: Sequence[str]) -> str:
    """Calibrated quantizers beside rounding to nearest on the same grid, over the runs that have all of them."""

    def back(some: Sequence[Record], name: str) -> int:
        return sum(bool(run.extra["recovered"][name]["recovers"]["recovers"]) for run in some)

    def share(some: Sequence[Record], name: str) -> str:
        known = [run.extra["recovered"][name][TEXT] for run in some]
        known = [one["value"] for one in known if one["defined"]]
        return f"median {number(statistics.median(known), 0)} %" if known else "share not defined"

    fails, holds = ([run for run in runs if bool(back([run], plain)) is way] for way in (True, False))
    rtn = quantizer_title(plain)
    if not fails:
        told = listed([f"under {quantizer_title(name)} in {back(holds, name)}" for name in others])
        return f"Under {rtn} memory returns in none of {counted(len(runs), 'run')}, {told}."
    told = listed([f"under {quantizer_title(name)} in {back(fails, name)} ({share(fails, name)})" for name in others])
    out = (
        f"Of {counted(len(fails), 'run')} in which memory returns under {rtn} ({share(fails, plain)} of the text), it "
        f"does {told}"
    )
    also = listed([f"under {quantizer_title(name)} in {back(holds, name)}" for name in others])
    return f"{out}; of the other {len(holds)}, {also}." if holds else f"{out}."


# --- one arm against another ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """How much more of the forgotten one arm gives away than another as it is quantized.

    Attributes:
        quantizer: of both.
        difference, low, high: of their rises from bf16, points, with a paired 95 % interval over examples.
        seeds: the differences of single seeds, points.
        threshold: points that count.
    """

    quantizer: str
    difference: float
    low: float
    high: float
    seeds: tuple[float, ...]
    threshold: float

    @property
    def outcome(self) -> int:
        """−1: the first rises less, 1: more, 0: not told apart.

        Told apart are they only if all three hold: the difference of the means is at least the threshold, the interval
        over examples excludes zero, and every seed points the same way.
        """
        for sign in (-1, 1):
            ends = min(sign * self.low, sign * self.high), min(sign * value for value in self.seeds)
            if sign * self.difference >= self.threshold and min(ends) > 0:
                return sign
        return 0


def contrast(one: Contender, other: Contender, metric: str) -> list[Contrast]:
    """Two arms under every quantizer that both have, over the seeds in which both met the goal.

    Scores are averaged over the seeds for each example, and the examples are resampled, all four scores of each paired.
    """
    pairs = [(a, b) for a in one.met for b in other.met if a.config["seed"] == b.config["seed"]]
    names = [
        name for name in quantizers_of(one.met) if all(name in run.scores["unlearned"] for p in pairs for run in p)
    ]
    out = []
    for name in names if pairs else ():
        rises = [[_rise(run, name, metric) for run in pair] for pair in pairs]
        if any(len(a) != len(b) for a, b in rises):
            raise ValueError(f"{one.name} and {other.name} report other examples: they cannot be compared.")
        first, second = (
            [statistics.fmean(rise) for rise in zip(*some, strict=True)] for some in zip(*rises, strict=True)
        )
        difference, low, high = (100 * value for value in paired_difference(second, first))
        single = tuple(100 * (statistics.fmean(a) - statistics.fmean(b)) for a, b in rises)
        out.append(Contrast(name, difference, low, high, single, RECOVERY_POINTS[metric]))
    return out


def _rise(run: Record, quantizer: str, metric: str) -> list[float]:
    """Of each example, from bf16 to a quantizer."""
    before, after = (run.scores["unlearned"][name][metric]["per_example"] for name in ("bf16", quantizer))
    return [b - a for a, b in zip(before, after, strict=True)]


def against(found: Sequence[Contender], metric: str, guard: str = "quail") -> list[str]:
    """A guard against plain LoRA, of each method that has both; and beside the plain arm that it guards."""
    out = []
    for one in [one for one in found if one.guard == guard]:
        alike = [two for two in found if (two.corpus, two.method, two.guard) == (one.corpus, one.method, "")]
        rivals = [two for two in alike if two.arm in ("LoRA", one.arm)]
        for two in sorted(rivals, key=lambda two: two.arm != "LoRA"):
            out.append(_against(one, two, metric))
        if not any(two.arm == "LoRA" for two in rivals):
            out.append(f"{one.name} on {one.corpus}: plain LoRA was not run, so the two are not compared.")
        out += idle(one, [run for two in alike if two.arm == one.arm for run in two.runs])
    return out or [f"No run with {GUARDS[guard]} is among them."]


def idle(one: Contender, plain: Sequence[Record]) -> list[str]:
    """In how many runs a guard's term was 0 whenever it was looked at, and which of them came out as the plain ones."""
    terms = {run.config["seed"]: [row["guard"] for row in run.extra.get("history", ()) if "guard" in row]
             for run in one.runs}  # fmt: skip
    still = [seed for seed, found in terms.items() if found and not any(found)]
    if not still:
        return []
    made = {run.config["seed"]: run for run in one.runs}
    same = sorted(run.config["seed"] for run in plain if run.config["seed"] in still
                  and run.scores["unlearned"] == made[run.config["seed"]].scores["unlearned"])  # fmt: skip
    told = (
        f"In {len(still)} of {counted(len(one.runs), 'run')} of {one.name} on {one.corpus} the guard's term was 0 at "
        "every look: what it asks for was there already, so that it pushed nothing then"
    )
    seeds = f"{'seed' if len(same) == 1 else 'seeds'} {listed(same)}"
    return [f"{told}{f'; with {seeds} every score is that of the plain run' if same else ''}."]


def _against(one: Contender, two: Contender, metric: str) -> str:
    compared = contrast(one, two, metric)
    head = f"{method_title(one.method)} on {one.corpus}, {one.way} against plain {two.arm}"
    if not compared:
        return f"{head}: not compared, since there is no seed in which both met the goal."
    n = len(one.met[0].scores["unlearned"]["bf16"][metric]["per_example"])
    seeds = counted(len(compared[0].seeds), "seed")
    less, more = ([c for c in compared if c.outcome == sign] for sign in (-1, 1))
    parts = [f"{words} under {listed([_point(c) for c in some])}"
             for words, some in (("it rises less", less), ("it rises more", more)) if some]  # fmt: skip
    rest = len(compared) - len(less) - len(more)
    if rest:
        parts.append(
            f"under {'all ' if rest == len(compared) else ''}{counted(rest, 'quantizer')} the two cannot be told apart"
        )
    if less and more:
        verdict = "Neither holds better under every quantizer"
    elif less or more:
        verdict = f"By the rule {one.way if less else f'plain {two.arm}'} holds better"
    else:
        verdict = f"By the rule {one.way} is neither better nor worse than plain {two.arm}"
    name, kept = (HEADINGS[which].rsplit(" ", 1)[0] for which in (metric, KEPT[metric]))
    return (
        f"{head} ({name}, {seeds}, n = {n}): {'; '.join(parts)}. {verdict}; {kept} in bf16 is {_mean(one, metric)} and "
        f"{_mean(two, metric)}."
    )


def _point(one: Contrast) -> str:
    low, value, high = (number(x, 0) for x in (one.low, one.difference, one.high))
    return f"{quantizer_title(one.quantizer)} (by {value} [{low}, {high}] points)"


def _mean(one: Contender, metric: str) -> str:
    found = values(one.met, "bf16", KEPT[metric])
    return number(statistics.fmean(found), 0) if found else "unknown"


# --- the most robust, and certificates ------------------------------------------------------------------------------


def robust(found: Sequence[Contender], floor: float = UTILITY_FLOOR) -> list[str]:
    """Whose text rises least under its worst quantizer, of those that met the goal in every seed and kept their use.

    What rises by less than the points of the rule more is not told apart from it. Those of fewer seeds than others are
    told apart from the comparison: they show directions.
    """
    able = []
    for one in found:
        target = one.runs[0].scores["target"]["bf16"].get("utility", {}).get("value")
        kept = values(one.met, "bf16", "utility")
        if len(one.met) == len(one.runs) and target and kept and statistics.fmean(kept) >= floor * target:
            able.append(one)
    terms = f"met the goal in every seed and kept {100 * floor:g} % of the target's Utility in bf16"
    if not able:
        return [f"No configuration {terms}."]
    names = in_rank(set.intersection(*(set(run.scores["unlearned"]) for one in able for run in one.met)) - {"bf16"})
    if not names:
        return ["They were measured under no quantizer in common."]
    seeds = max(len(one.runs) for one in able)
    worst = {one.name: worst_rise(one, names) for one in able}
    main = [one.name for one in able if len(one.runs) == seeds]
    best = min(main, key=lambda name: worst[name][0])
    limit = worst[best][0] + RECOVERY_POINTS[TEXT]
    near = [name for name in main if name != best and worst[name][0] < limit]
    far = [name for name in main if worst[name][0] >= limit]
    once = [name for name in worst if name not in main]

    def told(name: str) -> str:
        rise, quantizer = worst[name]
        return f"{name} ({points(rise)}, {quantizer_title(quantizer)})"

    out = [
        f"{counted(len(able), 'configuration')} of {len(found)} {terms}. Over the {counted(len(names), 'quantizer')} "
        f"that all of them have, the mean rise of VerbMem under the worst is least for {told(best)}, among those of "
        f"{counted(seeds, 'seed')}."
    ]
    out += (
        [f"Less than {RECOVERY_POINTS[TEXT]:g} points over that are {listed(list(map(told, near)))}."] if near else []
    )
    out += [f"Further up are {listed(list(map(told, far)))}."] if far else []
    out += [f"Of fewer seeds, which show directions alone: {listed(list(map(told, once)))}."] if once else []
    return out + unequal(able)


def unequal(found: Sequence[Contender]) -> list[str]:
    """How far apart contenders are in bf16, though all met the goal: looks at it are steps apart."""
    levels = {one.name: statistics.fmean(values(one.met, "bf16", TEXT)) for one in found}
    ends = {number(levels[name], 0): name for name in (min(levels, key=levels.get), max(levels, key=levels.get))}
    if len(ends) == 1:
        return []
    return [f"They are not equal in bf16: mean VerbMem is {' to '.join(f'{v} ({name})' for v, name in ends.items())}."]


def points(value: float) -> str:
    """``1 point``, ``59 points``."""
    told = number(value, 0)
    return f"{told} point{'s' * (told != '1')}"


def worst_rise(one: Contender, names: Sequence[str]) -> tuple[float, str]:
    """The largest rise of mean VerbMem from bf16 to one of the quantizers, points, and which one."""
    before = statistics.fmean(values(one.met, "bf16", TEXT))
    return max((statistics.fmean(values(one.met, name, TEXT)) - before, name) for name in names)


def certified(found: Sequence[Contender]) -> list[str]:
    """Whose certificates hold at the stated ceiling and floor, whose do not, and which are refused."""
    known = [one for one in found if one.certificate]
    if not known:
        return ["No certificate was issued."]
    terms: dict[tuple, list[Contender]] = {}
    for one in known:
        made = one.certificate
        quantizers, transforms = tuple(made["declared"]["quantizers"]), tuple(made["declared"]["transforms"])
        terms.setdefault((made["forget_ceiling"], made["utility_floor"], quantizers, transforms), []).append(one)
    out = []
    for (ceiling, floor, quantizers, transforms), some in terms.items():
        parts = []
        for outcome, words in (
            ("holds", "holds for"),
            ("does not hold", "does not hold for"),
            ("refused", "is refused for"),
        ):
            told = [
                f"{one.name} (at most {points(one.certificate['worst_excess'])})"
                if outcome != "refused"
                else f"{one.name} (at least {100 * one.certificate['least_utility']:.0f} % of Utility is left)"
                for one in some
                if one.certificate["outcome"] == outcome
            ]
            parts.append(f"it {words} {listed(told) if told else 'none'}")
        out.append(
            f"At a ceiling of {ceiling:g} points over the retrained model and a floor of {100 * floor:g} % of the "
            f"target's Utility, both ours, over {counted(len(quantizers), 'precision')}, the seeds of each row"
            f"{' (for some other seeds, which the table names)' if any(map(other_seeds, some)) else ''} and the "
            f"{'transform' if len(transforms) == 1 else 'transforms'} {', '.join(transforms)}, "
            f"{counted(len(some), 'certificate')} "
            f"{'was' if len(some) == 1 else 'were'} asked for: {'; '.join(parts)}."
        )
    hopeless = [one for one in known if _impossible(one.certificate)]
    if hopeless:
        grids = in_rank({name for one in hopeless for name in _impossible(one.certificate)} - {"bf16"})
        out.append(
            f"Under {either([quantizer_title(name) for name in grids]) if grids else 'bf16'} the retrained model, too, "
            f"misses the floor: of the refusals {len(hopeless)} would have met it, too."
        )
    without = [one.name for one in found if not one.certificate]
    return out + ([f"Without a certificate: {listed(without)}."] if without else [])


def _impossible(certificate: Mapping[str, Any]) -> set[str]:
    """Quantizers under which even the retrained model misses the floor, where a certificate was refused."""
    if certificate["outcome"] != "refused":
        return set()
    return {row["quantizer"] for row in certificate["cells"] for one in row["utility"].values() if not one["possible"]}


# --- settings -------------------------------------------------------------------------------------------------------


NAMES = {
    "quail_norm": "norm", "quail_positions": "positions", "quail_step": "Δ_q", "quail_quantizer": "quantizer of Δ_q",
    "ste_quantizers": "quantizer", "sam_rho": "ρ", "bin_margin_quantizer": "quantizer",
}  # fmt: skip


SAID = {
    "abs": "of each logit by itself", "l2": "L2 over all logits of a token", "linf": "L∞ over all logits of a token",
    "all": "all tokens", "answer": "all tokens but the first quarter", "mean": "the mean step of the weights",
    "carried": "the step of the head, carried to its output",
    "measured": "the mean change of a logit when the target is rounded",
}  # fmt: skip


def options(found: Sequence[Contender]) -> dict[str, str]:
    """Guard (also ``sure``) -> the options that its runs were given, in words; those that were not run have none."""
    out = {}
    for guard in GUARDS:
        configs = [run.config for one in found if one.guard == guard for run in one.runs]
        if configs:
            # γ is filled in only for guards that add a term.
            told = [("γ", "guard_weight"), *((NAMES[name], name) for name, of in GUARD_OPTIONS.items() if of == guard)]
            words = [f"{words} {_values(configs, field)}" for words, field in told if _values(configs, field)]
            out[guard] = ", ".join(words)
    configs = [run.config for one in found for run in one.runs if run.config["adapter"] == "sure"]
    if configs:
        rates = sorted({config["learning_rate"] for config in configs if config.get("learning_rate")})
        out["sure"] = f"percentile {_values(configs, 'sure_percentile')}, rate {listed([general(r, 3) for r in rates])}"
    return out


def settings(found: Sequence[Contender]) -> dict[str, list]:
    """What the runs of each contender were given and how long they took: ``heads`` and ``rows`` of a table."""
    rows = []
    for one in found:
        configs = [run.config for run in one.runs]

        def told(field: str, configs: Sequence[Mapping[str, Any]] = configs) -> str:
            known = sorted({config[field] for config in configs if config.get(field) is not None})
            return ", ".join(general(value, 3) if isinstance(value, float) else str(value) for value in known) or "–"

        steps = [float(run.extra["history"][-1]["step"] + 1) for run in one.met if run.extra.get("history")]
        fields = [told(name) for name in ("learning_rate", "retain_weight", "beta", "adam_beta2", "epochs")]
        if one.method.split("_")[0] not in BETA_OF:
            fields[2] = "–"  # a configuration has β whether or not the method reads it
        met = f"{len(one.met)} of {len(one.runs)}"
        rows.append([method_title(one.method), one.way, *fields, told("seed"), span(steps) if steps else "–", met])
    heads = ["Method", "Arm", "Rate", "λ", "β", "β₂", "Epochs at most", "Seeds", "Steps to the goal", "Met"]
    return {"heads": heads, "rows": rows}


def _values(configs: Iterable[Mapping[str, Any]], field: str) -> str:
    told = []
    for value in (config.get(field) for config in configs):
        if value is None:
            continue
        words = value if isinstance(value, list | tuple) else [value]
        told.append(
            ", ".join(f"{w:g}" if isinstance(w, int | float) else SAID.get(w, precision_label(w)) for w in words)
        )
    return listed(list(dict.fromkeys(told))) if told else ""
