"""Packed words: our layout, and compressed-tensors' own packer and quantizer as an independent witness."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qru.ops import QuantSpec, build_info, merge_quantize, pack, quantize_ref, unpack
from qru.ops.grid import BITS
from qru.ops.pack import packed_width
from tests.ops.matrices import weights

compressed = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")


def random_codes(rows, columns, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), dtype=torch.int8, generator=generator)


@given(st.integers(1, 5), st.integers(1, 70), st.sampled_from(BITS), st.integers(0, 1000))
def test_unpack_undoes_pack(rows, columns, bits, seed):
    codes = random_codes(rows, columns, bits, seed)
    packed = pack(codes, bits)
    assert packed.shape == (rows, packed_width(columns, bits))
    assert torch.equal(unpack(packed, bits, columns), codes)


@given(st.integers(1, 5), st.integers(1, 70), st.sampled_from([2, 4, 8]), st.integers(0, 1000))
def test_words_are_compressed_tensors_words(rows, columns, bits, seed):
    codes = random_codes(rows, columns, bits, seed)
    assert torch.equal(pack(codes, bits), compressed.pack_to_int32(codes, bits))


def test_first_nibble_is_the_lowest():
    codes = torch.tensor([[-8, 7, -8, -8, -8, -8, -8, 1]], dtype=torch.int8)
    assert pack(codes, 4).item() & 0xFFFFFFFF == 0x900000F0


@pytest.mark.parametrize("isa", build_info().get("isas", ["reference"]))
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, -1])
@pytest.mark.parametrize("kind", ["normal", "ties", "wide"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_checkpoint_is_compressed_tensors_checkpoint(isa, bits, group, kind, dtype, monkeypatch):
    """Steps, codes and words from its own observer, quantizer and packer, of the weight after an adapter's merge.

    The step rule that both know is 2^(N-1)-1/2. Its quantizer divides in the weight's type; ours always in float32,
    so it is given float32.
    """
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils.helpers import calculate_qparams

    if isa != "reference":
        monkeypatch.setenv("QRU_ISA", isa)
    spec = QuantSpec(bits=bits, group_size=group, step="2^(N-1)-1/2")
    weight = weights(kind, (19, 192), dtype, 0, spec)
    generator = torch.Generator().manual_seed(1)
    lora_A, lora_B = torch.randn(3, 192, generator=generator) * 0.01, torch.randn(19, 3, generator=generator) * 0.01
    if kind == "ties":
        lora_A *= 0  # a merge would move weights off their ties
    out = merge_quantize(weight, lora_A, lora_B, spec=spec, merged=True)
    after = out.merged.float()

    strategy = {"strategy": "group", "group_size": 32} if group == 32 else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=True, **strategy)
    groups = after.view(19, -1, 192 if group == -1 else group)
    scales, zeros = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    assert torch.equal(out.scales, scales)
    assert torch.equal(out.codes, quantize(after, scales, zeros, args, dtype=torch.int8))
    state = {"weight": after, "weight_scale": scales, "weight_zero_point": zeros}
    stored = PackedQuantizationCompressor.compress(state, QuantizationScheme(targets=["Linear"], weights=args))
    assert torch.equal(out.packed, stored["weight_packed"])
    assert out.packed.dtype == stored["weight_packed"].dtype == torch.int32
    assert out.shape == tuple(stored["weight_shape"].tolist())


@pytest.mark.parametrize("bits", [4, 8])
def test_steps_stored_in_bfloat16_are_compressed_tensors_steps(bits):
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils.helpers import calculate_qparams

    weight = weights("normal", (16, 128), torch.bfloat16, 0)
    spec = QuantSpec(bits=bits, group_size=32, step="2^(N-1)-1/2", scale_dtype="bfloat16")
    out = merge_quantize(weight, spec=spec)
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="group", group_size=32)
    groups = weight.view(16, -1, 32)
    scales, zeros = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    assert scales.dtype == torch.bfloat16
    assert torch.equal(out.scales, scales.float())
    codes = quantize(weight.float(), scales.float(), zeros, args, dtype=torch.int8)
    assert torch.equal(out.packed, compressed.pack_to_int32(codes, bits))


@pytest.mark.parametrize("bits", BITS)
def test_kernel_packs_rows_that_do_not_fill_a_word(bits):
    weight = weights("normal", (3, 37), torch.float32, 1)
    spec = QuantSpec(bits=bits, group_size=-1)
    codes, _, _ = quantize_ref(weight, spec)
    out = merge_quantize(weight, spec=spec)
    assert torch.equal(out.packed, pack(codes, bits))
    assert torch.equal(out.codes, codes)
