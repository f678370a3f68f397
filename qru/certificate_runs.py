"""A certificate of a configuration: a run of every seed, made or reused, and what is shown of it in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from IPython.display import Markdown

from qru import certificate, paths, pipeline, records
from qru.arms import tidy
from qru.cells import UNQUANTIZED
from qru.certificate_page import VERDICTS, write_page
from qru.config import RunConfig, digest, names_of

ASKED = ("quantizers", "transforms", "metrics", "forget_ceiling", "utility_floor")
SETTINGS = (
    "method", "adapter", "weights", "guard", "guard_weight", "corpus", "scale", "learning_rate", "retain_weight",
)  # fmt: skip


def certify_runs(**parameters: Any) -> tuple[dict[str, Any], Path]:
    """Certify runs that are named, or one of each seed, which are made where there is no record of them.

    Args:
        parameters: those of ``certify`` that ``ASKED`` names, and either ``runs`` (folders, or names in ``runs/``) or
            fields of ``RunConfig`` that ``SETTINGS`` names, ``run_metrics`` (what the runs measure) and ``seeds``.

    Returns:
        The certificate, with ``config``: the parameters that it was made by; and its file,
        ``runs/certificates/<key>/certificate.json``, which a page for people lies beside.

    Raises:
        ValueError: an unknown or impossible parameter, before anything is trained.
    """
    asked = {name: parameters[name] for name in ASKED}
    if parameters["runs"]:
        config = {"runs": list(parameters["runs"])}
        found = [records.load_record(certificate.run_folder(name)) for name in parameters["runs"]]
    else:
        config = {"runs": [], "seeds": seed_numbers(parameters["seeds"]), "run_metrics": parameters["run_metrics"]}
        config |= {name: parameters[name] for name in SETTINGS}
        configs = _configs(config, asked["quantizers"])
        certificate.check(configs[0], **asked)
        found = pipeline.run_all(configs)
        tidy()
    out = certificate.sealed(certificate.certify(found, **asked) | {"config": config | asked})
    tidy()
    key = digest([out["config"], [run.run for run in found]])[:10]
    file = paths.runs_dir() / "certificates" / key / "certificate.json"
    records.write_json(file, out)
    write_page(out, file.with_suffix(".html"))
    return out, file


def _configs(config: Mapping[str, Any], quantizers: Sequence[str]) -> list[RunConfig]:
    """One run a seed, which measures what the certificate asks for, so that it finds that done."""
    names = tuple(name for name in names_of("quantizers", quantizers) if name != UNQUANTIZED)
    settings = {name: config[name] for name in SETTINGS} | {"metrics": config["run_metrics"]}
    return [RunConfig.from_dict(settings | {"quantizers": names, "seed": seed}) for seed in config["seeds"]]


def seed_numbers(seeds: Sequence[int | str]) -> list[int]:
    """Seeds, each once; from ``-p seeds 0,1,2`` they come as text.

    Raises:
        ValueError: there is none, one is no whole number, or is given twice.
    """
    if not seeds or not all(isinstance(seed, int) or (isinstance(seed, str) and seed.isdecimal()) for seed in seeds):
        raise ValueError(f"seeds is {seeds!r}; it must be whole numbers, at least one (-p takes 0,1,2).")
    found = [int(seed) for seed in seeds]
    if len(set(found)) < len(found):
        raise ValueError(f"seeds is {seeds!r}; give each seed once.")
    return found


def outcome(certificate: Mapping[str, Any]) -> Markdown:
    """Outcome, statement and what stands against it."""
    said = f"**{VERDICTS[certificate['outcome']]}.** {certificate['statement']}"
    return Markdown("\n".join([said, "", *bullets(certificate["reasons"])]))


def limits(certificate: Mapping[str, Any]) -> Markdown:
    """What it does not prove."""
    return Markdown("\n".join(bullets(certificate["limits"])))


def bullets(sentences: Sequence[str]) -> list[str]:
    """A line each, for Markdown."""
    return [f"- {sentence}" for sentence in sentences]


def announce(certificate: Mapping[str, Any], file: Path) -> Markdown:
    """Say outcome and place of a certificate on the terminal, where papermill sends no output of the notebook itself.

    Returns:
        The places, for the notebook.
    """
    said = [f"certificate: {certificate['outcome']}", certificate["statement"], *certificate["reasons"]]
    records.say("\n".join(["", *said, f"record: {file}"]))
    tidy()
    return Markdown("\n".join(bullets([f"`{file}`", f"`{file.with_suffix('.html')}`"])))
