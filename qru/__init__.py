"""qru: does what a language model forgot come back when it is quantized, and why?

The public names below are imported when they are first used, so ``import qru`` is instant and needs no torch.
"""

import logging
import os
from importlib import import_module

# OpenMP threads that spin while they wait are several times slower than one thread as soon as another process wants
# the core. Read when torch is first imported; a value of the user's own stays.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# peft imports bitsandbytes where it is installed, and on processors with AVX512-BF16 that asks for a downloadable
# matrix product which nothing here uses. Only this one message is dropped; the logger's others pass.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "Failed to load CPU gemm_4bit_forward" not in str(record.msg)
)

_HOMES = {
    "load_corpus": "qru.corpora",
    "load_models": "qru.models",
    "run": "qru.pipeline",
    "evaluate": "qru.metrics",
    "audit": "qru.compress",
    "certify": "qru.certificate",
    "quantize_checkpoint": "qru.ship",
    "QuantSpec": "qru.ops",
    "merge_quantize": "qru.ops",
    "load_record": "qru.records",
    "RunConfig": "qru.config",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'qru' has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
