"""Any corpus written to disk as MUSE's authors keep theirs: lists of strings in JSON, and the same joined in .txt."""

from __future__ import annotations

import json
from pathlib import Path

from qru.corpora import Corpus


def write_muse_folder(path: Path | str, corpus: Corpus) -> Path:
    """Write ``raw/``, ``verbmem/``, ``knowmem/``, ``privleak/``, ``scal/`` and ``sust/``; sets without content are left
    out, and so is the base text, for which the layout has no place.

    Returns:
        The folder, for ``load_corpus``.
    """
    path = Path(path)
    texts = {"raw": corpus.raw, "scal": corpus.scal, "sust": corpus.sust}
    lists = {"verbmem": {"forget": corpus.verbmem}, "knowmem": corpus.knowmem, "privleak": corpus.privleak}
    for piece, sets in (texts | lists).items():
        for name, items in sets.items():
            if not items:
                continue
            (path / piece).mkdir(parents=True, exist_ok=True)
            (path / piece / f"{name}.json").write_text(json.dumps(items), encoding="utf-8")
            if piece in texts:
                (path / piece / f"{name}.txt").write_text("\n\n".join(items), encoding="utf-8")
    return path
