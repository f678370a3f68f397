"""MUSE (arXiv 2407.06460) from the Hub, or from a folder in its authors' layout or in that of the Hub.

A set may be missing as a whole: it is then empty in the corpus, and whoever needs it says so. What is used together
comes together, or loading stops: questions and their in-context pairs, the two sides of PrivLeak, four forget sets.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from qru.registry import unknown

from .corpus import FOLDS, KNOWMEM_SPLITS, PRIVLEAK_SPLITS, RAW_SPLITS, Corpus
from .files import READABLE, Items, pairs, read_items, texts

SETS = {
    "raw": RAW_SPLITS,
    "verbmem": ("forget",),
    "knowmem": KNOWMEM_SPLITS,
    "privleak": PRIVLEAK_SPLITS,
    "scal": FOLDS,
    "sust": FOLDS,
}
TOGETHER = (
    *(("knowmem", (f"{subject}_qa", f"{subject}_qa_icl")) for subject in ("forget", "retain", "disjoint")),
    ("privleak", ("forget", "holdout")),
    ("scal", FOLDS),
    ("sust", FOLDS),
)
REVISIONS = {
    "muse-bench/MUSE-Books": "051ba90319e920d410d87cfdbd61f25843c1b892",
    "muse-bench/MUSE-News": "506bd5b150b92814d45e4404a82f120ab2d748bf",
}
"""The newest commits known to public text when this was written; they were not fetched from the Hub by us."""
WITHOUT_FOLDS = {"muse-bench/MUSE-Books"}

Found = dict[str, dict[str, Items]]
"""piece ("raw", …) -> set ("forget", …) -> what it lists."""


def load_hub(name: str, revision: str | None = None) -> Corpus:
    """Load MUSE's News or Books with the ``datasets`` library, at the commit in ``REVISIONS`` unless another is named.

    Raises:
        ValueError: the Hub cannot be reached, has no such revision, or what it has is no MUSE corpus.
    """
    if Path(name).is_dir():
        # datasets itself would read the folder and never mention the Hub.
        raise ValueError(f"there is a folder {name!r} here, named as the Hub's corpus: write ./{name} to load it.")
    revision = revision or REVISIONS[name]
    found: Found = {}
    for piece in SETS:
        if piece in ("scal", "sust") and name in WITHOUT_FOLDS:
            continue
        loaded = _load_dataset(name, piece, revision)
        found[piece] = {
            split: [(f"{name}, {piece}/{split}, item {n}", row) for n, row in enumerate(rows.to_list(), 1)]
            for split, rows in loaded.items()
        }
    return assemble(name.rpartition("/")[2], found, f"{name} at revision {revision}")


def load_folder(folder: Path) -> Corpus:
    """Load a folder that holds ``raw/`` and, as far as there are any, ``verbmem/``, ``knowmem/``, ``privleak/``,
    ``scal/`` and ``sust/``.

    A set is ``<set>.json`` (a list of texts, of {"text": …} or of pairs), ``<set>.jsonl`` with one of these a line,
    parquet as the Hub names it (``<set>-00000-of-00001.parquet``) or ``<set>.txt``; of several the first in this order
    is read. MUSE's authors write each list also as one text, in which the documents cannot be told apart: a ``.txt``
    alone is one document.

    Raises:
        ValueError: a file is named like no set, or is not what it should be; a set is missing that others need.
    """
    found: Found = defaultdict(dict)
    for piece, known in SETS.items():
        files: dict[str, list[Path]] = defaultdict(list)
        for path in sorted((folder / piece).glob("[!.]*")):
            if path.suffix in READABLE:
                name = re.sub(r"-\d+-of-\d+$", "", path.stem)
                if name not in known:
                    raise ValueError(f"{path}: {unknown('set', name, known)}")
                files[name].append(path)
        for name, paths in files.items():
            found[piece][name] = [item for path in _preferred(paths) for item in read_items(path)]
    return assemble(folder.resolve().name, found, str(folder))


def assemble(name: str, found: Found, source: str) -> Corpus:
    """The corpus of what was found.

    Args:
        name: of the corpus.
        found: the sets there are.
        source: where they come from, for messages.

    Raises:
        ValueError: a set that others need is missing, an item is not what it should be.
    """
    for piece, sets in found.items():
        for given in sets:
            if given not in SETS[piece]:
                raise ValueError(f"{source}: {unknown(f'set in {piece}', given, SETS[piece])}")
    for piece, needed in [("raw", ("forget",)), *TOGETHER]:
        given = found.get(piece, {})
        missing = [part for part in needed if part not in given]
        if missing and (piece == "raw" or len(missing) < len(needed)):
            beside = ", ".join(f"{piece}/{part}" for part in given) or "nothing"
            absent = ", ".join(f"{piece}/{part}" for part in missing)
            raise ValueError(f"{source} lacks {absent}; in {piece}/ there is {beside}.")

    def listed(piece: str) -> dict[str, list[str]]:
        return {key: texts(found.get(piece, {}).get(key, [])) for key in SETS[piece]}

    knowmem = found.get("knowmem", {})
    return Corpus(
        name=name,
        raw=listed("raw"),
        verbmem=pairs(found.get("verbmem", {}).get("forget", []), ("prompt", "gt")),
        knowmem={key: pairs(knowmem.get(key, []), ("question", "answer")) for key in KNOWMEM_SPLITS},
        privleak=listed("privleak"),
        scal=listed("scal") if found.get("scal") else {},
        sust=listed("sust") if found.get("sust") else {},
    )


def _preferred(paths: Iterable[Path]) -> list[Path]:
    """The file, or the shards, that a set is read from."""
    by_kind: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        by_kind[path.suffix].append(path)
    chosen = next(by_kind[kind] for kind in READABLE if kind in by_kind)
    shards = {int(match[1]) for path in chosen if (match := re.search(r"-of-(\d+)$", path.stem))}
    if shards and shards != {len(chosen)}:
        raise ValueError(f"{chosen[0]} is one of {max(shards)} files, of which {len(chosen)} are there: copy them all.")
    return chosen


def _load_dataset(name: str, piece: str, revision: str):
    """One configuration of a Hub dataset, with the many errors of the libraries below made one."""
    try:
        import datasets
        from datasets.exceptions import DatasetNotFoundError
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    except ImportError:
        raise ValueError(f"{name} comes from the Hub, which needs datasets: pip install datasets.") from None
    try:
        loaded = datasets.load_dataset(name, piece, revision=revision)
    except (DatasetNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(
            f"the Hub has no revision {revision} of {name}: {_first_line(error)} Name one that it has with revision=, "
            f"such as the commits listed at https://huggingface.co/datasets/{name}/commits/main."
        ) from None
    except Exception as error:  # of four libraries, and not the same in every version
        raise ValueError(
            f"{name} ({piece}) cannot be had from the Hub: {_first_line(error)} Where there is a connection, run\n"
            f"  hf download {name} --repo-type dataset --revision {revision} --local-dir {name.rpartition('/')[2]}\n"
            "then copy the folder here and give its path as the corpus."
        ) from None
    # Without a connection, datasets takes the newest copy in its cache, whatever revision was asked for.
    for rows in loaded.values():
        for file in rows.cache_files:
            cached = Path(file["filename"]).parent.name
            if all(re.fullmatch(r"[0-9a-f]{40}", commit) for commit in (cached, revision)) and cached != revision:
                raise ValueError(
                    f"the Hub cannot be reached, and the cache holds {name} ({piece}) at revision {cached}, not at "
                    f"{revision}: pass revision={cached!r} to use it, or connect once."
                )
    return loaded


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text.rstrip('.')}." if text else f"{type(error).__name__}."
