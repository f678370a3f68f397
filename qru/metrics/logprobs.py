"""What a model says of every token of a text that is given: its log-probability, and whether greedy choice hits it.

Texts of like length go through the model together, padded on the right, where a causal model cannot see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy

from qru.metrics.checks import check_length, check_tokenizer, device_of, embedded, encode, near_tie_margin, scoring

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
    return _each_text(model, tokenizer, texts, _log_prob, batch_size, progress)


def standardized_log_probs(
    model,
    tokenizer,
    texts: Sequence[str],
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """``token_log_probs``, each less the mean and over the standard deviation of log p under the model's own p.

    What Min-K++ (arXiv 2404.02936) averages. Where the model is certain the deviation is 0; it is taken as 0.001 there
    at least, as in public code.
    """
    return _each_text(model, tokenizer, texts, _standardized, batch_size, progress)


def greedy_hits(
    model,
    tokenizer,
    rows: list[list[int]],
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """Whether each token, given the true ones before it, is the one that greedy generation would take.

    Args:
        model: causal language model.
        tokenizer: the model's.
        rows: token ids of texts; the first of a row is given and not scored.
        batch_size, progress: as ``token_log_probs``.

    Returns:
        One bool tensor (tokens - 1,) per row, on the CPU. A row in which rounding could decide is scored alone, as
        ``greedy`` does.
    """
    found = token_values(model, tokenizer, rows, _hit, batch_size, progress)
    for i, values in enumerate(found):
        if batch_size > 1 and bool((values == _UNSURE).any() | (values == -_UNSURE).any()):
            found[i] = token_values(model, tokenizer, [rows[i]], _hit, 1)[0]
    return [values > 0 for values in found]


def _log_prob(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V) and the tokens that came (B, T) -> log-probabilities (B, T)."""
    return -cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)


def _standardized(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V) and the tokens that came (B, T) -> (log p − μ) / σ (B, T)."""
    log_probs = torch.log_softmax(logits.float(), dim=-1)  # (B, T, V)
    probs = log_probs.exp()
    # Where p is 0, its logarithm may be −inf, and counts 0. The variance is taken around the mean, not as a difference
    # of two large numbers.
    mean = torch.where(probs > 0, probs * log_probs, 0.0).sum(-1)  # (B, T)
    variance = torch.where(probs > 0, probs * (log_probs - mean[..., None]).square(), 0.0).sum(-1)
    return (_log_prob(logits, tokens) - mean) / variance.clamp(min=1e-6).sqrt()


_SURE, _UNSURE = 1.0, 0.5


def _hit(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V) and the tokens that came (B, T) -> ±1: hit or not; ±1/2 where rounding could have decided."""
    best = logits.max(-1).values  # (B, T)
    came = logits.gather(-1, tokens[..., None])[..., 0]
    hit = logits.argmax(-1) == tokens
    if logits.dtype not in (torch.float32, torch.float64):
        return torch.where(hit, _SURE, -_SURE)
    margin = near_tie_margin(best)
    others = (logits >= (best - margin)[..., None]).sum(-1) > 1
    unsure = (came >= best - margin) & others
    sign = torch.where(hit, _SURE, -_SURE)
    return torch.where(unsure, _UNSURE * sign, sign)


def _each_text(model, tokenizer, texts: Sequence[str], measure, batch_size: int, progress) -> list[torch.Tensor]:
    check_tokenizer(model, tokenizer)
    return token_values(model, tokenizer, encode(tokenizer, list(texts)), measure, batch_size, progress)


def token_values(
    model,
    tokenizer,
    rows: list[list[int]],
    measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """A number for each token of each row but the first, in padded batches.

    Args:
        model: causal language model; its mode is restored afterwards.
        tokenizer: the model's.
        rows: token ids, at least one each.
        measure: logits (B, T, V) and the tokens that came (B, T) -> (B, T).
        batch_size: rows per forward pass at most.
        progress: called with the number of rows just finished.

    Returns:
        One float32 tensor (tokens - 1,) per row, on the CPU.

    Raises:
        ValueError: a row longer than the model's positions, a value that is not finite, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if not rows:
        return []
    check_texts_fit(model, tokenizer, rows)

    device = device_of(model)
    space = MAX_LOGITS_BYTES.get(device.type, MAX_LOGITS_BYTES_ELSEWHERE)
    vocabulary = embedded(model)
    out: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))  # longest first: memory runs out at once or never
    with scoring(model):
        while order:
            # The last token is predicted, never fed: width tokens go in.
            width = max(len(rows[order[0]]) - 1, 1)
            fitting = max(1, space // (4 * width * vocabulary))
            batch, order = order[: min(batch_size, fitting)], order[min(batch_size, fitting) :]
            padded = torch.tensor([rows[i] + [0] * (width + 1 - len(rows[i])) for i in batch], device=device)
            # No mask: padding comes last, where a causal model cannot see it. So attention is computed as for one text
            # alone, which is also faster and rounds alike.
            logits = model(input_ids=padded[:, :-1], use_cache=False).logits  # (B, T, V)
            values = measure(logits, padded[:, 1:]).float().cpu()  # (B, T)
            del logits
            for i, row in zip(batch, values, strict=True):
                out[i] = row[: len(rows[i]) - 1].clone()
                if not torch.isfinite(out[i]).all():
                    raise ValueError(
                        f"the log-probabilities of text {i} are NaN or Inf: the model's weights or its quantizer "
                        "produce numbers that overflow; this model cannot be scored"
                    )
            if progress is not None:
                progress(len(batch))
    return out


def check_texts_fit(model, tokenizer, rows: list[list[int]], what: str = "texts") -> None:
    """Refuse texts longer than the model has positions: nothing is cut off.

    Raises:
        ValueError: naming the first such text, how it begins, and both lengths.
    """
    for i, row in enumerate(rows):
        check_length(
            model,
            len(row) - 1,  # the last token is predicted, never fed
            f"text {i} of {what} ({len(row) - 1} tokens; it begins {tokenizer.decode(row[1:12])!r})",
        )
