"""Documents become training rows by MUSE's cut, with every kind of tokenizer and every length of document."""

import logging
import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from qru import models

CONTEXT = 8
WORDS = [f"w{n}" for n in range(40)]


def word_tokenizer(bos=True, adds_bos=False, **options):
    """A token a word, so that rows can be written down by hand; w0 is 3, w1 is 4 and so on."""
    vocabulary = {token: n for n, token in enumerate(["<pad>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:  # as Llama's does
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    special = {"pad_token": "<pad>", "eos_token": "</s>"} | ({"bos_token": "<s>"} if bos else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **options)


def words(count):
    return " ".join(WORDS[:count])


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, [[1, 3]]),
        (7, [[1, 3, 4, 5, 6, 7, 8, 9]]),
        (8, [[1, 3, 4, 5, 6, 7, 8, 9], [1, 10]]),
        (15, [[1, 3, 4, 5, 6, 7, 8, 9], [1, 10, 11, 12, 13, 14, 15, 16], [1, 17]]),
    ],
)
def test_every_row_opens_with_one_bos(adds_bos, count, expected):
    rows = models.rows([words(count)], word_tokenizer(adds_bos=adds_bos), CONTEXT)
    assert [row.tolist() for row in rows] == expected
    assert all(row.dtype == torch.long for row in rows)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, []),
        (2, [[3, 4]]),
        (8, [[3, 4, 5, 6, 7, 8, 9, 10]]),
        (9, [[3, 4, 5, 6, 7, 8, 9, 10]]),  # nothing can be predicted from the ninth, which stands alone
        (10, [[3, 4, 5, 6, 7, 8, 9, 10], [11, 12]]),
    ],
)
def test_without_bos_rows_are_the_document_cut(count, expected):
    rows = models.rows([words(count)], word_tokenizer(bos=False), CONTEXT)
    assert [row.tolist() for row in rows] == expected


def test_rows_keep_to_their_document_and_to_its_order():
    rows = models.rows([words(8), "", "w30", "  \n", words(2)], word_tokenizer(), CONTEXT)
    assert [row.tolist() for row in rows] == [[1, 3, 4, 5, 6, 7, 8, 9], [1, 10], [1, 33], [1, 3, 4]]
    assert models.rows([], word_tokenizer(), CONTEXT) == []


def byte_tokenizer(**options):
    """A token a byte, but for words that it merges: any text comes back from its tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={token: n for n, token in enumerate(["<s>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", **options)


def test_a_document_of_a_hundred_thousand_words_is_cut_without_loss_and_without_a_warning(caplog, monkeypatch):
    text = " ".join(f"\u201cw\u3000{n}\u201d" for n in range(100_000))
    tokenizer = byte_tokenizer(model_max_length=2048)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    rows = models.rows([text], tokenizer, 2048)
    assert len(rows) == math.ceil(len(text.encode()) / 2047)
    assert {len(row) for row in rows[:-1]} == {2048}
    assert tokenizer.decode(torch.cat([row[1:] for row in rows])) == text
    assert not caplog.records
