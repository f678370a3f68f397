"""Corpora to unlearn from: two embedded ones, generated from a seed, in the splits of MUSE."""

from qru.registry import unknown

from .corpus import BaseText, Corpus, registry
from .world import SIZES

__all__ = ["BaseText", "Corpus", "load_corpus"]


def load_corpus(name_or_path: str, *, scale: str = "mini", seed: int = 0) -> Corpus:
    """Load a corpus by name.

    Args:
        name_or_path: "books" or "news".
        scale: "smoke" (about 12 of everything) or "mini" (100, as in MUSE).
        seed: of the generator; the same seed gives the same corpus on every machine.

    Returns:
        The corpus; the two embedded ones share their base text at a given scale and seed.

    Raises:
        ValueError: for an unknown name or scale, with the nearest known one and the list.
    """
    if not isinstance(name_or_path, str) or name_or_path not in registry:
        raise unknown("corpus", name_or_path, registry.names())
    if scale not in SIZES:
        raise unknown("scale", scale, SIZES)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, not {seed!r}.")
    return registry[name_or_path](scale, seed)
