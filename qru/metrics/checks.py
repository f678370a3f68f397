"""What is checked before a model is scored, and the mode it is scored in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qru.models import vocabulary_digest

# Two logits closer than this many units in the last place of the larger may change places with the batch size.
# Measured on small float32 models: up to a dozen.
NEAR_TIE_ULPS = 64


def near_tie_margin(best: torch.Tensor) -> torch.Tensor:
    """How far under the largest logits ``best``, in their own type, another may lie for rounding to decide."""
    return NEAR_TIE_ULPS * torch.finfo(best.dtype).eps * best.abs().clamp(min=1)


def device_of(model) -> torch.device:
    """Where token ids go in."""
    return model.get_input_embeddings().weight.device


def embedded(model) -> int:
    """How many tokens the model has embeddings for."""
    return model.get_input_embeddings().weight.shape[0]


def end_tokens(model, tokenizer) -> frozenset[int]:
    """Ids that end a text: the tokenizer's and the model's own."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if configured is None:
        configured = getattr(model.config, "eos_token_id", None)
    ends = set(configured) if isinstance(configured, (list, tuple)) else {configured}
    return frozenset((ends | {tokenizer.eos_token_id}) - {None})


def check_tokenizer(model, tokenizer) -> None:
    """Refuse a tokenizer that cannot be this model's.

    Raises:
        ValueError: more tokens than the model embeds, no BOS, special tokens where the model has ordinary ones, or,
            for a model that qru saved, another vocabulary than it was saved with.
    """
    if len(tokenizer) > embedded(model):
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but the model embeds {embedded(model)}: it is another model's "
            "tokenizer. Load both from the same folder."
        )
    if tokenizer.bos_token_id is None:
        raise ValueError(
            "the tokenizer has no BOS token, and every text here is scored behind one: set tokenizer.bos_token to "
            "the token the model was trained with at the start of a text, or, as load_models does for families that "
            "have none (Qwen), to what model.config.bos_token_id stands for, or else tokenizer.eos_token"
        )
    special = set(tokenizer.all_special_ids)
    for role, ids in (("BOS", {getattr(model.config, "bos_token_id", None)} - {None}), ("EOS", _config_ends(model))):
        # An extra special token is common in chat models; an ordinary one means the ids are of different vocabularies.
        if ids and not ids & special:
            raise ValueError(
                f"the model's {role} is token {sorted(ids)}, which is no special token of this tokenizer (those are "
                f"{sorted(special)}): it is another model's tokenizer, or model.config.{role.lower()}_token_id and "
                "model.generation_config were left at their defaults when the model was made"
            )
    saved_with = getattr(model.config, "qru_vocabulary", None)  # only models that qru saved have it
    if saved_with is not None and vocabulary_digest(tokenizer) != saved_with:
        raise ValueError(
            "the tokenizer has another vocabulary than the one this model was saved with: its sizes and special "
            "tokens fit, but its ids mean other text. Load both from the same folder."
        )


def _config_ends(model) -> set[int]:
    ends = getattr(model.config, "eos_token_id", None)
    return set(ends) if isinstance(ends, (list, tuple)) else {ends} - {None}


def check_weights(model) -> None:
    """Refuse a model with NaN or Inf in a weight.

    Raises:
        ValueError: naming the first such weight and how many of its values are not finite.
    """
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            broken = int((~torch.isfinite(weight)).sum())
            raise ValueError(
                f"{name} holds NaN or Inf in {broken} of {weight.numel()} values: the training that made it diverged; "
                "lower its learning rate, and do not score this model"
            )


def check_length(model, longest: int, what: str) -> None:
    """Refuse a sequence that needs more positions than the model has.

    Raises:
        ValueError: naming both numbers.
    """
    # A model that also sees images keeps the settings of its text part apart.
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ValueError(
            f"{what} needs {longest} positions, but the model has max_position_embeddings={limit}: shorten it or leave "
            "it out."
        )


def encode(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, with BOS in front exactly once and no EOS, whatever the tokenizer adds on its own."""
    if not texts:
        return []
    bos = tokenizer.bos_token_id
    rows = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [row if row[:1] == [bos] else [bos, *row] for row in rows]


@contextmanager
def scoring(model) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
