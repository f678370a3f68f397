"""A record is one JSON file per run: written once, atomically, and the only thing tables and figures read."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from qru import paths

SECTIONS = ("config", "scores", "crossings", "cost", "provenance")
# What a slim record keeps: examples of these metrics, which recovered shares are made of, and of a layer these counts.
EXAMPLES = frozenset({"verbmem", "knowmem", "forget_accuracy"})
LAYER = ("weights", "moved", "crossed", "changed", "predicted", "sum_dw2", "projection", "cosine")
MORE = ("recovered", "verdict", "history", "prediction", "forget_set", "parts")  # no text of examples


def say(text: str) -> None:
    """A line for the person at the terminal; papermill captures a notebook's own stdout and stderr."""
    print(text, file=sys.__stderr__, flush=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``path`` for this process, so that two runs side by side never make the same thing twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that holds {path}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Record:
    """What one run measured.

    Attributes:
        path: of ``record.json``.
        config: the resolved run configuration and its hash (``config["hash"]``).
        scores: ``scores[model][precision][metric]`` -> ``{"value", "ci", "per_example", …}``; model is ``target``,
            ``retrained`` or ``unlearned``; percent.
        crossings: ``crossings[quantizer]["layers"][layer]`` -> counts of one linear layer; ``["total"]`` their sum.
        cost: seconds and peak memory (MB) per stage.
        provenance: versions, commit, dirty flag, hardware, time.
        extra: every other top-level section, such as ``history`` and ``answers``.
    """

    path: Path
    config: dict[str, Any]
    scores: dict[str, Any]
    crossings: dict[str, Any]
    cost: dict[str, Any]
    provenance: dict[str, Any]
    extra: dict[str, Any]

    @property
    def run(self) -> str:
        """The name of the run's folder, by which its kept record is called, too."""
        return self.path.parent.name if self.path.name == "record.json" else self.path.stem


def fsync_folder(folder: Path) -> None:
    """A rename is durable only once the folder that holds the name is on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes the name only when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    temporary.chmod(0o644)  # mkstemp's files are for their owner alone
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused, since no JSON reader is bound to take it back."""
    with atomic_file(path) as temporary:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        temporary.write_text(text + "\n", encoding="utf-8")


def file_size(count: int) -> str:
    """Bytes as people say them, to three digits: ``71968`` -> ``"72.0 KB"``; a KB is 1000 bytes."""
    for unit, letters in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if count >= 0.9995 * unit:  # what would be rounded up to a thousand of the smaller unit
            return f"{count / unit:#.3g}".rstrip(".") + f" {letters}"
    return f"{count} byte{'s' * (count != 1)}"


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ValueError: the file is cut short or no JSON (names it).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:  # a file may also end inside a character
        raise ValueError(f"{path} is not whole JSON ({error}). Delete it and run again.") from error


def load_record(path: Path | str) -> Record:
    """Read one record.

    Args:
        path: of ``record.json`` or of the folder that holds it.

    Raises:
        ValueError: it is not JSON, or a section is missing (names which).
        FileNotFoundError: there is none.
    """
    path = Path(path)
    path = path / "record.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no record at {path}. Runs are listed by qru.records.load_records().")
    value = read_json(path)
    sections = value if isinstance(value, dict) else {}
    missing = [name for name in SECTIONS if not isinstance(sections.get(name), dict)]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it is no record of a run. Delete it and run again.")
    extra = {key: part for key, part in value.items() if key not in SECTIONS}
    return Record(path, *(value[name] for name in SECTIONS), extra=extra)


def load_records(folder: Path | None = None) -> list[Record]:
    """Every complete record under ``folder`` (default: this root's ``runs``), oldest first.

    A damaged one is named on the terminal and left out: one bad file must not hide the others.
    """
    files = (folder or paths.runs_dir()).glob("*/record.json")
    found = []
    for path in sorted(files, key=lambda path: path.stat().st_mtime):
        try:
            found.append(load_record(path))
        except ValueError as error:
            say(f"left out: {error}")
    return found


def named_or_all(files: Sequence[str], folder: Path, missing: str) -> list[Path]:
    """The files that are named; if none is, every JSON file of a folder, by name.

    Raises:
        LookupError: there is none; it says ``missing``.
    """
    found = [Path(file) for file in files] or sorted(folder.glob("*.json"))
    if not found:
        raise LookupError(missing)
    return found


def latest(records: Iterable[Record] | None = None, **config: Any) -> Record:
    """The newest record whose config holds the given values; damaged ones are left out.

    Raises:
        LookupError: there is none (names the values and the command that makes one).
    """
    matching = [
        record
        for record in (load_records() if records is None else records)
        if all(record.config.get(key) == value for key, value in config.items())
    ]
    if not matching:
        wanted = " ".join(f"-p {key} {value}" for key, value in config.items())
        raise LookupError(
            f"no record with {config or 'any configuration'}. Make one: papermill notebooks/02_unlearn.ipynb {wanted}"
        )
    return matching[-1]


def keep_measured(runs: Iterable[Path | str], measure: Callable[[Record], dict[str, Any]], folder: Path) -> None:
    """Measure runs, given by folder or record, and keep what was found, a file a run, where committed records lie."""
    for run in runs:
        record = load_record(run)
        path = folder / f"{record.run}.json"
        write_json(path, measure(record))
        say(f"kept {path}")


def slim(record: Record, layers: Sequence[str] = ()) -> dict[str, Any]:
    """A record small enough to commit, of the same schema: tables over models and quantizers read it like a whole one.

    What is left out: scores of single examples, but those of target and unlearned model in VerbMem and KnowMem, to four
    digits; steps between two looks at the forgetting goal, but the last; counts of single layers, but the main ones
    under ``layers``; where things lie on this machine. Measured numbers are rounded to six digits, settings are not.

    Args:
        record: whole or slim.
        layers: quantizers under which the counts of every layer are kept; all keep their totals.

    Returns:
        The sections of ``record.json``.
    """
    sections = {name: getattr(record, name) for name in SECTIONS}
    sections |= {name: record.extra[name] for name in MORE if name in record.extra}
    settings = ("config", "provenance")
    out = {key: part if key in settings else rounded(part) for key, part in sections.items()}
    out["config"] = {key: _without_place(value) for key, value in record.config.items()}
    out["provenance"] = {key: part for key, part in record.provenance.items() if key != "folders"}
    out["scores"] = {
        model: {
            precision: {metric: _slim_score(score, model, metric) for metric, score in scores.items()}
            for precision, scores in by_precision.items()
        }
        for model, by_precision in out["scores"].items()
    }
    out["crossings"] = {
        quantizer: {
            "layers": {
                layer: {key: counts[key] for key in LAYER if key in counts}
                for layer, counts in crossing["layers"].items()
                if quantizer in layers
            },
            "total": {key: value for key, value in crossing["total"].items() if key != "histogram"},
        }
        for quantizer, crossing in out["crossings"].items()
    }
    for name, known in out.get("prediction", {}).items():
        if name not in layers:
            out["prediction"][name] = {key: value for key, value in known.items() if key != "layers"}
    if history := out.get("history"):
        looks = [row for row in history[:-1] if not EXAMPLES.isdisjoint(row)] + history[-1:]
        out["history"] = [{key: value for key, value in row.items() if key not in ("loss", "seconds")} for row in looks]
    return out


def examples_of(score: dict[str, Any]) -> int | None:
    """How many examples a score is of; ``None`` where its record does not say. PrivLeak's: forgotten texts."""
    values = score.get("per_example")
    if values is None:
        return score.get("examples")
    return len(values["forget"] if isinstance(values, dict) else values)


def _slim_score(score: dict[str, Any], model: str, metric: str) -> dict[str, Any]:
    out = {key: part for key, part in score.items() if key not in ("per_example", "responses")}
    if (count := examples_of(score)) is not None:
        out["examples"] = count
    if model != "retrained" and metric in EXAMPLES and "per_example" in score:
        out["per_example"] = [round(value, 4) for value in score["per_example"]]
    return out


def _without_place(value: Any) -> Any:
    """A setting; of a folder of this machine only its last name."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def rounded(value: Any) -> Any:
    """Every float in lists and dicts to six digits."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def keep(record: Record, folder: Path, layers: Sequence[str] = ()) -> Path:
    """Write ``folder/<run>.json``, the slim record of a run.

    Args:
        record: of a run.
        folder: of records that are committed.
        layers: see ``slim``.
    """
    path = folder / f"{record.run}.json"
    write_json(path, slim(record, layers))
    return path


def kept(folder: Path) -> list[Record]:
    """Every record in a folder of kept ones, by name.

    Raises:
        ValueError: one is damaged: what is committed is whole.
    """
    return [load_record(path) for path in sorted(folder.glob("*.json"))]


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def provenance() -> dict[str, Any]:
    """Versions, commit, dirty flag and machine: enough to say where a number came from."""
    # Records are results, and a build of the paper writes them as it goes: they make no code other than committed.
    status = _git("status", "--porcelain", "--", ":/", ":(top,exclude)paper/records")
    packages = ("qru", "torch", "transformers", "peft", "accelerate", "tokenizers", "rouge-score", "numpy")
    return {
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "hardware": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": f"{sys.platform}-{platform.machine()}",
        },
    }
