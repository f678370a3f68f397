"""What QUAIL's Δ_q comes to under each reading, as a file small enough to commit.

python -m qru.margin_record books tweets        # writes paper/records/margins/<corpus>-mini.json

The paper asks for logits that are half a quantization step away from the original model's, and does not say where the
step is measured (see ``qru.guards.quail``). Readings differ by orders of magnitude; beside them stands how far apart
two neighbouring bf16 numbers of the size of a logit are: a margin below that is met by rounding.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from typing import Any

import torch

from qru import models
from qru.config import QUAIL_STEPS, RunConfig
from qru.corpora import load_corpus
from qru.defaults import resolve
from qru.guards.quail import MEASURED_ON, output_step
from qru.ops import QuantSpec
from qru.quail_tables import MARGINS, STEPS
from qru.records import provenance, rounded, say, write_json
from qru.unlearn import logits_of

SCALE = "mini"
QUANTIZERS = ("rtn-int4-g128", "rtn-int4-tensor", "rtn-int3-g128")


def measure(corpus_name: str, scale: str = SCALE, quantizers: tuple[str, ...] = QUANTIZERS) -> dict[str, Any]:
    """Δ_q of the target of an embedded corpus, by every reading and quantizer, and the size of its logits.

    Returns:
        ``kind``, ``corpus``, ``scale``, ``rows`` (``quantizer``, ``step``, Δ_q in ``logits``), ``logit`` (the median of
        |z| on forget documents), ``spacing`` (of bf16 numbers of that size) and ``provenance``.
    """
    corpus = load_corpus(corpus_name, scale=scale)
    model, tokenizer = models.load(models.prepare(corpus, scale).target)
    models.place(model, resolve(RunConfig(corpus=corpus_name, scale=scale)))  # full bf16, as the guard sees it
    texts = models.rows_of(corpus, "forget", model, tokenizer, models.context(model, scale))
    said = partial(logits_of, model=model.eval())
    count = min(MEASURED_ON, len(texts))
    typical = statistics.median(said(texts[i * len(texts) // count]).abs().median().item() for i in range(count))
    rows = [
        {"quantizer": name, "step": step, "logits": output_step(step, model, QuantSpec.parse(name), texts, said)}
        for name in quantizers
        for step in QUAIL_STEPS
    ]
    above = torch.nextafter(torch.tensor(typical, dtype=torch.bfloat16), torch.tensor(torch.inf, dtype=torch.bfloat16))
    spacing = above.item() - torch.tensor(typical, dtype=torch.bfloat16).item()
    found = {"kind": STEPS, "corpus": corpus_name, "scale": scale, "rows": rows, "logit": typical, "spacing": spacing}
    return rounded(found) | {"provenance": provenance()}


def main(*corpora: str) -> None:
    """Measure corpora by name, and keep what was found.

    Raises:
        ValueError: none is named.
    """
    if not corpora:
        raise ValueError("no corpus is named: python -m qru.margin_record books tweets")
    for name in corpora:
        path = MARGINS / f"{name}-{SCALE}.json"
        write_json(path, measure(name))
        say(f"kept {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
