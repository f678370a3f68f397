"""Which runs the notebook on why forgotten text comes back shows: the committed records, or what was run here.

A run's own record is about a megabyte. What is committed are slim copies (``records.slim``) of whole grids, in
``paper/records/why/runs``; they are shown unless runs are asked for, and written only when that is asked for, too.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from IPython.display import Markdown

from qru import choose, compress, models, movement, paths, pipeline, records, why
from qru.arms import tidy
from qru.config import RunConfig
from qru.corpora.corpus import registry as known_corpora
from qru.prediction import predict
from qru.records import Record, say
from qru.registry import unknown

KEPT = Path(__file__).resolve().parent.parent / "paper" / "records" / "why" / "runs"
LAYERS = "rtn-int4-tensor"  # under which committed records hold the counts of every layer
MAIN = "comparison"
# Other parts of the experiment -> their runs at a scale.
PARTS: dict[str, Callable[[str], list[RunConfig]]] = {
    "dial": why.dial_grid,
    "plateau": why.plateau_grid,
    "alpha": partial(why.slice_grid, "alpha"),
    "layers": partial(why.slice_grid, "layers"),
    "rate": partial(why.slice_grid, "rate"),
    "beta2": partial(why.slice_grid, "beta2"),
    "size": why.size_grid,
}
# What a scale compares unless told otherwise. At smoke nothing is learned: one arm of each kind shows that all runs.
GRIDS = {
    "mini": {"corpora": why.CORPORA, "methods": why.METHODS, "arms": tuple(why.ARMS), "seeds": why.SEEDS},
    "smoke": {
        "corpora": why.CORPORA[:1], "methods": why.METHODS[:1], "arms": ("bf16", "fp32 master", "LoRA fp32"),
        "seeds": why.SEEDS[:1],
    },
}  # fmt: skip


def collect(
    corpora: Sequence[str] = (),
    methods: Sequence[str] = (),
    arms: Sequence[str] = (),
    seeds: Sequence[int | str] = (),
    scale: str = "mini",
    rerun: bool = False,
    parts: Sequence[str] = (MAIN,),
    keep: bool = False,
) -> dict[str, list[Record]]:
    """The records of every part of the experiment.

    Args:
        corpora, methods, arms, seeds: of the comparison at equal forgetting; none given: the whole grid of the scale.
        scale: ``"mini"`` or ``"smoke"``, of which no record is committed and which therefore always runs.
        rerun: run what is missing of ``parts`` on this machine, and show its runs; of a part that is not asked for the
            committed records are shown where they are more. Without it, the committed records of all parts are.
        parts: what ``rerun`` completes: ``"comparison"`` and names of ``PARTS``.
        keep: write the records of ``parts`` to ``KEPT``, for commit; needs ``rerun`` and the whole grid at mini.

    Returns:
        Part -> records, in the order of its grid; a part may lack some or all, but the comparison has at least one.

    Raises:
        ValueError: an unknown name, a seed that is none or that the rates were chosen on, ``parts`` without ``rerun``,
            or ``keep`` of a part of a grid; before any work.
        LookupError: there is no record of the comparison, and it is not asked for; before any work, too.
    """
    if scale not in GRIDS:
        raise unknown("scale of this experiment", scale, GRIDS)
    rerun = rerun or scale == "smoke"
    check_parts(parts, rerun)
    for corpus in corpora:
        known_corpora[corpus]  # raises with the nearest
    asked = {"corpora": corpora, "methods": methods, "arms": whole_names(arms), "seeds": whole_numbers(seeds)}
    asked = {name: tuple(dict.fromkeys(values)) for name, values in asked.items() if values}
    if keep and (asked or not rerun or scale != "mini"):
        given = [*asked, *(["scale"] if scale != "mini" else []), *([] if rerun else ["rerun"])]
        raise ValueError(
            f"keep writes the records that are committed, of whole grids at mini that were run here: set rerun, and "
            f"leave out corpora, methods, arms and seeds (given otherwise: {', '.join(given)})."
        )
    grids = {MAIN: why.grid(**GRIDS[scale] | asked, scale=scale)}
    grids |= {part: grid(scale) for part, grid in PARTS.items()}
    stored = records.kept(KEPT) if scale == "mini" else []
    if not rerun or MAIN not in parts:
        known = [*stored, *(records.load_records() if rerun else [])]
        if not of_grid(grids[MAIN], known):
            raise LookupError(
                "no record of the comparison that was asked for is among the committed ones"
                f"{' or was made here' if rerun else ''}. Make them: {command(MAIN, scale, asked)}"
            )
    found = {part: of_grid(grid, stored) for part, grid in grids.items()}
    if rerun:
        pipeline.run_all([config for part in dict.fromkeys(parts) for config in grids[part]])
        tidy()
        own = records.load_records()
        made = {part: of_grid(grid, own) for part, grid in grids.items()}
        for part, runs in made.items():
            found[part] = runs if part in parts else max(runs, found[part], key=len)
    if keep:
        compared = {record.run for record in made[MAIN]}
        chosen = {record.run: record for part in parts for record in found[part]}
        for run, record in chosen.items():
            records.keep(with_layers(record), KEPT, (LAYERS,) if run in compared else ())
        drop_others([config for grid in grids.values() for config in grid])
        say(f"kept {len(chosen)} records in {KEPT}")
    return found


def check_parts(parts: Sequence[str], rerun: bool) -> None:
    """Refuse parts that do not exist, and parts that would not be run."""
    for part in parts:
        if part not in (MAIN, *PARTS):
            raise unknown("part", part, (MAIN, *PARTS))
    if rerun and not parts:
        raise ValueError(
            "parts is empty, so that rerun has nothing to complete: give some of "
            f"{', '.join((MAIN, *PARTS))}, or leave rerun out."
        )
    if not rerun and set(parts) != {MAIN}:
        raise ValueError(
            f"parts is {list(parts)!r}, but they are what rerun completes, and rerun is not set. Set it, or leave "
            "parts out: the committed records of all parts are shown."
        )


def whole_names(arms: Sequence[str]) -> list[str]:
    """Arms as they are called; a comma inside a name has cut it in two where ``-p`` carried the list as text."""
    out: list[str] = []
    for piece in arms:
        joined = f"{out[-1]}, {piece}" if out else piece
        if piece not in why.ARMS and joined in why.ARMS:
            out[-1] = joined
        else:
            out.append(piece)
    return list(dict.fromkeys(out))


def whole_numbers(seeds: Sequence[int | str]) -> list[int]:
    """Seeds of the comparison; one that is no whole number, or that the rates were chosen on, is refused."""
    out = []
    for seed in seeds:
        number = not isinstance(seed, bool) and re.fullmatch("[0-9]+", str(seed))
        if not number:
            raise ValueError(f"seeds are {list(seeds)!r}; they must be whole numbers, 0 or more, and {seed!r} is none.")
        if int(seed) == choose.SEED:
            raise ValueError(
                f"seeds names {seed!r}, but on seed {choose.SEED} learning rates and λ were chosen (qru/choose.py), so "
                f"that it is no test of them. Take others, such as {', '.join(map(str, why.SEEDS))}."
            )
        out.append(int(seed))
    return out


def of_grid(grid: Sequence[RunConfig], stored: Sequence[Record]) -> list[Record]:
    """Those of ``stored`` that were run with the configurations of a grid, in its order; of several the last."""
    by_config = {}
    for record in stored:
        with contextlib.suppress(ValueError):  # a run of something else, perhaps by an older version
            by_config[configuration_of(record)] = record
    return [by_config[config] for config in grid if config in by_config]


def configuration_of(record: Record) -> RunConfig:
    return RunConfig.from_dict({key: value for key, value in record.config.items() if key != "hash"})


def with_layers(record: Record) -> Record:
    """A record with what was foreseen of single layers, which older ones lack: it follows from settings and target."""
    if all("layers" in known for known in record.extra["prediction"].values()):
        return record
    target, _ = movement.checkpoints(record)
    before, config = _layers_before(target), configuration_of(record)
    foreseen = {name: predict(config, before, name) for name in record.extra["prediction"]}
    return replace(record, extra=record.extra | {"prediction": foreseen})


@functools.cache
def _layers_before(target: Path) -> dict[str, torch.Tensor]:
    return compress.stored_layers(models.load_weights(target, torch.bfloat16))


def drop_others(declared: Sequence[RunConfig]) -> None:
    """Remove committed records that no grid asks for any more, and say so."""
    for record in records.kept(KEPT):
        if not of_grid(declared, [record]):
            say(f"{record.path} is of no grid of this experiment now: removed.")
            record.path.unlink()


def command(part: str, scale: str = "mini", asked: Mapping[str, Sequence[object]] | None = None) -> str:
    """What makes the records of a part, of all of the grid or of what of it was asked for."""
    text = f"papermill notebooks/04_why.ipynb runs/why.ipynb -p rerun True -p parts {part}"
    text += "" if scale == "mini" else f" -p scale {scale}"
    for name, values in (asked or {}).items():  # a comma at the end, or one number would be no list
        text += f" -p {name} {shlex.quote(''.join(f'{value},' for value in values))}"
    return text


def missing(part: str) -> Markdown:
    """What a notebook says where a part has no records."""
    return Markdown(f"There is no record of this part; this makes them: `{command(part)}`")


def announce(found: dict[str, list[Record]], scale: str) -> Markdown:
    """Say on the terminal and in the notebook how many records of each part were read, and where they are."""
    counted = {MAIN: f"{MAIN} {len(found[MAIN])}"}
    counted |= {part: f"{part} {len(found[part])} of {len(grid(scale))}" for part, grid in PARTS.items()}
    folders = {part: " and ".join(sorted({_place(record.path) for record in found[part]})) for part in counted}
    where = sorted({folder for folder in folders.values() if folder})
    if len(where) > 1:  # each part says its own
        text = ", ".join(f"{said} in {folders[part]}" if folders[part] else said for part, said in counted.items())
    else:
        text = f"{', '.join(counted.values())}; in {where[0]}"
    text = f"records: {text}"
    say(f"\n{text}")
    return Markdown(text)


def _place(path: Path) -> str:
    """The folder that holds a run's record, from where notebooks are run."""
    folder = path.parent.parent if path.name == "record.json" else path.parent
    for home in (paths.root(), Path(__file__).resolve().parent.parent):
        if folder.is_relative_to(home):
            return f"`{folder.relative_to(home)}`"
    return f"`{folder}`"


def choice_table() -> pd.DataFrame:
    """Every attempt at a learning rate and λ, in the order they were made.

    ``left`` is VerbMem at its end, or the forget accuracy of labelled texts (percent, stopping half).
    """
    tried = records.read_json(KEPT.parent / "choice.json")["tried"]
    rows = [one | {"left": one.get("verbmem", one.get("forget_accuracy"))} for one in tried]
    return pd.DataFrame(rows)[["corpus", "method", "adapter", "learning_rate", "retain_weight", "steps", "left"]]


# --- tables of the other parts ----------------------------------------------------------------------------------


def layers_of(found: Sequence[Record], quantizer: str = LAYERS) -> pd.DataFrame:
    """``why.layer_table`` of those records that hold counts of layers under a quantizer, which is named beside."""
    holding = [record for record in found if record.crossings.get(quantizer, {}).get("layers")]
    return why.layer_table(holding, quantizer).assign(quantizer=quantizer)


def factor_table(found: Sequence[Record], factor: str) -> pd.DataFrame:
    """``why.table`` with one row a run, and a setting beside.

    Args:
        found: of a part in which one setting is varied.
        factor: a field of ``RunConfig``, such as ``"lora_alpha"``.

    Returns:
        The columns of ``why.table`` (of the first quantizer) and ``factor``. Runs without a goal count as having
        reached it: there is none that they missed.
    """
    rows = []
    for record in found:
        row = dict(why.table([record]).iloc[0])
        free = record.config["forget_goal"] is None
        rows.append(row | {factor: record.config[factor], "reached": free or row["reached"]})
    return pd.DataFrame(rows)


def size_table(found: Sequence[Record]) -> pd.DataFrame:
    """Sizes of models, and how far their weights moved: a row a run, as ``why_figures.forgetting`` draws it."""
    rows = []
    for record in found:
        run, scale = why.table([record]).iloc[0], record.config["scale"]
        size = models.sizes(scale)
        sigma = next(iter(record.extra["prediction"].values()))["sigma"]
        rows.append({
            "width": size.hidden, "layers": size.layers, "arm": run["arm"], "seed": run["seed"],
            "parameters": sum(p.numel() for p in models.without_weights(scale).parameters()),
            "relative_update": run["update"], "relative_edge": run["edge"] / sigma, "reached": run["reached"],
        })  # fmt: skip
    return pd.DataFrame(rows)
