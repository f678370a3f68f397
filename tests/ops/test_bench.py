"""The benchmark runs and verifies; what it measures is not a test's business."""

import json

import pytest
import torch

from qru.ops import bench, build_info


@pytest.mark.skipif(not build_info()["built"], reason="the kernel is not built")
def test_smoke(tmp_path, capsys):
    results = bench.main(["--smoke", "--ranks", "4", "--json", str(tmp_path / "bench.json")])
    assert json.loads((tmp_path / "bench.json").read_text()) == results
    assert set(results[0]["ratio"]) == {"eager", "product"}
    assert "r=4" in capsys.readouterr().out


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    real = bench.merge_quantize
    monkeypatch.setattr(bench, "merge_quantize", lambda weight, *adapter: real(weight))
    with pytest.raises(AssertionError, match="disagree"):
        bench.bench((128, 128), 4, repeats=1, compiled=False)


def test_spread_of_equal_times_is_zero():
    assert bench.spread([2.0, 2.0, 2.0, 2.0]) == 0.0
    assert torch.isfinite(torch.tensor(bench.spread([1.0])))
