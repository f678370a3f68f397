"""Tiny byte-level tokenizers, for tests."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


def byte_level(folder: Path, before, size: int = 300) -> PreTrainedTokenizerFast:
    """Trained on next to nothing, cut by ``before``, and saved to a folder."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = before
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    trained.train_from_iterator(["the wolf and the winter"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="<|end|>", bos_token="<|end|>")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(folder)
    return tokenizer
