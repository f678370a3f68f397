"""Greedy generation in batches that gives the strings of batch size 1.

One batch, with P tokens that all prompts share and the rest padded on the left:

    cache   [ shared prefix, computed once | pad pad  rest of prompt 0 | new tokens ... ]
            [ shared prefix, the same      | pad rest of  prompt     1 | new tokens ... ]
    position  0 ... P-1                        -   -   P ...              explicit, so pads do not shift a row

A row ends at an EOS, at a stop string in its decoded text, or at the token limit; when enough rows of a batch have
ended they are dropped from it. Of equally likely tokens the one with the lowest id is taken.

Sums run in another order in a batch than alone, so logits differ in their last bits, and a greedy choice between two
tokens that are that close could differ. Rows where that happened (in float32: hardly ever) are generated again alone.
In bf16 or fp16 arithmetic such near-ties are everywhere, nothing is repeated, and batch sizes may differ as they do in
every library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from qru.metrics.checks import (
    NEAR_TIE_ULPS,
    check_length,
    check_tokenizer,
    device_of,
    encode,
    end_tokens,
    scoring,
)


def greedy(
    model,
    tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    stop: tuple[str, ...] = (),
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """The most likely continuation, token by token, of each prompt.

    Args:
        model: causal language model; its mode is restored afterwards.
        tokenizer: the model's; BOS is put in front of each prompt exactly once.
        prompts: texts to continue.
        max_new_tokens: tokens after which a row ends at the latest.
        stop: strings that end a row; the response is cut before the first of them.
        batch_size: prompts per forward pass.
        progress: called with the number of prompts just finished.

    Returns:
        The responses, without special tokens, in the order of the prompts.

    Raises:
        ValueError: tokenizer of another model, a prompt too long for the model, logits that are not finite, or a
            token limit or batch size below 1.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens and batch_size must be at least 1, not {max_new_tokens} and {batch_size}")
    if any(not text for text in stop):
        raise ValueError(f"a stop string is empty: {stop}")
    check_tokenizer(model, tokenizer)
    rows = encode(tokenizer, list(prompts))
    if not rows:
        return []
    _check_fit(model, rows, max_new_tokens, "the prompts")

    decode = _Decoder(tokenizer, end_tokens(model, tokenizer), stop)
    responses: list[str] = [""] * len(rows)
    with scoring(model):
        shared = _shared_length(rows)
        prefix = _prefix_cache(model, rows[0][:shared]) if len(rows) > 1 and shared > 1 else None
        shared = shared if prefix is not None else 0
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            generated, doubtful = _generate(
                model, [rows[i][shared:] for i in batch], max_new_tokens, decode, prefix, shared
            )
            for at, i in enumerate(batch):
                if doubtful[at] and (prefix is not None or len(batch) > 1):
                    generated[at] = _generate(model, [rows[i]], max_new_tokens, decode, None, 0)[0][0]
                responses[i] = decode.response(generated[at])
            if progress is not None:
                progress(len(batch))
    return responses


def as_turn(tokenizer, prompts: Sequence[str]) -> list[str]:
    """Each prompt as one turn of the user in the tokenizer's chat template, where the assistant begins to answer.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "chat_template is asked for, but the tokenizer has none: set tokenizer.chat_template to the one the model "
            "was trained with, or leave the option off"
        )
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]


def check_prompts_fit(model, tokenizer, prompts: Sequence[str], max_new_tokens: int, what: str) -> None:
    """Refuse prompts that leave too few positions for what is to be generated.

    Raises:
        ValueError: naming the longest and its length.
    """
    _check_fit(model, encode(tokenizer, list(prompts)), max_new_tokens, what)


def _check_fit(model, rows: list[list[int]], max_new_tokens: int, what: str) -> None:
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    length = len(rows[longest])
    # The last token is generated but never fed back, so it needs no position.
    check_length(
        model,
        length + max_new_tokens - 1,
        f"prompt {longest} of {what} ({length} tokens) with {max_new_tokens} new ones",
    )


class _Decoder:
    """Token ids -> text, and whether a row has ended."""

    def __init__(self, tokenizer, ends: frozenset[int], stop: tuple[str, ...]) -> None:
        self.tokenizer = tokenizer
        self.ends = ends
        self.stop = stop
        # Only a token that brings a stop string's last character can complete it; decoding rows only then keeps the
        # loop fast. A character outside ASCII may be spread over several byte tokens, so there every token may.
        self._last = {text[-1] for text in stop}
        self._always = any(not last.isascii() or last == " " for last in self._last)
        self._completes: dict[int, bool] = {}

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def ended(self, ids: list[int]) -> bool:
        if ids[-1] in self.ends:
            return True
        if not self.stop or not (self._always or self._may_complete(ids[-1])):
            return False
        text = self.text(ids)
        return any(stop in text for stop in self.stop)

    def _may_complete(self, token: int) -> bool:
        if token not in self._completes:
            self._completes[token] = not self._last.isdisjoint(self.text([token]))
        return self._completes[token]

    def response(self, ids: list[int]) -> str:
        if ids and ids[-1] in self.ends:
            ids = ids[:-1]  # an end that is not among the tokenizer's special tokens would be spelled out
        text = self.text(ids)
        return text[: min((at for at in map(text.find, self.stop) if at >= 0), default=len(text))]


def _shared_length(rows: list[list[int]]) -> int:
    """Tokens that all rows begin with, at least one token of each row left over."""
    first, last = min(rows), max(rows)  # in lexicographic order these two differ earliest
    limit = min(map(len, rows)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)


class _RoomyLayer(DynamicLayer):
    """A layer of keys and values with room for what is to come: DynamicLayer copies everything at every token.

    keys, values: (B, heads, T, head size), views of the first T places of buffers with ``room`` places.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            batch, heads, _, _ = key_states.shape
            self._keys = key_states.new_empty(batch, heads, self.room, key_states.shape[-1])
            self._values = value_states.new_empty(batch, heads, self.room, value_states.shape[-1])
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        assert end <= self.room, f"{end} tokens in a cache with room for {self.room}"
        self._keys[:, :, start:end] = key_states
        self._values[:, :, start:end] = value_states
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        length = self.get_seq_length()
        self._keys, self._values = self._keys[indices], self._values[indices]
        self.keys, self.values = self._keys[:, :, :length], self._values[:, :, :length]


def _cache(model, room: int, prefix: DynamicCache | None = None, rows: int = 1) -> DynamicCache:
    """An empty cache for ``room`` tokens, or one that begins with a prefix of batch size 1 repeated for all rows."""
    cache = DynamicCache(config=model.config)
    # Only plain layers are replaced: a model with sliding windows or other states keeps what transformers gives it.
    cache.layers = [_RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if prefix is not None:
        for layer, shared in zip(cache.layers, prefix.layers, strict=True):
            layer.update(shared.keys.expand(rows, -1, -1, -1), shared.values.expand(rows, -1, -1, -1))
    return cache


def _prefix_cache(model, ids: list[int]) -> DynamicCache | None:
    """Keys and values of a prefix; None for a model whose cache holds more than all keys and values of each layer."""
    device = device_of(model)
    cache = _cache(model, len(ids))
    if not all(type(layer) is _RoomyLayer for layer in cache.layers):
        return None
    tokens = torch.tensor([ids], device=device)
    model(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        position_ids=torch.arange(len(ids), device=device)[None],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return cache


def _generate(
    model, rows: list[list[int]], max_new_tokens: int, decode: _Decoder, prefix: DynamicCache | None, shared: int
) -> tuple[list[list[int]], list[bool]]:
    """Generate for one batch.

    Args:
        rows: what follows the shared prefix, at least one token each.
        prefix: the prefix's keys and values at batch size 1, or None.
        shared: the prefix's length in tokens.

    Returns:
        New token ids per row, ending with the EOS where one came; and per row whether a choice was a near-tie.
    """
    device = device_of(model)
    size, width = len(rows), max(map(len, rows))
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)  # (B, T); pads are masked
    lengths = torch.tensor([len(row) for row in rows], device=device)[:, None]  # (B, 1)
    real = torch.arange(width, device=device)[None] >= width - lengths  # (B, T)
    mask = torch.cat([torch.ones(size, shared, dtype=torch.long, device=device), real.long()], dim=1)
    positions = (shared + torch.cumsum(real, dim=1) - 1).clamp(min=0)  # (B, T)
    cache = _cache(model, shared + width + max_new_tokens, prefix, size)

    generated: list[list[int]] = [[] for _ in rows]
    doubtful = [False] * size
    alive = list(range(size))  # row of the batch -> row asked for
    for step in range(max_new_tokens):
        logits = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]  # (B, V)
        chosen, close = _choose(logits)
        running = []
        for at, (row, token) in enumerate(zip(alive, chosen.tolist(), strict=True)):
            if generated[row] and decode.ended(generated[row]):
                continue  # ended earlier, kept in the batch only until enough have
            generated[row].append(token)
            doubtful[row] |= close[at]
            if not decode.ended(generated[row]):
                running.append(at)
        if not running or step == max_new_tokens - 1:
            break
        if len(running) <= 0.75 * len(alive):  # dropping copies the cache, so not for every single row
            keep = torch.tensor(running, device=device)
            cache.batch_select_indices(keep)
            chosen, mask, positions = chosen[keep], mask[keep], positions[keep]
            alive = [alive[at] for at in running]
        tokens = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return generated, doubtful


def _choose(logits: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
    """The most likely token of each row, lowest id first among equals, and whether another came as close as rounding.

    Args:
        logits: (B, V).

    Returns:
        Token ids (B,), and B flags.
    """
    chosen = logits.argmax(dim=-1)
    best = logits.gather(1, chosen[:, None])  # (B, 1)
    if not torch.isfinite(best).all():
        raise ValueError(
            "the model's logits are NaN or Inf: its weights or its quantizer produce numbers that overflow; this "
            "model cannot be scored"
        )
    if logits.dtype not in (torch.float32, torch.float64):
        return chosen, [False] * len(chosen)
    margin = NEAR_TIE_ULPS * torch.finfo(logits.dtype).eps * best.abs().clamp(min=1)
    return chosen, ((logits >= best - margin).sum(dim=-1) > 1).tolist()
