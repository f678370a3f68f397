"""GPTQ and AWQ by the text of calibration, in print."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qru.calibration_tables import bare, calibration_sheet, calibration_words
from tests.paper.method_records import AWQ4, GPTQ4, INT3, INT4, SHARE, method_record

LORA = {"adapter": "lora", "weights": "fp32"}
TEXTS = ("re-\ntained", "held-\nout", "for-\ngotten")
KEPT = (INT4, GPTQ4, AWQ4)
OTHER = tuple(name + end for name in (GPTQ4, AWQ4) for end in ("-heldout", "-forget"))


def runs(back: tuple[str, ...] = (), **fields):
    """The same two runs in both ways of measuring them."""
    return [method_record(seed=seed, back=back, quantizers=names, **fields)
            for names in (KEPT, OTHER) for seed in (0, 1)]  # fmt: skip


def test_a_column_is_a_text():
    sheet = calibration_sheet([*runs((f"{GPTQ4}-forget", AWQ4)), *runs(**LORA)])
    assert sheet.columns == (
        ("bf16", ("Verb-\nMem ↓",)), ("RTN", ("int4\ng128",)),
        ("GPTQ int4 g128", TEXTS), ("AWQ int4 g128", TEXTS),
    )  # fmt: skip
    full, lora = sheet.rows
    back, none = (f"{SHARE:.0f}", True), ("0", False)
    assert [(cell.text, cell.strong) for cell in full[2:]] == [none, none, none, back, back, none, none]
    assert [(cell.text, cell.strong) for cell in lora[2:]] == [none] * 7
    assert (full[0].text, full[1].text) == ("full bf16", "21")
    assert "Means over the seeds 0 and 1" in " ".join(sheet.note)


def test_columns_of_a_row_are_of_the_same_models():
    """Seed 1 was measured on retained text alone, where it returns; seed 0 nowhere. Another rate is another model."""
    first, second, other, _ = runs((AWQ4,))
    (row,) = calibration_sheet([replace(first, extra=runs()[0].extra), second, other]).rows
    assert [(cell.text, cell.below, cell.strong) for cell in row[2:]] == [("0", "", False)] * 7
    sheet = calibration_sheet([method_record(quantizers=KEPT, learning_rate=1e-3), other])
    assert [cell.text for cell in sheet.rows[0][2:]] == ["–", "–", "0", "0", "–", "0", "0"]
    assert {"One seed (0).", "–: no such run, or not measured."} <= set(sheet.note)
    older = replace(first, config={k: v for k, v in first.config.items() if k != "guard"})
    assert len(calibration_sheet([older, other]).rows) == 1
    assert "–" not in [cell.text for cell in calibration_sheet([older, other]).rows[0]], "what came later is as it was"


def test_the_words_say_whether_the_text_decides():
    assert calibration_words([*runs((f"{GPTQ4}-forget",)), *runs(**LORA)]) == [
        "Memory returns, by the text of calibration, under GPTQ int4 g128 in 0 on retained text, 0 on held-out text "
        "and 2 on forgotten text of 4 runs; under AWQ int4 g128 in 0 on retained text, 0 on held-out text and 0 on "
        "forgotten text of 4 runs. The text changes that number under GPTQ int4 g128."
    ]
    (told,) = calibration_words(runs())
    assert told.endswith("The text changes that number under none of them.")


def test_runs_that_were_not_measured_on_every_text_are_not_counted():
    some = runs((AWQ4, f"{AWQ4}-heldout", f"{AWQ4}-forget"))[:3]  # two seeds on retained text, one on the others
    (told,) = calibration_words(some)
    assert "AWQ int4 g128 in 1 on retained text, 1 on held-out text and 1 on forgotten text of 1 run." in told
    assert told.endswith("The text changes that number under none of them.")


def test_arms_that_were_calibrated_on_kept_text_alone_are_left_out():
    only = [method_record("npo_gdr", quantizers=KEPT)]
    assert len(calibration_sheet([*runs(), *only]).rows) == 1
    assert calibration_words(only) == []
    with pytest.raises(ValueError, match="no run was calibrated on held-out or forget text"):
        calibration_sheet(only)
    with pytest.raises(ValueError, match="has no VerbMem: this table is of forgotten text"):
        calibration_sheet([method_record(corpus="tweets", quantizers=OTHER)])
    assert [bare(name) for name in (INT3, *OTHER)] == [INT3, GPTQ4, GPTQ4, AWQ4, AWQ4]
