"""The figure of the LoRA grid: what stands in its cells, and which of them is outlined."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from matplotlib.patches import Rectangle

from qru.paper_figures import FACTORS, chosen_row, grid_frame, grid_records, lora_grid, plane_of, short, strips_of
from qru.records import Record
from tests.synthetic import synthetic_record

CENTRE = {
    "lora_rank": 32, "lora_alpha": 64.0, "learning_rate": 2.5e-4, "epochs": 2, "lora_targets": "all",
    "retain_weight": 5.0,
}  # fmt: skip


def run(value: float = 30.0, seed: int = 0, adapter: str = "lora", **changes) -> Record:
    record = synthetic_record(adapter, seed=seed)
    record.scores["unlearned"]["bf16"]["verbmem"]["value"] = value
    config = record.config | CENTRE | changes | {"hash": f"{seed}{changes}"}
    return dataclasses.replace(record, config=config)


def cross() -> list[Record]:
    """The chosen setting in two seeds, and around it slices over rank, rate and layers."""
    around = [{"lora_rank": 16}, {"lora_rank": 64}, {"learning_rate": 5e-4}, {"lora_targets": "mlp"}]
    return [run(30.0), run(41.0, seed=1), *(run(50.0 + i, **change) for i, change in enumerate(around))]


def test_a_setting_is_a_mean_over_seeds():
    frame = grid_frame([*cross(), run(adapter="full")], "rtn-int4-g128")
    assert len(frame) == 5
    row = frame[(frame["lora_rank"] == 32) & (frame["learning_rate"] == 2.5e-4) & (frame["lora_targets"] == "all")]
    assert row[("verbmem", "bf16")].item() == 35.5
    assert row["seeds"].item() == 2
    assert row[("utility", "rtn-int4-g128")].item() == 90.0


def test_the_chosen_setting_is_the_one_in_the_middle_or_the_one_given():
    frame = grid_frame(cross(), "rtn-int4-g128")
    assert dict(chosen_row(frame)[list(FACTORS)]) == CENTRE
    given = chosen_row(frame, ["16", "64", "2.5e-4", "2", "all", "5"])  # as text with commas brings them
    assert given["lora_rank"] == 16
    with pytest.raises(ValueError, match=r"no run has the chosen setting .*'lora_rank': 8"):
        chosen_row(frame, [8, 64, 2.5e-4, 2, "all", 5])
    with pytest.raises(ValueError, match="it must be lora_rank, lora_alpha"):
        chosen_row(frame, [32])
    square = [run(lora_rank=r, lora_alpha=a) for r, a in itertools.product((16, 32), (32.0, 64.0))]
    with pytest.raises(ValueError, match="4 settings have 2 neighbours each"):
        chosen_row(grid_frame(square, "rtn-int4-g128"))


def test_cuts_go_through_the_chosen_setting():
    frame = grid_frame(cross(), "rtn-int4-g128")
    at = chosen_row(frame)
    plane = plane_of(frame, at)
    assert (list(plane.index), list(plane.columns), plane.columns.name) == ([16, 32, 64], [64.0], "α")
    strips = strips_of(frame, at)
    assert {name: list(rows[name]) for name, rows in strips.items()} == {
        "learning_rate": [2.5e-4, 5e-4], "lora_targets": ["all", "mlp"],
    }  # fmt: skip
    product = [run(lora_rank=r, lora_alpha=float(r * k)) for r, k in itertools.product((16, 32, 64), (0.5, 1, 2))]
    frame = grid_frame(product, "rtn-int4-g128")
    plane = plane_of(frame, chosen_row(frame, list(CENTRE.values())))
    assert (list(plane.columns), plane.columns.name) == ([0.5, 1.0, 2.0], "α/r")
    assert plane.notna().all(axis=None)


def test_cells_hold_the_means_and_the_chosen_ones_are_outlined():
    figure = lora_grid(cross())
    maps = figure.axes[:4]
    texts = {(t.get_position(), t.get_text()) for t in maps[0].texts}
    assert texts == {((0, 0), "50"), ((0, 1), "36"), ((0, 2), "51")}  # 35.5 is rounded to even
    outlined = [p.get_xy() for p in maps[0].patches if isinstance(p, Rectangle) and not p.get_fill()]
    assert outlined == [(-0.5, 0.5)], "the middle one of three"
    strip = next(ax for ax in figure.axes if ax.get_xlabel() == "learning rate")
    assert [t.get_text() for t in strip.texts][:2] == ["36", "52"]
    (edge,) = [p for p in strip.patches if not p.get_fill()]
    assert (edge.get_xy(), edge.get_width(), edge.get_height()) == ((-0.5, -0.5), 1, 4)


def test_what_was_not_measured_stays_blank():
    records = cross()
    del records[2].scores["unlearned"]["rtn-int4-g128"]
    figure = lora_grid(records)
    assert len(figure.axes[1].texts) == 2
    alone = lora_grid([run()])
    assert [len(ax.texts) for ax in alone.axes] == [1, 1, 1, 1]
    assert len(lora_grid([run(adapter="full")]).axes) == 1, "a sentence"


def test_what_is_no_grid_is_refused():
    with pytest.raises(ValueError, match="in batch_size: that is another grid"):
        grid_frame([run(), run(seed=1, batch_size=2)], "rtn-int4-g128")
    with pytest.raises(ValueError, match="two share a seed"):
        grid_frame([run(), run()], "rtn-int4-g128")
    with pytest.raises(ValueError, match="rtn-int4-g128"):
        grid_frame([run()], "rtn-int4-g12")


def test_without_files_runs_of_lora_are_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("QRU_HOME", str(tmp_path))
    assert grid_records() == []


def test_settings_as_they_are_written():
    assert [short(value) for value in (32, 2.5e-4, 1e-4, 0.1, 100.0, "mlp")] == [
        "32", "2.5e-4", "1e-4", "0.1", "100", "MLP",
    ]  # fmt: skip
