"""NF4, FP4 and int8 against the layers of bitsandbytes that people deploy, and against their definitions."""

import pytest
import torch

from qru.quantizers import Update, load_quantizer
from qru.quantizers.llm_int8 import rounded_activations

bitsandbytes = pytest.importorskip("bitsandbytes")
functional = pytest.importorskip("bitsandbytes.functional")

SHAPES = [(256, 256), (768, 256), (256, 768), (40, 50), (3, 129)]  # mini's layers; blocks over row ends; an odd number
NAMES = ["nf4-b64", "fp4-b64", "nf4-b32", "fp4-b128", "nf4-b4096"]


def weight_of(shape, seed=0):
    """Values as a model's, with zero rows, values halfway between two of the codebook, and both zeros."""
    weight = (0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).bfloat16()
    weight[1] = 0.0
    weight[0, :16] = torch.tensor([1.0, 0.5, -0.5, 0.25, -0.25, 0.75, -0.75, 0.0, -0.0] + [0.125] * 7)
    return weight


def unpacked(packed, weight):
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten()
    return codes[: weight.numel()].view(weight.shape)


def deployed(weight, kind, **options):
    """The layer as transformers makes it: quantized when it is moved to its device."""
    out, width = weight.shape
    layer = bitsandbytes.nn.Linear4bit(width, out, bias=False, compute_dtype=torch.float32, quant_type=kind)
    layer.weight = bitsandbytes.nn.Params4bit(weight.clone(), requires_grad=False, quant_type=kind, **options)
    return layer.to("cpu")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_codes_are_those_of_the_deployed_layer(name, shape):
    quantizer, weight = load_quantizer(name), weight_of(shape)
    layer = deployed(weight, quantizer.codebook, blocksize=quantizer.block, compress_statistics=False)
    expected = unpacked(layer.weight.data, weight)
    codes, largest = quantizer.stored(weight)
    assert torch.equal(codes, expected)
    assert torch.equal(largest, layer.weight.quant_state.absmax)
    assert torch.equal(quantizer.codes_on(weight, largest), expected)  # what the library does not offer for another's


@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("name", ["nf4-b64", "fp4-b64", "nf4-b64-dq", "fp4-b64-dq", "nf4-b256-dq"])
def test_values_are_those_of_the_deployed_layer(name, shape):
    quantizer, weight = load_quantizer(name), weight_of(shape)
    options = {"blocksize": quantizer.block, "compress_statistics": name.endswith("dq")}
    layer = deployed(weight, quantizer.codebook, **options)
    state = layer.weight.quant_state
    state.dtype = torch.float32  # what the codes stand for, before it is rounded to the type that a product is taken in
    values, stats = quantizer(weight, Update(new_weight=weight), "layer")
    assert torch.equal(values, functional.dequantize_4bit(layer.weight.data, state))
    assert stats["crossed"] == stats["changed"] == stats["moved"] == 0


def test_double_quantization_rounds_scales_and_keeps_codes():
    weight = weight_of((256, 256))
    plain, double = load_quantizer("nf4-b64").rounded(weight), load_quantizer("nf4-b64-dq").rounded(weight)
    assert torch.equal(plain.codes, double.codes)
    assert not torch.equal(plain.values, double.values)
    assert (plain.values - double.values).abs().max() < 0.1 * weight.abs().max()


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_code_is_the_nearest_value_of_the_codebook(name):
    quantizer, weight, other = load_quantizer(name), weight_of((40, 50)), weight_of((40, 50), seed=1)
    _, largest = quantizer.stored(weight)
    book = functional.get_4bit_type(quantizer.codebook, device="cpu").double()
    scale = torch.cat([block.abs().max().clamp(min=1e-38).expand(len(block)) for block in weight.flatten().split(64)])
    for values in (weight, other):  # the second on the grid of the first
        wanted = (values.flatten().double() / scale.double()).clamp(-1, 1)
        codes = quantizer.codes_on(values, largest).flatten().long()
        nearest = (wanted[:, None] - book).abs().min(1).values
        assert ((wanted - book[codes]).abs() - nearest).abs().max() < 1e-7


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_halfway_between_two_values_the_lower_is_taken(kind):
    quantizer = load_quantizer(f"{kind}-b32")
    book = functional.get_4bit_type(kind, device="cpu").unique()
    weight = torch.ones(1, 32)
    edges = (book[:-1] + book[1:]) / 2
    weight[0, : len(edges)] = edges
    codes, largest = quantizer.stored(weight)
    assert torch.equal(quantizer.codes_on(weight, largest), codes)
    values, _ = quantizer(weight, Update(new_weight=weight), "layer")
    assert torch.equal(values[0, : len(edges)], book[:-1])


def test_blocks_run_over_the_ends_of_rows():
    quantizer = load_quantizer("nf4-b64")
    weight = torch.full((2, 48), 0.1)
    before, _ = quantizer(weight, Update(new_weight=weight), "layer")
    changed = weight.clone()
    changed[1, 15] = 1.0  # the last of the first block: 48 of row 0 and 16 of row 1
    after, _ = quantizer(weight, Update(new_weight=changed), "layer")
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1, 16:], after[1, 16:])


def test_what_crosses_is_counted_by_value_on_the_frozen_grid():
    """A block of 64 with largest value 1: NF4's boundary over zero is 0.0398, FP4's 0.0026; FP4 has two zeros."""
    weight = torch.zeros(1, 64)
    weight[0, 0] = 1.0
    weight[0, 1:5] = torch.tensor([0.039, 0.039, -0.001, 0.7])
    after = weight.clone()
    after[0, 1:5] = torch.tensor([0.0395, 0.041, 0.001, 0.75])
    _, nf4 = load_quantizer("nf4-b64")(weight, Update(new_weight=after), "layer")
    assert (nf4["moved"], nf4["crossed"], nf4["changed"]) == (4, 1, 1)  # 0.041; 0.7229… reaches from 0.643 to 0.861
    assert nf4["histogram"][:3] == [63, 1, 0]
    _, fp4 = load_quantizer("fp4-b64")(weight, Update(new_weight=after), "layer")
    assert (fp4["moved"], fp4["crossed"]) == (4, 0)  # −0 → +0 is no crossing; 0.7 and 0.75 are 0.667
    # NF4's bins: of 0 (−0.0455 to 0.0398), and of 0.72 (0.6428 to 0.8615).
    expected = (0.0005 + 0.002 + 0.002) / (0.0397902 + 0.0455250) + 0.05 / (0.8614784 - 0.6427869)
    assert nf4["predicted"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_codes_are_those_of_the_deployed_layer(shape):
    weight = weight_of(shape)
    layer = bitsandbytes.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False).to("cpu")
    codes, largest = layer.CB, layer.SCB
    values, stats = load_quantizer("llm-int8")(weight, Update(new_weight=weight), "layer")
    assert torch.equal(values, functional.int8_vectorwise_dequant(codes, largest))
    assert torch.equal(values[1], torch.zeros(shape[1]))
    assert stats["crossed"] == 0
    torch.testing.assert_close(values, weight.float(), rtol=0, atol=0.51 * weight.abs().max().item() / 127)


def test_int8_products_are_those_of_the_deployed_layer_token_by_token():
    weight = weight_of((32, 64))
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    x[0, 3], x[2, 7], x[2, 8], x[3] = 9.0, -6.0, 5.99, 0.0
    layer = bitsandbytes.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = bitsandbytes.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu").eval()
    values, _ = load_quantizer("llm-int8")(weight, Update(new_weight=weight), "layer")
    ours = rounded_activations(x) @ values.T
    for token, mine in zip(x, ours, strict=True):
        if token.any():  # bitsandbytes divides by the largest value of a token, which is zero in a token of zeros
            torch.testing.assert_close(layer(token[None])[0], mine, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours[:3], x[:3] @ values.T, rtol=1e-4, atol=1e-5)
    assert torch.equal(ours[3], torch.zeros(32))


def test_outliers_pass_unrounded():
    x = torch.tensor([[0.01234, 1.0, 6.0, -123.456]])
    out = rounded_activations(x)[0]
    assert out[2:].tolist() == x[0, 2:].tolist()
    assert out[0].item() == pytest.approx(2 / 127)  # 1.567 steps of 1/127
    assert load_quantizer("llm-int8-weights").activations is None


def test_a_weight_beyond_fp16_names_the_layer():
    weight = torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"layers\.0\.up.*updated weight reaches 1000000\.0, which fp16"):
        load_quantizer("llm-int8")(weight, Update(new_weight=1e6 * weight), "layers.0.up")


@pytest.mark.parametrize("name", ["nf4-b64", "fp4-b64-dq", "llm-int8"])
def test_nan_names_the_layer(name):
    weight = torch.ones(2, 64)
    with pytest.raises(ValueError, match=r"layers\.0\.up.*nan"):
        load_quantizer(name)(weight, Update(new_weight=weight * torch.nan), "layers.0.up")
