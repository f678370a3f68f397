"""What is said before a run: by hand on small layers, and against rounding and optimizer on larger ones."""

import pytest
import torch

from qru.config import RunConfig
from qru.ops import QuantSpec
from qru.ops.grid import codes_on, dequantize, quantize_ref
from qru.optimizers import StoredBf16AdamW
from qru.prediction import edge, predict, scored, surviving

NONE = [
    {"weights": "fp32"},
    {"weights": "bf16", "moments": "fp32", "rounding": "stochastic"},
    {"adapter": "lora", "weights": "fp32"},
    {"adapter": "lora", "weights": "bf16"},
    {"adapter": "delta", "weights": "bf16"},
]


def arm(**changes) -> RunConfig:
    return RunConfig(**{"scale": "smoke", "weights": "bf16", "learning_rate": 2.6e-5, "adam_beta2": 0.95} | changes)


@pytest.mark.parametrize(
    ("rate", "beta2", "exponent"),
    [
        (1.3e-5, 0.95, -8),  # 1.165 · 1.3e-5 = 1.51e-5, under 2^-16 = 1.53e-5
        (2.6e-5, 0.95, -7),
        (2.63e-5, 0.95, -6),  # 3.06e-5, over 2^-15 = 3.05e-5
        (5.2e-5, 0.95, -6),
        (1.04e-4, 0.95, -5),
        (1.05e-4, 0.95, -4),  # 1.223e-4, just over 2^-13 = 1.221e-4
        (2.6e-5, 0.999, -4),  # 7.27 · 2.6e-5 = 1.9e-4, between 2^-13 and 2^-12
    ],
)
def test_the_edge_is_the_power_of_two_that_the_largest_step_reaches(rate, beta2, exponent):
    for moments in ("bf16", "fp32"):
        assert edge(arm(learning_rate=rate, adam_beta2=beta2, moments=moments)) == 2.0**exponent


@pytest.mark.parametrize("options", NONE, ids=lambda options: " ".join(options.values()))
def test_arms_without_a_dead_zone(options):
    assert edge(arm(**options)) is None
    found = predict(arm(**options), {"layer": torch.randn(4, 128).bfloat16()}, "rtn-int2-g128")
    expected = {"edge": None, "movable": 100.0, "hidden": 0.0, "projection": 1.0, "recovers": False}
    assert {key: found[key] for key in expected} == expected


def rows_of(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).bfloat16()


def test_a_prediction_by_hand():
    """Edge 2^-7. Steps of int4 are the largest weight over 8, so 2^-3 gives s/2 = 2^-7, just enough to hide."""
    small = 2.0**-8
    before = {
        "hides": rows_of([2.0**-3, small, -small, 0.0], [2.0**-2, small, 2.0**-6, 2.0**-6]),  # s/2: 2^-7, 2^-6
        "leaks": rows_of([2.0**-4, small, -small, -(2.0**-7)]),  # s/2 = 2^-8; -2^-7 is at the edge, not under it
    }
    found = predict(arm(), before, "rtn-int4-row")
    assert found["edge"] == 2.0**-7
    assert found["movable"] == pytest.approx(100 * 6 / 12)
    assert found["hidden"] == pytest.approx(100 * 4 / 6)
    # The third row: s = 2^-7 = edge and one boundary on either side of zero, so 1; for two of six weights.
    assert found["projection"] == pytest.approx(2 / 6)
    assert found["recovers"] is True
    assert found["zero_bin"] == 2.0**-7
    squares = [2.0**-6, 2.0**-4, 2.0**-8, 2.0**-14, *[2.0**-16] * 5, *[2.0**-12] * 2]
    assert found["sigma"] == pytest.approx((sum(squares) / 12) ** 0.5)


def test_half_of_the_movable_weights_is_not_most():
    before = {"one": rows_of([2.0**-3, 0.001], [2.0**-4, 0.001])}
    found = predict(arm(), before, "rtn-int4-row")
    assert (found["hidden"], found["recovers"]) == (50.0, False)
    assert predict(arm(), {"one": rows_of([2.0**-3, 0.001, 0.001], [2.0**-4, 0.001, 1.0])}, "rtn-int4-row")["recovers"]


def test_weights_that_cannot_move_at_all_and_groups_of_zeros():
    still = predict(arm(), {"one": rows_of([0.5, -0.25])}, "rtn-int4-row")
    assert (still["movable"], still["hidden"], still["projection"], still["recovers"]) == (0.0, 0.0, 0.0, False)
    zeros = predict(arm(), {"one": rows_of([0.0, 0.0])}, "rtn-int4-row")  # their grid comes with what they become
    assert (zeros["movable"], zeros["hidden"], zeros["projection"]) == (100.0, 0.0, 1.0)


def test_the_median_counts_weights_and_not_groups():
    """One layer of few wide groups and one of many narrow ones: of 8 + 4 weights, 8 have s/2 = 2^-5."""
    before = {"wide": torch.full((1, 8), 0.5).bfloat16(), "narrow": torch.full((4, 1), 2.0).bfloat16()}
    assert predict(arm(), before, "rtn-int4-row")["zero_bin"] == 2.0**-5


@pytest.mark.parametrize("name", ["nf4", "rtn-int5-g128", "int4-g128"])
def test_what_is_no_rtn_name_is_refused(name):
    with pytest.raises(ValueError, match=r"not a quantizer name|bits is 5"):
        predict(arm(), {"one": torch.ones(2, 128).bfloat16()}, name)


def test_groups_that_do_not_divide_a_layer_name_it():
    with pytest.raises(ValueError, match=r"some\.layer: group_size 96 does not divide"):
        predict(arm(), {"some.layer": torch.ones(2, 128).bfloat16()}, "rtn-int4-g96")


# --- against what it speaks of ----------------------------------------------------------------------------------------


def share_left(before: torch.Tensor, after: torch.Tensor, spec: QuantSpec) -> float:
    """Σ δ·ΔW / Σ ΔW² on the grid of ``before``, in fp64."""
    codes, scales, zeros = quantize_ref(before, spec)
    there = dequantize(codes_on(after, scales, zeros, spec), scales, zeros, spec)
    delta, update = (there - dequantize(codes, scales, zeros, spec)).double(), (after - before).double()
    return ((delta * update).sum() / update.square().sum()).item()


@pytest.mark.parametrize(
    ("reach", "expected"),
    [(0.49, 0.0), (0.51, 1 / 0.51), (0.8, 1 / 0.8), (1.49, 1 / 1.49), (1.51, 2 / 1.51), (6.4, 6 / 6.4)],
)
def test_what_survives_of_small_moves(reach, expected):
    """Reach in steps: boundaries at ±1/2, ±3/2 … that lie within it, over the room that there is for each."""
    torch.manual_seed(0)
    before = (2 * torch.rand(64, 8192) - 1) * reach
    before[:, 0] = 8.0  # a step of 1
    after = before + 0.002 * torch.randn_like(before)
    after[:, 0] = 8.0
    assert surviving(torch.ones(1), torch.full((1,), reach)).item() == pytest.approx(expected)
    # About 0.002 / reach of half a million weights cross: some 1000, so 3 %; more for ΔW² unlike; five times that.
    assert share_left(before, after, QuantSpec(bits=4, group_size=-1)) == pytest.approx(expected, abs=0.25)


@pytest.fixture(scope="module")
def trained():
    """A layer as large models have it, before and after 200 steps of gradients that have a direction and noise."""
    generator = torch.Generator().manual_seed(0)
    before = (0.04 * torch.randn(128, 512, generator=generator)).bfloat16()
    direction = torch.randn(before.shape, generator=generator)
    after = {}
    for name, options in (("bf16", {}), ("fp32 moments", {"moments": "fp32"}), ("delta", {"from_zero": True})):
        mirror = torch.nn.Parameter(before.float())
        optimizer = StoredBf16AdamW([mirror], lr=2.6e-5, beta2=0.95, **options)
        noise = torch.Generator().manual_seed(1)
        for _ in range(200):
            mirror.grad = direction + torch.randn(before.shape, generator=noise)
            optimizer.step()
        after[name] = mirror.detach().bfloat16()
    return before, after


@pytest.mark.parametrize("name", ["bf16", "fp32 moments"])
@pytest.mark.parametrize("quantizer", ["rtn-int8-g128", "rtn-int4-g32", "rtn-int4-tensor", "rtn-int3-g128"])
def test_the_optimizer_stays_within_what_was_predicted(quantizer, name, trained):
    before, after = trained[0], trained[1][name]
    spec = QuantSpec.parse(quantizer)
    said = predict(arm(), {"layer": before}, quantizer)
    size = before.float().abs()
    moved = before != after
    assert 100 * moved.float().mean().item() <= said["movable"]
    assert not moved[size > said["edge"]].any()
    assert moved[size < said["edge"] / 2].float().mean() > 0.99
    left = share_left(before.float(), after.float(), spec)
    if said["hidden"] == 100:
        assert left == 0.0
        assert said["projection"] == 0.0
    elif quantizer == "rtn-int8-g128":
        assert left == pytest.approx(said["projection"], abs=0.1)
    assert said["recovers"] == (left < 0.5)


def test_a_difference_from_zero_goes_through_the_same_grids(trained):
    """The control: the same steps at the same rate, and nothing is hidden even from int3."""
    before, after = trained[0], trained[1]["delta"]
    assert (before != after)[before.float().abs() > 2.0**-7].float().mean() > 0.9
    assert share_left(before.float(), after.float(), QuantSpec.parse("rtn-int3-g128")) == pytest.approx(1, abs=0.25)


def test_the_score_counts_every_row_once():
    rows = [(True, True), (True, True), (False, False), (True, False), (False, True), (False, True), (True, None)]
    assert scored(iter(rows)) == {
        "n": 7, "right": 3, "wrong": 3, "undecided": 1, "false_alarms": 1, "missed": 2,
    }  # fmt: skip
    assert set(scored([]).values()) == {0}


def test_layers_are_foreseen_one_by_one():
    """Of two layers the one with the larger weights has the wider zero bin, and hides what the other does not."""
    config = RunConfig(method="ga_klr", learning_rate=2.6e-5)
    narrow, wide = torch.full((4, 128), 0.005), torch.full((4, 128), 0.005)
    narrow[:, 0], wide[:, 0] = 0.02, 0.5  # int4: zero bins of 0.02/16 and 0.5/16; the edge is 2^-7
    before = {"narrow": narrow.bfloat16(), "wide": wide.bfloat16()}
    found = predict(config, before, "rtn-int4-g128")
    assert found["edge"] == 2.0**-7
    assert {name: layer["hidden"] for name, layer in found["layers"].items()} == {"narrow": 0.0, "wide": 100.0}
    assert found["layers"]["wide"]["zero_bin"] == 0.5 / 16
    assert found["hidden"] == 50.0
