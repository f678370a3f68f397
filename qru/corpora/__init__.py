"""Corpora to unlearn from: embedded ones, generated from a seed; MUSE's from the Hub or a folder; your own."""

import os
from pathlib import Path

from qru.registry import unknown

from .corpus import BaseText, Corpus, registry
from .labelled import load_labelled
from .muse import REVISIONS, load_folder, load_hub
from .own import load_lines, load_texts
from .world import SIZES

__all__ = ["REVISIONS", "BaseText", "Corpus", "has_labels", "load_corpus"]


def has_labels(name: str) -> bool:
    """Whether what ``load_corpus`` takes by this name is a corpus with labels, for classifiers; nothing is loaded."""
    return getattr(registry[name], "labelled", False) if name in registry else name.casefold().endswith(".csv")


def load_corpus(
    name_or_path: str | os.PathLike, *, scale: str = "mini", seed: int = 0, revision: str | None = None
) -> Corpus:
    """Load a corpus by name, or from disk.

    Args:
        name_or_path: one of
            "books", "news": embedded, generated from the seed;
            "tweets": the same, labelled posts for classifiers;
            "muse-bench/MUSE-Books", "muse-bench/MUSE-News": from the Hub (extra ``muse``);
            a folder with ``raw/`` in it: MUSE's authors' layout, or a local copy of what the Hub has;
            a folder with ``forget/*.txt``, or a .jsonl file: your own texts, see ``qru/corpora/own.py``;
            a .csv file: your own labelled texts, see ``qru/corpora/labelled.py``.
        scale: of the embedded ones: "smoke" (about 12 of everything) or "mini" (100, as in MUSE). Others have one size.
        seed: of the embedded ones' generator; the same seed gives the same corpus on every machine.
        revision: commit, tag or branch of a corpus from the Hub; left alone, the commit in ``REVISIONS``.

    Returns:
        The corpus. Only raw["forget"] is sure to be there; ``measurable`` says for which metrics there are data. Books
        and news share their base text at a given scale and seed.

    Raises:
        ValueError: an unknown name or scale, with the nearest known one and the list; a file or the Hub as it is not
            expected to be, with what mends it. No model is loaded before.
    """
    name = os.fspath(name_or_path) if isinstance(name_or_path, os.PathLike) else name_or_path
    named = isinstance(name, str) and (name in registry or name in REVISIONS)
    if not named and not (isinstance(name, str) and name and Path(name).expanduser().exists()):
        error = unknown("corpus", name, [*registry.names(), *REVISIONS])
        raise ValueError(f"{error} Nor is there a file or folder of this name.")
    if revision is not None and name not in REVISIONS:
        raise ValueError(f"corpus {name!r} has no revisions (got {revision!r}): only those from the Hub have.")
    if name in REVISIONS:
        return load_hub(name, revision)
    if not named:
        return _load_path(Path(name).expanduser())
    if any((Path(name) / inside).is_dir() for inside in ("raw", "forget")):
        # Scored on the embedded corpus by mistake, a user's own model would look as if it knew nothing.
        raise ValueError(
            f"there is a corpus in the folder {name!r} here, named as an embedded one: write ./{name} to load it."
        )
    if scale not in SIZES:
        raise unknown("scale", scale, SIZES)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, not {seed!r}.")
    return registry[name](scale, seed)


def _load_path(path: Path) -> Corpus:
    if path.is_file():
        return load_labelled(path) if has_labels(str(path)) else load_lines(path)
    if (path / "raw").is_dir():
        return load_folder(path)
    if (path / "forget").is_dir():
        return load_texts(path)
    inside = sorted(str(sub) for sub in path.iterdir() if (sub / "raw").is_dir() or (sub / "forget").is_dir())
    meant = f" Give the path of one of those in it: {', '.join(inside)}." if inside else ""
    raise ValueError(f"{path} is no corpus: it has neither raw/ (MUSE's layout) nor forget/ (text files).{meant}")
