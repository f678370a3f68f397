"""Log-probability of every token of a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy

from qru.metrics.checks import check_length, check_tokenizer, encode, scoring

# Logits are (batch, length, vocabulary), the largest thing held; batches shrink so that they stay below this. On a CPU
# small blocks stay in its cache and are faster (measured: 16 MiB against 256 MiB saves a quarter of the time).
MAX_LOGITS_BYTES = {"cpu": 16 * 2**20}
MAX_LOGITS_BYTES_ELSEWHERE = 2**30


def token_log_probs(
    model,
    tokenizer,
    texts: Sequence[str],
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """Log-probability of each token of each text, given BOS and the tokens before it; nothing is cut off.

    Args:
        model: causal language model; its mode is restored afterwards.
        tokenizer: the model's; BOS is put in front of each text exactly once and is not itself scored.
        texts: the texts.
        batch_size: texts per forward pass at most; fewer where their logits would not fit in a fixed space.
        progress: called with the number of texts just finished.

    Returns:
        One float32 tensor (tokens,) per text, on the CPU, in nats, in the order of the texts.

    Raises:
        ValueError: tokenizer of another model, a text longer than the model's positions, log-probabilities that are
            not finite, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    check_tokenizer(model, tokenizer)
    rows = encode(tokenizer, list(texts))
    if not rows:
        return []
    longest = max(map(len, rows))
    check_length(model, longest - 1, f"the longest text ({longest - 1} tokens)")

    device = model.get_input_embeddings().weight.device
    space = MAX_LOGITS_BYTES.get(device.type, MAX_LOGITS_BYTES_ELSEWHERE)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    out: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))  # longest first: memory runs out at once or never
    with scoring(model):
        while order:
            # The last token is predicted, never fed: width - 1 tokens go in.
            width = max(len(rows[order[0]]) - 1, 1)
            fitting = max(1, space // (4 * width * vocabulary))
            batch, order = order[: min(batch_size, fitting)], order[min(batch_size, fitting) :]
            padded = torch.tensor([rows[i] + [0] * (width + 1 - len(rows[i])) for i in batch], device=device)
            real = torch.tensor([[1] * (len(rows[i]) - 1) + [0] * (width + 1 - len(rows[i])) for i in batch])
            logits = model(
                input_ids=padded[:, :-1],
                # Padding comes last, where a causal model cannot see it; a row of BOS alone still attends to itself.
                attention_mask=torch.cat([torch.ones(len(batch), 1, dtype=torch.long), real[:, :-1]], 1).to(device),
                position_ids=torch.arange(width, device=device).expand(len(batch), width),
                use_cache=False,
            ).logits  # (B, T, V)
            scores = -cross_entropy(logits.float().flatten(0, 1), padded[:, 1:].flatten(), reduction="none")
            scores = scores.view(len(batch), width).cpu()  # (B, T)
            for i, row in zip(batch, scores, strict=True):
                out[i] = row[: len(rows[i]) - 1].clone()
                if not torch.isfinite(out[i]).all():
                    raise ValueError(
                        f"the log-probabilities of text {i} are NaN or Inf: the model's weights or its quantizer "
                        "produce numbers that overflow; this model cannot be scored"
                    )
            if progress is not None:
                progress(len(batch))
    return out
