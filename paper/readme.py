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
import sys
from collections.abc import Sequence
from pathlib import Path

from qru import budget, figures, kernel_record, paper_words, records, ship_record, why_sheets
from qru.method_facts import method_facts
from qru.paper_tables import counted

PAPER = Path(__file__).parent
KEPT = PAPER / "records" / "readme"
README = PAPER.parent / "README.md"
KERNELS = PAPER / "records" / "kernel"
COMPARED = ("methods", "certificates", "tweets", "attacks")
TOLD = ("returns", "anyway", "calibration", "quail", "certified")


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
    """What returns with methods that are to survive, whether QUAIL beats plain LoRA, and what a guard costs a step."""
    kept = {name: sorted(map(str, (PAPER / "records" / name).glob("*.json"))) for name in COMPARED}
    facts = method_facts({
        "tables/three": [*kept["methods"], *kept["certificates"]], "tables/four": kept["tweets"],
        "tables/attacks": kept["attacks"],
    })  # fmt: skip
    parts = []
    for words, part in (("Text", facts["text"]), ("Tweets", facts["labels"])):
        if part:
            parts += ["", f"**{words}** ({part['runs']} runs, seeds {part['seeds']}). {part['met']}", ""]
            parts += [f"- {told}" for key in TOLD for told in part.get(key, ())]
    if facts["attacks"]:
        many = counted(len(kept["attacks"]), "certificate")
        parts += ["", f"**Attacks** ({many}).", "", *(f"- {told}" for told in facts["attacks"])]
    if facts["cost"]:
        parts += ["", "**What a step costs** with a guard (`make bench-guards`).", ""]
        parts += [f"- {told}" for told in facts["cost"]]
    return "\n".join(parts).strip() or "There is no record of it yet: `make paper FRESH=1 GRID=full`."


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
