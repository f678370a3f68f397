"""Hypothesis profiles: a few hundred cases, the same ones while nothing changes, or ten thousand new ones
(``make nightly``)."""

import os

from hypothesis import HealthCheck, settings

from qru.ops import build_info

ISAS = len(build_info().get("isas", [])) or 1
CASES = {"ci": 120, "nightly": -(-10_000 // ISAS)}  # of a test; the main one runs once for each instruction set

settings.register_profile(
    "ci", max_examples=CASES["ci"], deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "nightly", parent=settings.get_profile("ci"), max_examples=CASES["nightly"], derandomize=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
