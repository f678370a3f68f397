import pytest

from qru.config import ADAPTERS
from qru.verdict import recovered, sentences


def scores(unlearned, quantized, target, utility=0.9):
    """A record's scores with constant per-example values, so that every interval has no width."""

    def block(verbmem, knowmem):
        return {
            "verbmem": {"value": 100 * verbmem, "per_example": [verbmem] * 20},
            "knowmem": {"value": 100 * knowmem, "per_example": [knowmem] * 20},
            "utility": {"value": 100 * utility, "per_example": [utility] * 20},
        }

    return {
        "target": {"bf16": block(*target), "rtn-int4-g128": block(*target)},
        "unlearned": {"bf16": block(*unlearned), "rtn-int4-g128": block(*quantized)},
    }


CONFIG = {"method": "npo_gdr", "adapter": "full", "weights": "bf16"}


def test_a_known_share_is_said_with_its_interval():
    found = scores(unlearned=(0.1, 0.2), quantized=(0.5, 0.2), target=(0.9, 1.0))
    assert recovered(found)["rtn-int4-g128"]["verbmem"]["value"] == pytest.approx(50)
    first, second = sentences(found, CONFIG)
    assert first == (
        "npo_gdr, full fine-tuning, bf16 weights, in bf16 (percent): text 90 → 10, knowledge 100 → 20, utility 90 → 90."
    )
    assert "regains 50 % [50, 50] of the forgotten text and 0 % [0, 0] of the forgotten knowledge" in second
    assert second.endswith(": it comes back.")


def test_it_is_said_how_weights_were_stepped():
    found = scores((0.1, 0.2), (0.1, 0.2), (0.9, 1.0))
    first = sentences(found, CONFIG | {"moments": "fp32", "rounding": "stochastic"})[0]
    assert first.startswith("npo_gdr, full fine-tuning, bf16 weights, fp32 moments, stochastic rounding, in bf16")


def test_every_arm_has_a_name():
    found = scores((0.1, 0.2), (0.1, 0.2), (0.9, 1.0))
    said = [sentences(found, CONFIG | {"adapter": adapter})[0] for adapter in ADAPTERS]
    assert len(set(said)) == len(ADAPTERS)


def test_forgetting_that_stays():
    line = sentences(scores((0.1, 0.2), (0.1, 0.2), (0.9, 1.0)), CONFIG)[1]
    assert line.endswith(": it does not come back.")


def test_a_fall_is_not_a_recovery():
    line = sentences(scores((0.2, 0.2), (0.1, 0.2), (0.9, 1.0)), CONFIG)[1]
    assert "regains none [-14, -14] of the forgotten text and 0 % [0, 0] of the forgotten knowledge" in line


def test_what_was_not_forgotten_has_no_vote():
    found = scores(unlearned=(0.1, 0.5), quantized=(0.1, 0.6), target=(0.9, 0.5))
    assert not recovered(found)["rtn-int4-g128"]["recovers"]["recovers"]
    assert sentences(found, CONFIG)[1].endswith("(no measurable knowledge was forgotten): it does not come back.")


def test_a_rise_under_the_threshold_is_said():
    line = sentences(scores((0.1, 0.2), (0.19, 0.2), (0.9, 1.0)), CONFIG)[1]
    assert line.endswith(": a little comes back, less than what counts as recovery.")


def test_a_rise_too_small_to_print_is_none():
    line = sentences(scores((0.1, 0.2), (0.102, 0.2), (0.9, 1.0)), CONFIG)[1]
    assert "regains 0 % [0, 0] of the forgotten text" in line
    assert line.endswith(": it does not come back.")


def test_nothing_forgotten_is_no_recovery():
    line = sentences(scores((0.9, 1.0), (0.9, 1.0), (0.9, 1.0)), CONFIG)[1]
    assert line == "under rtn-int4-g128: nothing measurable was forgotten, so nothing can come back."


def test_only_text_was_forgotten():
    line = sentences(scores((0.1, 1.0), (0.9, 1.0), (0.9, 1.0)), CONFIG)[1]
    assert "100 % [100, 100] of the forgotten text (no measurable knowledge was forgotten): it comes back." in line


def without(found, *metrics):
    return {
        model: {p: {m: s for m, s in by.items() if m not in metrics} for p, by in ps.items()}
        for model, ps in found.items()
    }


def test_a_corpus_without_questions():
    found = without(scores((0.1, 0.2), (0.5, 0.2), (0.9, 1.0)), "knowmem", "utility")
    shares = recovered(found)["rtn-int4-g128"]
    assert shares["verbmem"]["value"] == pytest.approx(50)
    assert not shares["knowmem"]["defined"]
    assert shares["recovers"]["recovers"]
    first, second = sentences(found, CONFIG)
    assert first == "npo_gdr, full fine-tuning, bf16 weights, in bf16 (percent): text 90 → 10."
    assert second == "under rtn-int4-g128 the model regains 50 % [50, 50] of the forgotten text: it comes back."


def test_a_corpus_without_forget_examples():
    found = without(scores((0.1, 0.2), (0.5, 0.2), (0.9, 1.0)), "knowmem", "verbmem")
    assert not recovered(found)["rtn-int4-g128"]["recovers"]["recovers"]
    first, second = sentences(found, CONFIG)
    assert first.endswith("in bf16 (percent): utility 90 → 90.")
    assert "nothing measurable was forgotten" in second


def of_classifiers(unlearned, quantized, target):
    def block(right):
        values = [1.0] * right + [0.0] * (20 - right)
        kept = {name: {"value": 90.0, "per_example": [0.9] * 20} for name in ("retain_accuracy", "f1")}
        return {"forget_accuracy": {"value": 5.0 * right, "per_example": values}} | kept

    return {
        "target": {"bf16": block(target), "rtn-int4-g128": block(target)},
        "unlearned": {"bf16": block(unlearned), "rtn-int4-g128": block(quantized)},
    }


def test_labels_that_come_back():
    found = of_classifiers(unlearned=2, quantized=12, target=20)
    shares = recovered(found)["rtn-int4-g128"]
    assert set(shares) == {"forget_accuracy", "recovers"}
    assert shares["forget_accuracy"]["value"] == pytest.approx(100 * 10 / 18)
    assert shares["recovers"]["recovers"]
    first, second = sentences(found, CONFIG)
    assert first.endswith("in bf16 (percent): labels to forget 100 → 10, labels to keep 90 → 90, F1 90 → 90.")
    assert second.startswith("under rtn-int4-g128 the model regains 56 % [")
    assert second.endswith("] of the forgotten labels: it comes back.")


@pytest.mark.parametrize(("quantized", "back"), [(3, False), (4, False), (6, True)])
def test_labels_come_back_from_ten_points_whose_interval_lies_above_zero(quantized, back):
    """One more of twenty is five points; two are ten, and their interval reaches zero."""
    found = recovered(of_classifiers(unlearned=2, quantized=quantized, target=20))
    assert found["rtn-int4-g128"]["recovers"]["recovers"] is back


def test_what_is_said_of_texts_has_no_word_of_labels():
    found = recovered(scores(unlearned=(0.1, 0.2), quantized=(0.5, 0.2), target=(0.9, 1.0)))
    assert set(found["rtn-int4-g128"]) == {"verbmem", "knowmem", "recovers"}
