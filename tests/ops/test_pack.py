"""Packed words: our layout, and compressed-tensors' own packer and quantizer as an independent witness."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qru.ops import QuantSpec, merge_quantize, pack, quantize_ref, unpack
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


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_are_compressed_tensors_codes(bits, dtype):
    """On the step rule both know, 2^(N-1)-1/2, with its quantizer given our float32 steps."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils.helpers import calculate_qparams

    spec = QuantSpec(bits=bits, group_size=32, step="2^(N-1)-1/2")
    weight = weights("normal", (16, 128), dtype, 0).float()
    out = merge_quantize(weight, spec=spec)
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="group", group_size=32)
    groups = weight.view(16, -1, 32)
    scales, zeros = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    assert torch.equal(out.scales, scales)
    codes = quantize(weight, scales, zeros, args, dtype=torch.int8)
    assert torch.equal(out.codes, codes)
    assert torch.equal(out.packed, compressed.pack_to_int32(codes, bits))


@pytest.mark.parametrize("bits", BITS)
def test_kernel_packs_rows_that_do_not_fill_a_word(bits):
    weight = weights("normal", (3, 37), torch.float32, 1)
    spec = QuantSpec(bits=bits, group_size=-1)
    codes, _, _ = quantize_ref(weight, spec)
    out = merge_quantize(weight, spec=spec)
    assert torch.equal(out.packed, pack(codes, bits))
    assert torch.equal(out.codes, codes)
