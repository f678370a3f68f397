"""Put measured results into README.md, so that no number in it is typed by hand.

python paper/readme.py runs/<full> runs/<lora>     # keep two records as the README's
python -m qru.ops.bench --json paper/records/kernel/<machine>.json         # keep a measurement of the kernel
python -m qru.ship_bench --json paper/records/ship/<shape>.json            # and one of shipping
python -m qru.guard_record --keep                  # and one of what guards cost
python paper/readme.py                             # rewrite README.md and its picture from the kept ones
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qru import budget, figures, kernel_record, method_tables, paper_words, records, ship_record, why_sheets
from qru.attack_tables import ATTACK, attacked, load_attacks
from qru.method_facts import method_facts
from qru.tables import HEADINGS

PAPER = Path(__file__).parent
KEPT = PAPER / "records" / "readme"
README = PAPER.parent / "README.md"
KERNELS = PAPER / "records" / "kernel"
COMPARED = ("methods", "certificates", "tweets", "attacks", "calibration", "quail", "margins")


def keep(folders: list[str]) -> None:
    """Copy records, less their learning curves."""
    for number, folder in enumerate(folders):
        value = records.read_json(Path(folder) / "record.json")
        records.write_json(KEPT / f"{number}.json", {k: v for k, v in value.items() if k != "history"})


def shown() -> list[records.Record]:
    """The two runs of the demo that README shows."""
    return [records.load_record(file) for file in sorted(KEPT.glob("*.json"))]


def block(name: str, text: str, page: str) -> str:
    """``page`` with what stands between ``<!-- name -->`` and ``<!-- /name -->`` replaced."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    assert re.search(pattern, page, re.DOTALL), f"README.md has no block {name!r}"
    return re.sub(pattern, lambda match: f"{match[1]}{text}\n{match[2]}", page, flags=re.DOTALL)


def measured(timings: dict) -> str:
    """The table of what was measured, from ``paper/records/timings.json`` and the costs of runs."""

    def again(what: str, runs: list) -> dict[str, str]:
        minutes = sum(stage["seconds"] for record in runs for stage in record.cost.values()) / 60
        told = f"{what}: {len(runs)} runs, two at a time, by their records; other work running"
        return {"what": told, "measured": f"{minutes / 2:.0f} min"}

    books = [record for record in why_sheets.parts()["comparison"] if record.config["corpus"] == "books"]
    grid = [records.load_record(file) for file in sorted((PAPER / "records" / "mini").glob("*.json"))]
    rows = [
        *timings["rows"],
        again("`make why` after the models", books),
        again("`make paper FRESH=1` after the models", grid),
    ]
    rows = "\n".join(f"| {row['what']} | {row['measured']} |" for row in rows)
    return f"Measured on {timings['hardware']}:\n\n| | |\n|---|---|\n{rows}"


def evaluation(folder: Path) -> str:
    """Speed of the evaluation from the committed records of ``qru.metrics.bench``."""
    parts = []
    for record in (records.read_json(file) for file in sorted(folder.glob("*.json"))):
        metrics, verified, config = record["metrics"], record["verified"], record["config"]
        total, machine = metrics["total"], record["provenance"]["hardware"]
        apart, beyond = (verified[key] for key in ("largest_log_prob_difference", "log_probs_more_than_1e-5_apart"))
        load = record.get("load_average", [0])[0]  # of the last minute: of this measurement
        busy = f", beside other work (load {load:.0f})" if load > machine["cores"] else ""
        muse = [found["seconds"] for name, found in metrics.items() if name not in ("total", "disjoint")]
        of_muse = sum(seconds["alone"] for seconds in muse) / sum(seconds["ours"] for seconds in muse)
        ratios = ", ".join(f"{name} {found['ratio']:.1f}" for name, found in metrics.items() if name != "total")
        parts.append(
            f"Scoring the {config['scale']} {config['model']} model on `{config['corpus']}` takes "
            f"{total['seconds']['ours']:.1f} s in place of {total['seconds']['alone']:.0f} s: **{total['ratio']:.1f}** "
            f"times as fast, and {of_muse:.1f} times in MUSE's four metrics ({ratios}), "
            f"with {record['threads']} thread of {machine['processor']} ({machine['cores']} cores); medians of "
            f"{record['rounds']} interleaved rounds, spread "
            f"{max(total['spread'].values()):.0%}{busy}. Verified before: {verified['strings']} generated strings are "
            f"equal, {verified['log_probs']:,} log-probabilities differ by {apart:.2e} at "
            f"most ({beyond} by more than 1e-5), all scores are equal."
        )
    return "\n\n".join(parts) or "There is no record of it yet: `python -m qru.metrics.bench`."


def kernel(folder: Path) -> str:
    """Speed of the kernel from the committed records, and what there is no record of."""
    found = [kernel_record.checked(records.read_json(file), str(file)) for file in sorted(folder.glob("*.json"))]
    parts = [kernel_record.summary(record) for record in found]
    if parts:
        parts.append(kernel_record.NOTE)
    missing = sorted({"cpu", "cuda"} - {record["config"]["device"] for record in found})
    words = {"cpu": "the CPU (`make bench` measures yours)", "cuda": "a GPU"}
    if missing:
        parts.append(f"No claim is made for the kernel's speed on {' or '.join(words[device] for device in missing)}.")
    return "\n\n".join(parts)


def ship() -> str:
    """Time and memory of audit and quantize, from the committed records."""
    found = [ship_record.summary(record) for record in ship_record.committed()]
    return "\n\n".join([*found, ship_record.NOTE] if found else ["There is no record of it yet: `make bench-ship`."])


def methods() -> str:
    """A row a combination of method, arm and guard, on text and on tweets; below, what a comparison came to."""
    kept = {name: sorted(map(str, (PAPER / "records" / name).glob("*.json"))) for name in COMPARED}
    facts = method_facts({
        "tables/three": [*kept["methods"], *kept["certificates"]], "tables/four": kept["tweets"],
        "tables/attacks": kept["attacks"],
        "tables/calibration": kept["calibration"] and kept["methods"] + kept["calibration"],
        "tables/quail": kept["quail"] and [p for name in ("methods", "tweets", "quail", "margins") for p in kept[name]],
    })  # fmt: skip
    if not facts["text"]:
        return "There is no record of it yet: `make paper FRESH=1 GRID=full`."
    after = {one.name: one.certificate for one in attacked(load_attacks(kept["attacks"]))} if kept["attacks"] else {}
    text = method_tables.contenders(*method_tables.load_compared([*kept["methods"], *kept["certificates"]]))
    parts = overview(text, "verbmem", "utility", after)
    parts += [f"- {told}" for told in (*facts["text"]["calibration"], *(facts["calibration"] or ()))]
    parts += [f"- {told}" for told in facts["text"]["quail"]]
    if facts["readings"]:
        parts += ["- Other readings of QUAIL's margin:", *(f"  - {told}" for told in facts["readings"])]
    if facts["labels"]:
        labels = method_tables.contenders(method_tables.load_compared(kept["tweets"])[0])
        parts += ["", *overview(labels, "forget_accuracy", "retain_accuracy", {})]
        parts += [f"- {told}" for told in (*facts["labels"]["anyway"], *facts["labels"]["quail"])]
    if facts["cost"]:
        parts += ["", "**What a step costs** with a guard (`make bench-guards`).", ""]
        parts += [f"- {told}" for told in facts["cost"]]
    return "\n".join(parts)


def overview(
    found: Sequence[method_tables.Contender], forgotten: str, kept: str, after: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """A Markdown table: levels in bf16, under which quantizers it returns, and what certificates say.

    Args:
        forgotten, kept: metrics, of what is to be forgotten and of what is to be kept.
        after: name -> certificate of the same models after relearning; none: no such column.
    """
    names = [HEADINGS[name].rsplit(" ", 1)[0] for name in (forgotten, kept)]
    heads = ["Method, arm, guard", "Met the goal", *(f"{name} in bf16" for name in names), "Returns under"]
    if certified := any(one.certificate for one in found):
        heads += ["At most over retrained"] + ["… after relearning"] * bool(after)
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---|' * (len(heads) - 1)}"]
    for one in found:
        told = [one.name, f"{len(one.met)} of {len(one.runs)}"]
        told += [method_tables.score_cell(one.shown, "bf16", name).text for name in (forgotten, kept)]
        told.append(returning(one, forgotten))
        if certified:
            told.append(at_most(one.certificate))
            told += [at_most(after.get(one.name), ATTACK)] * bool(after)
        lines.append(f"| {' | '.join(told)} |")
    levels = {who: found[0].runs[0].scores[who]["bf16"].get(forgotten) for who in ("target", "retrained")}
    said = " and ".join(f"{level['value']:.0f} for the {who} model" for who, level in levels.items() if level)
    note = [
        f"In percent; {names[0]} in bf16 is {said}. Means over the runs that met the goal, or over all where none did. "
        "A quantizer is named if in any of these runs it brings something back, with the median over them."
    ]
    if certified:
        before = [one.certificate for one in found if one.certificate]
        relearned = [after[one.name] for one in found if one.name in after]
        ceilings = sorted({made["forget_ceiling"] for made in (*before, *relearned)})
        under = [" or ".join(dict.fromkeys(str(len(made["declared"]["quantizers"])) for made in part))
                 for part in (before, relearned)]  # fmt: skip
        note.append(
            f"Over retrained: the largest upper bound of a certificate over {under[0]} precisions"
            f"{f', after relearning over {under[1]}' if relearned else ''}, in points; bold where it is over the "
            f"ceiling of {' or '.join(f'{ceiling:g}' for ceiling in ceilings)}; –: not certified."
        )
        both = [
            replace(one, certificate=made) for one in found for made in (one.certificate, after.get(one.name)) if made
        ]
        note += method_tables.other_seeds_note(both)
    return [*lines, "", " ".join(note), ""]


def returning(one: method_tables.Contender, metric: str) -> str:
    """``RTN int4 tensor 77 %, FP4 16 %``: medians over the runs shown, of quantizers under which it returns in any."""
    told = []
    for name in method_tables.quantizers_of(one.shown):
        found = method_tables.recovered_of(one.shown, name)
        shares = [part[metric]["value"] for part in found if part[metric]["defined"]]
        if any(part["recovers"]["recovers"] for part in found):
            share = f" {statistics.median(shares):.0f} %" if shares else ""
            told.append(f"{method_tables.quantizer_title(name)}{share}")
    missed = "" if one.met else " (goal missed)"
    return (", ".join(told) or f"none of {len(method_tables.quantizers_of(one.shown))}") + missed


def at_most(certificate: Mapping[str, Any] | None, attack: str = "") -> str:
    """``15``: the largest upper bound of the excess in points, of one kind of transform; bold over the ceiling.

    ``refused`` where a certificate is: what its bounds say of a model that lost its use supports nothing.
    """
    bounds = [one["upper"] for row in (certificate or {"cells": ()})["cells"] for one in row["forget"].values()
              if row["transform"].startswith(attack)]  # fmt: skip
    if not bounds:
        return "–"
    if certificate["outcome"] == "refused":
        return "refused"
    told = f"{max(bounds):.0f}"
    return f"**{told}**" if max(bounds) > certificate["forget_ceiling"] else told


def why() -> str:
    """The finding, and what it depends on."""
    parts = why_sheets.parts()
    others = [*parts["dial"], *parts["plateau"], *parts["size"]]
    beside = [paper_words.usual_beta2(parts["beta2"]), *paper_words.elsewhere(others, parts["comparison"])]
    return f"{paper_words.finding(parts['comparison'])}\n\n{' '.join(filter(None, beside))}"


def rewritten(page: str, found: Sequence[records.Record]) -> str:
    """README.md with every block as the kept records have it."""
    verdict = "\n".join("> " + line + "  " for record in found for line in record.extra["verdict"])
    page = block("verdict", verdict, page)
    page = block("measured", measured(json.loads((PAPER / "records" / "timings.json").read_text())), page)
    page = block("budget", budget.table(), page)
    page = block("kernel", kernel(KERNELS), page)
    page = block("ship", ship(), page)
    page = block("why", why(), page)
    page = block("methods", methods(), page)
    page = block("evaluation", evaluation(PAPER / "records" / "evaluation"), page)
    return page


def main() -> None:
    if sys.argv[1:]:
        keep(sys.argv[1:])
    found = shown()
    README.write_text(rewritten(README.read_text(), found))
    figures.scores_by_precision(*found).savefig(PAPER / "readme.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
