"""The door of a notebook: its parameters, checked before anything runs.

papermill only warns about a parameter that a notebook does not have, and not even that when the executed notebook
goes to standard output. A misspelt ``-p`` would then run for minutes with the default and look like a result.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from qru.registry import unknown

INJECTED = "# Parameters"  # how the cell that papermill puts behind the parameters cell begins
TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "object": str | int | float}
CALLED = {"object": "a name or a number"}


def declared_parameters(source: str) -> dict[str, tuple[str, Any]] | None:
    """Read a parameters cell: one ``name: type = literal`` a line.

    Args:
        source: of a cell.

    Returns:
        name -> (type name, default), or ``None`` if the cell is anything else.
    """
    try:
        statements = ast.parse(source).body
    except SyntaxError:
        return None
    found = {}
    for statement in statements:
        plain = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value
        if not plain or not isinstance(statement.annotation, ast.Name) or statement.annotation.id not in TYPES:
            return None
        try:
            found[statement.target.id] = (statement.annotation.id, ast.literal_eval(statement.value))
        except ValueError:
            return None
    return found or None


def assigned_names(source: str) -> list[str]:
    """Names that a cell assigns at its top level, in order."""
    names = []
    for statement in ast.parse(source).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def checked(name: str, kind: str, default: Any, value: Any) -> Any:
    """A parameter's value in its declared type.

    Args:
        name: of the parameter.
        kind: ``"str"``, ``"int"``, ``"float"``, ``"bool"``, ``"list"``, or ``"object"`` for a name or a number.
        default: a parameter whose default is ``None`` may be ``None``.
        value: as the notebook has it; a list may be given as text with commas, since ``-p`` carries only scalars.

    Raises:
        ValueError: it has another type (names the parameter, the value and what it must be).
    """
    if value is None and default is None:
        return None
    if kind == "list" and isinstance(value, str):
        return [part for part in (piece.strip() for piece in value.split(",")) if part]
    if kind == "list" and isinstance(value, tuple):
        return list(value)
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, TYPES[kind]) or (kind != "bool" and isinstance(value, bool)):
        also = " or None" if default is None else " (text with commas)" if kind == "list" else ""
        what = CALLED.get(kind, kind)
        raise ValueError(f"parameter {name!r} is {value!r}, a {type(value).__name__}; it must be {what}{also}.")
    return value


def check_parameters(cells: Sequence[str] | None = None, namespace: dict[str, Any] | None = None) -> dict[str, Any]:
    """Hold what a notebook was given against what it declares; call it in the cell after ``parameters``.

    In JupyterLab cells run in any order and more than once: the last parameters cell that ran counts, and only what
    papermill injected after it.

    Args:
        cells: the sources that ran so far; by default IPython's ``In``.
        namespace: where the parameters are; by default the notebook's.

    Returns:
        The declared parameters, in order, with the values that hold now; the notebook's own names are set to them.

    Raises:
        ValueError: a parameter that the notebook does not declare (names the nearest, and all), a value of another
            type, or no parameters cell has run.
    """
    if cells is None or namespace is None:
        from IPython import get_ipython  # not a dependency of the package: whoever runs a notebook has it

        shell = get_ipython()
        if shell is None:
            raise RuntimeError("check_parameters() reads the cells of a notebook; outside one, call qru.run(...).")
        namespace = shell.user_ns if namespace is None else namespace
        cells = namespace["In"] if cells is None else cells
    injected: list[str] = []
    for source in reversed(cells):
        if declared := declared_parameters(source):
            break
        if source.lstrip().startswith(INJECTED):
            injected += assigned_names(source)
    else:
        raise ValueError("no parameters cell has run (lines such as `seed: int = 0  # help`): run that cell first.")
    for name in injected:
        if name not in declared:
            raise unknown("parameter", name, declared)
    values = {name: checked(name, kind, default, namespace[name]) for name, (kind, default) in declared.items()}
    namespace.update(values)  # cells that use the names see them as they are declared, too
    return values
