"""Tables III and IV: cells worked out by hand, rows in order, and what is missing or missed named."""

from __future__ import annotations

import json

import pytest
import typst as compiler

from qru.method_tables import (
    certificate_of,
    columns_of,
    contenders,
    in_rank,
    load_compared,
    quantizer_title,
    table_four,
    table_three,
)
from qru.records import slim, write_json
from qru.sheet import Cell, Sheet, sheet_latex, sheet_typst
from tests.paper.method_records import (
    AWQ4,
    GPTQ4,
    INT3,
    INT4,
    INT8,
    LLM,
    NF4,
    SHARE,
    TENSOR,
    certificate,
    method_record,
    seeds,
)


def row_of(sheet: Sheet, method: str, arm: str, below: str = "") -> dict[str, Cell]:
    """The cells of a row of Table III by their heads in one line; rows of one method are a block of its name."""
    heads = [f"{title} {head}".replace("\n", " ") for title, heads in sheet.columns for head in heads]
    for block in sheet.blocks:
        for row in block.groups[0]:
            if (block.title, row[0].text, row[0].below) == (method, arm, below):
                return dict(zip(heads, row[len(sheet.labels) :], strict=True))
    raise AssertionError(f"no row {method}, {arm}, {below}")


def test_plain_arms_come_before_guards():
    runs = [
        method_record(adapter="lora", weights="fp32", guard="ste"), method_record(guard="sam"),
        method_record("taskvector"), method_record("npo_gdr"), method_record(adapter="sure"),
        method_record(guard="quail"), method_record(adapter="lora", weights="fp32"), method_record(weights="fp32"),
        method_record(),
    ]  # fmt: skip
    assert [one.name for one in contenders(runs)] == [
        "GA+GDR, full bf16", "GA+GDR, full fp32", "GA+GDR, LoRA", "GA+GDR, SURE bf16", "GA+GDR, full bf16, QUAIL",
        "GA+GDR, full bf16, SAM", "GA+GDR, LoRA, STE", "NPO+GDR, full bf16", "Task vector, full bf16",
    ]  # fmt: skip


def test_quantizers_stand_by_bits():
    names = in_rank([INT3, NF4, AWQ4, TENSOR, GPTQ4, INT4, LLM, INT8, INT4])
    assert names == [INT8, LLM, INT4, TENSOR, NF4, GPTQ4, AWQ4, INT3]
    assert columns_of([INT8, LLM, INT4, TENSOR, NF4, GPTQ4, INT3]) == (
        ("8 bits", ("RTN\ng128", "LLM")), ("4 bits", ("RTN\ng128", "RTN\ntensor", "NF4", "GPTQ\ng128")),
        ("3 bits", ("RTN\ng128",)),
    )  # fmt: skip
    assert [quantizer_title(name) for name in (TENSOR, GPTQ4, LLM, NF4)] == [
        "RTN int4 tensor", "GPTQ int4 g128", "LLM.int8()", "NF4"
    ]  # fmt: skip


def test_shares_are_means_over_seeds():
    # Under int4 over the tensor the text returns in one seed of three: (74.7 + 0 + 0) / 3 = 24.9.
    runs = [method_record(back=(TENSOR, INT3)), *seeds(1, 2, back=(INT3,), kept=30)]
    sheet = table_three(runs)
    row = row_of(sheet, "GA+GDR", "full bf16")
    assert row["In bf16 Verb- Mem ↓"] == Cell("21", below="21")
    assert row["4 bits RTN tensor"] == Cell("25", below="0…75", strong=True)
    assert row["3 bits RTN g128"] == Cell("75", below="75", strong=True)
    assert row["4 bits GPTQ g128"] == Cell("0", below="0")
    # Of 90 % utility 30 points are lost in two seeds of three under int3: (90 + 60 + 60) / 3 = 70.
    assert row["Worst case Utility ↑"] == Cell("70", below="60…90")
    assert row["Worst case Excess at most"] == row["Worst case Certi- fied"] == Cell("–")
    target = row_of(sheet, "books", "target")
    assert [target[key].text for key in ("In bf16 Verb- Mem ↓", "In bf16 Utility ↑", "Worst case Utility ↑")] == [
        "100", "95", "95"
    ]  # fmt: skip
    note = " ".join(sheet.note)
    assert "Means over the seeds 0, 1 and 2, below them the lowest…highest." in note
    assert "n on books: 50 passages (VerbMem), 40 kept questions (Utility)." in note
    assert "From the left: rtn-int8-g128, llm-int8, rtn-int4-g128, rtn-int4-tensor, nf4-b64, gptq-int4-g128" in note
    assert "†" not in note
    assert "n.d." not in note


def test_runs_may_lack_a_quantizer():
    runs = [method_record(quantizers=(INT4, INT3)), method_record(seed=1, quantizers=(INT4,), back=(INT4,)),
            method_record("npo_gdr", quantizers=(INT4,))]  # fmt: skip
    sheet = table_three(runs)
    row = row_of(sheet, "GA+GDR", "full bf16")
    assert row["3 bits RTN g128"] == Cell("0"), "of one seed"
    assert row["4 bits RTN g128"].text == f"{SHARE / 2:.0f}"
    assert row_of(sheet, "NPO+GDR", "full bf16")["3 bits RTN g128"] == Cell("–")
    assert "–: no such run, or not measured." in sheet.note
    assert "Seed 0 alone: NPO+GDR, full bf16." in sheet.note


def test_a_run_that_missed_the_goal_is_marked_and_in_no_mean():
    runs = [method_record(), method_record(seed=1, back=(INT4,), reached=False),
            *seeds(0, 1, method="npo_gdr", back=(INT4,), reached=False)]  # fmt: skip
    sheet = table_three(runs)
    assert row_of(sheet, "GA+GDR", "full bf16 †")["4 bits RTN g128"] == Cell("0")
    # Where none met it, all are shown.
    assert row_of(sheet, "NPO+GDR", "full bf16 †")["4 bits RTN g128"] == Cell("75", below="75", strong=True)
    (told,) = [line for line in sheet.note if line.startswith("†")]
    assert "(met: GA+GDR, full bf16 1 of 2; NPO+GDR, full bf16 0 of 2)" in told


def test_a_share_that_is_not_defined_is_no_zero():
    run = method_record()
    run.extra["recovered"][INT3]["verbmem"] |= {"value": None, "ci": None, "defined": False}
    sheet = table_three([run])
    assert row_of(sheet, "GA+GDR", "full bf16")["3 bits RTN g128"] == Cell("n.d.")
    assert any(line.startswith("n.d.: not defined") for line in sheet.note)


def test_certificates_stand_beside_the_runs_they_are_of():
    plain, guarded, lora = method_record(), method_record(guard="quail"), method_record(adapter="lora", weights="fp32")
    made = [certificate(plain, "does not hold", 87.6), certificate(guarded, "refused", 12.2), certificate(lora)]
    sheet = table_three([plain, guarded, lora, method_record("npo_gdr")], made)

    def told(*row: str) -> list[str]:
        found = row_of(sheet, *row)
        return [found[f"Worst case {head}"].text for head in ("Excess at most", "Certi- fied")]

    assert told("GA+GDR", "full bf16") == ["88", "no"]
    assert told("GA+GDR", "full bf16", "with QUAIL") == ["12", "refused"]
    assert told("GA+GDR", "LoRA") == ["6", "yes"]
    assert told("NPO+GDR", "full bf16") == ["–", "–"]
    (note,) = [line for line in sheet.note if line.startswith("Excess at most")]
    assert (
        "VerbMem, 9 precisions, 2 transforms (merged, prune-10) and the seeds of the row; allowed are 10 points" in note
    )
    assert "80 % of the target’s Utility" in note
    other = [line for line in sheet.note if line.startswith("Certificates of other seeds than the row's")]
    assert "GA+GDR, LoRA of 0, 1 and 2" in other[0], "the rows here are of seed 0 alone"
    assert not any("other seeds" in line for line in table_three(seeds(0, 1, 2), [certificate(plain)]).note)


def test_a_certificate_of_other_models_is_none_of_these():
    run = method_record()
    assert certificate_of([run], [certificate(run, corpus="other-texts")]) is None
    assert certificate_of([run], [certificate(method_record(weights="fp32"))]) is None
    other = certificate(run)
    other["configuration"]["learning_rate"] = 1.0
    with pytest.raises(ValueError, match="ga_gdr, full, bf16 is of runs with another learning_rate than"):
        certificate_of([run], [other])
    with pytest.raises(ValueError, match="2 certificates are of ga_gdr, full, bf16; give one"):
        certificate_of([run], [certificate(run), certificate(run)])


def test_files_are_told_apart(tmp_path):
    run = method_record(guard="quail")
    for folder, name, value in (("methods", "a", slim(run)), ("certificates", "b", certificate(run))):
        write_json(tmp_path / folder / f"{name}.json", value)
    for files in ([], [str(tmp_path / "certificates" / "b.json"), str(tmp_path / "methods" / "a.json")]):
        runs, certificates = load_compared(files, home=tmp_path)
        assert [one.config["guard"] for one in runs] == ["quail"]
        assert [one["outcome"] for one in certificates] == ["holds"]
    (one,) = contenders(runs, certificates)
    assert one.certificate["worst_excess"] == 6.4, "JSON has lists where a configuration has tuples"
    with pytest.raises(LookupError, match="no record of a run in tweets"):
        load_compared(folders=["tweets"], home=tmp_path)


def test_classifiers_stand_metric_by_metric():
    runs = [
        *seeds(0, 1, corpus="tweets", back=(INT4,), kept=20),
        *seeds(0, 1, corpus="tweets", guard="quail", method="ga_gdr"),
    ]
    sheet = table_four(runs)
    assert [block.title for block in sheet.blocks] == [
        "Forget accuracy ↓", "Retain accuracy ↑", "F1 ↑", "MIA → retrained"
    ]  # fmt: skip
    assert sheet.columns == (
        ("bf16", ("",)), ("8 bits", ("RTN\ng128",)), ("4 bits", ("RTN\ng128", "RTN\ntensor", "NF4")),
        ("3 bits", ("RTN\ng128",)),
    )  # fmt: skip
    forget, retain, f1, mia = ([row for group in block.groups for row in group] for block in sheet.blocks)
    assert [row[0].text for row in forget] == ["target", "retrained", "GA+GDR", ""]
    assert [cell.text for cell in forget[2][2:]] == ["21", "21", "80", "21", "21", "21"]
    assert [cell.strong for cell in forget[2][2:]] == [False, False, True, False, False, False]
    assert forget[3][1] == Cell("full bf16, QUAIL")
    assert [cell.text for cell in retain[2][2:5]] == ["80", "80", "60"]
    assert [cell.text for cell in (f1[0][2], mia[1][2])] == ["75", "64"], "the target's F1, the retrained model's MIA"
    assert "n on tweets: 50 texts (Forget accuracy), 40 texts (Retain accuracy), 40 texts (F1), 40 texts (MIA)." in (
        sheet.note
    )
    assert [heads for _, heads in table_four(runs, [GPTQ4]).columns] == [("",), ("GPTQ\ng128",)]
    with pytest.raises(ValueError, match="unknown quantizer of these records 'rtn-int2-g128'"):
        table_four(runs, ["rtn-int2-g128"])


def test_text_and_labels_have_tables_of_their_own():
    with pytest.raises(ValueError, match=r"has no VerbMem.*table_four"):
        table_three([method_record(corpus="tweets")])
    with pytest.raises(ValueError, match=r"has no forget accuracy.*table_three"):
        table_four([method_record()])


@pytest.mark.parametrize("sheet", [
    lambda: table_three([method_record(back=(INT4,), reached=False)], [certificate(method_record())]),
    lambda: table_four(seeds(0, 1, corpus="tweets")),
], ids=["three", "four"])  # fmt: skip
def test_both_renderings_hold_every_cell(sheet, tmp_path):
    made = sheet()
    (tmp_path / "table.typ").write_text(sheet_typst(made), encoding="utf-8")
    (tmp_path / "page.typ").write_text('#figure(include "table.typ")')
    found = json.dumps(json.loads(compiler.query(str(tmp_path / "page.typ"), "figure")), ensure_ascii=False)
    latex = sheet_latex(made)
    assert "†" not in latex
    for row in made.rows:
        for cell in row:
            for text in filter(None, (cell.text, cell.below, cell.beside)):
                assert text.split(" ")[0] in found
    lines = [line for line in latex.splitlines() if "&" in line and "multicolumn" not in line]
    assert len({line.count("&") for line in lines}) == 1, "every row has every printed column"
    assert r"\shortstack{RTN\\g128}" in latex
