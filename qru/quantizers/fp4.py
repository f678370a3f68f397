"""Floating point with 4 bits (sign, two of exponent, one of mantissa), as bitsandbytes stores weights in it."""

from qru.quantizers import families
from qru.quantizers.blockwise import Blockwise


@families.register("fp4")
class Float4(Blockwise):
    """``fp4-b{32,64,128,256,512,1024,2048,4096}[-dq]``. ``Blockwise`` says how.

    What the public code of SURE (arXiv 2410.16454) calls 4-bit is ``fp4-b64``.

    Source: Dettmers and Zettlemoyer 2023 (arXiv 2212.09720), values by bitsandbytes.
    """

    codebook = "fp4"
    examples = ("fp4-b64", "fp4-b64-dq", "fp4-b128")
