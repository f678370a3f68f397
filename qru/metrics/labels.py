"""What a classifier says of labelled texts, and how often it is the label they were given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from qru.metrics.checks import check_tokenizer, device_of, scoring
from qru.metrics.score import Context, Score
from qru.metrics.verbmem import mean_score
from qru.models import classes_of, labelled_rows, padding_of

Pair = tuple[str, str]
"""(text, label)."""


def labelled(corpus, *splits: str) -> dict[str, list[Pair]]:
    """The labelled texts of some splits of a corpus, as one set; none where it has no labels."""
    labels = getattr(corpus, "labels", {})
    there = [split for split in splits if split in labels]
    pairs = [pair for split in there for pair in zip(corpus.raw[split], labels[split], strict=True)]
    return {f"{' and '.join(there or splits)} of corpus {corpus.name!r}, with labels": pairs}


def _positions(model) -> int:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30


def check_labelled(sets: Callable) -> Callable:
    """A metric's check: every text fits into the model, and every label is one of its classes."""

    def check(model, tokenizer, corpus, context: Context) -> None:
        for pairs in sets(corpus, context.options).values():
            labelled_rows(*zip(*pairs, strict=True), model, tokenizer, _positions(model))

    return check


def label_log_probs(
    model,
    tokenizer,
    pairs: Sequence[Pair],
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of all classes of each text, and the label that it was given.

    Texts of like length go through the model together, padded on the right, where a causal model cannot see it; the
    answer is read off each text's last token.

    Args:
        model: a classifier; its mode is restored afterwards.
        tokenizer: the model's.
        pairs: (text, label), at least one.
        batch_size: texts per forward pass.
        progress: called with the number of texts just finished.

    Returns:
        float32 (N, C), in nats, and class indices (N,); on the CPU, in the order of the texts.

    Raises:
        ValueError: another model's tokenizer, a text that is too long, a label that is no class, logits that are not
            finite, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    check_tokenizer(model, tokenizer)
    rows = labelled_rows(*zip(*pairs, strict=True), model, tokenizer, _positions(model))
    out = torch.empty(len(rows), model.config.num_labels)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].tokens))  # longest first: memory runs out at once
    with scoring(model):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            tokens = [rows[i].tokens for i in batch]
            ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=padding_of(model, tokenizer))
            logits = model(input_ids=ids.to(device_of(model)), use_cache=False).logits  # (B, C)
            out[batch] = logits.float().log_softmax(-1).cpu()
            if progress is not None:
                progress(len(batch))
    if not torch.isfinite(out).all():
        at = int((~torch.isfinite(out)).any(-1).nonzero()[0])
        raise ValueError(
            f"what the model says of text {at} is NaN or Inf: its weights or its quantizer produce numbers that "
            "overflow; this model cannot be scored"
        )
    return out, torch.tensor([row.label for row in rows])


def said_labels(model, tokenizer, pairs: Sequence[Pair], context: Context) -> list[str]:
    """The class that a classifier holds for the most likely of each text, by name."""
    found, _ = label_log_probs(model, tokenizer, pairs, context.batch_size, context.advance)
    classes = classes_of(model.config)
    return [classes[index] for index in found.argmax(-1).tolist()]


def accuracy(model, tokenizer, pairs: Sequence[Pair], context: Context) -> Score:
    """Share of texts that are given their label; ``responses`` are the labels that the model gives."""
    said = said_labels(model, tokenizer, pairs, context)
    return mean_score([float(label == answer) for (_, label), answer in zip(pairs, said, strict=True)], said)
