"""``experiments.yaml`` -> the runs and artefacts of one scale; every name is checked before anything starts."""

from __future__ import annotations

import functools
import itertools
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from qru.config import SCALES, RunConfig, choice, digest
from qru.notebook import checked, declared_parameters
from qru.records import load_record, read_json, say, write_json
from qru.registry import unknown

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
RUN = NOTEBOOKS / "02_unlearn.ipynb"
KINDS = {"table": ("tables", (".typ", ".tex")), "fig": ("figures", (".pdf", ".svg"))}
TOP = ("defaults", "experiments", "artefacts")
EXPERIMENT = ("why", "each", "smoke")
ARTEFACT = ("why", "experiments", "parameters")


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        name: of its record and notebook; it holds a digest of the resolved configuration, so a changed setting is
            another run.
        parameters: of ``02_unlearn.ipynb``, only those that the file sets.
        config: the same with every default filled in, as the record will have it.
    """

    name: str
    parameters: dict[str, Any]
    config: dict[str, Any]


@dataclass(frozen=True)
class Artefact:
    """One table or figure: its notebook, where it goes, and the runs that it shows."""

    notebook: str
    stem: str
    files: tuple[str, ...]
    parameters: dict[str, Any]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Everything one build makes: ``cells`` and ``artefacts`` by name."""

    cells: dict[str, Cell]
    artefacts: dict[str, Artefact]


def plan(path: Path, scale: str, kept: Path | None = None) -> Plan:
    """Read and check the declared experiments.

    Args:
        path: of ``experiments.yaml``.
        scale: ``"smoke"`` (one cell an experiment) or ``"mini"``.
        kept: file that remembers the plan, so that reading it again needs no import of torch; it holds for one state
            of the declaration and of the package.

    Raises:
        ValueError: an unknown or impossible name or value (names file, line and experiment).
    """
    choice("scale", scale, SCALES)
    sources = [path, *sorted(Path(__file__).parent.rglob("*.py")), *sorted(NOTEBOOKS.glob("*.ipynb"))]
    key = digest([scale, *(source.read_text() for source in sources)])
    if kept and kept.is_file():
        try:
            found = read_json(kept)
        except ValueError:
            found = {}
        if found.get("key") == key:
            return Plan(
                {name: Cell(**cell) for name, cell in found["cells"].items()},
                {name: Artefact(**artefact) for name, artefact in found["artefacts"].items()},
            )
    made = _plan(path, scale)
    if kept:
        write_json(kept, {"key": key} | asdict(made))
    return made


def _plan(path: Path, scale: str) -> Plan:
    declared, lines = _read(path)
    cells: dict[str, Cell] = {}
    of_experiment: dict[str, list[str]] = {}
    for name, entry in declared["experiments"].items():
        where = f"{path}:{lines['experiments', name]}: experiment {name!r}"
        try:
            found = _cells(declared["defaults"], entry, scale)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
        cells |= {cell.name: cell for cell in found}
        of_experiment[name] = [cell.name for cell in found]
    artefacts = {}
    for name, entry in declared["artefacts"].items():
        try:
            artefacts[name] = _artefact(name, entry, of_experiment)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}:{lines['artefacts', name]}: artefact {name!r}: {error}") from error
    return Plan(cells, artefacts)


def _read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, str], int]]:
    """The file as dicts, and the line of every experiment and artefact; a key given twice is refused."""
    text = path.read_text()
    try:
        tree = yaml.compose(text)
        declared = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(declared, dict):
        raise ValueError(f"{path} must hold {', '.join(TOP)}.")
    lines = {}

    def walk(node: yaml.Node, above: tuple[str, ...]) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise ValueError(f"{path}:{key.start_mark.line + 1}: {key.value!r} is given twice.")
            seen.add(key.value)
            lines[(*above, key.value)] = key.start_mark.line + 1
            walk(value, (*above, key.value))

    walk(tree, ())
    for key in declared:
        if key not in TOP:
            raise ValueError(f"{path}:{lines[key,]}: {unknown('section', key, TOP)}")
    for section, known in (("experiments", EXPERIMENT), ("artefacts", ARTEFACT)):
        for name, entry in declared.setdefault(section, {}).items():
            for key in entry:
                if key not in known:
                    raise ValueError(f"{path}:{lines[section, name, key]}: {name!r}: {unknown('key', key, known)}")
            if not entry.get("why"):
                raise ValueError(f"{path}:{lines[section, name]}: {name!r} does not say why it is there (`why:`).")
    declared.setdefault("defaults", {})
    return declared, lines


def _cells(defaults: Mapping[str, Any], entry: Mapping[str, Any], scale: str) -> list[Cell]:
    """Every combination of an experiment's values, all of them checked; at smoke one, that it names or the first."""
    each = {key: value if isinstance(value, list) else [value] for key, value in entry["each"].items()}
    values = [dict(defaults) | dict(zip(each, chosen, strict=True)) for chosen in itertools.product(*each.values())]
    cells = [_cell(one, scale) for one in values]
    wanted = entry.get("smoke", {})
    matching = [
        cell for one, cell in zip(values, cells, strict=True) if all(one.get(key) == wanted[key] for key in wanted)
    ]
    if not matching:
        raise ValueError(f"smoke asks for {wanted}, which is none of its runs.")
    return matching[:1] if scale == "smoke" else cells


def notebook_parameters(path: Path) -> dict[str, tuple[str, Any]]:
    """name -> (type name, default) of a notebook's parameters cell."""
    cells = json.loads(path.read_text())["cells"]
    for cell in cells:
        if "parameters" in cell["metadata"].get("tags", []):
            return declared_parameters("".join(cell["source"])) or {}
    return {}


def _checked(values: Mapping[str, Any], notebook: Path, also: tuple[str, ...] = ()) -> dict[str, Any]:
    """Values in the types that a notebook declares; ``1e-4``, which YAML reads as text, is taken as a number."""
    declared = notebook_parameters(notebook)
    out = {}
    for name, value in values.items():
        if name not in declared:
            raise unknown("parameter", name, [*declared, *also])
        kind, default = declared[name]
        if kind == "float" and isinstance(value, str) and re.fullmatch(r"[\d.]+[eE]-?\d+", value):
            value = float(value)
        out[name] = checked(name, kind, default, value)
    return out


@functools.cache
def _check_corpus(name: str, scale: str) -> None:
    from qru.corpora import load_corpus

    load_corpus(name, scale=scale)


def _cell(values: dict[str, Any], scale: str) -> Cell:
    # Imported late: a plan that is remembered needs neither torch nor the corpora.
    from qru.arms import arm
    from qru.defaults import resolve
    from qru.quantizers import load_quantizer

    values = dict(values)
    if "arm" in values:
        values |= {key: value for key, value in arm(values.pop("arm")).items() if value is not None}
    values = _checked(values, RUN, also=("arm",))
    resolved = resolve(RunConfig.from_dict(values | {"scale": scale}))
    for name in resolved.quantizers:
        load_quantizer(name)
    _check_corpus(resolved.corpus, scale)
    config = resolved.to_dict()
    name = "-".join((resolved.corpus, scale, resolved.method, resolved.adapter, str(resolved.weights)))
    return Cell(f"{name}-s{resolved.seed}-{digest(config)[:8]}", values | {"scale": scale, "beside": []}, config)


def _artefact(name: str, entry: Mapping[str, Any], of_experiment: Mapping[str, list[str]]) -> Artefact:
    kind, _, short = name.partition("_")
    notebook = NOTEBOOKS / f"{name}.ipynb"
    if kind not in KINDS or not short:
        raise ValueError(f"its name must begin with {' or '.join(f'{kind}_' for kind in KINDS)}.")
    if not notebook.is_file():
        known = [path.stem for kind in KINDS for path in NOTEBOOKS.glob(f"{kind}_*.ipynb")]
        raise unknown("artefact notebook", name, known)
    for experiment in entry["experiments"]:
        if experiment not in of_experiment:
            raise unknown("experiment", experiment, of_experiment)
    cells = dict.fromkeys(cell for experiment in entry["experiments"] for cell in of_experiment[experiment])
    folder, endings = KINDS[kind]
    files = [f"{folder}/{short}{ending}" for ending in endings]
    return Artefact(
        name, f"{folder}/{short}", tuple(files), _checked(entry.get("parameters", {}), notebook), tuple(cells)
    )


def drop_damaged(plan: Plan, folder: Path) -> list[str]:
    """Remove records that cannot be read or are of another configuration, to be made again; say which.

    Args:
        folder: holds ``<cell>.json``.

    Returns:
        What was wrong with each.
    """
    found = []
    for cell in plan.cells.values():
        path = folder / f"{cell.name}.json"
        if not path.is_file():
            continue
        try:
            config = load_record(path).config
            different = [key for key, value in cell.config.items() if config.get(key) != value]
            if different:
                raise ValueError(f"{path} was made with another {', '.join(different)}.")
        except ValueError as error:
            found.append(f"{error} Removed, to be made again.")
            path.unlink()
    return found


def keep(log: Path, out: Path) -> None:
    """Copy the record that a run has announced in its log.

    Args:
        log: what papermill wrote to the terminal.
        out: the copy; small enough to commit, as it holds scores of examples but none of their text.

    Raises:
        ValueError: the log names no record.
    """
    named = re.findall(r"^record: (.+)$", log.read_text(), flags=re.MULTILINE)
    if not named:
        raise ValueError(f"{log} names no record: the notebook ended without one.")
    record = load_record(named[-1])
    write_json(out, read_json(record.path))


if __name__ == "__main__":
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
    say(f"kept {sys.argv[2]}")
