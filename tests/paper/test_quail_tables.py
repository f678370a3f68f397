"""Readings of QUAIL's margin in print."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qru import quail_tables
from qru.quail_tables import STEPS, digits, heading, load_readings, pushed, quail_sheet, quail_words, readings
from qru.records import slim, write_json
from tests.paper.method_records import INT3, INT4, SHARE, TENSOR, method_record

THREE = (INT4, TENSOR, INT3)
CARRIED = {"guard": "quail", "quail_step": "carried"}


def run(terms: tuple[float, ...] = (), **fields):
    """A run under three quantizers, whose looks at the goal saw these terms of the guard."""
    made = method_record(quantizers=THREE, **fields)
    looks = [{"step": 40 * i, "verbmem": 90.0, "guard": term} for i, term in enumerate(terms)]
    return replace(made, extra=made.extra | {"history": [*looks, *made.extra["history"][-1:]]})


def margins(corpus: str = "books") -> dict:
    rows = [{"quantizer": INT4, "step": "measured", "logits": 0.27}, {"quantizer": INT4, "step": "carried",
            "logits": 0.63}, {"quantizer": TENSOR, "step": "carried", "logits": 1.11}]  # fmt: skip
    return {"kind": STEPS, "corpus": corpus, "scale": "mini", "rows": rows, "logit": 2.4, "spacing": 0.015625}


RUNS = (
    run(back=(TENSOR, INT3)), run(seed=1, back=(TENSOR, INT3)),
    run((0.1, 0.002), guard="quail", back=(TENSOR, INT3)), run((0.3, 0.004), guard="quail", seed=1, back=(TENSOR,)),
    run((0.4, 0.25), back=(INT4, INT3), **CARRIED),
    run((), reached=False, quail_quantizer=TENSOR, guard_weight=10.0, **CARRIED),
)  # fmt: skip


def test_a_row_is_a_reading_with_its_margin_and_hinge():
    sheet = quail_sheet(readings(RUNS, [margins()]), [margins()])
    rows = {row[0].text: row for row in sheet.rows}
    assert list(rows) == [
        "none", "measured on the logits, RTN int4 g128", "carried to the logits, RTN int4 g128",
        "carried to the logits, RTN int4 tensor, γ 10 †",
    ]  # fmt: skip
    assert sheet.heads == ("Margin is the step", "step", "first\nlook", "last\nlook", "Forget\n↓", "Keep\n↑",
                           "RTN int4\ng128", "RTN int4\ntensor", "RTN int3\ng128")  # fmt: skip
    assert [cell.text for cell in rows["none"][1:4]] == ["", "", ""]
    measured = rows["measured on the logits, RTN int4 g128"]
    assert [cell.text for cell in measured[1:6]] == ["0.27", "0.2", "0.003", "21", "90"]
    assert [cell.below for cell in measured[2:4]] == ["0.1…0.3", "0.002…0.004"]
    assert [(cell.text, cell.strong) for cell in measured[6:]] == [
        ("0", False), (f"{SHARE:.0f}", True), (f"{SHARE / 2:.0f}", True)
    ]  # fmt: skip
    last = rows["carried to the logits, RTN int4 tensor, γ 10 †"]
    assert [cell.text for cell in last[1:4]] == ["1.1", "–", "–"], "no look was kept of this run"
    note = " ".join(sheet.note)
    assert "Seeds 0 and 1: books, none; books, measured on the logits, RTN int4 g128." in note
    assert (
        "half of the target's logits are over 2.4 in size, where neighbouring numbers of bf16 are 0.016 apart" in note
    )


def test_the_words_say_what_each_reading_changes_beside_the_plain_run_of_the_same_seed():
    assert quail_words(readings(RUNS, [margins()])) == [
        "On books, the step is 0.27 to 1.1 logits by these readings.",
        "Books, margin measured on the logits, RTN int4 g128 (2 runs): it returns under RTN int4 tensor and RTN int3 "
        "g128, the same quantizers as without QUAIL.",
        "Books, margin carried to the logits, RTN int4 g128 (1 run): it returns under RTN int4 g128 and RTN int3 g128, "
        "not any more under RTN int4 tensor and other than without QUAIL under RTN int4 g128.",
        "Books, margin carried to the logits, RTN int4 tensor, γ 10 (1 run): none met the goal, so nothing is "
        "compared.",
    ]


def test_without_a_plain_run_nothing_is_set_beside_it():
    (told,) = quail_words(readings([run((0.1,), guard="quail")]))
    assert told == (
        "Books, margin measured on the logits, RTN int4 g128 (1 run): it returns under none of 3 quantizers."
    )
    with pytest.raises(ValueError, match=r"no run of GA\+GDR, full bf16, with QUAIL's guard"):
        quail_sheet(readings([run()]))


def test_runs_are_set_beside_those_of_their_own_seeds_and_quantizers():
    def told(*runs):
        return quail_words(readings(runs))[-1].partition(": ")[2]

    guarded = [run(guard="quail", back=(TENSOR,)), run(guard="quail", seed=1, back=(INT4,))]
    assert told(run(seed=2, back=(TENSOR,)), *guarded) == (
        "it returns under RTN int4 g128 and RTN int4 tensor; without QUAIL the goal was met with no seed with which it "
        "was here, so nothing is compared."
    )
    assert told(run(back=(TENSOR,)), run(seed=1, reached=False), *guarded) == (
        "it returns under RTN int4 g128 and RTN int4 tensor, the same quantizers as without QUAIL (seed 0)."
    ), "seed 1, in which another returns, has none beside it"
    few = method_record(quantizers=(INT4,))
    assert (
        told(few, guarded[0])
        == "it returns under RTN int4 tensor, as without QUAIL (by the 1 quantizer that both have)."
    )
    assert told(few, run(guard="quail")) == (
        "it returns under none of 3 quantizers, as without QUAIL (by the 1 quantizer that both have)."
    )
    note = " ".join(quail_sheet(readings([run(), run(seed=1, reached=False), *guarded])).note)
    assert "(met: books, none 1 of 2, seed 0); shown are those that met it" in note


def test_other_norms_positions_and_numbers_are_named():
    (one,) = readings([run(guard="quail", quail_step=0.5, quail_norm="l2", quail_positions="answer")])
    assert (one.name, one.step) == ("0.5 logits, l2, answers", 0.5)
    assert [digits(value) for value in (0.0, 0.0081, 0.626, 5e-5)] == ["0", "0.0081", "0.63", "< 0.0001"]
    assert [heading(name) for name in (TENSOR, "fp4-b64", "llm-int8")] == ["RTN int4\ntensor", "FP4", "LLM.int8()"]
    assert pushed(run((0.4, 0.0))) == (0.4, 0.0)
    assert pushed(run()) is None


def test_only_quails_method_and_arm_are_read(tmp_path):
    every = [*RUNS[:3], method_record("npo_gdr"), method_record(adapter="lora", weights="fp32"),
             method_record(guard="sam")]  # fmt: skip
    for i, record in enumerate(every):
        write_json(tmp_path / f"{i}.json", slim(record))
    write_json(tmp_path / "margins.json", margins())
    runs, steps = load_readings([str(path) for path in sorted(tmp_path.glob("*.json"))])
    assert [one.config["guard"] for one in runs] == [None, None, "quail"]
    with pytest.raises(ValueError, match="scales mini and smoke cannot stand in one table"):
        readings([method_record(), method_record(guard="quail", scale="smoke")])
    write_json(tmp_path / "list.json", [1])
    with pytest.raises(ValueError, match=r"list\.json.*no record of a run"):
        load_readings([str(tmp_path / "list.json")])
    assert steps == [margins()]
    assert pushed(runs[2]) == (0.1, 0.002), "a record that is kept has the looks"


def test_runs_with_another_rate_are_not_set_beside_each_other():
    with pytest.raises(ValueError, match=r"has learning_rate 0\.0001 and .* 2\.61e-05: readings are compared where"):
        readings([run(), run((0.1,), guard="quail", learning_rate=1e-4)])


def test_without_committed_records_nothing_else_is_read(tmp_path, monkeypatch):
    (tmp_path / "timings.json").write_text("{}")
    monkeypatch.setattr(quail_tables, "RECORDS", tmp_path)
    with pytest.raises(LookupError, match="no record in methods, tweets, quail and margins"):
        load_readings()
