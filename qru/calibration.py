"""What calibrated quantizers see: rows of text, and what each layer reads of them behind layers that are quantized.

As in the code of GPTQ and AWQ, blocks are taken one after another: a block's inputs come from the blocks before it,
already quantized; within a block all layers see what the block makes of these inputs unquantized.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

import torch

from qru.corpora import Corpus
from qru.models import linear_layers, rows
from qru.quantizers import CALIBRATION_TEXTS, Calibrated, Inputs, Quantizer, calibration_of

ROWS, LENGTH = 128, 512  # at most so many rows of so many tokens; AWQ's authors take as many. Ours where text is short
TOGETHER = 8  # rows that go through the model at once
RECIPE = {"rows": ROWS, "length": LENGTH, "version": 1}  # what a result depends on beside the name and the text


def check(quantizers: Sequence[Quantizer | Calibrated], corpus: Corpus) -> None:
    """Refuse a calibrated quantizer whose text a corpus does not have.

    Raises:
        ValueError: names the quantizer and what the corpus lacks.
    """
    for quantizer in quantizers:
        if text := calibration_of(quantizer):
            split = CALIBRATION_TEXTS[text]
            if not any(document.strip() for document in corpus.raw.get(split, [])):
                there = [name for name, at in CALIBRATION_TEXTS.items() if any(corpus.raw.get(at, []))]
                raise ValueError(
                    f"quantizer {quantizer.name!r} is calibrated on {text} text, and corpus {corpus.name!r} has none: "
                    f"add raw/{split}, or calibrate on one of {there}."
                )


def text_for(
    quantizer: Quantizer | Calibrated, corpus: Corpus, model: torch.nn.Module, tokenizer
) -> torch.Tensor | None:
    """The rows that a quantizer is calibrated on; ``None`` for one that needs none.

    Documents of the split stand one after another, each opened with BOS, and are cut into rows of ``LENGTH`` tokens
    (fewer if the model has fewer positions); of more than ``ROWS`` rows, ``ROWS`` evenly spread ones are taken, and a
    last row that is not full is left out unless it is the only one.

    Returns:
        Long tensor (rows, T), or ``None``.

    Raises:
        ValueError: the corpus has no such text.
    """
    if not (text := calibration_of(quantizer)):
        return None
    check([quantizer], corpus)
    length = min(LENGTH, getattr(model.config.get_text_config(), "max_position_embeddings", None) or LENGTH)
    stream = torch.cat(rows(corpus.raw[CALIBRATION_TEXTS[text]], tokenizer, 10**9))
    full = len(stream) // length
    if full == 0:
        return stream[None]
    cut = stream[: full * length].view(full, length)
    return cut if full <= ROWS else cut[torch.arange(ROWS) * full // ROWS]


@torch.no_grad()
def by_block(model: torch.nn.Module, text: torch.Tensor) -> Iterator[dict[tuple[str, ...], Inputs]]:
    """What the linear layers read, block after block.

    Whoever iterates quantizes the layers of a block before asking for the next: that one's inputs come through it.

    Args:
        model: in eval mode; the layers of blocks that were not given yet hold weights that are not quantized.
        text: (rows, T) of tokens.

    Yields:
        Names of the layers of one block that read the same -> what they read.

    Raises:
        ValueError: a layer is never reached, or reads NaN or Inf (names it).
    """
    layers = linear_layers(model)
    blocks = list(dict.fromkeys(re.match(r"(?:.*?\.)?\d+(?=\.)", name)[0] for name in layers))
    batches = text.to(next(model.parameters()).device).split(TOGETHER)
    reached: list = [None] * len(batches)  # what the block before made of each batch
    for at, block in enumerate(blocks):
        before, here = [model.get_submodule(name) for name in blocks[:at]], model.get_submodule(block)
        inside = {name: layer for name, layer in layers.items() if name.startswith(f"{block}.")}
        sums: dict[tuple[str, ...], Inputs] = {}
        for batch, hidden in zip(batches, reached, strict=True):
            with _reading(inside) as read:
                _through(model, batch, before, hidden, here)
            for x, names in read:
                _add(sums, tuple(names), x.flatten(0, -2).float())
        for name in inside:
            if not any(name in names for names in sums):
                raise ValueError(f"{name} reads nothing of the calibration text: it cannot be calibrated.")
        found = {names: Inputs(s.gram / s.tokens, s.magnitude / s.tokens, s.tokens) for names, s in sums.items()}
        for names, one in found.items():
            if not one.gram.isfinite().all():
                raise ValueError(f"{names[0]} reads NaN or Inf: the weights before it produce numbers that overflow.")
        yield found
        if at + 1 < len(blocks):
            reached = [
                _through(model, batch, before, hidden, here) for batch, hidden in zip(batches, reached, strict=True)
            ]


def _add(sums: dict[tuple[str, ...], Inputs], names: tuple[str, ...], x: torch.Tensor) -> None:
    """Add tokens (n, in) to the sums of what some layers read."""
    gram, magnitude = (x.T @ x).double(), x.abs().sum(0, dtype=torch.float64)
    if known := sums.get(names):
        gram, magnitude = gram + known.gram, magnitude + known.magnitude
    sums[names] = Inputs(gram, magnitude, len(x) + (known.tokens if known else 0))


@contextlib.contextmanager
def _reading(layers: dict[str, torch.nn.Module]) -> Iterator[list[tuple[torch.Tensor, list[str]]]]:
    """What layers read while inside, each tensor once, with the names of its readers."""
    read: list[tuple[torch.Tensor, list[str]]] = []  # the tensors are held, so that no two of them are one object

    def note(name: str):
        def hook(module, arguments):
            for x, names in read:
                if x is arguments[0]:
                    names.append(name)
                    return
            read.append((arguments[0], [name]))

        return hook

    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


class _ReachedError(Exception):
    """Carries what a block made out of a forward pass that goes no further."""


def _through(model: torch.nn.Module, batch: torch.Tensor, before: list, hidden, block: torch.nn.Module):
    """What a block makes of a batch (rows, T).

    Args:
        before: the blocks before it, which are not run: the last of them made ``hidden``.
    """

    def stop(module, arguments, output):
        raise _ReachedError(output)

    own = [vars(module).get("forward") for module in before]
    for module in before:
        module.forward = lambda *arguments, **named: hidden
    handle = block.register_forward_hook(stop)
    try:
        model(input_ids=batch, use_cache=False)
    except _ReachedError as reached:
        return reached.args[0]
    finally:
        handle.remove()
        for module, forward in zip(before, own, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward
    raise AssertionError("the model's forward pass went past a block that it has")
