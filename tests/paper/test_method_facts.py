"""What the paper says of methods that are to survive: counted by hand, and true whichever way the runs fall."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from qru import method_facts, paper_facts
from qru.method_tables import Contender, contenders
from qru.records import Record, slim, write_json
from tests.paper.attack_records import BACK, HELD, RELEARNED, attacked_certificate
from tests.paper.method_records import AWQ4, GPTQ4, INT3, INT4, SHARE, TENSOR, certificate, method_record, seeds
from tests.paper.test_paper_facts import blanked, shown, text_of  # noqa: F401 - shown is a fixture

LORA = {"adapter": "lora", "weights": "fp32"}


def found(*runs: Record) -> list[Contender]:
    return contenders(runs)


# --- what returns -----------------------------------------------------------------------------------------------------


def test_every_return_is_named_and_the_others_together():
    told = method_facts.returns(
        found(method_record(back=(TENSOR, INT3)), *seeds(1, 2, back=(INT3,)), *seeds(0, 1, **LORA),
              method_record(guard="sam", back=(INT3,), reached=False)), "verbmem",
    )  # fmt: skip
    assert told == [
        "GA+GDR, full bf16 (3 runs): memory returns under RTN int4 tensor in 1 of 3 (median 0 %) and RTN int3 g128 in "
        "3 of 3 (median 75 %).",
        "Memory returns under no quantizer that they were measured under: GA+GDR, LoRA (2 runs).",
    ]  # fmt: skip


def test_the_abstract_claims_a_goal_and_no_equal_forgetting():
    runs = found(*seeds(0, 1, back=(INT3,)), *seeds(0, 1, **LORA), method_record(guard="quail", back=(INT3,)))
    assert method_facts.abstract(runs) == (
        "When runs stop at one goal of forgetting in bf16, memory returns under some quantizer in 2 of 3 combinations "
        "of method, arm and guard; with QUAIL's hinge in 1 of 1 run and with plain LoRA in 0 of 2 runs."
    )


def test_runs_that_missed_the_goal_are_named():
    runs = found(*seeds(0, 1), method_record(guard="sam", reached=False), method_record(guard="sam", seed=1))
    assert method_facts.reached(runs) == (
        "3 of 4 runs met the goal; missed by GA+GDR, full bf16, SAM (1 of 2), which count for nothing below."
    )
    assert method_facts.reached(runs[:1]) == "All 2 runs met the goal."
    assert method_facts.anyway(runs[:1], "verbmem") == []


def test_runs_that_missed_the_goal_are_measured_all_the_same():
    runs = found(*seeds(0, 1, guard="bin_margin", back=(INT4,), reached=False), *seeds(0, 1, back=(INT3,)),
                 method_record("npo_gdr", reached=False))  # fmt: skip
    assert method_facts.anyway(runs, "verbmem") == [
        "Not counted, since the goal was missed, but measured, memory returns in GA+GDR, full bf16, bin-margin (2 "
        "runs, VerbMem 21 in bf16) under RTN int4 g128 in 2 of 2; in NPO+GDR, full bf16 (1 run, VerbMem 21 in bf16) "
        "under none."
    ]


def test_calibrated_quantizers_stand_beside_rounding_on_the_same_grid():
    runs = found(*seeds(0, 1, back=(INT4, GPTQ4)), method_record(seed=2, back=(INT4,)), *seeds(0, 1, **LORA),
                 method_record(seed=2, back=(AWQ4,), **LORA))  # fmt: skip
    assert method_facts.calibrated(runs) == [
        "Of 3 runs in which memory returns under RTN int4 g128 (median 75 % of the text), it does under GPTQ int4 g128 "
        "in 2 (median 75 %) and under AWQ int4 g128 in 0 (median 0 %); of the other 3, under GPTQ int4 g128 in 0 and "
        "under AWQ int4 g128 in 1."
    ]
    assert method_facts.calibrated(found(*seeds(0, 1, **LORA))) == [
        "Under RTN int4 g128 memory returns in none of 2 runs, under GPTQ int4 g128 in 0 and under AWQ int4 g128 in 0."
    ]
    assert method_facts.calibrated(found(method_record(quantizers=(INT4, INT3)))) == []


# --- one arm against another ------------------------------------------------------------------------------------------


def test_an_arm_holds_better_by_points_interval_and_seeds():
    """Under int4 over the tensor 0.59 of the passages returns, in one of the arms."""
    runs = found(*seeds(0, 1, back=(TENSOR,), guard="quail"), *seeds(0, 1, **LORA))
    one, two = (next(c for c in runs if c.guard == guard) for guard in ("quail", ""))
    outcomes = {c.quantizer: (round(c.difference, 6), c.outcome) for c in method_facts.contrast(one, two, "verbmem")}
    assert outcomes[TENSOR] == (59.0, 1)
    assert outcomes[INT4] == (0.0, 0)
    assert {c.quantizer: c.outcome for c in method_facts.contrast(two, one, "verbmem")}[TENSOR] == -1


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({}, -1),
        ({"difference": -9.9}, 0),  # fewer points than the rule asks for
        ({"high": 0.5}, 0),  # the interval includes zero
        ({"seeds": (-30.0, 1.0)}, 0),  # a seed points the other way
        ({"difference": 12.0, "low": 3.0, "high": 20.0, "seeds": (11.0, 13.0)}, 1),
    ],
)
def test_each_part_of_the_rule_decides(change, outcome):
    one = method_facts.Contrast(TENSOR, -12.0, -20.0, -3.0, (-11.0, -13.0), 10.0)
    assert dataclasses.replace(one, **change).outcome == outcome


def test_the_verdict_on_a_guard_can_fall_either_way():
    def told(guarded=(), plain=(), **more) -> str:
        runs = found(*seeds(0, 1, back=guarded, guard="quail", **more), *seeds(0, 1, back=plain, **LORA))
        (text,) = method_facts.against(runs, "verbmem")
        return text

    worse = told(guarded=(TENSOR,))
    assert worse.startswith("GA+GDR on books, full bf16, QUAIL against plain LoRA (VerbMem, 2 seeds, n = 50): ")
    assert re.search(r"it rises more under RTN int4 tensor \(by 59 \[5\d, 59\] points\)", worse)
    assert "under 7 quantizers the two cannot be told apart" in worse
    assert "By the rule plain LoRA holds better; Utility in bf16 is 90 and 90." in worse
    assert "By the rule full bf16, QUAIL holds better;" in told(plain=(INT3,))
    assert "Neither holds better under every quantizer;" in told(guarded=(TENSOR,), plain=(INT3,))
    assert (
        "under all 8 quantizers the two cannot be told apart. By the rule full bf16, QUAIL is neither better" in told()
    )
    assert "no seed in which both met the goal" in told(reached=False)
    (alone,) = method_facts.against(found(*seeds(0, 1, guard="quail")), "verbmem")
    assert "plain LoRA was not run" in alone
    assert method_facts.against(found(method_record()), "verbmem") == ["No run with QUAIL is among them."]


def test_a_guard_is_set_beside_the_arm_it_guards_too():
    runs = found(*seeds(0, 1, guard="quail"), *seeds(0, 1, back=(INT3,)), *seeds(0, 1, **LORA))
    lora, plain = method_facts.against(runs, "verbmem")
    assert "against plain LoRA" in lora
    assert "against plain full bf16" in plain
    assert "QUAIL holds better" in plain


def test_a_guard_that_pushed_nothing_is_told():
    guarded = seeds(0, 1, 2, guard="quail")
    for run, term in zip(guarded, (0.0, 0.0, 0.3), strict=True):
        run.extra["history"][-1]["guard"] = term
    plain = [method_record(), method_record(seed=1, back=(INT3,))]
    assert method_facts.against(found(*guarded, *plain), "verbmem")[-1] == (
        "In 2 of 3 runs of GA+GDR, full bf16, QUAIL on books the guard's term was 0 at every look: what it asks for "
        "was there already, so that it pushed nothing then; with seed 0 every score is that of the plain run."
    )
    guarded[0].extra["history"][0]["guard"] = guarded[1].extra["history"][0]["guard"] = 0.1
    assert not any("pushed nothing" in told for told in method_facts.against(found(*guarded, *plain), "verbmem"))


# --- the most robust, certificates, options ---------------------------------------------------------------------------


def test_the_most_robust_met_the_goal_and_is_of_use():
    useless = [method_record("npo_gdr", seed=seed) for seed in (0, 1)]
    for run in useless:
        run.scores["unlearned"]["bf16"]["utility"]["value"] = 70.0  # the target has 95, of which 80 % are 76
    runs = found(*seeds(0, 1, back=(INT3,)), *seeds(0, 1, **LORA), method_record(guard="sam", reached=False), *useless)
    first, further = method_facts.robust(runs)
    assert first == (
        "2 configurations of 4 met the goal in every seed and kept 80 % of the target's Utility in bf16. Over the 8 "
        "quantizers that all of them have, the mean rise of VerbMem under the worst is least for GA+GDR, LoRA (0 "
        "points, RTN int8 g128), among those of 2 seeds."
    )
    assert further == "Further up are GA+GDR, full bf16 (59 points, RTN int3 g128)."
    once = method_facts.robust(found(*seeds(0, 1, back=(INT3,)), method_record(**LORA)))
    assert "is least for GA+GDR, full bf16 (59 points, RTN int3 g128), among those of 2 seeds." in once[0]
    assert once[1].startswith("Of fewer seeds, which show directions alone: GA+GDR, LoRA (0 points, ")
    further_down = seeds(0, 1, **LORA)
    for run in further_down:
        run.scores["unlearned"]["bf16"]["verbmem"]["value"] = 9.0
    assert method_facts.robust(found(*seeds(0, 1), *further_down))[-1] == (
        "They are not equal in bf16: mean VerbMem is 9 (GA+GDR, LoRA) to 21 (GA+GDR, full bf16)."
    )
    near = method_facts.robust(found(*seeds(0, 1), *seeds(0, 1, **LORA)))
    assert near[1].startswith("Less than 10 points over that are GA+GDR, ")
    assert "No configuration met the goal" in method_facts.robust(found(method_record(reached=False)))[0]


def test_certificates_are_counted_at_their_terms():
    plain, lora, sam = method_record(), method_record(**LORA), method_record(guard="sam")
    made = [
        certificate(plain, "does not hold", 87.6),
        certificate(lora),
        certificate(sam, "refused", least_utility=0.41),
    ]
    terms, blame, without = method_facts.certified(contenders([plain, lora, sam, method_record("npo_gdr")], made))
    assert terms == (
        "At a ceiling of 10 points over the retrained model and a floor of 80 % of the target's Utility, both ours, "
        "over 9 precisions, the seeds of each row (for some other seeds, which the table names) and the transforms "
        "merged, prune-10, 3 certificates were asked for: it holds for GA+GDR, LoRA (at most 6 points); it does not "
        "hold for GA+GDR, full bf16 (at most 88 points); it is refused for GA+GDR, full bf16, SAM (at least 41 % of "
        "Utility is left)."
    )
    assert blame == (
        "Under RTN int3 g128 the retrained model, too, misses the floor: of the refusals 1 would have met it, too."
    )
    assert without == "Without a certificate: NPO+GDR, full bf16."
    (same,) = method_facts.certified(contenders(seeds(0, 1, 2), made[:1]))
    assert "over 9 precisions, the seeds of each row and the transforms" in same
    assert method_facts.certified(found(plain)) == ["No certificate was issued."]


def test_options_are_those_of_the_runs():
    runs = found(method_record(guard="quail", guard_weight=2.5), method_record(guard="sam"),
                 method_record(adapter="sure"))  # fmt: skip
    told = method_facts.options(runs)
    assert set(told) == {"quail", "sam", "sure"}
    assert told["quail"] == (
        "γ 2.5, norm of each logit by itself, positions all tokens, Δ_q the mean change of a logit when the target is "
        "rounded, quantizer of Δ_q int4 g128"
    )
    assert told["sam"] == "ρ 0.01"
    assert told["sure"].startswith("percentile ")


# --- the whole text ---------------------------------------------------------------------------------------------------


@pytest.fixture
def with_methods(shown, tmp_path) -> dict[str, list[str]]:  # noqa: F811
    """Beside the records of ``shown`` those of Tables III and IV and of changes of weights."""

    def files(folder: str, values: list[dict]) -> list[str]:
        for i, value in enumerate(values):
            write_json(tmp_path / folder / f"{i}.json", value)
        return [str(tmp_path / folder / f"{i}.json") for i in range(len(values))]

    runs = [*seeds(0, 1, back=(TENSOR, INT3)), *seeds(0, 1, guard="quail", back=(TENSOR,)), *seeds(0, 1, **LORA)]
    made = [certificate(runs[0], "does not hold", 87.6), certificate(runs[4])]
    text = files("methods", [slim(run, (INT4,)) for run in runs])
    tweets = [*seeds(0, 1, corpus="tweets"), *seeds(0, 1, corpus="tweets", guard="quail"),
              *seeds(0, 1, corpus="tweets", back=(INT4,), **LORA)]  # fmt: skip
    return shown | {
        "tables/three": [*text, *files("certificates", made)], "figures/tradeoff": text, "tables/overlap": text,
        "tables/four": files("tweets", [slim(run) for run in tweets]),
        "tables/calibration": files("calibration", [
            slim(method_record(adapter="lora", weights="fp32", quantizers=names))
            for names in ((GPTQ4,), (f"{GPTQ4}-heldout", f"{GPTQ4}-forget"))
        ]),
        "tables/quail": text,
        "tables/attacks": files("attacks", [attacked_certificate(HELD | {RELEARNED: BACK})]),
    }  # fmt: skip


def test_without_records_the_paper_says_so(shown, tmp_path):  # noqa: F811
    facts = paper_facts.facts(shown)["methods"]
    assert (facts["text"], facts["labels"], facts["overlap"]) == (None, None, None)
    text = text_of(tmp_path, paper_facts.facts(shown))
    assert "It is not part of this comparison." in " ".join(text.split())
    assert "Only rounding to nearest is measured." in text
    assert "survive by construction" not in text


def test_the_text_changes_with_the_records(with_methods, tmp_path):
    text = " ".join(text_of(tmp_path, paper_facts.facts(with_methods)).split())
    assert "6 runs of 3 combinations of method, arm and guard (GA+GDR on books, seeds 0 and 1)" in text
    assert f"RTN int4 tensor in 2 of 2 (median {SHARE:.0f} %)" in text
    assert "By the rule plain LoRA holds better" in text
    assert (
        "GA+GDR on tweets, full bf16, QUAIL against plain LoRA (Forget accuracy, 2 seeds, n = 50): it rises less"
        in text
    )
    assert "it holds for GA+GDR, LoRA (at most 6 points)" in text
    assert "under GPTQ int4 g128 in 0 on retained text, 0 on held-out text and 0 on forgotten text of 1 run" in text
    assert "Books, margin measured on the logits, RTN int4 g128 (2 runs): it returns under RTN int4 tensor" in text
    assert "and of these none is after it: surviving these precisions is not surviving relearning" in text
    assert "Only rounding to nearest is measured." not in text
    assert "It is not part of this comparison." not in text
    assert "GPTQ and AWQ were measured in our own implementations" in text

    path = Path(with_methods["tables/three"][2])  # QUAIL's guard, seed 0
    value = json.loads(path.read_text())
    value["recovered"][TENSOR]["recovers"]["recovers"] = False
    write_json(path, value)
    path = Path(with_methods["tables/three"][-1])
    value = json.loads(path.read_text())
    write_json(path, value | {"outcome": "does not hold", "worst_excess": 12.3})
    text = " ".join(text_of(tmp_path, paper_facts.facts(with_methods)).split())
    assert "GA+GDR, full bf16, QUAIL (2 runs): memory returns under RTN int4 tensor in 1 of 2" in text
    assert "it holds for none" in text
    assert "GA+GDR, LoRA (at most 12 points)" in text


def test_no_number_of_these_sections_is_typed(with_methods, tmp_path):
    facts = paper_facts.facts(with_methods)
    kept = {"shown": facts["shown"], "scale": facts["scale"]}
    text = text_of(tmp_path, blanked(facts) | kept)
    body = text.partition("that are to survive by construction\n")[2].partition("One pass to merge")[0]
    assert len(body) > 5_000
    body = re.sub(r"[Ss]ection\s[\dA-B.]+|(?:Table|Figure|Equation)\s\(?\d+\)?:?|\[\d+\]|\(\d\)", "", body)
    body = re.sub(r"^\d(?:\.\d+)? ", "", body, flags=re.MULTILINE)
    body = re.sub(r"\b(?:bf16|fp32)\b|95\s%|F1", "", body)
    assert not re.findall(r".{0,30}\d.{0,30}", body)
