"""Records -> what the paper is typeset from: Typst and LaTeX tables and figures on disk; and the PDF."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from qru.config import WHOLE
from qru.records import Record, atomic_file, load_record, load_records, say
from qru.registry import unknown
from qru.style import precision_label
from qru.tables import METRICS, labelled, score_frame, with_interval

SHOWN = ("verbmem", "knowmem", "privleak", "utility")
TERMS = {"simnpo": "SimNPO", "idkdpo": "IdkDPO", "taskvector": "Task vector"}  # not in capitals alone
BACK = {True: "yes", False: "no", None: ""}
TYPST_SPECIAL = "\\#$%&*_`<>@[]~\"'/"
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "↓": r"$\downarrow$", "↑": r"$\uparrow$",
    "→": r"$\rightarrow$", "λ": r"$\lambda$", "α": r"$\alpha$", "β": r"$\beta$",
    "Δ": r"$\Delta$", "…": r"\ldots{}", "–": "--", "†": r"$\dagger$",
}  # fmt: skip


def chosen(files: Sequence[str] = (), scale: str = "mini") -> list[Record]:
    """The records that an artefact shows.

    Args:
        files: record files; if there are none, the newest run of each method and arm on the whole forget set.
        scale: of the runs, if no file is named.

    Raises:
        LookupError: no file is named and there is no run at this scale.
    """
    if files:
        return [load_record(file) for file in files]
    runs = [
        record
        for record in load_records()
        if record.config["scale"] == scale and record.config.get("forget_set", WHOLE) == WHOLE
    ]
    if not runs:
        raise LookupError(f"no run at scale {scale}. Make one: papermill notebooks/02_unlearn.ipynb -p scale {scale}")
    newest = {tuple(record.config[key] for key in ("method", "adapter", "weights")): record for record in runs
              if record.config["corpus"] == runs[-1].config["corpus"]}  # fmt: skip
    return list(newest.values())


def typst(text: object) -> str:
    """Text as Typst markup that shows exactly it."""
    return "".join(f"\\{letter}" if letter in TYPST_SPECIAL else letter for letter in str(text))


def latex(text: object) -> str:
    """Text as LaTeX that shows exactly it."""
    return "".join(LATEX_SPECIAL.get(letter, letter) for letter in str(text))


def method_title(method: str) -> str:
    """``ga_klr`` -> ``GA+KLR``, ``simnpo_gdr`` -> ``SimNPO+GDR``."""
    return "+".join(TERMS.get(term, term.upper()) for term in method.split("_"))


def title(label: str) -> str:
    """A label of ``tables.labelled`` for print: ``npo_gdr full bf16, seed 1`` -> ``NPO+GDR, full bf16, seed 1``."""
    arm, *differing = label.split(", ")
    if label in ("target", "retrained"):
        return label
    method, adapter, weights = arm.split(" ")
    return ", ".join([method_title(method), f"{'LoRA' if adapter == 'lora' else adapter} {weights}", *differing])


Row = tuple[str, list[str], bool | None]


def score_rows(records: Sequence[Record], precisions: Sequence[str]) -> dict[str, list[Row]]:
    """Model -> (precision, cells ``value [interval]`` of ``SHOWN``, does memory return; None where it cannot).

    Raises:
        ValueError: no record, or a precision that they lack.
    """
    arms = labelled(*records)
    frame = score_frame(arms)
    for precision in precisions:
        if precision not in set(frame["precision"]):
            raise unknown("precision of these records", precision, frame["precision"].unique())
    frame["cell"] = [with_interval(*row) for row in frame[["value", "low", "high"]].to_numpy()]
    cells = frame.set_index(["model", "precision", "metric"])["cell"]
    rows: dict[str, list[Row]] = {}
    for model in dict.fromkeys(frame["model"]):
        for precision in precisions or dict.fromkeys(frame["precision"]):
            found = arms[model].extra["recovered"].get(precision) if model in arms else None
            back = found["recovers"]["recovers"] if found else None
            rows.setdefault(model, []).append((precision, [cells[model, precision, m] for m in SHOWN], back))
    return rows


def scores_typst(records: Sequence[Record], precisions: Sequence[str] = ()) -> str:
    """Scores over precisions as a Typst table; a run whose memory returns is set in bold."""
    heads = ["Model", "Weights", *(METRICS[metric] for metric in SHOWN), "Returns"]
    lines = [
        "#table(",
        f"  columns: {len(heads)},",
        f"  align: (left, left, {'right, ' * len(SHOWN)}center),",
        "  stroke: none, inset: (x: 5pt, y: 2pt),",
        "  table.hline(stroke: 0.8pt),",
        f"  table.header({', '.join(f'[*{typst(head)}*]' for head in heads)}),",
    ]
    for model, rows in score_rows(records, precisions).items():
        lines.append("  table.hline(stroke: 0.4pt),")
        lines.append(f"  table.cell(rowspan: {len(rows)})[{typst(title(model))}],")
        for precision, cells, back in rows:
            mark = "*" if back else ""
            shown = [typst(precision_label(precision)), *map(_typst_interval, cells), BACK[back]]
            lines.append(f"  {', '.join(f'[{mark}{cell}{mark}]' if cell else '[]' for cell in shown)},")
    return "\n".join([*lines, "  table.hline(stroke: 0.8pt),", ")", ""])


def _typst_interval(cell: str) -> str:
    value, _, interval = cell.partition(" ")
    return f"{value} #text(size: 0.88em, fill: luma(90))[{typst(interval)}]"


def scores_latex(records: Sequence[Record], precisions: Sequence[str] = ()) -> str:
    """The same as a LaTeX tabular; the document needs ``booktabs``."""
    heads = ["Model", "Weights", *(METRICS[metric] for metric in SHOWN), "Returns"]
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{ll{'r' * len(SHOWN)}c}}",
        "\\toprule",
        " & ".join(map(latex, heads)) + r" \\",
    ]
    for model, rows in score_rows(records, precisions).items():
        lines.append("\\midrule")
        for i, (precision, cells, back) in enumerate(rows):
            shown = [title(model) if i == 0 else "", precision_label(precision), *cells, BACK[back]]
            bold = "\\textbf{{{}}}" if back else "{}"
            marked = [shown[0] and latex(shown[0]), *(bold.format(latex(cell)) if cell else "" for cell in shown[1:])]
            lines.append(" & ".join(marked) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def save_scores(out: str, records: Sequence[Record], precisions: Sequence[str] = ()) -> None:
    """Write ``<out>.typ`` and ``<out>.tex``; nothing when ``out`` is empty."""
    if not out:
        return
    for ending, text in ((".typ", scores_typst(records, precisions)), (".tex", scores_latex(records, precisions))):
        with atomic_file(Path(out + ending)) as temporary:
            temporary.write_text(text)
        say(f"wrote {out}{ending}")


def save_figure(out: str, figure: Figure) -> Figure:
    """Write ``<out>.pdf`` and ``<out>.svg``, the same bytes for the same records; nothing when ``out`` is empty."""
    if out:
        with rc_context({"pdf.fonttype": 42, "svg.hashsalt": "qru"}):
            for kind, date in (("pdf", "CreationDate"), ("svg", "Date")):
                drawn = io.BytesIO()  # a full disk would leave matplotlib in a state that hides the cause
                figure.savefig(drawn, format=kind, metadata={date: None})
                with atomic_file(Path(f"{out}.{kind}")) as temporary:
                    temporary.write_bytes(drawn.getvalue())
                say(f"wrote {out}.{kind}")
    return figure


def pdf(source: Path, out: Path) -> None:
    """Compile a Typst document; the same sources give the same bytes.

    Raises:
        SystemExit: it does not compile (prints Typst's message with the line of the source).
    """
    import typst as compiler  # only this step needs it: tables and figures are made without

    try:
        made = compiler.compile(str(source), timestamp=0, font_paths=compiler.Fonts(include_system_fonts=False))
    except compiler.TypstError as error:
        raise SystemExit(f"{source} does not compile.\n{error.diagnostic}") from None
    with atomic_file(out) as temporary:
        temporary.write_bytes(made)


def main(command: str, *arguments: str) -> None:
    """``pdf SOURCE OUT``."""
    if command != "pdf":
        raise unknown("command", command, ("pdf",))
    pdf(*map(Path, arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
