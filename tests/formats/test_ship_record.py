"""What is said of a record of the shipping benchmark follows from its numbers, and is shown."""

import copy

import pytest

from qru import ship_figures, ship_record
from qru.ship_record import FLOORS, NAMES


def one(seconds, own, resident=900.0):
    count = len(seconds)
    return {"seconds": seconds, "before_mb": [100.0] * count, "peak_mb": own, "resident_mb": [resident] * count}


@pytest.fixture
def record():
    """Three rounds in which everything is met, but for llmcompressor's time, which is so near that it stays open."""
    return {
        "kind": "ship-benchmark",
        "config": {
            "shape": "1.1b", "rank": 64, "threads": 2, "apart": True, "rounds": 3, "spec": "rtn-int4-g128-bfloat16",
            "layers": 154, "weights": 968_884_224,
        },
        "input_bytes": 2_600_000_000,
        "output_bytes": 780_000_000,
        "results": {
            "quantize": one([2.0, 4.0, 3.0], [500.0, 520.0, 510.0]),
            "audit": one([1.4, 1.5, 1.6], [400.0, 400.0, 400.0]),
            "peft-nf4": one([30.0, 60.0, 45.0], [2400.0, 2500.0, 2450.0]),
            "llmcompressor": one([9.9, 24.0, 15.0], [4000.0, 4000.0, 4000.0]),
            "read": one([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
            "disk": one([2.5, 2.5, 2.5], [1.0, 1.0, 1.0]),
            "kernel": one([1.2, 1.2, 1.2], [1.0, 1.0, 1.0]),
        },
        "verified": {"total": {}, "peft-nf4": 0.001, "llmcompressor": 0.0},
        "missing": {},
        "provenance": {
            "versions": {"torch": "2.13.0", "peft": "0.21.2", "bitsandbytes": "0.50"},
            "commit": "c" * 40,
            "dirty": False,
            "hardware": {"processor": "a processor", "cores": 2, "system": "linux"},
            "kernel": {"isa": "avx512"},
            "llmcompressor": {"llmcompressor": "0.14", "torch": "2.13.0+cpu", "threads": 2},
            "attempts": [
                {"time": 0, "load_before": 0.1, "commit": "c" * 40, "dirty": False},
                {"time": 9, "load_before": 1.4, "commit": "d" * 40, "dirty": True},
            ],
        },
    }  # fmt: skip


def test_ratios_are_of_medians_and_intervals_of_rounds_together():
    assert ship_record.interval([2.0, 4.0, 3.0]) == (3.0, 2.0, 4.0)
    ours, theirs = [2.0, 4.0, 3.0], [30.0, 60.0, 45.0]
    assert ship_record.interval(theirs, ours, of=lambda a, b: a / b) == (15.0, 15.0, 15.0)  # round by round 15 times
    assert ship_record.interval([7.0]) == (7.0, 7.0, 7.0)


def test_goals_follow_from_the_numbers(record):
    found = {goal.text: goal for goal in ship_record.goals(record)}
    assert len(found) == 8
    quantized = found["qru quantize: at most 1.5 times the larger floor (floor: reading it, writing the output)"]
    assert (quantized.value, quantized.low, quantized.high) == (1.2, 0.8, 1.6)
    assert quantized.verdict == "open", "the slowest round alone misses it"
    audited = found["qru audit: at most 1.5 times the larger floor (floor: the kernel alone)"]
    assert audited.value == pytest.approx(1.25)
    assert audited.verdict == "met"
    assert found["qru quantize: less than 2 GB of its own memory (the most in any round, in GB)"].value == 0.52
    assert found["qru quantize: at least 5 times as fast as peft merge, save, reload in NF4"].value == 15
    assert found["qru quantize: at most 0.25 of the own memory of peft merge, save, reload in NF4"].value == 510 / 2450
    near = found["qru quantize: at least 5 times as fast as peft merge + llmcompressor RTN"]
    assert (near.value, near.verdict) == (5.0, "open")
    assert near.low == pytest.approx(4.95)


@pytest.mark.parametrize(
    ("name", "key", "values", "goal"),
    [
        ("quantize", "seconds", [40.0, 41.0, 42.0], "at most 1.5 times the larger floor"),
        ("quantize", "seconds", [40.0, 41.0, 42.0], "at least 5 times as fast as peft merge, save"),
        ("audit", "seconds", [9.0, 9.0, 9.0], "qru audit: at most 1.5"),
        ("quantize", "peak_mb", [500.0, 500.0, 2100.0], "less than 2 GB"),
        ("peft-nf4", "peak_mb", [1900.0, 1900.0, 1900.0], "0.25 of the own memory of peft merge, save"),
    ],
)
def test_a_goal_that_is_missed_is_said_to_be(record, name, key, values, goal):
    record["results"][name][key] = values
    (found,) = [one for one in ship_record.goals(record) if goal in one.text and one.verdict == "not met"]
    assert f"not met: {found.text}" in "\n".join(ship_record.lines(record))
    assert ship_record.goal_table(record).loc[found.text, " "] == "not met"


def test_the_table_has_medians_spread_and_the_largest_memory(record):
    table = ship_record.table(record)
    row = table.loc["peft merge, save, reload in NF4"]
    assert (row["seconds"], row["times ours"], row["95 %"], row["own MB"]) == (45, 15, "15 – 15", 2500)
    assert row["spread %"] == pytest.approx(100 * 30 / 45)
    assert row["own MB, times ours"] == pytest.approx(2450 / 510)
    assert list(table.index) == list(NAMES.values())


def test_of_one_process_nothing_is_judged(record):
    record["config"]["apart"] = False
    assert ship_record.goals(record) == []
    assert "no goal is judged" in ship_record.lines(record)[0]
    assert "own MB" not in ship_record.table(record)
    assert len(ship_figures.time_and_memory(record).axes) == 1


def test_what_is_missing_and_where_it_came_from_is_said(record):
    del record["results"]["llmcompressor"]
    del record["provenance"]["llmcompressor"]
    record["missing"] = {"llmcompressor": "there is no environment"}
    assert ship_record.lines(record)[-1] == "missing: peft merge + llmcompressor RTN: there is no environment"
    assert ship_record.origin(record) == (
        "commit cccccccccc, dddddddddd with changes not committed; torch 2.13.0, peft 0.21.2, bitsandbytes 0.50; "
        "load before 0.1, 1.4; in 2 attempts"
    )
    assert "968,884,224 weights in 154 linear layers, 2.60 GB" in ship_record.title(record)


def test_the_summary_shows_every_contestant_and_what_is_not_met(record):
    text = ship_record.summary(record)
    assert "| peft merge, save, reload in NF4 | 45 | 15 [15, 15] | 2,500 | 900 |" in text
    assert text.count("\n| ") == 1 + len(record["results"])
    record["missing"] = {"peft-nf4": "it is not installed"}
    verdicts = [goal.verdict for goal in ship_record.goals(record)]
    said = ship_record.summary(record).splitlines()[-1]
    assert said.startswith(f"{verdicts.count('met')} of 8 aims met; ")
    assert said.count("open: ") == verdicts.count("open") > 0
    assert "open: qru quantize: at least 5 times as fast as peft merge + llmcompressor RTN: 5 [4.95, 6]; " in said
    assert said.endswith("; missing: peft merge, save, reload in NF4: it is not installed.")


def test_the_figure_has_a_bar_a_contestant_and_the_floors(record):
    figure = ship_figures.time_and_memory(record)
    time, memory = figure.axes
    names = [label.get_text() for label in time.get_yticklabels()]
    assert names == list(NAMES.values())
    widths = {name: bar.get_width() for name, bar in zip(names, time.patches, strict=True)}
    assert widths["qru quantize"] == 3
    assert widths["floor: the kernel alone"] == 1.2
    texts = [text.get_text() for text in time.texts]
    assert "3 s, 1.2 × its floor" in texts
    assert "1.5 s, 1.2 × its floor" in texts
    assert len(memory.patches) == 2 * (len(record["results"]) - 3)
    assert ship_figures.pictures([record, copy.deepcopy(record)])[1].axes
    assert len(ship_figures.pictures([])) == 1


def test_another_record_is_refused(record, tmp_path):
    with pytest.raises(ValueError, match=r"mine is no record of the shipping benchmark.*make bench-ship"):
        ship_record.checked(record | {"kind": "kernel-benchmark"}, "mine")
    assert ship_record.committed(tmp_path) == []
    assert set(FLOORS) <= set(NAMES)


def test_committed_records_are_of_this_kind_and_all_there_is_was_verified():
    for found in ship_record.committed():
        assert found["verified"]["total"]["weights"] == found["config"]["weights"]
        assert all(len(one["seconds"]) == found["config"]["rounds"] for one in found["results"].values())
