"""A table for print as data, and its two renderings: Typst for the paper, LaTeX (booktabs) for other papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qru.records import atomic_file, say
from qru.typeset import latex, typst


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table.

    Attributes:
        text: in the type of the table; may be empty.
        beside: behind it, smaller.
        below: under it, smaller.
        strong: whether the text is bold.
    """

    text: str = ""
    beside: str = ""
    below: str = ""
    strong: bool = False


Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Block:
    """Rows under a heading of their own.

    Attributes:
        title: of the block; none if empty.
        groups: rows; thin lines part the groups.
        apart: heading of a new part of the table, which begins with this block; none if empty.
    """

    title: str
    groups: tuple[tuple[Row, ...], ...]
    apart: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        labels: headings of the columns that name a row; set from the left. A heading may hold a line break.
        columns: heading above -> headings of its columns of numbers; set from the right.
        blocks: of rows.
        note: sentences under the table, each true of these numbers (seeds, examples, what is missing).

    Raises:
        ValueError: a row has another number of cells than there are columns.
    """

    labels: tuple[str, ...]
    columns: tuple[tuple[str, tuple[str, ...]], ...]
    blocks: tuple[Block, ...]
    note: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        width = len(self.heads)
        for row in self.rows:
            if len(row) != width:
                raise ValueError(f"a row of {len(row)} cells ({row[0].text!r}) in a table of {width} columns.")

    @property
    def heads(self) -> tuple[str, ...]:
        return (*self.labels, *(head for _, heads in self.columns for head in heads))

    @property
    def rows(self) -> list[Row]:
        return [row for block in self.blocks for group in block.groups for row in group]


def paired(sheet: Sheet) -> list[bool]:
    """Whether a column is printed as two, so that its numbers stand in line whatever is beside them."""
    return [any(row[column].beside for row in sheet.rows) for column in range(len(sheet.heads))]


def spans(sheet: Sheet) -> list[tuple[str, int, int]]:
    """Heading above, first printed column and the one behind the last; counted from 0."""
    widths = [1 + pair for pair in paired(sheet)]
    out, column, start = [], len(sheet.labels), sum(widths[: len(sheet.labels)])
    for title, heads in sheet.columns:
        end = start + sum(widths[column : column + len(heads)])
        out.append((title, start, end))
        column, start = column + len(heads), end
    return out


def sheet_typst(sheet: Sheet) -> str:
    """A Typst table with its note under it; type sizes are relative to the text around."""
    pairs, above = paired(sheet), spans(sheet)
    labels, width = above[0][1], above[-1][2]
    sides = [side for i, pair in enumerate(pairs)
             for side in (["left"] if i < len(sheet.labels) else ["right"]) + ["left"] * pair]  # fmt: skip
    insets = [inset for pair in pairs for inset in ([(1.6, 0), (2, 2.4)] if pair else [(1.6, 1.6)])]
    ends = {*range(1, labels + 1), *(end for _, _, end in above)}  # of labels and of groups: a gap follows
    gaps = ["5pt" if column + 1 in ends else "0pt" for column in range(width - 1)]
    titles = [f"table.cell(colspan: {end - start}, align: center)[{typst(title)}]" for title, start, end in above]
    lines = [
        "#table(",
        f"  columns: {width}, stroke: none, column-gutter: ({', '.join(gaps)},),",
        f"  inset: ({', '.join(f'(left: {left}pt, right: {right}pt, y: 2pt)' for left, right in insets)},),",
        f"  align: ({', '.join(f'{side} + top' for side in sides)},),",
        "  table.hline(stroke: 0.8pt),",
        "  table.header(",
    ]
    if any(title for title, _, _ in above):
        lines.append(f"    {', '.join(['[]'] * labels + titles)},")
        rules = [f"table.hline(start: {start}, end: {end}, stroke: 0.4pt)" for title, start, end in above if title]
        lines.append(f"    {', '.join(rules)},")
    heads = [f"[*{typst(head)}*]".replace("\n", " \\ ") if head else "[]" for head in sheet.heads]
    lines += [f"    {', '.join(head + ', []' * pair for head, pair in zip(heads, pairs, strict=True))},", "  ),"]
    whole = f"  table.cell(colspan: {width}, align: left"
    for block in sheet.blocks:
        if block.apart:
            lines += [
                "  table.hline(stroke: 0.8pt),",
                f"{whole}, inset: (top: 9pt, bottom: 3pt))[*{typst(block.apart)}*],",
            ]
        lines.append("  table.hline(stroke: 0.6pt),")
        if block.title:
            lines.append(f"{whole})[_{typst(block.title)}_],")
        for i, group in enumerate(block.groups):
            lines += ["  table.hline(stroke: 0.3pt + luma(190)),"] if i or block.title else []
            lines += [f"  {', '.join(_typst_cell(c, p) for c, p in zip(row, pairs, strict=True))}," for row in group]
    lines += ["  table.hline(stroke: 0.8pt),", ")"]
    if sheet.note:
        lines.append(f"#block(width: 100%, above: 4pt, align(left)[{typst(' '.join(sheet.note))}])")
    return "\n".join([*lines, ""])


def _typst_cell(cell: Cell, pair: bool) -> str:
    small = "#box(text(size: 0.82em, fill: luma(70))[{}])"  # a box is never broken
    text = f"*{typst(cell.text)}*" if cell.text and cell.strong else typst(cell.text)
    below = f" \\ {small.format(typst(cell.below))}" if cell.below else ""
    beside = f", [#sym.zws{small.format(typst(cell.beside))}]" if pair and cell.beside else ", []" * pair
    return f"[{text}{below}]{beside}"


def sheet_latex(sheet: Sheet) -> str:
    """A LaTeX tabular with its note under it; the document needs ``booktabs``."""
    pairs, above = paired(sheet), spans(sheet)
    width, sides, column = above[-1][2], "", 0
    for heads in (sheet.labels, *(heads for _, heads in sheet.columns)):
        sides += "@{\\quad}" if sides else ""
        for _ in heads:
            sides += ("l" if column < len(sheet.labels) else "r") + "@{ }l" * pairs[column]
            column += 1
    lines = ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{{sides}}}", "\\toprule"]
    if any(title for title, _, _ in above):
        titles = [f"\\multicolumn{{{end - start}}}{{c}}{{{latex(title)}}}" for title, start, end in above]
        lines.append(" & ".join([*[""] * above[0][1], *titles]) + r" \\")
        lines.append(" ".join(f"\\cmidrule(lr){{{start + 1}-{end}}}" for title, start, end in above if title))
    lines.append(_latex_line([_latex_head(head) for head in sheet.heads], pairs))
    for block in sheet.blocks:
        if block.apart:
            lines.append("\\midrule[\\heavyrulewidth]\n\\addlinespace")
            lines.append(f"\\multicolumn{{{width}}}{{l}}{{\\textbf{{{latex(block.apart)}}}}} \\\\")
        lines.append("\\midrule")
        if block.title:
            lines.append(f"\\multicolumn{{{width}}}{{l}}{{\\emph{{{latex(block.title)}}}}} \\\\")
        for i, group in enumerate(block.groups):
            lines += ["\\addlinespace"] if i or block.title else []
            lines += [line for row in group for line in _latex_row(row, pairs)]
    lines += ["\\bottomrule", "\\end{tabular}"]
    if sheet.note:
        lines += ["", f"\\smallskip{{\\footnotesize {latex(' '.join(sheet.note))}}}"]
    return "\n".join([*lines, ""])


def _latex_head(head: str) -> str:
    text = latex(head)
    return "\\shortstack{" + text.replace("\n", "\\\\") + "}" if "\n" in head else text


def _latex_line(texts: Sequence[str], pairs: Sequence[bool], beside: Sequence[str] = ()) -> str:
    beside = beside or [""] * len(texts)
    out = [part for text, pair, more in zip(texts, pairs, beside, strict=True) for part in [text, *[more] * pair]]
    return " & ".join(out) + r" \\"


def _latex_row(row: Row, pairs: Sequence[bool]) -> list[str]:
    """What stands below is a line of its own."""
    texts = [f"\\textbf{{{latex(cell.text)}}}" if cell.text and cell.strong else latex(cell.text) for cell in row]
    lines = [_latex_line(texts, pairs, [cell.beside and _latex_small(cell.beside) for cell in row])]
    if any(cell.below for cell in row):
        lines.append(_latex_line([cell.below and _latex_small(cell.below) for cell in row], pairs))
    return lines


def _latex_small(text: str) -> str:
    return f"{{\\scriptsize {latex(text)}}}"


def save_sheet(out: str, sheet: Sheet) -> None:
    """Write ``<out>.typ`` and ``<out>.tex``; nothing when ``out`` is empty."""
    if not out:
        return
    for ending, text in ((".typ", sheet_typst(sheet)), (".tex", sheet_latex(sheet))):
        with atomic_file(Path(out + ending)) as temporary:
            temporary.write_text(text)
        say(f"wrote {out}{ending}")


def cells(texts: Sequence[str]) -> Row:
    """Texts as plain cells."""
    return tuple(Cell(text) for text in texts)
