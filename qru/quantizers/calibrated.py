"""Names of calibrated quantizers: a grid as RTN's, and the text that they are calibrated on."""

from __future__ import annotations

from qru.ops import QuantSpec
from qru.quantizers import CALIBRATION_TEXTS, misspelt

DEFAULT = "retain"  # text that a deployer of an unlearned model has, and may show to it


def parse(name: str, method: str) -> tuple[QuantSpec, str, str]:
    """``gptq-int4-g128-forget`` -> its grid, the text it is calibrated on, and the name without what is default.

    Raises:
        ValueError: the name does not read so.
    """
    grid, _, text = name.rpartition("-")
    if text not in CALIBRATION_TEXTS:
        grid, text = name, DEFAULT
    try:
        spec = QuantSpec.parse("rtn" + grid.removeprefix(method))
    except ValueError as error:
        texts = "|".join(CALIBRATION_TEXTS)
        form = f"{method}-int{{2|3|4|8}}-{{g<size>|row|tensor}}[-sym|-asym][-<step rule>][-<scale dtype>][-{{{texts}}}]"
        raise misspelt(name, form) from error
    exact = spec.name.replace("rtn", method, 1)
    return spec, text, exact if text == DEFAULT else f"{exact}-{text}"
