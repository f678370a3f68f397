"""``experiments.yaml`` -> the runs and artefacts of one scale and grid; all is checked before anything starts."""

from __future__ import annotations

import ast
import functools
import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from qru.config import SCALES, RunConfig, choice, digest
from qru.notebook import checked, declared_parameters
from qru.records import SECTIONS, load_record, read_json, say, slim, write_json
from qru.registry import unknown

PACKAGE = Path(__file__).resolve().parent
NOTEBOOKS = PACKAGE.parent / "notebooks"
RUN = "02_unlearn"
GRIDS = ("core", "full")
KINDS = {"table": ("tables", (".typ", ".tex")), "fig": ("figures", (".pdf", ".svg"))}
DRAWING = ("style", "tables", "typeset")  # what every artefact is drawn by, whether or not its notebook names it
TOP = ("defaults", "corpora", "experiments", "artefacts")
EXPERIMENT = (
    "why", "grid", "each", "slices", "full", "smoke", "layers", "notebook", "records", "again", "only", "alone",
)  # fmt: skip
ARTEFACT = ("why", "experiments", "parameters", "reads")


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        name: of its record and executed notebook; it holds a digest of the configuration, so a changed setting is
            another run.
        notebook: that makes it.
        folder: of ``paper/records``, where its record is kept.
        parameters: of the notebook, only those that the file sets.
        config: what the record must say of itself.
        layers: quantizers under which the record keeps the counts of every layer.
        alone: nothing else runs beside it, because it measures time.
    """

    name: str
    notebook: str
    folder: str
    parameters: dict[str, Any]
    config: dict[str, Any]
    layers: tuple[str, ...] = ()
    alone: bool = False


@dataclass(frozen=True)
class Artefact:
    """One table or figure.

    Attributes:
        notebook: that draws it.
        stem, files: where it goes, below ``paper``.
        drawing: modules of the package that draw it.
        parameters: of the notebook.
        cells: runs that it shows, by name.
        folders: of ``paper/records``, whose committed records it shows.
        only: folder -> choices of what the configuration of those shown of it must say; they are then of the build's
            scale, too.
        reads: other files that it is drawn from, below ``paper``.
    """

    notebook: str
    stem: str
    files: tuple[str, ...]
    drawing: tuple[str, ...]
    parameters: dict[str, Any]
    cells: tuple[str, ...]
    folders: tuple[str, ...]
    only: dict[str, list[dict[str, Any]]]
    reads: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Everything one build makes: ``cells`` and ``artefacts`` by name."""

    cells: dict[str, Cell]
    artefacts: dict[str, Artefact]


def plan(path: Path, scale: str, grid: str = "core", fresh: bool = False, kept: Path | None = None) -> Plan:
    """Read and check the declared experiments.

    Args:
        path: of ``experiments.yaml``.
        scale: ``"smoke"`` (one run an experiment), ``"mini"`` or ``"muse"``.
        grid: ``"core"``, or ``"full"`` with what the file keeps for it.
        fresh: with the runs that make committed records anew (at mini; those of another scale would not replace them).
        kept: file that remembers the plan, so that reading it again needs no import of torch; it holds for one state
            of the declaration and of the package.

    Raises:
        ValueError: an unknown or impossible name or value (names file, line and experiment).
    """
    choice("scale", scale, SCALES)
    choice("grid", grid, GRIDS)
    sources = [path, *sorted(PACKAGE.rglob("*.py")), *sorted(NOTEBOOKS.glob("*.ipynb"))]
    key = digest([scale, grid, fresh, *(source.read_text() for source in sources)])
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
    made = _plan(path, scale, grid, fresh)
    if kept:
        write_json(kept, {"key": key} | asdict(made))
    return made


def plan_file(scale: str, grid: str, fresh: bool) -> str:
    """What a kept plan is called."""
    return f"plan-{scale}-{grid}{'-fresh' * fresh}.json"


def _plan(path: Path, scale: str, grid: str, fresh: bool) -> Plan:
    declared, lines, places = _read(path)
    cells: dict[str, Cell] = {}
    shown: dict[str, tuple[list[str], list[str]]] = {}  # experiment -> runs, folders of committed records
    for name, entry in declared["experiments"].items():
        made_at = "mini" if "records" in entry else scale  # committed records are made anew there alone
        try:
            found = _cells(declared["defaults"], entry, made_at, grid, declared["corpora"].get(made_at, {}))
        except (TypeError, ValueError) as error:
            line = _line(lines, places, ("experiments", name), error)
            raise ValueError(f"{path}:{line}: experiment {name!r}: {error}") from error
        shown[name] = ([], [])
        if entry.get("grid", grid) != grid:
            continue
        if "records" in entry:
            shown[name][1].append(entry["records"])
            if not (fresh and scale == "mini" and entry.get("again", grid) == grid):
                continue
        else:
            shown[name][0].extend(cell.name for cell in found)
        for cell in found:
            known = cells.get(cell.name, cell)
            layers = dict.fromkeys([*known.layers, *cell.layers])
            cells[cell.name] = Cell(**asdict(cell) | {"layers": tuple(layers)})
    artefacts = {}
    for name, entry in declared["artefacts"].items():
        try:
            made = _artefact(name, entry, shown, declared["experiments"])
        except (TypeError, ValueError) as error:
            line = _line(lines, places, ("artefacts", name), error)
            raise ValueError(f"{path}:{line}: artefact {name!r}: {error}") from error
        if made.cells or made.folders:  # else it shows what another grid has
            artefacts[name] = made
    return Plan(cells, artefacts)


def _union(parts: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(itertools.chain.from_iterable(parts)))


Place = tuple[tuple[str, ...], str, int]


def _line(lines: Mapping[tuple[str, ...], int], places: Iterable[Place], entry: tuple[str, str], error: object) -> int:
    """The line of what an error quotes, if it stands in this entry; else that of the entry."""
    said = str(error)
    quoted = (line for above, text, line in places if above[:2] == entry and repr(text) in said)
    return next(quoted, lines[entry])


def _read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int], list[Place]]:
    """The file as dicts, the line of every key, and where every key and value stands; a key given twice is refused."""
    text = path.read_text()
    try:
        tree = yaml.compose(text)
        declared = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(declared, dict):
        raise ValueError(f"{path} must hold {', '.join(TOP)}.")
    lines: dict[tuple[str, ...], int] = {}
    places: list[Place] = []

    def walk(node: yaml.Node, above: tuple[str, ...]) -> None:
        if isinstance(node, yaml.ScalarNode):
            places.append((above, node.value, node.start_mark.line + 1))
        if isinstance(node, yaml.SequenceNode):
            for part in node.value:
                walk(part, above)
        if not isinstance(node, yaml.MappingNode):
            return
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise ValueError(f"{path}:{key.start_mark.line + 1}: {key.value!r} is given twice.")
            seen.add(key.value)
            lines[(*above, key.value)] = key.start_mark.line + 1
            places.append((above, key.value, key.start_mark.line + 1))
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
            if section == "artefacts" and not entry.get("experiments"):
                raise ValueError(f"{path}:{lines[section, name]}: {name!r} shows nothing: name its `experiments:`.")
    for section in ("defaults", "corpora"):
        declared.setdefault(section, {})
    return declared, lines, places


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _settings(key: str, value: Any) -> dict[str, Any]:
    """What one value sets: the parameter of its key, or, if it is a mapping, all that it names."""
    return value if isinstance(value, dict) else {key: value}


def combinations(defaults: Mapping[str, Any], entry: Mapping[str, Any], grid: str = "core") -> list[dict[str, Any]]:
    """The settings of an experiment's runs.

    Args:
        defaults: what holds unless the experiment says otherwise.
        entry: its ``each`` (every combination is a run), ``slices`` (around each of these runs, every value in turn
            while the others stay) and ``full`` (further values of either, for ``grid="full"``).
        grid: ``"core"`` or ``"full"``.

    Returns:
        One dict a run; the same may occur twice.
    """
    parts = {part: {key: _listed(value) for key, value in entry.get(part, {}).items()} for part in ("each", "slices")}
    for key, more in entry.get("full", {}).items():
        part = "slices" if key in parts["slices"] else "each"
        if key not in parts[part] and key not in defaults:
            raise ValueError(f"full has more values of {key!r}, which is neither in each, in slices nor in defaults.")
        if grid == "full":
            parts[part][key] = [*parts[part].get(key, _listed(defaults.get(key))), *_listed(more)]
    found = []
    for chosen in itertools.product(*parts["each"].values()):
        centre = dict(defaults)
        for key, value in zip(parts["each"], chosen, strict=True):
            centre |= _settings(key, value)
        found.append(centre)
        found += [centre | _settings(key, value) for key, values in parts["slices"].items() for value in values]
    return found


def _cells(
    defaults: Mapping[str, Any], entry: Mapping[str, Any], scale: str, grid: str, corpora: Mapping[str, str]
) -> list[Cell]:
    """An experiment's runs, all of them checked; at smoke one, that it names or the first."""
    if "grid" in entry:
        choice("grid", entry["grid"], GRIDS)
    if "again" in entry:
        choice("again", entry["again"], GRIDS)
    if "only" in entry:
        if "records" not in entry:
            raise ValueError("only: chooses among committed records, and it has no records:.")
        known = ["arm", *(field.name for field in fields(RunConfig))]
        for key in itertools.chain.from_iterable(_listed(entry["only"])):
            if key not in known:
                raise unknown("parameter", key, known)
    if not {"each", "slices", "notebook"} & set(entry):
        if "records" not in entry:
            raise ValueError("it says neither what it runs (each:) nor which committed records it shows (records:).")
        return []
    notebook = entry.get("notebook", RUN)
    if not (NOTEBOOKS / f"{notebook}.ipynb").is_file():
        raise unknown("notebook", notebook, [path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb")])
    if notebook != RUN:
        declared = notebook_parameters(notebook)
        defaults = {key: value for key, value in defaults.items() if key in declared}
    values = combinations(defaults, entry, grid)
    wanted = entry.get("smoke", {})
    matching = [i for i, one in enumerate(values) if all(one.get(key) == wanted[key] for key in wanted)]
    more = {
        "notebook": notebook,
        "folder": entry.get("records", scale),
        "layers": tuple(_listed(entry.get("layers", []))),
        "alone": bool(entry.get("alone")),
    }
    for one in values:
        if one.get("corpus") in corpora:
            one["corpus"] = corpora[one["corpus"]]
    cells = [Cell(**(_unlearning if notebook == RUN else _of_notebook)(one, scale, notebook), **more) for one in values]
    for cell in cells:
        for name in cell.layers if notebook == RUN else ():
            if name not in cell.config["quantizers"]:
                raise unknown("quantizer of its runs", name, cell.config["quantizers"])
    if not matching:
        raise ValueError(f"smoke asks for {wanted}, which is none of its runs.")
    return [cells[matching[0]]] if scale == "smoke" else cells


def _sources(notebook: str) -> list[tuple[list[str], str]]:
    """Tags and source of every code cell."""
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]
    return [(c["metadata"].get("tags", []), "".join(c["source"])) for c in cells if c["cell_type"] == "code"]


def notebook_parameters(notebook: str) -> dict[str, tuple[str, Any]]:
    """name -> (type name, default) of a notebook's parameters cell."""
    for tags, source in _sources(notebook):
        if "parameters" in tags:
            return declared_parameters(source) or {}
    return {}


def drawing(notebook: str) -> tuple[str, ...]:
    """Modules of the package that draw an artefact: ``DRAWING``, those that its notebook names, and those they name."""
    named = _named("\n".join(source for _, source in _sources(notebook)))
    modules = {*DRAWING, *named, *(name for module in named for name in _named((PACKAGE / f"{module}.py").read_text()))}
    return tuple(sorted(modules))


def _named(source: str) -> set[str]:
    """Files of the package that a source imports from."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "qru":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qru."):
            found.add(node.module.split(".")[1])
    return {name for name in found if (PACKAGE / f"{name}.py").is_file()}


def _checked(values: Mapping[str, Any], notebook: str, also: tuple[str, ...] = ()) -> dict[str, Any]:
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


def _unlearning(values: dict[str, Any], scale: str, notebook: str) -> dict[str, Any]:
    """Name, parameters and configuration of one run of the main notebook."""
    # Imported late: a plan that is remembered needs neither torch nor the corpora.
    from qru.arms import arm
    from qru.defaults import resolve
    from qru.quantizers import load_quantizer

    values = dict(values)
    if "arm" in values:
        values |= {key: value for key, value in arm(values.pop("arm")).items() if value is not None}
    values = _checked(values, notebook, also=("arm",))
    resolved = resolve(RunConfig.from_dict(values | {"scale": scale}))
    for name in resolved.quantizers:
        load_quantizer(name)
    if scale != "muse":  # there they may have to be fetched: the run itself says what it lacks
        _check_corpus(resolved.corpus, scale)
    config = resolved.identity()
    corpus = resolved.corpus.rpartition("/")[2]
    arm = (resolved.adapter, str(resolved.weights), *([resolved.guard] if resolved.guard else []))
    parts = (corpus, scale, resolved.method, *arm, f"s{resolved.seed}")
    return {
        "name": "-".join([*parts, digest(config)[:8]]),
        "parameters": values | {"scale": scale, "beside": []},
        "config": config,
    }


def _of_notebook(values: dict[str, Any], scale: str, notebook: str) -> dict[str, Any]:
    """The same of a run of another notebook."""
    values = _checked(values, notebook)
    if "scale" in notebook_parameters(notebook):
        values["scale"] = scale
    name = f"{notebook.partition('_')[2]}-{scale}-{digest([notebook, values])[:8]}"
    return {"name": name, "parameters": values, "config": values}


def _artefact(
    name: str,
    entry: Mapping[str, Any],
    shown: Mapping[str, tuple[list[str], list[str]]],
    experiments: Mapping[str, Mapping[str, Any]],
) -> Artefact:
    kind, _, short = name.partition("_")
    if kind not in KINDS or not short:
        raise ValueError(f"its name must begin with {' or '.join(f'{kind}_' for kind in KINDS)}.")
    if not (NOTEBOOKS / f"{name}.ipynb").is_file():
        known = [path.stem for kind in KINDS for path in NOTEBOOKS.glob(f"{kind}_*.ipynb")]
        raise unknown("artefact notebook", name, known)
    for experiment in entry["experiments"]:
        if experiment not in shown:
            raise unknown("experiment", experiment, shown)
    folder, endings = KINDS[kind]
    return Artefact(
        name,
        f"{folder}/{short}",
        tuple(f"{folder}/{short}{ending}" for ending in endings),
        drawing(name),
        _checked(entry.get("parameters", {}), name),
        _union(shown[experiment][0] for experiment in entry["experiments"]),
        _union(shown[experiment][1] for experiment in entry["experiments"]),
        {one["records"]: _listed(one["only"]) for one in map(experiments.get, entry["experiments"]) if "only" in one},
        tuple(_listed(entry.get("reads", []))),
    )


def records_of(artefact: Artefact, folder: Path, scale: str) -> list[Path]:
    """The records that an artefact shows; those of runs may not be there yet.

    Args:
        artefact: of the plan.
        folder: ``paper/records``.
        scale: of the runs.

    Raises:
        ValueError: committed records are not there, or one is damaged.
    """
    found = [folder / scale / f"{cell}.json" for cell in artefact.cells]
    for name in artefact.folders:
        committed = sorted((folder / name).glob("*.json"))
        if not committed:
            raise ValueError(f"{artefact.notebook} shows the committed records of {folder / name}; there are none.")
        try:
            records = {path: read_json(path) for path in committed}
        except ValueError as error:
            told = f"{error} It is a committed one: git checkout -- {folder / name} brings it back."
            raise ValueError(told) from error
        if only := artefact.only.get(name):
            for one in only:
                if not any(_says(record, one) for record in records.values()):
                    raise ValueError(f"{artefact.notebook} shows of {folder / name} also {one}; no record there is so.")
            matching = {path: record for path, record in records.items() if any(_says(record, one) for one in only)}
            records = {path: record for path, record in matching.items() if record["config"]["scale"] == scale}
        found += records
    return found


def _says(record: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    config = record.get("config", {})
    said = config | {"arm": f"{config.get('adapter')}-{config.get('weights')}"}
    return all(said.get(key) in _listed(value) for key, value in asked.items())


def drop_damaged(plan: Plan, records: Path, dry: bool = False) -> list[str]:
    """Remove records that cannot be read or are of another configuration, to be made again; say which.

    Args:
        plan: whose runs' records are looked at.
        records: ``paper/records``.
        dry: remove none, only say so.

    Returns:
        What was wrong with each.
    """
    found = []
    for path, error in damaged(plan, records).items():
        found.append(f"{error} {'It would be removed and' if dry else 'Removed, to be'} made again.")
        if not dry:
            path.unlink()
    return found


def damaged(plan: Plan, records: Path) -> dict[Path, ValueError]:
    """Records of the plan's runs that cannot be read or are of another configuration, and why."""
    found = {}
    for cell in plan.cells.values():
        path = records / cell.folder / f"{cell.name}.json"
        if path.is_file():
            try:
                _check_record(cell, path)
            except ValueError as error:
                found[path] = error
    return found


def to_make(plan: Plan, records: Path) -> list[Path]:
    """Records that a build would make: those that are missing or damaged.

    Snakemake by itself does not miss what nothing newer depends on: a dry run has to be told of them.
    """
    wanted = [records / cell.folder / f"{cell.name}.json" for cell in plan.cells.values()]
    broken = damaged(plan, records)
    return [path for path in wanted if path in broken or not path.is_file()]


def _check_record(cell: Cell, path: Path) -> None:
    if cell.notebook == RUN:
        record = load_record(path)
        config = record.config
        for quantizer in cell.layers:
            if not record.crossings.get(quantizer, {}).get("layers"):
                raise ValueError(f"{path} lacks the counts of layers under {quantizer}.")
    else:
        value = read_json(path)
        config = value.get("config", {}) if isinstance(value, dict) else {}
    # Of a folder of some machine a committed record has only the last name.
    different = [key for key, value in cell.config.items() if config.get(key, value) not in (value, _last(value))]
    if different:
        raise ValueError(f"{path} was made with another {', '.join(different)}.")


def _last(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) else value


def keep(log: Path, out: Path, layers: Iterable[str] = ()) -> None:
    """Copy the record that a run has announced in its log, made slim.

    Args:
        log: what papermill wrote to the terminal.
        out: the copy; small enough to commit.
        layers: quantizers under which it holds the counts of every layer.

    Raises:
        ValueError: the log names no record.
    """
    named = re.findall(r"^record: (.+)$", log.read_text(), flags=re.MULTILINE)
    if not named:
        raise ValueError(f"{log} names no record: the notebook ended without one.")
    path = Path(named[-1])
    value = read_json(path)
    if set(SECTIONS) <= set(value):
        value = slim(load_record(path), tuple(layers))
    write_json(out, value)


def promote(made: Path, records: Path, scale: str) -> None:
    """Put freshly made records in the place of the committed ones, and remove where they were made.

    Args:
        made: the folder of a fresh build, which is complete; its ``records`` are laid out as ``records``.
        records: ``paper/records``.
        scale: its folder may hold records of other grids, which stay; any other folder is replaced.
    """
    for folder in sorted((made / "records").iterdir()):
        new = sorted(folder.glob("*.json"))
        for path in new:
            write_json(records / folder.name / path.name, read_json(path))
        if folder.name != scale:
            for path in (records / folder.name).glob("*.json"):
                if path.name not in {one.name for one in new}:
                    path.unlink()
        say(f"{len(new)} new records in {records / folder.name}")
    shutil.rmtree(made)


def cause(log: Path) -> str:
    """The last error that a log speaks of, or else its last line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace")) if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Interrupt):", line)]
    return (errors or lines or ["it said nothing"])[-1]


def failures(file: Path) -> list[str]:
    """What to say at the end of a build in which something failed.

    Args:
        file: a line each: what failed, its notebook (or ``-``) and its log, with tabs between.
    """
    if not file.is_file():
        return []
    failed = [line.split("\t") for line in file.read_text().splitlines()]
    out = [f"{len(failed)} failed. What depends on them was not made, everything else was."]
    for what, notebook, log in failed:
        if notebook == "-":  # a short log: a message, and the line of the source that it is about
            out += [f"  {what} (log: {log})", *(f"    {line}" for line in Path(log).read_text().splitlines())]
        else:
            out += [f"  {what}", f"    {cause(Path(log))}", f"    notebook: {notebook}  log: {log}"]
    return out


def tell(dry_run: str) -> list[str]:
    """What a build would do, in words, from what Snakemake says of it (its ``--dry-run``)."""
    jobs: dict[str, list[str]] = {}
    for what in re.findall(r"^Job \d+: (.+)$", dry_run, flags=re.MULTILINE):
        kind, _, name = what.partition(" ")
        jobs.setdefault(kind, []).append(name.partition(" (")[0])
    out = re.findall(r"^paper: .+$", dry_run, flags=re.MULTILINE)
    if not jobs:
        return [*out, "nothing to do"] if "Nothing to be done" in dry_run else [dry_run]
    for kind, title in (("run", "runs to make"), ("table", "tables to draw"), ("figure", "figures to draw")):
        if names := jobs.pop(kind, []):
            out += [f"{title} ({len(names)}):", *(f"  {name}" for name in sorted(names))]
    return out + [f"then {kind} {name}" for kind, names in jobs.items() for name in names]


def main(command: str, *arguments: str) -> None:
    """``keep LOG OUT [LAYERS]``, ``promote MADE RECORDS SCALE``, ``to-make PAPER SCALE GRID [1]`` (1: afresh), or
    ``tell`` (of standard input)."""
    if command == "keep":
        log, out, *layers = arguments
        keep(Path(log), Path(out), layers)
    elif command == "promote":
        made, records, scale = arguments
        promote(Path(made), Path(records), scale)
    elif command == "to-make":
        paper, scale, grid, *fresh = arguments
        build = Path(paper) / "build"
        made = plan(
            Path(paper) / "experiments.yaml", scale, grid, bool(fresh), build / plan_file(scale, grid, bool(fresh))
        )
        print(*to_make(made, (build / "fresh" if fresh else Path(paper)) / "records"))
    elif command == "tell":
        print("\n".join(tell(sys.stdin.read())))
    else:
        raise unknown("command", command, ("keep", "promote", "to-make", "tell"))


if __name__ == "__main__":
    main(*sys.argv[1:])
