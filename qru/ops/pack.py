"""Packing of integer codes into 32-bit words along the input dimension, as compressed-tensors' pack-quantized does.

Code j of a word sits in bits [N*j, N*j + N), low first, as the unsigned value q + 2^(N-1). A row that does not fill its
last word is padded with zero bits. 3-bit codes do not divide a word and stay int8.
"""

import torch


def codes_per_word(bits: int) -> int | None:
    """How many codes an int32 word holds: 16, 8 or 4 for 2, 4 or 8 bits; None for 3 bits, which stay int8."""
    return {2: 16, 4: 8, 8: 4}.get(bits)


def packed_width(columns: int, bits: int) -> int:
    """Length of a packed row in elements of its storage type (int32 words, or int8 codes for 3 bits)."""
    per_word = codes_per_word(bits)
    return columns if per_word is None else -(-columns // per_word)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes into what is stored.

    Args:
        codes: int8 (out, in), each in [-2^(N-1), 2^(N-1) - 1].
        bits: 2, 3, 4 or 8.
    Returns:
        int32 (out, ceil(in / (32 / bits))), or the codes themselves for 3 bits.
    """
    per_word = codes_per_word(bits)
    if per_word is None:
        return codes
    rows, columns = codes.shape
    fields = torch.zeros(rows, packed_width(columns, bits) * per_word, dtype=torch.int32, device=codes.device)
    fields[:, :columns] = codes.int() + 2 ** (bits - 1)
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=codes.device)
    # The fields do not overlap, so their sum modulo 2^32 is their union.
    return (fields.view(rows, -1, per_word) << shifts).sum(-1, dtype=torch.int32)


def unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """The int8 codes (out, in) that ``pack`` was given; ``columns`` is in."""
    per_word = codes_per_word(bits)
    if per_word is None:
        return packed
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=packed.device)
    fields = (packed[..., None] >> shifts) & (2**bits - 1)
    return (fields.view(packed.shape[0], -1)[:, :columns] - 2 ** (bits - 1)).to(torch.int8).contiguous()
