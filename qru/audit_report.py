"""An audit as one HTML page that needs nothing beside it: no network, no script, no other file; light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from qru.checkpoint_audit import block_of, number, percent, plain
from qru.records import atomic_file

# Colours come from custom properties, so that one drawing serves both schemes. The scale runs from orange ("lost") to
# teal ("kept"), which colour-blind readers tell apart, too.
STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfa; --ink: #1c1e21; --soft: #62676e; --line: #dcdfe2; --panel: #f3f4f2;
  --s0: #a63a2b; --s1: #d97b4f; --s2: #ecc58f; --s3: #a9cfc4; --s4: #4d9a9a; --s5: #125e6b; --none: #e4e6e8;
  --bar: #125e6b; --bad: #a63a2b; --good: #125e6b; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181b; --ink: #e8e9ea; --soft: #9aa1a9; --line: #33383e;
  --panel: #1e2125; --s0: #f0806a; --s1: #c2643f; --s2: #7d5a35; --s3: #2f5f5e; --s4: #3f9094; --s5: #86dcd9;
  --none: #3b4148; --bar: #6fc6c4; --bad: #f0806a; --good: #86dcd9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 3.2rem 0 .5rem; }
h3 { font-size: .95rem; font-weight: 600; margin: 1.8rem 0 .3rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption, caption { color: var(--soft); font-size: .875rem; }
.verdict { display: inline-block; font-weight: 600; margin: 0 0 1.6rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
.reading { background: var(--panel); border-radius: .6rem; padding: 1rem 1.4rem; margin: 1.5rem 0 1.2rem;
  max-width: 50rem; }
code, .mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  font-size: .82em; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0 0 .5rem; }
th, td { padding: .4rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.text, th.text { text-align: left; white-space: normal; }
tbody tr:hover { background: var(--panel); }
.digest { white-space: nowrap; overflow-wrap: normal; }
figure { margin: 1.2rem 0 0; } figcaption { margin-top: .6rem; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.3rem; margin: 1rem 0 0; padding: 0; list-style: none;
  color: var(--soft); font-size: .8rem; }
.legend span { font-size: 1.1rem; line-height: 1; print-color-adjust: exact; }
svg { display: block; max-width: 100%; height: auto; font: 12px system-ui, sans-serif;
  font-variant-numeric: tabular-nums; }
svg text { fill: var(--ink); } svg .dim { fill: var(--soft); }
details { margin: 1.2rem 0; } summary { cursor: pointer; color: var(--soft); }
@media screen and (max-width: 66rem) { figure { overflow-x: auto; } figure svg { max-width: none; } }
@media print { :root { --ground: #fff; --ink: #000; --soft: #444; --line: #bbb; --panel: #fff; --s0: #a63a2b;
  --s1: #d97b4f; --s2: #ecc58f; --s3: #a9cfc4; --s4: #4d9a9a; --s5: #125e6b; --none: #e4e6e8; --bar: #125e6b;
  --bad: #a63a2b; --good: #125e6b; } details::details-content { content-visibility: visible; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; } .reading { border: 1px solid var(--line); }
  h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; } .wide { overflow: visible; }
  table { font-size: 7.5pt; } th, td { padding: .2rem .35rem; white-space: normal; }
  .digest { white-space: normal; overflow-wrap: anywhere; } }
"""
# Share of the update that survives -> colour; the edges are shown in the legend.
EDGES = (0.1, 0.25, 0.5, 0.75, 0.9)
COLUMNS: dict[str, tuple[str, Callable[[dict], str]]] = {
    "moved": ("weights that moved", lambda c: percent(c["moved"] / c["weights"])),
    "crossed": ("crossed a bin", lambda c: percent(c["crossed"] / c["weights"])),
    "predicted": ("predicted", lambda c: percent(c["predicted"] / c["weights"])),
    "changed": ("code changed", lambda c: percent(c["changed"] / c["weights"])),
    "steps": ("groups whose step moved", lambda c: f"{c['steps_moved']:,}"),
    "projection": ("projection", lambda c: number(c["projection"])),
    "cosine": ("cosine", lambda c: number(c["cosine"])),
}


def write_report(result: dict[str, Any], path: Path | str) -> None:
    """Write an audit as an HTML page; the file appears only when it is complete.

    Args:
        result: from ``audit_checkpoint``.
        path: of the page.
    """
    with atomic_file(Path(path).expanduser()) as temporary:
        temporary.write_text(page(result), encoding="utf-8")


def page(result: dict[str, Any]) -> str:
    """An audit as an HTML page.

    Args:
        result: from ``audit_checkpoint``.
    """
    names = [_called(result[side]) for side in ("base", "unlearned")]
    title = f"{names[1]} against {names[0]}"
    survives = result["holds"]
    verdict = "The update survives every grid asked for." if survives else "The update does not hold."
    if not any(one["total"]["moved"] for one in result["specs"].values()):
        verdict = "Nothing that is quantized changed." if survives else "Nothing changed: there is no update."
    threshold = result["thresholds"]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict {"good" if survives else "bad"}">{verdict}</p>',
        _table(
            [("before", _code(result["base"])), ("after", _code(result["unlearned"]))]
            + [("merged into it", _code(folder)) for folder in result["adapters"] if folder != result["unlearned"]]
            + [("stored as", ", ".join(f"{kind} ({count:,} weights)" for kind, count in result["dtypes"].items()))],
        ),
        '<div class="reading">' + "".join(f"<p>{escape(line)}</p>" for line in result["reading"]) + "</div>",
        f'<p class="soft">By convention an update holds if its projection is at least {threshold["holds"]} under every '
        f"grid, and in a layer it died if under {threshold['died']}. Projection: how much of ΔW is left in the "
        "difference of the quantized weights, ⟨Q(W+ΔW)−Q(W), ΔW⟩ / ⟨ΔW, ΔW⟩; 1 if all of it survives on average, 0 if "
        "it is lost. It says nothing about what the model then remembers: evaluate that.</p>",
        "<h2>All layers together</h2>",
        _counts((plain(spec), one["total"]) for spec, one in result["specs"].items()),
        "<h2>Where the update survives</h2>",
        '<p class="soft">Projection of each layer, block by block.</p>',
        _legend(),
    ]
    for spec, one in result["specs"].items():
        parts += [f"<h3>{escape(plain(spec))}</h3>", _heat_map(spec, one["layers"])]
    parts += [
        "<h2>How far weights moved</h2>",
        '<p class="soft">|ΔW| in steps of the base’s grid, by powers of two. Left of half a step a weight crosses only '
        "if it lay near the edge of its bin.</p>",
    ]
    for spec, movement in result["movement"].items():
        drawn = _distribution(movement, result["specs"][spec]["layers"], result["lowest"])
        parts += [f"<h3>{escape(plain(spec))}</h3>", drawn]
    parts += ["<h2>What is not quantized</h2>", _kept(result["kept"]), "<h2>Layers</h2>"]
    for spec, one in result["specs"].items():
        opened = " open" if len(result["specs"]) == 1 and len(one["layers"]) <= 60 else ""
        parts.append(
            f"<details{opened}><summary>{escape(plain(spec))}, {len(one['layers'])} layers</summary>"
            f"{_counts(one['layers'].items(), label='layer')}</details>"
        )
    parts += ["<h2>Files audited</h2>", _files(result["files"]), _made_with(result["provenance"])]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)} · qru audit</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def shade(projection: float | None) -> str:
    """The colour of a projection: a custom property of the page."""
    return "var(--none)" if projection is None else f"var(--s{sum(projection >= edge for edge in EDGES)})"


def _called(folder: str) -> str:
    """A folder's name, with its parent's where it says nothing by itself."""
    path = Path(folder)
    return "/".join(path.parts[-2:]) if path.name in ("model", "adapter", "checkpoint") else path.name


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    """A table of a name and a value each; values are HTML already."""
    body = "".join(f'<tr><td>{escape(name)}</td><td class="text">{value}</td></tr>' for name, value in rows)
    return f'<div class="wide"><table><tbody>{body}</tbody></table></div>'


def _counts(rows: Iterable[tuple[str, dict]], label: str = "grid") -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title, _ in COLUMNS.values())
    body = "".join(
        f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{write(counts)}</td>" for _, write in COLUMNS.values()) + "</tr>"
        for name, counts in rows
    )
    return f'<div class="wide"><table><thead><tr><th>{label}</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _legend() -> str:
    names = ["under 0.1: died", *(f"{low}–{high}" for low, high in pairwise(EDGES)), "0.9 and over"]
    colours = [*(f"var(--s{i})" for i in range(len(names))), "var(--none)"]
    items = "".join(
        f'<li><span style="color: {colour}" aria-hidden="true">■</span> {name}</li>'
        for colour, name in zip(colours, [*names, "did not move"], strict=True)
    )
    return f'<ul class="legend">{items}</ul>'


def _heat_map(spec: str, layers: dict[str, dict]) -> str:
    """Blocks from left to right, modules from top to bottom."""
    cells = {block_of(layer): counts for layer, counts in layers.items()}
    blocks = sorted({block for block, _ in cells})
    modules = list(dict.fromkeys(module for _, module in cells))
    left, top, high = 12 + 7 * max(map(len, modules)), 22, 24
    wide = max(9, min(44, (1010 - left) // len(blocks)))
    every = max(1, math.ceil(26 / wide))
    drawn = []
    for row, module in enumerate(modules):
        middle = top + row * high + high / 2 + 4
        drawn.append(f'<text x="{left - 10}" y="{middle}" text-anchor="end">{escape(module)}</text>')
    for column, block in enumerate(blocks):
        if column % every == 0:
            middle = left + column * wide + wide / 2
            drawn.append(f'<text x="{middle}" y="{top - 8}" text-anchor="middle" class="dim">{block}</text>')
        for row, module in enumerate(modules):
            if (counts := cells.get((block, module))) is None:
                continue
            says = (
                f"{module}, block {block}: projection {number(counts['projection'])}, "
                f"{percent(counts['crossed'] / counts['weights'])} crossed, "
                f"{percent(counts['moved'] / counts['weights'])} moved"
            )
            drawn.append(
                f'<rect x="{left + column * wide}" y="{top + row * high}" width="{wide - 2}" height="{high - 2}" '
                f'rx="2" fill="{shade(counts["projection"])}"><title>{escape(says)}</title></rect>'
            )
    width, height = left + wide * len(blocks), top + high * len(modules)
    label = escape(f"Projection of the update by block and module under {plain(spec)}")
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{label}">'
        f"{''.join(drawn)}</svg></figure>"
    )


def _distribution(movement: dict[str, dict], layers: dict[str, dict], lowest: int) -> str:
    """Bars of |ΔW|/s over all layers, in percent of all weights; each layer's sample stands for the whole layer."""
    scale = {name: layers[name]["weights"] / one["sampled"] for name, one in movement.items() if one["sampled"]}
    if not scale:
        return '<p class="soft">No group has a step.</p>'
    weights = sum(counts["weights"] for counts in layers.values())
    still = 1 - sum(counts["moved"] for counts in layers.values()) / weights
    length = len(next(iter(movement.values()))["bins"])
    shares = [sum(scale[name] * movement[name]["bins"][i] for name in scale) / weights for i in range(length)]
    labels = [f"< {_power(lowest + 1)}", *(_power(lowest + i) for i in range(1, length - 1))]
    labels.append(f"≥ {_power(lowest + length - 1)}")
    wide, high, top = 58, 150, 42  # above the bars: their shares, and over these the mark's name
    tallest = max(shares) or 1.0
    drawn = []
    for i, (label, share) in enumerate(zip(labels, shares, strict=True)):
        x, size = i * wide, high * share / tallest
        drawn.append(
            f'<rect x="{x + 5}" y="{top + high - size:.1f}" width="{wide - 10}" height="{size:.1f}" rx="2" '
            f'fill="var(--bar)"><title>{escape(label)}: {percent(share)}</title></rect>'
            f'<text x="{x + wide / 2}" y="{top + high + 18}" text-anchor="middle">{escape(label)}</text>'
        )
        if share:
            drawn.append(
                f'<text x="{x + wide / 2}" y="{top + high - size - 6:.1f}" text-anchor="middle" class="dim">'
                f"{escape('<0.01 %' if share < 1e-4 else percent(share))}</text>"
            )
    width = wide * length
    edge = wide * (-1 - lowest)  # where the bin that begins at 1/2 stands
    drawn.append(f'<path d="M0 {top + high + 0.5}H{width}" stroke="var(--line)"/>')
    drawn.append(f'<path d="M{edge} 18V{top + high}" stroke="var(--soft)" stroke-dasharray="3 4"/>')
    drawn.append(f'<text x="{edge}" y="12" text-anchor="middle" class="dim">half a step</text>')
    sampled = sum(one["sampled"] for one in movement.values())
    return (
        f'<figure><svg viewBox="0 0 {width} {top + high + 26}" width="{width}" role="img" aria-label="distribution of '
        f'movement in steps">{"".join(drawn)}</svg><figcaption>In percent of all weights; {percent(still)} did not '
        f"move at all and are not drawn. A label is where its bin begins. From {sampled:,} weights in evenly "
        "spaced rows of every layer.</figcaption></figure>"
    )


def _power(exponent: int) -> str:
    return f"1/{2**-exponent}" if exponent < 0 else f"{2**exponent}"


def _kept(kept: dict[str, Any] | None) -> str:
    if kept is None:
        return "<p>The adapter leaves embeddings, norms and head as they are.</p>"
    parts = []
    if kept["changed"]:
        body = "".join(
            f"<tr><td>{escape(name)}</td><td>{one['values']:,}</td><td>{percent(one['moved'] / one['values'])}</td>"
            f"<td>{'–' if one['relative'] is None else percent(one['relative'])}</td></tr>"
            for name, one in kept["changed"].items()
        )
        many = len(kept["changed"])
        parts.append(
            f"<details{' open' if many <= 12 else ''}><summary>{many} tensor{'s' * (many > 1)} changed, and no grid "
            "takes that back.</summary>"
            '<div class="wide"><table><thead><tr><th>tensor</th><th>values</th><th>moved</th>'
            f"<th>|change| / |before|</th></tr></thead><tbody>{body}</tbody></table></div></details>"
        )
    same = {0: "No tensor is", 1: "1 tensor is"}.get(kept["same"], f"{kept['same']} tensors are")
    parts.append(f"<p>{same} the same on both sides.</p>")
    for key, where in (("only_before", "before"), ("only_after", "after")):
        if kept[key]:
            parts.append(f"<p>Only {where}, or of another shape: {', '.join(map(_code, kept[key]))}.</p>")
    return "".join(parts)


def _files(files: list[dict[str, Any]]) -> str:
    body = "".join(
        f'<tr><td class="mono">{escape(entry["path"])}</td><td>{entry["bytes"]:,}</td>'
        f'<td class="text mono digest">{entry["sha256"] or "not computed"}</td></tr>'
        for entry in files
    )
    return (
        '<div class="wide"><table><thead><tr><th>file</th><th>bytes</th><th class="text">SHA-256</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _made_with(provenance: dict[str, Any]) -> str:
    versions = provenance["versions"]
    said = f"qru {versions['qru']}, torch {versions['torch']}, transformers {versions['transformers']}"
    return f'<p class="soft">{escape(said)}; {escape(provenance["hardware"]["processor"])}.</p>'
