"""Where things are kept. Everything generated lives under one root, whatever the working directory."""

from __future__ import annotations

import os
from pathlib import Path


def root() -> Path:
    """The folder that holds ``runs/`` and ``.cache/``.

    ``QRU_HOME`` if set; else the repository this package is imported from (papermill starts in the caller's
    directory, JupyterLab in ``notebooks/``, and both must find the same runs); else, for a package installed
    into site-packages, the working directory.
    """
    if home := os.environ.get("QRU_HOME"):
        return Path(home).expanduser().resolve()
    repository = Path(__file__).resolve().parent.parent
    return repository if (repository / "pyproject.toml").is_file() else Path.cwd()


def runs_dir() -> Path:
    """One folder per run, each with its ``record.json``."""
    return root() / "runs"


def cache_dir() -> Path:
    """Base, target and retrained models and unfinished work; safe to delete, costly to rebuild."""
    return root() / ".cache"


def file_name(name: str) -> str:
    """A name as that of a file: the slash of ``rtn-int4-g128-sym-2^(N-1)-1/2`` would be a folder."""
    return name.replace("/", "_")
