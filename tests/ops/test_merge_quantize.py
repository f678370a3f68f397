"""merge_quantize against its specification, on every instruction set this machine has."""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from qru.ops import build_info, merge_quantize, merge_quantize_ref
from tests.ops.matrices import FEATURES, features, problem_of, problems

ISAS = build_info().get("isas", [])
INTEGERS = ("weights", "moved", "crossed", "changed", "steps_moved", "zero_groups", "histogram")
pytestmark = pytest.mark.skipif(not ISAS, reason="the kernel is not built")


def same_bits(a, b):
    """torch.equal, telling 0.0 from -0.0."""
    if a is None or b is None:
        return a is b
    as_integers = {4: torch.int32, 2: torch.int16, 1: torch.int8}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(as_integers), b.view(as_integers))


def assert_twins(got, want):
    assert torch.equal(got.codes, want.codes)
    assert same_bits(got.packed, want.packed)
    assert same_bits(got.scales, want.scales)
    assert same_bits(got.zeros, want.zeros)
    assert same_bits(got.merged, want.merged)
    for field in INTEGERS:
        assert getattr(got.stats, field) == getattr(want.stats, field), field


def assert_sums(got, want, weight):
    """Float sums to 1e-5 of what is summed; sum_q_dw may cancel, so it is measured against its terms' sizes.

    Terms are float32: where the square of one is too large, the sums are Inf or NaN in both.
    """
    dw2, q2 = want.stats.sum_dw2, want.stats.sum_q2
    sizes = {
        "predicted": want.stats.predicted,
        "sum_dw2": dw2,
        "sum_q2": q2,
        "sum_q_dw": math.sqrt(dw2) * math.sqrt(q2),
    }
    floor = 1e-36 * weight.numel()  # squares of tiny numbers are denormal in float32
    for field, size in sizes.items():
        a, b = getattr(got.stats, field), getattr(want.stats, field)
        assert str(a) == str(b) or abs(a - b) <= 1e-5 * size + floor, field  # as text, NaN equals NaN


def outcome(run, *args, **options):
    """The result, or the message it was refused with."""
    try:
        return run(*args, **options)
    except ValueError as error:
        return str(error)


def compare(problem, threads, seen):
    """Hold kernel and reference against each other, and count what was special about the problem."""
    weight, update, spec = problem
    seen["cases"] += 1
    want = outcome(merge_quantize_ref, weight, spec=spec, merged=True, **update)
    got = outcome(merge_quantize, weight, spec=spec, merged=True, threads=threads, **update)
    if isinstance(want, str):
        assert got == want
        seen["refused"] += 1
        return
    seen.update(features(weight, update, spec))
    seen.update(field for field in ("crossed", "changed", "steps_moved") if getattr(want.stats, field))
    assert_twins(got, want)
    assert_sums(got, want, weight)


def rarest(seen, least):
    """What was seen less often than that, and how often."""
    return {
        name: seen[name] for name in FEATURES | {"refused", "crossed", "changed", "steps_moved"} if seen[name] < least
    }


@pytest.mark.parametrize("isa", ISAS)
def test_equals_the_reference_on_every_kind_of_problem(isa, monkeypatch):
    """The same 300 problems at each run."""
    monkeypatch.setenv("QRU_ISA", isa)
    seen, draws = Counter(), random.Random(0)
    for i in range(300):
        compare(problem_of(draws.choice), 1 + i % 2, seen)
    assert rarest(seen, 1) == {}


@pytest.mark.nightly
@pytest.mark.parametrize("isa", ISAS)
def test_equals_the_reference(isa, monkeypatch):
    """Problems that hypothesis looks for; which ones depends on all modules that are loaded."""
    monkeypatch.setenv("QRU_ISA", isa)
    seen = Counter()

    @given(problem=problems(), threads=st.sampled_from([1, 2]))
    def search(problem, threads):
        compare(problem, threads, seen)

    search()
    print(isa, dict(seen.most_common()))
    assert seen["cases"] < 1000 or rarest(seen, seen["cases"] // 500) == {}


@pytest.mark.nightly
@given(problem=problems(), isa=st.sampled_from(ISAS), threads=st.integers(1, 3))
def test_sums_do_not_depend_on_threads_or_instruction_set(problem, isa, threads):
    weight, update, spec = problem
    try:
        want = merge_quantize(weight, spec=spec, threads=1, **update).stats
    except ValueError:
        assume(False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QRU_ISA", isa)
        got = merge_quantize(weight, spec=spec, threads=threads, **update).stats
    for field in ("predicted", "sum_dw2", "sum_q_dw", "sum_q2"):
        a, b = getattr(got, field), getattr(want, field)
        assert a == b or (math.isnan(a) and math.isnan(b)), field
