"""The model card of a quantized checkpoint: what it was made from, how, and what quantization did to the update."""

from __future__ import annotations

import hashlib
import json
from typing import Any

CARD, AUDIT, CERTIFICATE = "README.md", "quantization_audit.json", "certificate.json"
LOADING = {
    "compressed-tensors": "Load it with transformers (`pip install compressed-tensors`) or serve it with vLLM.",
    "gguf": 'Load `model.gguf` with llama.cpp, or transformers: `from_pretrained(folder, gguf_file="model.gguf")`.',
    "safetensors": "An ordinary checkpoint whose weights are dequantized: nothing is smaller, and anything loads it.",
}


def card(
    result: dict[str, Any],
    *,
    base: str,
    weights: str | None,
    adapters: list[tuple[str, str]],
    certificate: bytes | None,
) -> str:
    """Markdown. Names of folders, not their places; no time, so that the same input gives the same bytes.

    Args:
        result: ``format``, ``grid``, ``dtype`` and the counts in ``total``.
        base, weights: names of the folders.
        adapters: names of the folders, and SHA-256 of their weights.
        certificate: what lies beside the unlearned weights under this name, if anything.
    """
    counts = result["total"]
    shares = {"moved": counts["moved"] / counts["weights"], "crossed": counts["crossed"] / counts["weights"]}
    rows = [("base", f"`{base}`")]
    rows += [("fine-tuned weights", f"`{weights}`")] if weights else []
    rows += [("adapter", f"`{name}`, adapter_model.safetensors SHA-256 `{sha256}`") for name, sha256 in adapters]
    rows += [
        ("format", result["format"]),
        ("grid of the linear layers", f"`{result['grid']}`"),
        ("embeddings, norms, head", result["dtype"]),
    ]
    lines = [
        "---", "tags:", "- quantized", f"- {result['format']}", "---", "",
        f"# {weights or (adapters[-1][0] if adapters else base)}, {result['grid']}", "",
        f"Made by `qru quantize`. {LOADING[result['format']]}", "",
        *table(("", ""), rows), "", "## What quantization did to the update", "",
    ]  # fmt: skip
    if counts["moved"] == 0:
        lines.append("There was none: the linear layers are those of the base.")
    else:
        lines += [
            f"Counted against the base, on these codes, over {counts['weights']:,} weights in {len(result['layers'])} "
            f"layers (each of them in `{AUDIT}`).",
            "",
            *table(
                ("", ""),
                [
                    ("weights that moved at all", f"{100 * shares['moved']:.3f} %"),
                    ("weights that crossed a bin", f"{100 * shares['crossed']:.3f} %"),
                    ("crossings to expect", f"{100 * counts['predicted'] / counts['weights']:.3f} %"),
                    ("projection of what is left on the update", number(counts["projection"])),
                    ("cosine between the two", number(counts["cosine"])),
                ],
            ),
            "",
            "A projection of 1 says that the update survives on average, 0 that it is lost in rounding.",
        ]
    if certificate is not None:
        sha256 = hashlib.sha256(certificate).hexdigest()
        place = "the adapter" if adapters else "the weights"
        lines += ["", "## Certificate", "", f"`{CERTIFICATE}`, SHA-256 `{sha256}`, as it lay beside {place}.", ""]
        lines += [
            "It is of the weights, the quantizers and the grids that it lists, before this quantization, and of no "
            "others: see that the grid above is among them.",
            "",
        ]
        lines += table(("", ""), certified(certificate))
    return "\n".join(lines) + "\n"


def certified(content: bytes) -> list[tuple[str, str]]:
    """The single values of a certificate, by name."""
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{CERTIFICATE} beside the weights is no JSON ({error}): move it away or mend it.") from error
    single = found.items() if isinstance(found, dict) else ()
    return [(f"`{name}`", f"`{value}`") for name, value in single if isinstance(value, str | int | float | bool)]


def table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    lines = [f"| {cell(name)} | {cell(value)} |" for name, value in rows]
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *lines]


def cell(text: str) -> str:
    """A text that stays in its cell, whatever a folder or a certificate says."""
    return " ".join(text.split()).replace("|", "\\|")


def number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
