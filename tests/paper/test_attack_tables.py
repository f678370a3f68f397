"""What certificates say when more is done to a model than quantizing: the table, and sentences that fit any outcome."""

from __future__ import annotations

import pytest

from qru.attack_tables import (
    attack_abstract,
    attack_sheet,
    attack_words,
    attacked,
    load_attacks,
    transform_title,
    transform_words,
)
from qru.records import write_json
from qru.sheet import sheet_latex, sheet_typst
from tests.paper.attack_records import BACK, CALM, HELD, PRUNED, RELEARNED, TWICE, attacked_certificate

OVER = (60.0, 70.0, 14.0, 58.3)
FULL = {"adapter": "full", "weights": "bf16"}


def lora(**changes):
    """Holds whatever is done, but not relearned."""
    return attacked_certificate(HELD | {RELEARNED: BACK}, **changes)


def told(sheet):
    return [[f"{cell.text} {cell.below}".strip() + "*" * cell.strong for cell in row] for row in sheet.rows]


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_by_hand():
    full = attacked_certificate({"merged": CALM, TWICE: OVER, PRUNED: CALM, RELEARNED: OVER}, **FULL, guard="quail")
    sheet = attack_sheet([full, lora()])
    assert [title for title, _ in sheet.columns] == [
        "Merged", "RTN int8 row first", "10 % pruned", "Relearned 4×8", "Certificate"
    ]  # fmt: skip
    assert [block.title for block in sheet.blocks] == ["books", "GA+GDR"]
    # In bf16 and int4: 14 and 15, relearned 15 and 16 for one certificate, 14 and 15 for the other.
    assert told(sheet)[0] == [
        "retrained", "14 14…15", "", "14 14…15", "", "14 14…15", "", "15 14…16", "", "", ""
    ]  # fmt: skip
    # 20, 22, 24 and 26: mean 23. 40, 42, 54 and 56: mean 48. 60, 62, 70 and 72: mean 66.
    assert told(sheet)[1:] == [
        ["LoRA", *["23 20…26", "15"] * 3, "48 40…56", "47*", "88", "no"],
        ["full bf16 with QUAIL", "23 20…26", "15", "66 60…72", "58*", "23 20…26", "15", "66 60…72", "58*", "88", "no"],
    ]
    assert sheet.note[:3] == (
        "VerbMem in percent: the mean over 2 precisions (bf16 and RTN int4 g128) and the models of seeds 0 and 1, "
        "below it the lowest…highest.",
        "Passages: n = 50 (Merged, RTN int8 row first, 10 % pruned); n = 46 (Relearned 4×8).",
        "Excess at most, in points: the largest of the 95 % upper bounds, one a model and precision, of what is given "
        "away beyond the retrained model after the same was done to it. Bold: over the ceiling of 20 points.",
    )
    assert sheet.note[-1] == "Relearned 4×8: trained again."
    assert "under 80 (bold) a certificate is refused" in sheet.note[3]
    for text in (sheet_typst(sheet), sheet_latex(sheet)):
        assert "Relearned 4×8" in text


def test_rows_stand_as_in_table_three():
    sure = lora(adapter="sure", weights="bf16")
    rows = attacked([lora(guard="ste"), lora(**FULL, guard="quail"), sure, lora(), lora(**FULL)])
    assert [one.way for one in rows] == ["full bf16", "LoRA", "SURE bf16", "full bf16, QUAIL", "LoRA, STE"]


def test_what_a_row_lacks_is_said():
    few = attacked_certificate({"merged": CALM}, guard="ste")
    few["declared"]["seeds"] = [0]
    sheet = attack_sheet([few, lora()])
    assert told(sheet)[2] == ["LoRA with STE", "23 20…26", "15", *["–"] * 6, "88", "yes"]
    assert "Of seed 0 alone: GA+GDR, LoRA, STE." in sheet.note
    assert sheet.note[-1] == "–: not done."
    assert "–: not done." not in attack_sheet([lora()]).note
    assert "Passages: n = 50." in attack_sheet([lora(fewer=50)]).note


def test_a_refused_row_shows_why():
    sheet = attack_sheet([lora(outcome="refused", least=0.041)])
    assert told(sheet)[1][-2:] == ["4*", "refused"]


def test_other_metrics_count_and_are_told():
    more = lora()
    more["declared"]["metrics"]["forget"].append("knowmem")
    assert "A certificate holds only if KnowMem, not shown, is under the ceiling, too." in attack_sheet([more]).note
    assert not [line for line in attack_sheet([lora()]).note if "only if" in line]


# --- what cannot stand in one table -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lora(**FULL, ceiling=10.0), "share their ceiling; these have 20 points and 10 points"),
        (lora(**FULL, utility_floor=0.9), "share their floor; these have 0.8 and 0.9"),
        (lora(**FULL, corpus="news-texts"), "share their corpus; these have books-texts and news-texts"),
        (lora(**FULL, bound_to={"retrained": {"content": "4567"}}), "retrained model; these have 0123 and 4567"),
        (lora(), "2 certificates are of GA.GDR, LoRA; give one"),
    ],
)
def test_certificates_of_one_table_are_alike(other, words):
    with pytest.raises(ValueError, match=words):
        attack_sheet([lora(), other])


def test_certificates_without_text_are_refused():
    labels = lora()
    labels["declared"]["metrics"]["forget"] = ["forget_accuracy"]
    with pytest.raises(ValueError, match="are of forget_accuracy; this table is of forgotten text: verbmem"):
        attacked([labels])
    with pytest.raises(ValueError, match="no certificate was given"):
        attack_words([])


def test_files_that_are_none_are_named(tmp_path):
    with pytest.raises(LookupError, match="make paper FRESH=1 GRID=full"):
        load_attacks(folder=tmp_path)
    write_json(tmp_path / "a.json", lora())
    assert load_attacks(folder=tmp_path) == load_attacks([str(tmp_path / "a.json")]) == [lora()]
    write_json(tmp_path / "b.json", {"certificate": 2})
    with pytest.raises(ValueError, match=r"b\.json is no certificate of version 1"):
        load_attacks(folder=tmp_path)


# --- sentences --------------------------------------------------------------------------------------------------------

EVERYTHING = (
    "Of models merged, stored under RTN int8 row first or pruned by 10 %, over 2 precisions (bf16 and RTN int4 g128), "
    "the largest upper bound of what is given away beyond the retrained model is at or under the ceiling of 20 points "
    "for "
)


def test_what_fails_after_relearning_alone():
    kept, again, survive, strength = attack_words([lora(), lora(guard="ste")])
    assert kept == f"{EVERYTHING}GA+GDR, LoRA (15) and GA+GDR, LoRA, STE (15), and over it for none."
    assert again == (
        "Quantized and then trained again for 8 steps on 4 of the forgotten passages, the retrained model has a "
        "VerbMem of 15 to 16 on the others (n = 46); merged, of 14 to 15 (n = 50). After the same, the unlearned "
        "models have, lowest to highest, 40 to 56 for GA+GDR, LoRA (merged 20 to 26) and 40 to 56 for GA+GDR, LoRA, "
        "STE (merged 20 to 26). Then the largest upper bound of what is given away beyond the retrained model is at "
        "or under the ceiling of 20 points for none, and over it for GA+GDR, LoRA (47) and GA+GDR, LoRA, STE (47)."
    )
    assert "(n = 50); merged, of 14 to 15. After the same" in attack_words([lora(fewer=50)])[1]
    assert survive == (
        "2 of 2 configurations are at or under the ceiling without relearning, and of these none is after it: "
        "surviving these precisions is not surviving relearning."
    )
    assert strength == "That is one attack of one strength; others were not tried."
    twice = attack_words([attacked_certificate(HELD | {RELEARNED: BACK, "relearn-1x2": CALM})])
    assert strength not in twice
    assert [line for line in twice if line.startswith("Quantized and then trained again for 2 steps on 1 of")]


def test_what_holds_whatever_is_done():
    some = [attacked_certificate(HELD | {RELEARNED: CALM}, guard=guard) for guard in (None, "ste")]
    kept, again, survive, _ = attack_words(some)
    assert kept.startswith(EVERYTHING)
    assert again.endswith("for GA+GDR, LoRA (15) and GA+GDR, LoRA, STE (15), and over it for none.")
    assert survive == (
        "2 of 2 configurations are at or under the ceiling without relearning, and all of them are after it, too."
    )
    assert attack_words(some[:1])[-2] == (
        "1 of 1 configuration is at or under the ceiling without relearning, and it is after it, too."
    )


def test_an_attack_that_brings_text_out_of_the_retrained_model_is_held_against_that():
    """Relearned, both say half of it: nothing is given away beyond the retrained model, so the certificate holds."""
    _, again, survive, _ = attack_words([attacked_certificate(HELD | {RELEARNED: (50.0, 52.0, 48.0, 9.6)})])
    assert (
        "the retrained model has a VerbMem of 48 to 49 on the others (n = 46); merged, of 14 to 15 (n = 50)." in again
    )
    assert "50 to 54 for GA+GDR, LoRA (merged 20 to 26)" in again
    assert "is at or under the ceiling of 20 points for GA+GDR, LoRA (10), and over it for none." in again
    assert survive.endswith("it is after it, too.")


def test_some_hold_and_some_do_not():
    """Each transform tells other rows apart, so each has its own sentence; relearning leaves one of two."""
    rows = [
        lora(), attacked_certificate(HELD | {RELEARNED: (18.0, 20.0, 15.0, 12.0)}, guard="ste"),
        attacked_certificate({"merged": CALM, TWICE: OVER, PRUNED: CALM, RELEARNED: (80.0, 90.0, 15.0, 77.0)}, **FULL),
    ]  # fmt: skip
    alike, twice, _, survive, apart, _ = attack_words(rows)
    assert alike.startswith(
        "Of models merged or pruned by 10 %, over 2 precisions (bf16 and RTN int4 g128), the largest"
    )
    assert alike.endswith("GA+GDR, full bf16 (15), GA+GDR, LoRA (15) and GA+GDR, LoRA, STE (15), and over it for none.")
    assert twice.startswith("Of models stored under RTN int8 row first, the largest")
    assert twice.endswith("for GA+GDR, LoRA (15) and GA+GDR, LoRA, STE (15), and over it for GA+GDR, full bf16 (58).")
    assert survive == (
        "2 of 3 configurations are at or under the ceiling without relearning, and of these 1 is after it (GA+GDR, "
        "LoRA, STE): surviving these precisions is not surviving relearning."
    )
    assert apart == (
        "VerbMem after relearning is 18 to 56 for 2 configurations at or under the ceiling without it, and 80 to 92 "
        "for the other: every model of the former gives away less, under every precision."
    )


def test_ranges_that_overlap_are_compared_place_by_place():
    """Seeds 0 and 1 in bf16 and int4: 40, 42, 54 and 56 against 55, 57, 70 and 72, and so on."""
    weak = attacked_certificate({"merged": OVER, RELEARNED: (55.0, 70.0, 15.0, 58.0)}, **FULL)
    low = attacked_certificate({"merged": OVER, RELEARNED: (20.0, 30.0, 15.0, 21.0)}, **FULL)
    firm = attacked_certificate({"merged": CALM, RELEARNED: BACK})
    assert attack_words([firm, weak])[-2] == (
        "VerbMem after relearning is 40 to 56 for 1 configuration at or under the ceiling without it, and 55 to 72 for "
        "the other: the ranges overlap; compared under one precision and with one seed at a time, every model of the "
        "former gives away less in 4 of 4 cases."
    )
    mixed = attacked_certificate({"merged": OVER, RELEARNED: (30.0, 55.0, 15.0, 58.0)}, **FULL)
    assert attack_words([firm, mixed])[-2].endswith("gives away less in 2 of 4 cases, and more in 2.")
    other = attacked_certificate({"merged": OVER, RELEARNED: (50.0, 50.0, 15.0, 58.0)}, **FULL)
    for cell in other["cells"]:
        cell["seed"] += 2
    assert attack_words([firm, other])[-2].endswith("50 to 52 for the other: the ranges overlap."), "no seed is of both"
    assert attack_words([firm, low])[-2].endswith(
        "and 20 to 32 for the other: every model of the former gives away more, under every precision."
    )
    assert attack_words([weak])[-2] == "None of 1 configuration is at or under the ceiling without relearning."


def test_certificates_over_more_quantizers_are_set_beside_it():
    """Under two precisions all hold; over the 3 of another certificate one does not."""
    rows = [lora(), attacked_certificate(HELD | {RELEARNED: (57.0, 60.0, 15.0, 50.0)}, **FULL)]
    wide = [attacked_certificate({"merged": scores}, **arm) for scores, arm in ((CALM, {}), (OVER, FULL))]
    for one in wide:
        one["declared"]["quantizers"] = ["bf16", "rtn-int4-g128", "nf4-b64"]
    assert attack_words(rows, wide)[-2] == (
        "VerbMem after relearning is 40 to 56 for 1 configuration whose certificate over 3 precisions without it "
        "holds, and 57 to 62 for the other: every model of the former gives away less, under every precision."
    )
    alone = attack_words(rows)
    assert attack_words(rows, wide[:1]) == alone, "of one alone, nothing can be told apart"
    assert attack_words(rows, [one | {"outcome": "holds"} for one in wide]) == alone
    assert attack_words(rows, [one | {"corpus": "news-texts"} for one in wide]) == alone
    assert (
        attack_words(rows, [one | {"outcome": made["outcome"]} for one, made in zip(rows, wide, strict=True)]) == alone
    )


def test_what_was_not_measured_without_relearning_is_not_said_to_fail_there():
    alone = attacked_certificate({RELEARNED: BACK}, guard="ste")
    assert len(attack_words([alone])) == 2, "what relearning brings out, and that it was one attack"
    assert attack_words([alone, lora()])[2].startswith("1 of 1 configuration is at or under the ceiling without")


def test_without_relearning_that_is_said():
    assert attack_words([attacked_certificate(HELD)])[-1] == "Relearning was not tried."
    kept, again, survive, _ = attack_words([lora(), attacked_certificate(HELD, guard="ste")])
    assert kept.endswith("GA+GDR, LoRA, STE (15), and over it for none.")
    assert again.endswith("for none, and over it for GA+GDR, LoRA (47); not tried: GA+GDR, LoRA, STE.")
    assert survive.startswith("1 of 1 configuration is")


def test_of_a_refused_row_nothing_is_said_but_that():
    broken = attacked_certificate(
        {"merged": CALM, RELEARNED: CALM}, **FULL, guard="sam", outcome="refused", least=0.041
    )
    said = "Refused, so that nothing is said of their text: GA+GDR, full bf16, SAM (at least 4 % of Utility is left)."
    assert attack_words([broken]) == [said]
    *rest, last = attack_words([lora(), broken])
    assert last == said
    assert rest == attack_words([lora()])


def test_names_in_words():
    names = ("merged", TWICE, "prune-2.5", "relearn-1x16")
    assert list(map(transform_title, names)) == ["Merged", "RTN int8 row first", "2.5 % pruned", "Relearned 1×16"]
    assert transform_words("relearn-1x16") == "trained again for 16 steps on 1 of the forgotten passages"
    assert transform_words("prune-2.5") == "pruned by 2.5 %"


def test_one_sentence_for_the_abstract():
    """Of two rows that are not refused one is over the ceiling; a refused one is left out."""
    ste = attacked_certificate(HELD | {RELEARNED: CALM}, guard="ste")
    refused = lora(adapter="sure", weights="bf16", outcome="refused")
    assert attack_abstract([lora(), ste, refused]) == (
        "Once quantized models are trained again for 8 steps on 4 of the forgotten passages, in 1 of 2 combinations "
        "more of the others may be given away than a ceiling of 20 points over the retrained model allows (VerbMem 20 "
        "to 56, retrained 14 to 16)."
    )
    assert attack_abstract([attacked_certificate(HELD)]) == ""
