"""The package with and without its compiled kernel."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qru.ops import build_info, merge_quantize, merge_quantize_ref
from qru.ops.extension import extension

PROBE = """
import warnings, torch
from qru.ops import build_info, merge_quantize, merge_quantize_ref
assert build_info()["built"] is False
weight = torch.arange(256.0).view(2, 128)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    first, second = merge_quantize(weight), merge_quantize(weight)
assert [w.category for w in caught] == [RuntimeWarning], caught
assert "not built" in str(caught[0].message) and "pip install" in str(caught[0].message)
assert torch.equal(first.packed, merge_quantize_ref(weight).packed)
assert merge_quantize(weight.to("meta")).packed.shape == first.packed.shape
print(first.stats)
"""


def test_without_the_kernel_the_reference_runs_with_one_warning(monkeypatch):
    monkeypatch.setenv("QRU_EXTENSION", "off")
    run = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(merge_quantize_ref(torch.arange(256.0).view(2, 128)).stats)


@pytest.mark.parametrize("value", ["on", "no/such/_C.so"])
def test_an_extension_that_is_not_there_is_named(value, monkeypatch):
    monkeypatch.setenv("QRU_EXTENSION", value)
    with pytest.raises(ValueError, match=f"QRU_EXTENSION is '{value}'; give 'off'"):
        extension.__wrapped__()  # past its cache


def test_importing_the_package_does_not_import_torch():
    code = "import sys, qru; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not build_info()["built"], reason="the kernel is not built")
def test_one_openmp_runtime_serves_torch_and_the_kernel():
    """Two would each spin their own threads on the same cores."""
    code = """
import torch
from qru.ops import merge_quantize
torch.set_num_threads(2)
a = torch.randn(256, 256)
for _ in range(3):
    a @ a
    merge_quantize(a, threads=2)
with open("/proc/self/maps") as maps:
    print(len({line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "1"


@pytest.mark.skipif(not build_info()["built"], reason="the kernel is not built")
def test_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("QRU_ISA", "sse9")
    with pytest.raises(ValueError, match="choose auto"):
        merge_quantize(torch.zeros(1, 128))


@pytest.mark.skipif(not build_info()["built"], reason="the kernel is not built")
def test_flush_to_zero_outside_does_not_reach_the_kernel():
    weight = (torch.arange(-64.0, 64.0) * 2**-149).view(1, -1)
    want = merge_quantize(weight)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        got = merge_quantize(weight)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(got.packed, want.packed)
    assert torch.equal(got.scales.view(torch.int32), want.scales.view(torch.int32))


@pytest.mark.nightly
@pytest.mark.skipif(
    shutil.which("nvcc") is None or os.environ.get("HYPOTHESIS_PROFILE") != "nightly",
    reason="no nvcc, or not the nightly profile (a minute)",
)
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_no_cuda_kernel_spills_registers(arch, tmp_path):
    source = Path(__file__).resolve().parents[2] / "csrc" / "merge_quantize_cuda.cu"
    flags = ["-std=c++17", "-O3", "-fmad=false", f"-arch=sm_{arch}", "-Xptxas", "-v", "-cubin"]
    command = ["nvcc", *flags, str(source), "-o", str(tmp_path / "kernel.cubin")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", run.stderr)
    assert len(spills) >= 12
    assert set(spills) == {("0", "0")}
