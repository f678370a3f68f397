"""README says what the committed records say."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from qru.method_tables import contenders
from tests.paper.attack_records import BACK, CALM, RELEARNED, attacked_certificate
from tests.paper.method_records import INT3, INT4, TENSOR, method_record

ROOT = Path(__file__).resolve().parents[2]


def readme():
    specification = importlib.util.spec_from_file_location("readme", ROOT / "paper" / "readme.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_block_is_what_the_records_say_now():
    module, page = readme(), (ROOT / "README.md").read_text()
    assert module.rewritten(page, module.shown()) == page, "run python paper/readme.py"


def test_a_block_is_replaced_and_nothing_else():
    page = "one\n<!-- budget -->\nold\n<!-- /budget -->\nthree\n"
    assert readme().block("budget", "new", page) == "one\n<!-- budget -->\nnew\n<!-- /budget -->\nthree\n"


# --- the table of methods ---------------------------------------------------------------------------------------------


def test_a_row_a_method_by_hand():
    """Memory returns under ``back`` with 75 % of the text; of two runs, one of which it returns in, half of that."""
    over = {
        "forget_ceiling": 20.0,
        "declared": {"quantizers": ["bf16", INT4, INT3], "seeds": [0]},
        "outcome": "does not hold",
    }
    sheet = contenders([
        method_record(quantizers=(TENSOR, INT3), back=(TENSOR, INT3)),
        method_record(quantizers=(TENSOR, INT3), back=(TENSOR,), seed=1),
        method_record(quantizers=(TENSOR, INT3), back=(TENSOR,), seed=2, reached=False),
        method_record(quantizers=(TENSOR, INT3), adapter="lora", weights="fp32"),
    ])  # fmt: skip
    high = attacked_certificate({"merged": (60.0, 70.0, 14.0, 58.3)}) | over
    found = [replace(one, certificate=high if one.arm == "full bf16" else None) for one in sheet]
    after = {"GA+GDR, LoRA": attacked_certificate({"merged": CALM, RELEARNED: BACK})}
    head, _, full, lora, _, note, _ = readme().overview(found, "verbmem", "utility", after)
    assert head.endswith("| Returns under | At most over retrained | … after relearning |")
    assert full == "| GA+GDR, full bf16 | 2 of 3 | 21 | 90 | RTN int4 tensor 75 %, RTN int3 g128 37 % | **58** | – |"
    assert lora == "| GA+GDR, LoRA | 1 of 1 | 21 | 90 | none of 2 | – | **47** |"
    assert note == (
        "In percent; VerbMem in bf16 is 100 for the target model and 10 for the retrained model. Means over the runs "
        "that met the goal, or over all where none did. A quantizer is named if in any of these runs it brings "
        "something back, with the median over them. Over retrained: the largest upper bound of a certificate over 3 "
        "precisions, after relearning over 2, in points; bold where it is over the ceiling of 20; –: not certified. "
        "Certificates of other seeds than the row's: GA+GDR, full bf16 of 0; GA+GDR, LoRA of 0 and 1."
    )


def test_without_certificates_there_is_no_such_column():
    head, *_, note, _ = readme().overview(contenders([method_record()]), "verbmem", "utility", {})
    assert head.endswith("| Returns under |")
    assert "certif" not in note


@pytest.mark.parametrize(
    ("changes", "attack", "told"),
    [
        ({}, "", "**47**"),
        ({}, "relearn", "**47**"),
        ({}, "merged", "15"),
        ({}, "twice", "–"),
        ({"outcome": "refused"}, "", "refused"),
        ({"ceiling": 48.0}, "", "47"),
    ],
)
def test_the_largest_bound_is_bold_over_the_ceiling_alone(changes, attack, told):
    made = attacked_certificate({"merged": CALM, RELEARNED: BACK}, **changes)
    assert readme().at_most(made, attack) == told
    assert readme().at_most(None, attack) == "–"
