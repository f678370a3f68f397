"""The benchmark runs and verifies; what it measures is not a test's business. Its sums are."""

import importlib.util

import pytest
import torch

from qru import kernel_figures, kernel_record
from qru.ops import bench, build_info
from qru.records import read_json, write_json

built = pytest.mark.skipif(not build_info()["built"], reason="the kernel is not built")


@built
def test_smoke(tmp_path, capsys):
    path = tmp_path / "bench.json"
    record = bench.main(["--smoke", "--ranks", "4", "--threads", "1", "--json", str(path)])
    assert read_json(path) == record
    assert bench.read(str(path)) == record
    (result,) = record["results"]
    others = {"peft-bnb"} if importlib.util.find_spec("bitsandbytes") else set()
    assert set(result["contestants"]) == {"ours", "dequantize", "eager", "product"} | others
    shown = capsys.readouterr().out
    assert "256x256 r=4" in shown
    assert f"record: {path}" in shown
    # 2 bytes a weight in, half a byte out; a float32 step for each 128; an adapter of rank 4
    assert result["bytes"] == 256 * 256 * 2.5 + 4 * (256 * 2) + 4 * 4 * (256 + 256)
    assert result["flops"] == 2 * 4 * 256 * 256
    ours = result["contestants"]["ours"]
    assert result["gb_per_s"] == pytest.approx(result["bytes"] / (ours["ms"] * 1e-3) / 1e9)
    assert ours["ratio"] == ours["ratio_low"] == ours["ratio_high"] == 1.0
    assert record["config"]["threads"] == 1
    assert {"commit", "dirty", "hardware", "versions", "kernel", "load_before"} <= set(record["provenance"])


@built
def test_a_wrong_kernel_is_not_timed(monkeypatch):
    real = bench.merge_quantize
    monkeypatch.setattr(bench, "merge_quantize", lambda weight, *adapter, **options: real(weight))
    with pytest.raises(AssertionError, match="disagree"):
        bench.bench((128, 128), 4, rounds=1, compiled=False)


@built
def test_one_wrong_code_is_not_timed(monkeypatch):
    real = bench.merge_quantize

    def almost(*args, **options):
        out = real(*args, **options)
        out.packed[3, 5] ^= 1
        return out

    monkeypatch.setattr(bench, "merge_quantize", almost)
    with pytest.raises(AssertionError, match="specification disagree"):
        bench.bench((128, 128), 4, rounds=1, compiled=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": "maxi"}, "scale is 'maxi'; choose one of"),
        ({"shapes": "llama3"}, "llama2-7b"),
        ({"shapes": "llama2-7b", "rows": 128}, "give one or the other"),
        ({"columns": 100}, "does not divide"),
        ({"ranks": [16, 0]}, "rank is 0"),
        ({"threads": -1}, "threads is -1"),
        ({"device": "tpu"}, "device is 'tpu'"),
    ],
    ids=str,
)
def test_what_it_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        bench.measure(**{"scale": "smoke"} | given)


def test_the_eager_pipeline_by_hand():
    # Steps 8 / 8 before and 16 / 8 after the update, which moves the second weight from 4 to 16 and no other.
    weight = torch.tensor([[-8.0, 4.0, 1.0, 3.0]]).bfloat16()
    lora_A, lora_B = torch.tensor([[0.0, 12.0, 0.0, 0.0]]), torch.tensor([[1.0]])
    crossed, changed, packed = bench.eager_pipeline(weight, lora_A, lora_B, group_size=4)
    # before -8 4 1 3; on the same grid -8 7 (clamped) 1 3; on its own -4 7 0 2 (ties to even: 0.5 and 1.5)
    assert (crossed.item(), changed.item()) == (1, 4)
    assert packed.tolist() == [[(7 << 4) | 12, (2 << 4) | 0]]


def test_medians_quartiles_and_ratios_by_hand():
    assert bench.quartiles([5.0]) == (5.0, 5.0, 5.0)
    assert bench.quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)
    found = bench.summary([20.0, 30.0, 40.0, 50.0, 60.0], [10.0, 10.0, 10.0, 10.0, 10.0])
    assert (found["ms"], found["low"], found["high"]) == (40.0, 30.0, 50.0)
    assert found["spread"] == 0.5
    assert found["ratio"] == 4.0
    assert 2.0 <= found["ratio_low"] < 4.0 < found["ratio_high"] <= 6.0


def test_contestants_take_turns_in_another_order_each_round():
    order = []
    runs = {name: bench.Contestant(lambda name=name: order.append(name)) for name in "abcd"}
    times = bench.interleaved(runs, 4, "cpu")
    assert [len(values) for values in times.values()] == [4, 4, 4, 4]
    rounds = [tuple(order[i : i + 4]) for i in range(0, 20, 4)]  # the first does not count
    assert all(sorted(turn) == list("abcd") for turn in rounds)
    assert len(set(rounds)) > 1


def test_preparation_comes_before_each_run():
    seen = []
    contestant = bench.Contestant(lambda: seen.append("run"), lambda: seen.append("prepare"))
    bench.interleaved({"one": contestant}, 2, "cpu")
    assert seen == ["prepare", "run"] * 3


@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
def test_peft_and_bitsandbytes_start_from_the_same_weight_each_time():
    run, prepare = bench.merged_by_peft(*bench.example((64, 128), 4))
    prepare()
    packed, state = run()
    prepare()
    again, _ = run()
    assert torch.equal(packed, again)
    assert state.absmax.numel() == 64 * 128 // 64  # one step in each block of 64
    with pytest.warns(UserWarning, match="nothing to do"):  # without its preparation a run would not merge
        run()


def made_up(ranks=(1, 8), shapes=((4, 128),)):
    """A record with round numbers: at every rank ours takes 2 ms, eager 20 ms."""
    results = [
        {
            "shape": list(shape),
            "rank": rank,
            "rounds": 5,
            "contestants": {"eager": bench.summary([20.0] * 5, [2.0] * 5), "ours": bench.summary([2.0] * 5, [2.0] * 5)},
            "bytes": 1e6,
            "flops": rank * 1e6,
            "ceilings": {"bytes_per_s": 1e9, "flops_per_s": 4e9, "memory_ms": 1.0, "fma_ms": rank / 4, "binds": "fma"},
            "gb_per_s": 0.5,
            "gflop_per_s": rank / 2,
            "share_of_ceiling": 0.5,
        }
        for shape in shapes
        for rank in ranks
    ]
    return {
        "kind": kernel_record.KIND,
        "config": {"device": "cpu", "threads": 2, "dtype": "bfloat16", "quantizer": "rtn-int4-g128"},
        "results": results,
        "provenance": {
            "commit": "0123456789abcdef",
            "dirty": False,
            "load_before": 0.25,
            "versions": {"torch": "2", "peft": "1"},
            "hardware": {"processor": "An Example"},
            "kernel": {"isa": "avx2"},
        },
    }


def test_words_of_a_record():
    record = made_up()
    assert "4x128 r=8: 2 ms (spread 0%, n=5), 0.5 GB/s, 4 GFLOP/s, 50% of the fma ceiling" in kernel_record.line(
        record["results"][1]
    )
    assert "eager PyTorch 20 ms, 10x [10, 10]" in kernel_record.line(record["results"][1])
    assert kernel_record.machine(record) == "2 threads of An Example (avx2)"
    assert kernel_record.origin(record) == "commit 0123456789; torch 2, peft 1; load before 0.2"
    table = kernel_record.table(record)
    assert table.loc[("4 × 128", 8, "eager PyTorch"), "ratio"] == 10.0
    assert list(table.index.get_level_values("contestant"))[:2] == ["qru, one pass", "eager PyTorch"]
    assert kernel_record.ceiling_table(record).loc[("4 × 128", 8), "% of ceiling"] == 50.0


def test_summary_of_a_record_in_markdown():
    lines = kernel_record.summary(made_up()).splitlines()
    assert lines[0].startswith("bfloat16 to rtn-int4-g128 on 2 threads of An Example (avx2); medians of 5 interleaved")
    assert lines[2:] == [
        "| matrix | rank | ms | of the ceiling | eager PyTorch |",
        "|---|---|---|---|---|",
        "| 4 × 128 | 1 | 2 | 50% (multiply-adds) | 10× [10, 10] |",
        "| 4 × 128 | 8 | 2 | 50% (multiply-adds) | 10× [10, 10] |",
    ]


@pytest.mark.parametrize("value", [{}, [], {"kind": kernel_record.KIND}, {"kind": "run", "results": [1]}], ids=str)
def test_other_records_are_refused(tmp_path, value):
    write_json(tmp_path / "x.json", value)
    with pytest.raises(ValueError, match=r"x\.json is no record of the kernel's benchmark"):
        bench.read(str(tmp_path / "x.json"))


@pytest.mark.parametrize("record", [made_up(), made_up(ranks=(16,)), made_up(shapes=((4, 128), (8, 256)))])
def test_figures_show_what_the_record_says(record):
    shapes = kernel_figures.shapes_of(record)
    time, roof = kernel_figures.time_by_rank(record), kernel_figures.roofline(record)
    assert len(time.axes) == len(roof.axes) == len(shapes)
    for figure in (time, roof):
        figure.draw_without_rendering()
        texts = {text.get_text() for text in figure.axes[0].texts}
        assert {"qru, one pass", "eager PyTorch"} <= texts
        assert "n = 5" in figure.axes[0].get_title(loc="left")
    lines = {line.get_color(): line for line in time.axes[0].get_lines() if len(line.get_xdata())}
    assert set(lines[kernel_figures.LOOKS["eager"][0]].get_ydata()) == {20.0}
    ceilings = next(line for line in roof.axes[0].get_lines() if line.get_color() == kernel_figures.INK)
    assert ceilings.get_xdata()[1] == 4.0  # the ridge: 4 GFLOP/s over 1 GB/s
    assert ceilings.get_ydata()[1:].tolist() == [4.0, 4.0]
