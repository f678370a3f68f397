"""GPTQ against llmcompressor's, where its environment is (make llmcompressor, or LLMCOMPRESSOR_PYTHON)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qru import calibration, compress, models
from qru.models import linear_layers
from qru.ops.grid import grid_of
from qru.quantizers import Update, load_quantizer
from qru.ship_bench import llmcompressor_python

PYTHON = llmcompressor_python(os.environ.get("LLMCOMPRESSOR_PYTHON"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.is_file(), reason=f"there is no {PYTHON}: make llmcompressor"),
]


@pytest.fixture(scope="module")
def text(made, corpus):
    model, tokenizer = models.load(made.target)
    return calibration.text_for(load_quantizer("gptq-int4-g128"), corpus, model, tokenizer)


def theirs(folder, made, text, bits, group_size):
    shutil.copytree(made.target, folder / "model")
    save_file({"tokens": text}, folder / "tokens.safetensors")
    script = Path(__file__).with_name("llmcompressor_gptq.py")
    command = [PYTHON, "-I", script, folder, str(bits), str(group_size)]
    run = subprocess.run(command, cwd=folder, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return load_file(folder / "values.safetensors")


@pytest.mark.parametrize(("bits", "name", "group_size"), [(4, "row", -1), (3, "row", -1), (4, "g128", 128)])
def test_codes_and_errors_agree_with_llmcompressor(made, text, tmp_path, bits, name, group_size):
    """llmcompressor sets the grids of all groups at the start, so rows and the first group are one grid with ours."""
    quantizer = load_quantizer(f"gptq-int{bits}-{name}-sym-2^(N-1)-1/2")
    found = theirs(tmp_path, made, text, bits, group_size)
    (model, _), (plain, _) = models.load(made.target), models.load(made.target)
    before = compress.stored_layers(model)
    compress.quantize_layers(model, before, {n: Update(new_weight=w) for n, w in before.items()}, quantizer, text)
    grams = {
        n: read.gram.float() for block in calibration.by_block(plain, text) for ns, read in block.items() for n in ns
    }
    for layer, ours in linear_layers(model).items():
        weight = before[layer].float()
        steps, _ = grid_of(weight, quantizer.spec)
        steps = steps.repeat_interleave(weight.shape[1] // steps.shape[1], 1)
        one_grid = steps.shape[1] if name == "row" else 128
        codes = [(values / steps).round()[:, :one_grid] for values in (ours.weight, found[layer])]
        alike = (codes[0] == codes[1]).float().mean()
        error = [(((v - weight) @ grams[layer]) * (v - weight)).sum() for v in (ours.weight, found[layer])]
        if ".0." in layer and "down" not in layer:  # before anything could differ in the inputs
            assert alike == 1
            torch.testing.assert_close(error[0], error[1], rtol=1e-4, atol=0)
        elif name == "row":  # sums in another order carry over, from column to column and from layer to layer
            assert alike > 0.95
            torch.testing.assert_close(error[0], error[1], rtol=0.05, atol=0)
        else:  # another grid in the second group, which carries over to what follows
            assert alike > 0.8
            assert error[0] < 1.2 * error[1]
