"""Forgetting against utility: arrows end where the records say, and labels hide nothing."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.text import Text

from qru import method_figures
from qru.method_tables import contenders, quantizers_of
from tests.paper.method_records import INT3, INT4, TENSOR, method_record, seeds

LORA = {"adapter": "lora", "weights": "fp32"}


def test_an_arrow_ends_at_the_worst_quantizer():
    # Under int4 over the tensor text returns in both seeds, under int3 in one; there 30 points of utility are lost.
    runs = [method_record(back=(TENSOR, INT3), kept=30), method_record(seed=1, back=(TENSOR,), kept=30)]
    (one,) = contenders(runs)
    arrow = method_figures.arrow_of(one, quantizers_of(runs))
    assert (arrow.quantizer, arrow.back, arrow.met) == (TENSOR, True, True)
    assert arrow.start == (pytest.approx(21), pytest.approx(90))
    assert arrow.end == (pytest.approx(80), pytest.approx(60))
    (held,) = contenders(seeds(0, 1, **LORA))
    assert method_figures.arrow_of(held, [INT4]).back is False
    (missed,) = contenders([method_record(reached=False)])
    assert method_figures.arrow_of(missed, [INT4]).met is False
    del held.runs[0].scores["unlearned"][INT4]["utility"], held.runs[1].scores["unlearned"][INT4]["utility"]
    assert method_figures.arrow_of(held, [INT4]) is None


def test_arms_of_one_method_and_other_methods_have_panels_of_their_own():
    runs = [*seeds(0, 1, back=(TENSOR,)), method_record(**LORA), method_record(guard="quail", reached=False),
            method_record("npo_gdr"), method_record("simnpo_gdr", back=(INT3,), kept=20)]  # fmt: skip
    figure = method_figures.tradeoff(runs)
    first, second = figure.axes
    assert [ax.get_title("left") for ax in figure.axes] == ["GA+GDR: arms and guards", "Other methods"]
    texts = [{text.get_text() for text in ax.texts if text.get_text()} for ax in figure.axes]
    assert texts[0] == {"target", "retrained", "full bf16 (RTN int4 tensor)", "LoRA (RTN int8 g128)",
                        "full bf16, QUAIL (RTN int8 g128)"}  # fmt: skip
    assert "SimNPO+GDR, full bf16 (RTN int3 g128)" in texts[1]
    assert first.get_ylim() == second.get_ylim()
    ends = [tuple(text.xy) for text in second.texts if not text.get_text()]
    assert (pytest.approx(80), pytest.approx(70)) in ends


def test_labels_hide_no_other():
    guards = [method_record(guard=guard) for guard in (None, "quail", "sam", "bin_margin")]
    runs = [*guards, method_record(weights="fp32"), method_record(adapter="sure"), method_record(**LORA)]
    figure = method_figures.tradeoff(runs)
    (ax,) = figure.axes
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in ax.texts if text.get_text()]  # without the line to its point
    assert len(boxes) == 9
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_a_caption_counts():
    runs = [*seeds(0, 1), method_record(**LORA, reached=False), method_record(seed=1, **LORA),
            method_record(guard="sam", reached=False)]  # fmt: skip
    assert method_figures.caption(runs) == (
        "5 runs, means over seeds 0 and 1; n = 50 passages and 40 questions. Seed 0 alone: GA+GDR, full bf16, SAM. "
        "Worst of 8 quantizers: the one named, under which VerbMem is highest; Utility is that under the same one. 2 "
        "runs missed the forgetting goal and are left out, but of GA+GDR, full bf16, SAM, where all did."
    )


def test_text_of_two_corpora_has_no_common_axes():
    with pytest.raises(ValueError, match="these are of books and news"):
        method_figures.tradeoff([method_record(), method_record(corpus="news")])
