"""merge_quantize against its specification, on every instruction set this machine has."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from qru.ops import build_info, merge_quantize, merge_quantize_ref
from tests.ops.matrices import DTYPES, FEATURES, KINDS, features, near, specs, weights

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


def assert_sums(got, want, weight, after):
    """Float sums to 1e-5 of what is summed; sum_q_dw may cancel, so it is measured against its terms' sizes."""
    dw2, q2 = want.stats.sum_dw2, want.stats.sum_q2
    sizes = {
        "predicted": want.stats.predicted,
        "sum_dw2": dw2,
        "sum_q2": q2,
        "sum_q_dw": math.sqrt(dw2) * math.sqrt(q2),
    }
    floor = 1e-36 * weight.numel()  # squares of tiny numbers are denormal in float32
    for field, size in sizes.items():
        assert getattr(got.stats, field) == pytest.approx(getattr(want.stats, field), rel=0, abs=1e-5 * size + floor)


@st.composite
def problems(draw):
    rows, columns = draw(st.integers(1, 15)), draw(st.integers(1, 150) | st.sampled_from([256, 384, 512, 1088]))
    dtype = draw(st.sampled_from(DTYPES))
    kind = draw(st.sampled_from(KINDS))
    seed = draw(st.integers(0, 2**31))
    spec = draw(specs(columns))
    weight = weights(kind, (rows, columns), dtype, seed, spec)
    mode = draw(st.sampled_from(["adapter", "adapter", "new_weight", "plain"]))
    update = {}
    if mode == "new_weight":
        update = {"new_weight": near(weight, seed + 1)}
    elif mode == "adapter":
        rank = draw(st.integers(1, 9) | st.sampled_from([16, 33]))
        generator = torch.Generator().manual_seed(seed + 2)
        size = float(weight.float().abs().max()) * draw(st.sampled_from([1e-3, 0.1, 2.0, 0.0]))
        types = st.sampled_from([torch.float32, dtype])
        update = {
            "lora_A": torch.randn(rank, columns, generator=generator).to(draw(types)),
            "lora_B": (torch.randn(rows, rank, generator=generator) * min(size, 1e30)).to(draw(types)),
            "scaling": draw(st.sampled_from([1.0, 2.0, 0.3, -1.7])),
        }
    return weight, update, spec


def outcome(run, *args, **options):
    """The result, or the message it was refused with."""
    try:
        return run(*args, **options)
    except ValueError as error:
        return str(error)


@pytest.mark.nightly
@pytest.mark.parametrize("isa", ISAS)
def test_equals_the_reference(isa, monkeypatch):
    monkeypatch.setenv("QRU_ISA", isa)
    seen = Counter()

    @given(problem=problems(), threads=st.sampled_from([1, 2]))
    def compare(problem, threads):
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
        if weight.float().abs().max() < 1e15:  # above, squares overflow float32 in both, not always alike
            assert_sums(got, want, weight, want.merged)

    compare()
    print(isa, dict(seen.most_common()))
    # Each at least once in the few cases of CI (save the rarest), and at least in one of 500 of the many.
    wanted = FEATURES | {"refused", "crossed", "changed", "steps_moved"}
    if seen["cases"] < 1000:
        wanted -= {"exact ties, 8 bits", "refused"}
    assert {name: seen[name] for name in wanted if seen[name] < max(1, seen["cases"] // 500)} == {}


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
