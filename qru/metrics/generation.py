"""Greedy generation in batches that gives the strings of batch size 1.

One batch, with P tokens that all prompts share and the rest padded on the left:

    cache   [ shared prefix, computed once | pad pad  rest of prompt 0 | new tokens ... ]
            [ shared prefix, the same      | pad rest of  prompt     1 | new tokens ... ]
    position  0 ... P-1                        -   -   P ...              explicit, so pads do not shift a row

A row ends at an EOS, at a stop string in its decoded text, or at the token limit; when enough rows of a batch have
ended they are dropped from it.

Where a text is known that the model may well continue with (VerbMem's ground truth), a row is also shown some tokens
of it as a draft, and those that it would have taken one by one are taken at once; the first that it would not have
taken, and all behind it, are masked in the cache. That changes what is computed together and nothing else.

    block   [ last token | draft d1 d2 d3 ]     choices after each: d1 d2 x -     d1 d2 x are taken, d3 is masked

Of equally likely tokens the one with the lowest id is taken, as ``torch.argmax`` does.

Sums run in another order in a batch than alone, so logits differ in their last bits, and a greedy choice between two
tokens that are that close could differ. Rows where a choice was that close (in float32: hardly ever) are generated
again alone, so what is taken is what batch size 1 takes. The margin is ``NEAR_TIE_ULPS``: measured, with room, not
proven; a model deep enough to amplify rounding beyond it could still differ, in rows that nobody could call settled.
In bf16 or fp16 arithmetic such near-ties are everywhere, nothing is repeated, and batch sizes (and drafts) may differ
as they do in every library; keep the model in float32 where that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from qru.metrics.checks import (
    check_length,
    check_tokenizer,
    device_of,
    embedded,
    encode,
    end_tokens,
    near_tie_margin,
    scoring,
)

# Keys and values of a batch, the largest thing held; batches shrink so that they stay below this.
MAX_CACHE_BYTES = 8 * 2**30
# Tokens of the first draft, and how many times more each next one has. A first draft costs a model that has forgotten
# little; one that still knows the text sees 128 tokens in three passes.
FIRST_DRAFT, DRAFT_GROWTH = 8, 4
MAX_DRAFT_LOGITS_BYTES = 2**30


def greedy(
    model,
    tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    stop: tuple[str, ...] = (),
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
    drafts: Sequence[list[int]] | None = None,
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
        drafts: token ids, one list per prompt, that the model may well continue it with; they change speed only.

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
        # Padding stands between the prefix and the rest, and what is not taken of a draft between other tokens.
        holes = _holes_are_harmless(model, max(map(len, rows)) + 2 * max_new_tokens)
        drafts = drafts if holes else None
        prefix = _prefix_cache(model, rows[0][:shared]) if holes and len(rows) > 1 and shared > 1 else None
        shared = shared if prefix is not None else 0
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))  # longest first: memory runs out at once or never
        per_token = _cache_bytes_per_token(model)
        while order:
            fitting = max(1, MAX_CACHE_BYTES // (per_token * (len(rows[order[0]]) + 2 * max_new_tokens)))
            batch, order = order[: min(batch_size, fitting)], order[min(batch_size, fitting) :]
            drafted = None if drafts is None else [drafts[i] for i in batch]
            generated, doubtful = _generate(
                model, [rows[i][shared:] for i in batch], max_new_tokens, decode, prefix, shared, drafted
            )
            for at, i in enumerate(batch):
                if doubtful[at] and (prefix is not None or drafted is not None or len(batch) > 1):
                    generated[at] = _generate(model, [rows[i]], max_new_tokens, decode, None, 0)[0][0]
                responses[i] = decode.response(generated[at])
            if progress is not None:
                progress(len(batch))
    return responses


def decoded(tokenizer, ids: Sequence[int]) -> str:
    """Token ids -> text, as ROUGE is to see it.

    MUSE's code decodes with the clean-up of spaces that transformers had, and that transformers 5 leaves out for BPE.
    Of its replacements (" ." by ".", " 's" by "'s", …) this one alone changes words: "did n't" becomes "didn't".
    """
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).replace(" n't", "n't")


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
        return decoded(self.tokenizer, ids)

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
        indices = indices.to(self._keys.device)  # the layers of a model may lie on several
        self._keys, self._values = self._keys[indices], self._values[indices]
        self.keys, self.values = self._keys[:, :, :length], self._values[:, :, :length]


def _cache(model, room: int, prefix: DynamicCache | None = None, rows: int = 1) -> DynamicCache:
    """An empty cache for ``room`` tokens, or one that begins with a prefix of batch size 1 repeated for all rows."""
    cache = DynamicCache(config=model.config)
    # A layer with a sliding window may keep what has left the window: the mask is what hides it. Layers of other kinds
    # (recurrent states) stay as transformers makes them.
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    cache.layers = [_RoomyLayer(room) if type(layer) in plain else layer for layer in cache.layers]
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


def _cache_bytes_per_token(model) -> int:
    """Keys and values of one token in all layers."""
    shape = model.config.get_text_config()
    queries = getattr(shape, "num_attention_heads", 1)
    heads = getattr(shape, "num_key_value_heads", None) or queries
    size = getattr(shape, "head_dim", None) or shape.hidden_size // queries
    return 2 * shape.num_hidden_layers * heads * size * model.dtype.itemsize


def _holes_are_harmless(model, room: int) -> bool:
    """Whether masked places between a row's tokens are no matter: a window counts places, recurrent states see all."""
    return all(
        type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window >= room)
        for layer in DynamicCache(config=model.config).layers
    )


def _generate(
    model,
    rows: list[list[int]],
    max_new_tokens: int,
    decode: _Decoder,
    prefix: DynamicCache | None,
    shared: int,
    drafts: list[list[int]] | None = None,
) -> tuple[list[list[int]], list[bool]]:
    """Generate for one batch.

    Args:
        rows: what follows the shared prefix, at least one token each.
        prefix: the prefix's keys and values at batch size 1, or None.
        shared: the prefix's length in tokens.
        drafts: what each row may continue with, or None.

    Returns:
        New token ids per row, ending with the EOS where one came; and per row whether a choice was a near-tie.
    """
    device = device_of(model)
    drafts = drafts or [[]] * len(rows)
    # Every token taken fills a place in the cache; drafts that are not taken fill at most as many again.
    allowance = max_new_tokens if any(drafts) else 0
    cache = _cache(model, shared + max(map(len, rows)) + max_new_tokens + allowance, prefix, len(rows))
    mask = torch.ones(len(rows), shared, dtype=torch.long, device=device)  # (B, places in the cache)

    generated: list[list[int]] = [[] for _ in rows]
    doubtful = [False] * len(rows)
    alive = list(range(len(rows)))  # row of the batch -> row asked for
    running = set(alive)
    most_logits = MAX_DRAFT_LOGITS_BYTES // (4 * embedded(model))
    pending, chunk = rows, FIRST_DRAFT  # what the cache does not hold yet, for each row of the batch
    while running:
        shown = [_draft(drafts[row], generated[row], chunk, max_new_tokens) if row in running else [] for row in alive]
        # A draft for some makes the others wait: it must be worth it for half of those that still run.
        if not allowance or 2 * sum(map(bool, shown)) < len(running):
            shown = [[]] * len(alive)
        wide, long = max(map(len, pending)), min(max(map(len, shown)), allowance, most_logits // len(alive))
        shown = [draft[:long] for draft in shown]
        if long:
            allowance, chunk = allowance - long, chunk * DRAFT_GROWTH
        tokens = torch.tensor(
            [
                [0] * (wide - len(known)) + known + draft + [0] * (long - len(draft))  # pads are masked
                for known, draft in zip(pending, shown, strict=True)
            ],
            device=device,
        )  # (B, wide + long)
        first = torch.tensor([wide - len(known) for known in pending], device=device)[:, None]
        last = torch.tensor([wide + len(draft) for draft in shown], device=device)[:, None]
        places = torch.arange(wide + long, device=device)[None]
        real = (places >= first) & (places < last)  # (B, wide + long)
        positions = (mask.sum(1, keepdim=True) + torch.cumsum(real, dim=1) - 1).clamp(min=0)
        logits = model(
            input_ids=tokens,
            attention_mask=torch.cat([mask, real.long()], dim=1),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=long + 1,
        ).logits[:, -(long + 1) :]  # (B, long + 1, V)
        chosen, close = _choose(logits)
        taken = []  # of each row's draft
        for at, (row, choices) in enumerate(zip(alive, chosen.tolist(), strict=True)):
            agreed = 0
            while row in running:
                token = choices[agreed]
                generated[row].append(token)
                doubtful[row] |= close[at][agreed]
                if len(generated[row]) == max_new_tokens or decode.ended(generated[row]):
                    running.discard(row)
                elif agreed < len(shown[at]) and token == shown[at][agreed]:
                    agreed += 1
                else:
                    break
            taken.append(agreed)
        if long:
            real &= places < wide + torch.tensor(taken, device=device)[:, None]
        mask = torch.cat([mask, real.long()], dim=1)
        if running and len(running) <= 0.75 * len(alive):  # dropping copies the cache, so not for every single row
            keep = torch.tensor([at for at, row in enumerate(alive) if row in running], device=device)
            cache.batch_select_indices(keep)
            mask = mask[keep]
            alive = [row for row in alive if row in running]
        pending = [generated[row][-1:] if row in running else [] for row in alive]  # ended rows stand still
    return generated, doubtful


def _draft(draft: list[int], generated: list[int], chunk: int, max_new_tokens: int) -> list[int]:
    """What to show a row next: nothing once it has left its draft, and never more than may be generated."""
    done = len(generated)
    if draft[:done] != generated:
        return []
    return draft[done : min(done + chunk, max_new_tokens - 1)]


def _choose(logits: torch.Tensor) -> tuple[torch.Tensor, list[list[bool]]]:
    """The most likely tokens, lowest id first among equals, and whether another came as close as rounding.

    Args:
        logits: (B, T, V).

    Returns:
        Token ids (B, T), and B lists of T flags.
    """
    chosen = logits.argmax(dim=-1)
    best = logits.gather(-1, chosen[..., None])  # (B, T, 1)
    if not torch.isfinite(best).all():
        raise ValueError(
            "the model's logits are NaN or Inf: its weights or its quantizer produce numbers that overflow; this "
            "model cannot be scored"
        )
    if logits.dtype not in (torch.float32, torch.float64):
        return chosen, torch.zeros(chosen.shape, dtype=torch.bool).tolist()
    return chosen, ((logits >= best - near_tie_margin(best)).sum(dim=-1) > 1).tolist()
