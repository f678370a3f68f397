"""The folder is the registry: a new method, quantizer, corpus or metric is one file with one decorated function."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name nobody registered: the name, the nearest known one, and the whole list."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")


class Registry:
    """Names -> objects of one kind, filled by importing every module of one package.

    Args:
        kind: what the entries are, in the singular, for messages ("corpus").
        package: dotted name of the package whose modules hold the entries ("qru.corpora").
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Any] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator that files an object under ``name``; a name taken twice is a mistake in the code."""

        def keep(entry: Any) -> Any:
            assert name not in self._entries, f"two {self.kind} entries are called {name!r}"
            self._entries[name] = entry
            return entry

        return keep

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __getitem__(self, name: str) -> Any:
        self._load()
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]
