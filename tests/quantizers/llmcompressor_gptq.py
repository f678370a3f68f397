"""GPTQ by llmcompressor in its own environment: a model's folder and tokens in, the dequantized weights out.

    .venv-llmcompressor/bin/python -I tests/quantizers/llmcompressor_gptq.py FOLDER BITS GROUP_SIZE

A group size of -1 is one group a row. Reads the checkpoint ``FOLDER/model`` in fp32 and ``FOLDER/tokens.safetensors``;
writes ``FOLDER/values.safetensors``.
"""

import sys
from pathlib import Path

import datasets
import torch
import transformers
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from safetensors.torch import load_file, save_file

folder, bits, group_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
rows = load_file(folder / "tokens.safetensors")["tokens"].tolist()
data = datasets.Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
grouping = {"strategy": "group", "group_size": group_size} if group_size > 0 else {"strategy": "channel"}
weights = QuantizationArgs(num_bits=bits, type="int", symmetric=True, actorder=None, **grouping)
recipe = GPTQModifier(
    config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)},
    ignore=["lm_head"], dampening_frac=0.01, block_size=128, actorder=None,
)  # fmt: skip
oneshot(
    model=model, dataset=data, recipe=recipe, num_calibration_samples=len(rows), max_seq_length=len(rows[0]),
    shuffle_calibration_samples=False,
)  # fmt: skip
found = {
    name: module.weight.detach().contiguous()
    for name, module in model.named_modules()
    if isinstance(module, torch.nn.Linear) and name != "lm_head"
}
save_file(found, folder / "values.safetensors")
