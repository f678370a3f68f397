"""The report: one file that needs nothing beside it, whole, escaped, and with every layer in it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from qru.audit_report import STYLE, _distribution, page, shade, write_report
from qru.checkpoint_audit import LOWEST, audit_checkpoint, percent
from qru.ops import QuantSpec
from tests.checkpoints.made import model, nudged, write, write_adapter

SPECS = (QuantSpec(bits=4, group_size=64), QuantSpec(bits=3, group_size=-1))
VOID = {"meta", "br", "link", "img"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of two checkpoints, and of an adapter in a folder whose name is markup."""
    home = tmp_path_factory.mktemp("report")
    base = write(home / "base & co", shard="60KB")
    tuned = write(home / "<script>alert(1)<", change=nudged(0.05))
    adapter = write_adapter(home / '"quoted" <b>', model())
    quiet = {"progress": False}
    return audit_checkpoint(base, tuned, SPECS, **quiet), audit_checkpoint(base, adapter, SPECS[:1], **quiet)


class Whole(HTMLParser):
    """Holds every tag against the one that closes it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_a_report_is_whole_and_needs_nothing_beside_it(results):
    for result in results:
        text = page(result)
        found = Whole(text)
        assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
        assert not {"src", "href", "onload", "onclick"} & {name for name, _ in found.attributes}
        assert not re.search(r"https?:|//|url\(|@import", text.replace("<!doctype", ""))
        assert "default-src 'none'" in text
        assert "color-scheme: light dark" in text
        assert "prefers-color-scheme: dark" in text
        assert not re.search(r"\bNone\b(?! of)|\bnan\b", "".join(found.text))


def test_what_a_user_named_is_escaped(results):
    tuned, adapted = (page(result) for result in results)
    assert "<script>" not in tuned
    assert "&lt;script&gt;alert(1)&lt;" in tuned
    assert "base &amp; co" in tuned
    assert "<b>" not in adapted
    assert "&quot;quoted&quot; &lt;b&gt;" in adapted


def test_every_layer_is_in_the_map_and_in_the_table(results):
    text = page(results[0])
    drawings = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, flags=re.S)]
    maps = [one for one in drawings if "Projection" in one.get("aria-label")]
    assert len(maps) == len(SPECS)
    for drawn, (spec, audited) in zip(maps, results[0]["specs"].items(), strict=True):
        cells = drawn.findall("rect")
        assert len(cells) == len(audited["layers"]) == 14
        by_title = {cell.find("title").text: cell for cell in cells}
        for layer, counts in audited["layers"].items():
            block, module = re.fullmatch(r"model\.layers\.(\d)\.(.+)", layer).groups()
            (title,) = [title for title in by_title if title.startswith(f"{module}, block {block}:")]
            assert f"projection {counts['projection']:.3f}" in title
            assert by_title[title].get("fill") == shade(counts["projection"])
        labels = [one.text for one in drawn.findall("text")]
        assert {"0", "1", "mlp.up_proj", "self_attn.q_proj"} <= set(labels), spec
    for layer in results[0]["specs"][SPECS[0].name]["layers"]:
        assert text.count(f"<td>{layer}</td>") == len(SPECS)


def test_cells_do_not_overlap_and_stay_inside(results):
    text = page(results[0])
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.S):
        drawn = ElementTree.fromstring(svg)
        _, _, width, height = (float(number) for number in drawn.get("viewBox").split())
        boxes = []
        for cell in drawn.findall("rect"):
            x, y, w, h = (float(cell.get(name)) for name in ("x", "y", "width", "height"))
            assert x >= 0
            assert y >= 0
            assert x + w <= width
            assert y + h <= height
            assert all(x >= a + c or a >= x + w or y >= b + d or b >= y + h for a, b, c, d in boxes)
            boxes.append((x, y, w, h))


@pytest.mark.parametrize(
    ("projection", "colour"),
    [(None, "var(--none)"), (-0.2, "var(--s0)"), (0.099, "var(--s0)"), (0.1, "var(--s1)"), (0.49, "var(--s2)"),
     (0.5, "var(--s3)"), (0.89, "var(--s4)"), (0.9, "var(--s5)"), (1.4, "var(--s5)")],
)  # fmt: skip
def test_colours_follow_the_legend(projection, colour):
    assert shade(projection) == colour


def test_the_distribution_is_that_of_the_result(results):
    result = results[0]
    movement, layers = result["movement"][SPECS[0].name], result["specs"][SPECS[0].name]["layers"]
    text = page(result)
    svg = next(svg for svg in re.findall(r"<svg.*?</svg>", text, flags=re.S) if "distribution" in svg)
    bars = {cell.find("title").text.rpartition(": ")[0]: cell for cell in ElementTree.fromstring(svg).findall("rect")}
    weights = sum(counts["weights"] for counts in layers.values())
    assert len(bars) == len(next(iter(movement.values()))["bins"])
    for label, exponent in (("1/16", -4), ("1/2", -1), ("1", 0), ("4", 2)):
        count = sum(one["bins"][exponent - LOWEST] for one in movement.values())  # every weight is sampled here
        assert bars[label].find("title").text == f"{label}: {percent(count / weights)}"
    still = 1 - sum(counts["moved"] for counts in layers.values()) / weights
    assert f"{percent(still)} did not move at all" in text
    edge = re.search(r'<path d="M(\d+) \d+V', svg)[1]
    assert float(bars["1/2"].get("x")) == pytest.approx(float(edge) + 5)


def test_the_legend_has_every_colour_in_order_and_wraps(results):
    legend = re.search(r'<ul class="legend">.*?</ul>', page(results[0]))[0]
    said = re.findall(r'color: (var\(--\w+\))"[^>]*>■</span> ([^<]+)</li>', legend)
    assert [colour for colour, _ in said] == [shade(value) for value in (0, 0.1, 0.3, 0.6, 0.8, 1, None)]
    assert [said[at][1] for at in (0, 2, -1)] == ["under 0.1: died", "0.25–0.5", "did not move"]
    assert "<svg" not in legend  # a drawing would be scaled down on a narrow screen, its words with it


@pytest.mark.parametrize("at", [-2, -1])
def test_the_mark_s_name_stands_above_the_share_of_the_tallest_bar(at):
    """The mark is at half a step, between the bars of 1/4 and 1/2: there the two texts would lie on each other."""
    bins = [int(exponent == at) * 10 for exponent in range(LOWEST, 4)]
    drawn = _distribution(
        {"a": {"bins": bins, "unmoved": 0, "sampled": 10}}, {"a": {"weights": 10, "moved": 10}}, LOWEST
    )
    heights = dict(reversed(found) for found in re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>([^<]+)<', drawn))
    assert float(heights["half a step"]) + 12 <= float(heights["100 %"])  # 12 px is the size of the letters


def test_a_digest_is_not_broken_into_a_column_of_letters(results):
    text = page(results[0])
    assert text.count('mono digest">') == len(results[0]["files"])
    assert re.search(r"^\.digest {[^}]*white-space: nowrap", text, flags=re.M)


def test_what_is_folded_is_printed():
    printed = STYLE[STYLE.index("@media print") :]
    assert "details::details-content { content-visibility: visible; }" in printed
    assert "--ground: #fff" in printed  # paper is white, whatever the screen is


def test_a_sample_stands_for_its_layer():
    """Half of one layer's sample, of a tenth of its weights, and none of another's, nine times as large."""
    movement = {"a": {"bins": [0, 5], "unmoved": 5, "sampled": 10}, "b": {"bins": [0, 0], "unmoved": 30, "sampled": 30}}
    layers = {"a": {"weights": 100, "moved": 50}, "b": {"weights": 900, "moved": 0}}
    drawn = _distribution(movement, layers, lowest=-1)
    assert "<title>≥ 1: 5.0 %</title>" in drawn
    assert "95 % did not move at all" in drawn


def test_files_and_reading_are_in_the_report(results):
    for result in results:
        text = page(result)
        for entry in result["files"]:
            assert entry["sha256"] in text
        assert text.count("<p>") >= len(result["reading"])
        words = "".join(Whole(text).text)
        for line in result["reading"]:
            assert line in words


def test_a_report_appears_only_when_it_is_complete(results, tmp_path, monkeypatch):
    write_report(results[0], tmp_path / "one" / "report.html")
    assert (tmp_path / "one" / "report.html").read_text(encoding="utf-8") == page(results[0])
    monkeypatch.setattr("qru.audit_report.page", lambda result: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(results[0], tmp_path / "two.html")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_the_home_folder_is_known_by_its_sign(results, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_report(results[0], "~/report.html")
    assert (tmp_path / "report.html").is_file()
