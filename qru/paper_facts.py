"""What the text of the paper says, as JSON: ``paper.typ`` types no number, it takes every one from here.

The facts beside an artefact are of the very records that the artefact shows, so text, table and figure cannot differ.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qru import (
    choose,
    defaults,
    method_figures,
    models,
    optimizers,
    paper_words,
    print_figures,
    why_records,
    why_sheets,
    why_verdict,
)
from qru.config import SIZED
from qru.corpora import load_corpus
from qru.evaluation_sheet import load_evaluations
from qru.method_facts import compared_runs, method_facts
from qru.method_tables import load_compared
from qru.paper_tables import arm_name, listed, shown_in_one, shown_in_two
from qru.paper_words import general, levels, span
from qru.prediction import HIDDEN
from qru.records import Record, load_record, read_json, write_json
from qru.style import precision_label
from qru.tables import number
from qru.typeset import method_title
from qru.update_record import load_updates

# What the text speaks of. Each is a table or figure of experiments.yaml.
ARTEFACTS = (
    "tables/one", "tables/two", "tables/cost", "tables/evaluation", "tables/why",
    "figures/why", "figures/dial", "figures/layers", "figures/slices", "figures/lora_grid", "figures/kernel",
    "figures/scal_sust",
)  # fmt: skip
EMBEDDED = ("books", "news")
FAMILIES = {"full": "full rank", "lora": "LoRA"}
SETTINGS = {
    "corpus": "corpus", "seed": "seed", "method": "method", "learning_rate": "learning rate",
    "retain_weight": "λ", "batch_size": "forget documents a step", "epochs": "epochs at most",
    "forget_goal": "goal (%)", "goal_metrics": "metric of the goal", "check_steps": "steps between looks",
    "adam_beta2": "β₂ of AdamW", "beta": "β of NPO", "lora_rank": "LoRA rank", "lora_alpha": "LoRA α",
    "lora_dropout": "LoRA dropout", "lora_targets": "LoRA layers", "quantizers": "quantizers",
}  # fmt: skip


PARTS = {
    "dial": "The dial", "plateau": "A lower rate on news", "alpha": "α", "layers": "Adapted layers",
    "rate": "Large rates", "beta2": "Second moment", "size": "Other sizes",
}  # fmt: skip
KINDS = {"scal": "Nested forget sets", "sust": "Successive requests"}
LISTED = ("corpus", "seed", "method")  # what a run is one of many of


def facts(shown: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Everything that ``paper.typ`` reads.

    Args:
        shown: artefact, as in ``ARTEFACTS`` -> the files that it shows.

    Raises:
        ValueError: an artefact that the text speaks of is missing or shows nothing (names it).
        LookupError: figures/why shows no run of the comparison of arms.
    """
    for name in ARTEFACTS:
        if not shown.get(name):
            told = f"shows no record in this build (there are {', '.join(shown) or 'none'})"
            raise ValueError(f"the text of the paper speaks of {name}, which {told}. Add it to experiments.yaml.")
    one, two, grid, requests = (
        _records(shown[name]) for name in ("tables/one", "tables/two", "figures/lora_grid", "figures/scal_sust")
    )
    one, two = shown_in_one(one), shown_in_two(two)
    parts = why_sheets.parts(shown["figures/why"])
    compared = parts[why_records.MAIN]
    tabled = _unique([*one, *two])
    kernels = print_figures.load_kernels(shown["figures/kernel"])
    every = _unique(
        [*tabled, *grid, *requests, *(record for found in parts.values() for record in found), *compared_runs(shown)]
    )
    quantizers = _quantizers(tabled)
    table = why_verdict.outcomes(compared)
    further = [*parts["dial"], *parts["plateau"], *parts["size"]]
    returned = paper_words.family_returns(compared)
    return {
        "scale": tabled[0].config["scale"],
        "title": "Does a quantized model remember what it unlearned?",
        "corpora": _corpora(),
        "models": _models(),
        "arms": {"count": str(table["arm"].nunique()), "runs": str(len(compared)),
                 "methods": listed([method_title(name) for name in dict.fromkeys(table["method"])]),
                 "corpora": listed(list(dict.fromkeys(table["corpus"]))),
                 "seeds": listed(sorted(set(table["seed"]))),
                 "quantizers": listed([precision_label(name) for name in why_verdict.finest_first(table)])},
        "optimizer": {
            "beta1": f"{optimizers.BETA1:g}", "beta2": f"{defaults.MINI_BETA2:g}",
            "bound": f"{math.ceil(1000 * optimizers.largest_step(defaults.MINI_BETA2)) / 1000:g}",  # up: it bounds
            "usual": f"{defaults.BETA2:g}",
            "usual_bound": f"{math.ceil(10 * optimizers.largest_step(defaults.BETA2)) / 10:g}",
            "full_rate": general(defaults.MINI["full"][0], 3), "lora_rate": general(defaults.MINI["lora"][0], 3),
            "retain_weight": listed(sorted({f"{weight:g}" for _, weight in defaults.MINI.values()})),
            "other_rates": listed([
                f"{method_title(name)} on {corpus} {general(rate, 3)} and λ {weight:g} for {FAMILIES[family]}"
                for (corpus, name, family), (rate, weight) in defaults.MINI_OTHER.items()
            ]),
            "goal": f"{defaults.GOAL:g}", "looks": listed([defaults.CHECK_FAST, defaults.CHECK_SLOW]),
            "hidden": f"{HIDDEN:g}", "published_rate": general(defaults.FULL_RATE),
            "published_edge": general(optimizers.movable_below(defaults.FULL_RATE)),
            "published_bound": general(
                optimizers.movable_below(optimizers.largest_step(defaults.BETA2) * defaults.FULL_RATE)
            ),
        },
        "rule": _rule(compared),
        "examples": _examples(compared),
        "zone": paper_words.zone(compared),
        "why": {
            "returned": [paper_words.sentence(text) for text in returned.values()],
            "abstract": paper_words.abstract(compared),
            "plain": paper_words.plain_groups(further, compared),
            "cause": paper_words.cause(compared),
            "beta2": paper_words.usual_beta2(parts["beta2"]),
            "second_moment": paper_words.second_moment(parts["beta2"]),
            "limits": paper_words.limits(compared),
            "equal": paper_words.equal_forgetting(compared),
            "knowledge": paper_words.knowledge(compared),
            "shares": paper_words.share_ranges(compared),
            "foreseen": paper_words.foreseen(compared),
            "mechanism": paper_words.mechanism(compared),
        },
        "parts": {
            "dial": paper_words.dial(parts["dial"]), "alpha": paper_words.alpha(parts["alpha"]),
            "layers": paper_words.layers(parts["layers"]), "rate": paper_words.rates(parts["rate"]),
            "beta2": paper_words.beta2(parts["beta2"]), "size": paper_words.sizes(parts["size"]),
        },
        "one": {"returns": paper_words.returns(one, quantizers), "rise": paper_words.largest_rise(one)} | _tabled(one),
        "two": {"returns": paper_words.returns(two, quantizers), "rise": paper_words.largest_rise(two),
                "published": paper_words.published()} | _tabled(two),
        "methods": method_facts(shown),
        "grid": paper_words.grid(grid),
        "requests": paper_words.requests(requests),
        "kernel": paper_words.kernel(kernels),
        "evaluation": paper_words.evaluation(load_evaluations(shown["tables/evaluation"])),
        "cost": paper_words.cost(_records(shown["tables/cost"])),
        "missing": paper_words.missing(compared),
        "elsewhere": paper_words.elsewhere(further, compared),
        "shown": sorted(shown),
        "captions": _captions(parts, grid, requests, kernels, shown),
        "coverage": paper_words.coverage(one, two),
        "privleak": paper_words.measured(two, "privleak"),
        "settings": {"tables": settings(tabled), "why": settings(compared),
                     "parts": paper_words.part_settings(
                         _named(parts) | {"LoRA's grid": grid} | _by_kind(requests), compared[0].config["quantizers"]
                     )},
        "protocol": _protocol(compared),
        "tried": _tried(),
        "attempts": paper_words.attempts(read_json(why_records.KEPT.parent / "choice.json")["tried"], choose.HOPELESS),
        "provenance": _provenance(every),
    }  # fmt: skip


def _records(files: Iterable[str]) -> list[Record]:
    return [load_record(path) for path in files]


def _unique(records: Iterable[Record]) -> list[Record]:
    return list({record.config["hash"]: record for record in records}.values())


def _named(parts: Mapping[str, Sequence[Record]]) -> dict[str, Sequence[Record]]:
    return {name: parts.get(part, ()) for part, name in PARTS.items()}


def _by_kind(requests: Sequence[Record]) -> dict[str, list[Record]]:
    return {
        name: [record for record in requests if str(record.config.get("forget_set", "")).startswith(kind)]
        for kind, name in KINDS.items()
    }


def _captions(
    parts: Mapping[str, Sequence[Record]], grid: Sequence[Record], requests: Sequence[Record],
    kernels: Sequence[Mapping[str, Any]], shown: Mapping[str, Sequence[str]],
) -> dict[str, str]:  # fmt: skip
    """What stands under a figure of its numbers: n, seeds, intervals."""
    sliced = [record for name in why_sheets.SLICES for record in parts[name]]
    told = {
        "why": why_sheets.caption(parts[why_records.MAIN]), "layers": [f"{len(parts[why_records.MAIN])} runs."],
        "dial": [paper_words.whose(parts["dial"]), *why_sheets.caption(parts["dial"])],
        "slices": [paper_words.whose(sliced), *why_sheets.caption(sliced)],
        "scal_sust": [paper_words.whose(requests), *print_figures.forget_set_caption(requests)],
        "kernel": print_figures.kernel_caption(kernels), "lora_grid": why_sheets.caption(grid),
    }  # fmt: skip
    if "figures/updates" in shown:
        told["updates"] = print_figures.updates_caption(load_updates(shown["figures/updates"]))
    if "figures/tradeoff" in shown:
        told["tradeoff"] = [method_figures.caption(load_compared(shown["figures/tradeoff"])[0])]
    return {name: " ".join(lines) for name, lines in told.items()}


def _quantizers(records: Sequence[Record]) -> list[str]:
    """Those that every run was measured under, in the order of the first."""
    common = set.intersection(*(set(record.extra["recovered"]) for record in records))
    return [name for name in records[0].extra["recovered"] if name in common]


def _tabled(records: Sequence[Record]) -> dict[str, str]:
    """What the runs of a table have in common, and how far they spread in bf16."""
    return {
        "runs": str(len(records)),
        "methods": listed([method_title(name) for name in dict.fromkeys(r.config["method"] for r in records)]),
        "arms": listed(list(dict.fromkeys(arm_name(record.config) for record in records))),
        "seeds": listed(sorted({record.config["seed"] for record in records})),
        "corpora": listed(list(dict.fromkeys(record.config["corpus"] for record in records))),
        "target_privleak": levels(records, "privleak", model="target"),
    } | {metric: levels(records, metric) for metric in ("verbmem", "knowmem", "privleak", "utility")}


def _rule(records: Sequence[Record]) -> dict[str, str]:
    """By how many points text and knowledge must rise to count as returned."""
    metrics = next(iter(records[0].extra["recovered"].values()))["recovers"]["metrics"]
    return {metric: f"{found['threshold']:g}" for metric, found in metrics.items()}


def _examples(records: Sequence[Record]) -> dict[str, str]:
    scores = records[0].scores["unlearned"]["bf16"]
    return {metric: str(score.get("examples", len(score.get("per_example", [])))) for metric, score in scores.items()}


def _corpora() -> dict[str, str]:
    """Sizes of the embedded corpora at mini, from the corpora themselves."""
    found = [load_corpus(name, scale="mini") for name in EMBEDDED]
    words = [len(text.split()) for corpus in found for text in corpus.raw["forget"]]
    return {
        "names": listed(EMBEDDED),
        "forget": span([len(corpus.raw["forget"]) for corpus in found]),
        "retain": span([len(corpus.raw["retain1"]) + len(corpus.raw["retain2"]) for corpus in found]),
        "holdout": span([len(corpus.raw["holdout"]) for corpus in found]),
        "base": span([len(corpus.base.documents) for corpus in found]),
        "words": span(words),
    }


def _models() -> dict[str, Any]:
    """The embedded models at mini and at the two other sizes."""

    def told(scale: str) -> dict[str, str]:
        size = models.sizes(scale)
        parameters = sum(p.numel() for p in models.without_weights(scale).parameters())
        return {
            "scale": scale, "parameters": f"{parameters / 1e6:.1f} million", "hidden": str(size.hidden),
            "layers": str(size.layers), "heads": str(size.heads), "intermediate": str(size.intermediate),
            "vocabulary": f"{size.vocabulary:,}", "context": str(size.context),
            "base": f"{size.base_steps} steps of {size.base_batch} rows at {general(size.base_rate)}",
            "tune": f"{size.tune_epochs} epochs of {size.tune_batch} rows at {general(size.tune_rate)}",
        }  # fmt: skip

    return told("mini") | {"others": [told(scale) for scale in SIZED]}


def settings(records: Sequence[Record]) -> list[list[str]]:
    """Every setting and its values in these runs; where they differ, which arms they are of."""
    out = []
    for field, words in SETTINGS.items():
        by_value: dict[str, list[str]] = {}
        for record in records:
            value, arm = record.config.get(field), arm_name(record.config)
            if field.startswith("lora_") and record.config["adapter"] != "lora":
                continue
            arms = by_value.setdefault(_setting(field, value), [])
            if arm not in arms:
                arms.append(arm)
        if field in LISTED:
            by_value = {", ".join(by_value): []}
        told = [*by_value]
        all_arms = len({arm for arms in by_value.values() for arm in arms})
        if len(by_value) > 1 and any(len(arms) < all_arms for arms in by_value.values()):
            told = [f"{value} ({' / '.join(arms)})" for value, arms in by_value.items()]
        if told:
            out.append([words, "; ".join(told)])
    return out


def _setting(field: str, value: Any) -> str:
    if value is None:
        return "none"
    if field == "method":
        return method_title(value)
    if field == "quantizers":
        return ", ".join(map(precision_label, value))
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return general(value, 3) if isinstance(value, float) else str(value)


def _protocol(records: Sequence[Record]) -> dict[str, list]:
    """Rates, λ, edge and steps of each method and arm, as a table."""
    table = why_verdict.protocol_table(records).reset_index()
    table["method"] = table["method"].map(method_title)
    rates = table["learning rate"].str.split(", ")
    table["learning rate"] = rates.map(lambda found: ", ".join(general(float(rate), 3) for rate in found))
    heads = [head[:1].upper() + head[1:] if head.isascii() else head for head in table.columns]  # no capital λ
    return {"heads": heads, "rows": table.astype(str).to_numpy().tolist()}


def _tried() -> list[list[str]]:
    """Every attempt at a rate and λ, in the order they were made."""
    table = why_records.choice_table()
    return [
        [row["corpus"], method_title(row["method"]), str(row["adapter"]), general(row["learning_rate"], 3),
         f"{row['retain_weight']:g}", str(row["steps"]), number(row["left"], 0)]
        for _, row in table.iterrows()
    ]  # fmt: skip


def _provenance(records: Sequence[Record]) -> dict[str, Any]:
    found = [record.provenance for record in records]
    return {
        "runs": str(len(records)),
        "taken": str(sum("trained_by" in one for one in found)),
        "commits": sorted({(one["commit"] or "unknown")[:10] for one in found}),
        "dirty": str(sum(bool(one["dirty"]) for one in found)),
        "hardware": sorted({f"{one['hardware']['processor']}, {one['hardware']['cores']} cores" for one in found}),
        "torch": sorted({one["versions"]["torch"] for one in found}),
        "gpu": any("gpu" in one["hardware"] for one in found),
    }


def main(out: str, shown: str) -> None:
    """``python -m qru.paper_facts OUT '{"tables/one": [FILE, …], …}'``"""
    write_json(Path(out), facts(json.loads(shown)))


if __name__ == "__main__":
    main(*sys.argv[1:])
