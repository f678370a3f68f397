"""NormalFloat with 4 bits: the 16 quantiles of a normal distribution that bitsandbytes stores weights in."""

from qru.quantizers import families
from qru.quantizers.blockwise import Blockwise


@families.register("nf4")
class NormalFloat4(Blockwise):
    """``nf4-b{32,64,128,256,512,1024,2048,4096}[-dq]``; QLoRA's is ``nf4-b64-dq``. ``Blockwise`` says how.

    Source: Dettmers et al. 2023, "QLoRA" (arXiv 2305.14314), §3; values by bitsandbytes.
    """

    codebook = "nf4"
    examples = ("nf4-b64", "nf4-b64-dq", "nf4-b128")
