"""GPTQ against a slow float64 version of its equations, and against what it must become in special cases."""

import pytest
import torch

from qru.ops import QuantSpec
from qru.ops.grid import codes_on, dequantize, grid_of, quantize_ref
from qru.quantizers import Inputs, Update, gptq, load_quantizer

SPECS = [
    QuantSpec(4, 8), QuantSpec(3, -1), QuantSpec(4, "tensor"), QuantSpec(4, 16, symmetric=False),
    QuantSpec(2, 24), QuantSpec(8, 12, step="2^(N-1)-1/2"),
]  # fmt: skip


def drawn(rows=10, columns=48, tokens=400, seed=0):
    """A weight and inputs whose features go together, as a layer's do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    x = torch.randn(tokens, columns, generator=generator) @ (mixing + 0.3 * torch.eye(columns))
    return 0.1 * torch.randn(rows, columns, generator=generator), x


def inputs_of(x):
    x = x.double()
    return Inputs(x.T @ x / len(x), x.abs().mean(0), len(x))


def slow(weight, x, spec, grid=None):
    """Optimal brain quantization in a fixed order, with the inverse Hessian updated column by column, in float64."""
    hessian = x.double().T @ x.double() / len(x)
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    inverse = torch.linalg.inv(hessian)
    left, columns = weight.double().clone(), weight.shape[1]
    width = spec.group_size if isinstance(spec.group_size, int) and spec.group_size > 0 else columns
    row = QuantSpec(spec.bits, -1, spec.symmetric, spec.step)
    codes = torch.zeros(weight.shape, dtype=torch.int8)
    for j in range(columns):
        if j % width == 0:
            whole = spec if spec.group_size == "tensor" else row
            if grid is None:
                scales, zeros = grid_of(left[:, j : j + width], whole)
            else:
                group = slice(j // width, j // width + 1)
                scales, zeros = grid[0][:, group], None if grid[1] is None else grid[1][:, group]
            scales = scales.expand(len(weight), 1)
            zeros = None if zeros is None else zeros.expand(len(weight), 1)
        codes[:, j : j + 1] = q = codes_on(left[:, j : j + 1], scales, zeros, row)
        value = dequantize(q, scales, zeros, row).double()[:, 0]
        left[:, j:] -= ((left[:, j] - value) / inverse[j, j])[:, None] * inverse[j, j:]
        inverse = inverse - inverse[:, j : j + 1] * inverse[j : j + 1] / inverse[j, j]
    return codes


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("block", [128, 16])
def test_codes_equal_those_of_the_slow_version(spec, block, monkeypatch):
    monkeypatch.setattr(gptq, "BLOCK", block)  # errors reach the columns behind a block together
    weight, x = drawn()
    codes, (scales, zeros) = gptq.rounded(weight, spec, gptq.compensation(inputs_of(x).gram))
    assert torch.equal(codes, slow(weight, x, spec))
    assert codes.unique().numel() > 3
    assert not torch.equal(codes, quantize_ref(weight, spec)[0])
    other, _ = drawn(seed=1)
    frozen, _ = gptq.rounded(other, spec, gptq.compensation(inputs_of(x).gram), (scales, zeros))
    assert torch.equal(frozen, slow(other, x, spec, (scales, zeros)))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_inputs_that_do_not_go_together_give_round_to_nearest(spec):
    weight, _ = drawn()
    codes, grid = gptq.rounded(weight, spec, gptq.compensation(torch.eye(48, dtype=torch.float64)))
    expected, scales, zeros = quantize_ref(weight, spec)
    assert torch.equal(codes, expected)
    assert torch.equal(grid[0], scales)
    assert (zeros is None and grid[1] is None) or torch.equal(grid[1], zeros)


@pytest.mark.parametrize("bits", [4, 3])
def test_the_error_on_its_inputs_is_below_that_of_round_to_nearest(bits):
    weight, x = drawn(rows=32, columns=128, tokens=1000)
    values, _ = load_quantizer(f"gptq-int{bits}-g64")({"layer": (weight, Update(new_weight=weight))}, inputs_of(x))[
        "layer"
    ]
    spec = QuantSpec(bits, 64)
    nearest = dequantize(*quantize_ref(weight, spec), spec)
    errors = [((w - weight) @ x.T).square().sum().item() for w in (values, nearest)]
    assert errors[0] < 0.7 * errors[1]


def test_weights_of_inputs_that_are_never_used_are_rounded_to_nearest():
    weight, x = drawn()
    x[:, [0, 20, 47]] = 0.0
    codes, _ = gptq.rounded(weight, QuantSpec(4, -1), gptq.compensation(inputs_of(x).gram))
    expected, _, _ = quantize_ref(weight, QuantSpec(4, -1))
    assert torch.equal(codes[:, [0, 20, 47]], expected[:, [0, 20, 47]])
    assert not torch.equal(codes, expected)
    nothing, _ = gptq.rounded(weight, QuantSpec(4, -1), gptq.compensation(torch.zeros(48, 48)))
    assert torch.equal(nothing, expected)


def test_what_is_counted():
    weight, x = drawn()
    inputs, spec = inputs_of(x), QuantSpec(4, 16)
    generator = torch.Generator().manual_seed(3)
    after = weight + 0.002 * torch.randn(weight.shape, generator=generator)
    quantizer = load_quantizer("gptq-int4-g16")
    found = quantizer({"a": (weight, Update(new_weight=weight)), "b": (weight, Update(new_weight=after))}, inputs)
    assert found["a"][1]["moved"] == found["a"][1]["changed"] == found["a"][1]["crossed"] == 0
    base, new = slow(weight, x, spec), slow(after, x, spec)
    _, grid = gptq.rounded(weight, spec, gptq.compensation(inputs.gram))
    stats = found["b"][1]
    assert stats["changed"] == int((new != base).sum())
    assert stats["crossed"] == int((slow(after, x, spec, grid) != base).sum())
    steps = grid[0].repeat_interleave(16, 1)
    assert stats["predicted"] == pytest.approx(((after - weight).abs() / steps).clamp(max=1).sum().item(), rel=1e-5)
    assert stats["changed"] > 1.5 * stats["predicted"]  # errors carry over
    assert sum(stats["histogram"]) == stats["weights"] == weight.numel()
    delta = found["b"][0] - found["a"][0]
    assert stats["sum_q2"] == pytest.approx(delta.double().square().sum().item(), rel=1e-6)
