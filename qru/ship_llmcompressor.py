"""llmcompressor's round-to-nearest as people run it: a contestant of ``qru.ship_bench``, in an environment of its own.

    .venv-llmcompressor/bin/python -I qru/ship_llmcompressor.py FOLDER GROUP_SIZE PARENT

Loads ``FOLDER/base`` in bf16, merges ``FOLDER/adapter`` by peft, rounds all linear layers but the head to 4 bits in one
shot and saves to ``FOLDER/out``, compressed. The last line on stdout is JSON: seconds of that work without the imports,
memory, and versions. PARENT is the number of the process with which this one ends. ``make llmcompressor`` makes the
environment, in which qru is not.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path


def main(folder: Path, group_size: int, parent: int) -> None:
    place = Path(__file__).with_name("watch.py")
    found = importlib.util.spec_from_file_location("watch", place)
    watch = importlib.util.module_from_spec(found)
    found.loader.exec_module(watch)
    watch.die_with_parent(parent)

    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from peft import PeftModel

    transformers.utils.logging.disable_progress_bar()
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group_size}
    took = {}
    with watch.watched(took):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
        merged = PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload()
        groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
        oneshot(model=merged, recipe=QuantizationModifier(ignore=["lm_head"], config_groups=groups))
        merged.save_pretrained(folder / "out", save_compressed=True)
    names = ("llmcompressor", "compressed-tensors", "transformers", "torch", "peft")
    versions = {name: importlib.metadata.version(name) for name in names}
    print(json.dumps(took | {"threads": torch.get_num_threads(), "versions": versions}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
