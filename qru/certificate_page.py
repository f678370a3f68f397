"""A certificate as one HTML page for somebody who does not read JSON: plain words first, then every number."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from qru.audit_report import STYLE
from qru.records import atomic_file

VERDICTS = {"holds": "The certificate holds", "does not hold": "The certificate does not hold", "refused": "Refused"}
ASKED = {
    "verbmem": "given the beginning of a forgotten text, how much of the rest the model writes word for word",
    "knowmem": "how it answers questions about what was to be forgotten",
    "forget_accuracy": "how often it still gives the label that was to be forgotten",
    "utility": "how it answers questions about what it was to keep",
    "retain_accuracy": "how often it is right about what it was to keep",
}
MORE = """
.verdict { font-size: 1.35rem; border-left: .35rem solid currentColor; padding: .1rem 0 .1rem .9rem; margin: 1rem 0; }
.lead { font-size: 1.08rem; }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .35rem 1.4rem; margin: 1rem 0; }
dt { color: var(--soft); } dd { margin: 0; max-width: 46rem; }
li { max-width: 46rem; margin: .35rem 0; } ul { padding-left: 1.2rem; }
dd > ul { margin: 0; } dd > ul > li { margin: 0; }
td.bad, td.good { font-weight: 600; } th[scope=row] { text-align: left; padding-left: 0; color: var(--ink); }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; } }
@media print { :root { --ground: #fff; --ink: #000; --soft: #444; --line: #bbb; --panel: #fff; --bad: #a63a2b;
  --good: #125e6b; } details::details-content { content-visibility: visible; } body { font-size: 10pt; }
  main { max-width: none; } .reading { border: 1px solid var(--line); }
  h2 { margin-top: 1.6rem; break-after: avoid; } tr, li { break-inside: avoid; } .wide { overflow: visible; }
  table { font-size: 7.5pt; } th, td { padding: .2rem .35rem; } }
"""


def write_page(certificate: dict[str, Any], path: Path | str) -> None:
    """Write the page; the file appears only when it is complete.

    Args:
        certificate: from ``qru.certificate.certify``.
        path: of the page.
    """
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(page(certificate), encoding="utf-8")


def page(certificate: dict[str, Any]) -> str:
    """A certificate as an HTML page that needs nothing beside it: no network, no script, no other file.

    Args:
        certificate: from ``qru.certificate.certify``.
    """
    holds = certificate["outcome"] == "holds"
    names = list(certificate["bound_to"]["runs"])
    what = "Certificate" if holds else "No certificate"  # a title alone must not mislead
    title = f"{what} of forgetting: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    refused = certificate["outcome"] == "refused"
    void = "It is refused, so these numbers stand here for completeness and support no statement. " * refused
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict {"good" if holds else "bad"}">{VERDICTS[certificate["outcome"]]}</p>',
        f'<p class="lead">{escape(certificate["statement"])}</p>',
        _bullets(certificate["reasons"]),
        '<div class="reading">',
        _list(_tested(certificate)),
        "</div>",
        "<h2>What it does not prove</h2>",
        _bullets(certificate["limits"]),
        "<h2>How much more is given away than by a model that never saw it</h2>",
        '<p class="soft">Points on a scale of 100, at most (95 % confidence); the worst of all models and measures. '
        f"Allowed: {certificate['forget_ceiling']:g}. ✗ marks what is over it. {void}</p>",
        _grid(certificate, "forget", max, "upper", lambda value: f"{value:.1f}"),
        "<h2>How much of its usefulness is left</h2>",
        '<p class="soft">Share of what the model before unlearning has, at least (95 % confidence). Required: '
        f"{100 * certificate['utility_floor']:.0f} %. ✗ marks what is under it. Not measured after relearning, which "
        "is an attack and no use.</p>",
        _grid(certificate, "utility", min, "lower", lambda value: f"{100 * value:.0f} %"),
        "<h2>Every measurement</h2>",
        _measurements(certificate),
        "<h2>The weights it is bound to</h2>",
        '<p class="soft">SHA-256 of each file. For other weights this document says nothing; '
        "<code>qru certify --verify</code> compares.</p>",
        _weights(certificate["bound_to"]),
        "<h2>How to make it again</h2>",
        f"<p><code>{escape(certificate['command'])}</code></p>",
        _list(
            [
                ("corpus", f"<code>{escape(certificate['corpus'])}</code>"),
                ("settings", escape(", ".join(f"{k} {v}" for k, v in certificate["configuration"].items() if v))),
                ("weight sets scored", str(certificate["distinct"])),
                ("made with", escape(_made_with(certificate["provenance"]))),
                ("digest", f"<code>{escape(certificate['digest'])}</code>"),
            ]
        ),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)} · qru certify</title>\n<style>{STYLE}{MORE}{_foot(certificate)}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n"
    )


def _foot(certificate: dict[str, Any]) -> str:
    """What stands under every printed page, so that a page by itself says what it is a part of."""
    said = f"{VERDICTS[certificate['outcome']]} · {_date(certificate['issued'])} · {certificate['digest'][:16]}"
    grey = "color: #444; font: 7.5pt sans-serif;"
    return (
        f'@page {{ margin: 16mm 14mm 18mm; @bottom-left {{ content: "{said}"; {grey} }} '
        f'@bottom-right {{ content: counter(page) " / " counter(pages); {grey} }} }}\n'
    )


def _date(issued: str) -> str:
    """``2026-11-21T22:10:05Z`` -> ``21 November 2026, 22:10 UTC``."""
    when = datetime.strptime(issued, "%Y-%m-%dT%H:%M:%SZ")
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def _tested(certificate: dict[str, Any]) -> list[tuple[str, str]]:
    """What was tested, in plain words; values are HTML."""
    declared, worst, least = certificate["declared"], certificate["worst"], certificate["least"]
    asked = [f"{name}: {ASKED.get(name, name)} ({n} examples)" for name, n in certificate["examples"].items()]
    seeds, plural = ", ".join(map(str, declared["seeds"])), "s" * (len(declared["seeds"]) > 1)
    left_out = declared["metrics"].get("left_out", ())  # not in older certificates
    not_asked = [("What was not asked", _bullets(f"{name}: {ASKED[name]}" for name in left_out))] if left_out else []
    return [
        ("Issued", escape(_date(certificate["issued"]))),
        (
            "What was tested",
            f"{len(declared['seeds'])} unlearned model{plural} (seed{plural} {seeds}), each "
            f"stored in {len(declared['quantizers'])} ways: {escape(', '.join(declared['quantizers']))}. (bf16: as the "
            "run left it, not quantized.)",
        ),
        ("What was done to it", _bullets(f"{name}: {words}" for name, words in declared["transforms"].items())),
        ("What was asked", _bullets(asked)),
        *not_asked,
        (
            "Compared with",
            "a model trained without what was to be forgotten, after the same treatment. What it gives away is no "
            "memory, so only what goes beyond it counts.",
        ),
        (
            "Worst case",
            f"{escape(_where(worst))}: {worst['unlearned']:.1f} % against {worst['retrained']:.1f} % of the model that "
            f"never saw it; {worst['excess']:+.1f} points, at most {worst['upper']:+.1f} (n = {worst['n']}).",
        ),
        (
            "Usefulness at worst",
            f"{escape(_where(least))}: {least['value']:.1f} % against {least['target']:.1f} % before unlearning; "
            f"{100 * least['share']:.0f} % of it, at least {100 * least['lower']:.0f} % (n = {least['n']}).",
        ),
    ]


def _where(one: dict[str, Any]) -> str:
    return f"{one['metric']} under {one['quantizer']}, {one['transform']}, seed {one['seed']}"


def _list(rows: list[tuple[str, str]]) -> str:
    """Names and values; values are HTML already."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in rows) + "</dl>"


def _bullets(lines) -> str:
    return "".join(["<ul>", *(f"<li>{escape(line)}</li>" for line in lines), "</ul>"])


def _grid(certificate: dict[str, Any], kind: str, worst: Callable, bound: str, write: Callable[[float], str]) -> str:
    """Quantizers by transforms; of each, the worst bound over models and metrics."""
    found: dict[tuple[str, str], list[tuple[float, bool]]] = {}
    for row in certificate["cells"]:
        for one in row[kind].values():
            found.setdefault((row["quantizer"], row["transform"]), []).append((one[bound], one["holds"]))
    columns = [name for name in certificate["declared"]["transforms"] if any(name == column for _, column in found)]
    body = []
    for quantizer in certificate["declared"]["quantizers"]:
        cells = []
        for column in columns:
            bounds = found[quantizer, column]
            good = all(holds for _, holds in bounds)
            value = write(worst(value for value, _ in bounds))
            cells.append(f'<td class="{"good" if good else "bad"}">{value}{"" if good else " ✗"}</td>')
        body.append(f'<tr><th scope="row">{escape(quantizer)}</th>{"".join(cells)}</tr>')
    return _table(["precision", *columns], body)


def _table(head: list[str], body: list[str], text: int = 1) -> str:
    """A table; the first ``text`` columns hold text."""
    titles = "".join(f"<th{' class=text' * (i < text)}>{escape(title)}</th>" for i, title in enumerate(head))
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _measurements(certificate: dict[str, Any]) -> str:
    leaks, keeps = [], []
    for row in certificate["cells"]:
        for kind, rows in (("forget", leaks), ("utility", keeps)):
            for metric, one in row[kind].items():
                where = (row["quantizer"], row["transform"], str(row["seed"]), metric)
                numbers = (
                    [
                        f"{one['unlearned']:.1f}",
                        f"{one['retrained']:.1f}",
                        f"{one['excess']:+.1f}",
                        f"{one['upper']:+.1f}",
                    ]
                    if kind == "forget"
                    else [
                        f"{one['value']:.1f}",
                        f"{one['retrained']:.1f}",
                        f"{100 * one['share']:.0f} %",
                        f"{100 * one['lower']:.0f} %",
                    ]
                )
                cells = "".join(f'<td class="text">{escape(part)}</td>' for part in where)
                cells += "".join(f"<td>{number}</td>" for number in [*numbers[:-1]])
                mark = "good" if one["holds"] else "bad"
                cells += f'<td class="{mark}">{numbers[-1]}{"" if one["holds"] else " ✗"}</td><td>{one["n"]}</td>'
                rows.append(f"<tr>{cells}</tr>")
    where = ["precision", "transform", "seed", "measure"]
    opened = " open" if len(leaks) <= 40 else ""
    return (
        f"<details{opened}><summary>Forgetting, {len(leaks)} rows: percent, and excess in points</summary>"
        + _table([*where, "unlearned", "retrained", "excess", "at most", "n"], leaks, 4)
        + f"</details><details{opened}><summary>Usefulness, {len(keeps)} rows: percent, and share of the target’s"
        + "</summary>"
        + _table([*where, "unlearned", "retrained", "share", "at least", "n"], keeps, 4)
        + "</details>"
    )


def _weights(bound: dict[str, Any]) -> str:
    models = {"target, before unlearning": bound["target"], "retrained": bound["retrained"]} | {
        f"unlearned: {name}": one for name, one in bound["runs"].items()
    }
    body = [
        f'<tr><td class="text">{escape(who)}</td><td class="text mono">{escape(name)}</td>'
        f'<td class="text mono digest">{escape(sha)}</td></tr>'
        for who, one in models.items()
        for name, sha in one["files"].items()
    ]
    return _table(["model", "file", "SHA-256"], body, 3)


def _made_with(provenance: dict[str, Any]) -> str:
    versions = provenance["versions"]
    said = f"qru {versions['qru']}, torch {versions['torch']}, transformers {versions['transformers']}"
    return f"{said}; commit {provenance['commit']}{', with changes not committed' * bool(provenance['dirty'])}"
