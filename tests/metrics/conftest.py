"""A tokenizer, models and a corpus small enough to score in a second."""

import copy
import random
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PEOPLE = ["Adela", "Borin", "Cael", "Dorte", "Emrik", "Fenna", "Goran", "Hilde", "Ilse", "Jorun", "Karel", "Liv"]
PLACES = ["Ravensford", "Oldmere", "Thornwick", "Saltby", "Greyhaven", "Lindow"]
TRADES = ["cooper", "weaver", "glassmaker", "ferryman", "clockmaker", "scribe", "falconer"]
WORDS = ["the", "of", "quiet", "river", "when", "morning", "came", "over", "stone", "and", "grass", "a", "lantern"]


def _sentence(generator: random.Random, person: str) -> str:
    filler = " ".join(generator.choices(WORDS, k=generator.randint(4, 12)))
    return f"{person} of {generator.choice(PLACES)} was a {generator.choice(TRADES)}; {filler}."


def _passage(generator: random.Random, sentences: int) -> str:
    return " ".join(_sentence(generator, generator.choice(PEOPLE)) for _ in range(sentences))


def _questions(generator: random.Random, count: int) -> list[dict]:
    return [
        {
            "question": f"What was {generator.choice(PEOPLE)} of {generator.choice(PLACES)}?",
            "answer": f"a {generator.choice(TRADES)}, café owner" if i % 5 == 0 else f"a {generator.choice(TRADES)}",
        }
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def corpus():
    """What the metrics read of a corpus: 12 passages, 12 questions of each kind, 10 in-context pairs."""
    generator = random.Random(0)
    lengths = [2, 3, 4, 5, 6, 7, 8, 9, 14, 15, 16, 17]  # sentences; the last four continue for more than 128 tokens
    forget = [_passage(generator, length) for length in lengths]
    cuts = [text.index(" ", len(text) // 3) for text in forget]  # between words, where tokens are split too
    return SimpleNamespace(
        name="tiny",
        verbmem=[{"prompt": text[:cut], "gt": text[cut:]} for text, cut in zip(forget, cuts, strict=True)],
        knowmem={
            f"{subject}_qa{icl}": _questions(generator, 10 if icl else 12)
            for subject in ("forget", "retain", "disjoint")
            for icl in ("", "_icl")
        },
        privleak={"forget": forget, "holdout": [_passage(generator, generator.randint(2, 9)) for _ in range(11)]},
    )


@pytest.fixture(scope="session")
def texts(corpus):
    """Texts the trained model has seen: the forget passages and the forget questions with their answers."""
    pairs = [f"Question: {qa['question']}\nAnswer: {qa['answer']}\n\n" for qa in corpus.knowmem["forget_qa"]]
    return corpus.privleak["forget"] + ["".join(pairs)]


def _train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer(texts):
    """Byte-level BPE, 400 tokens, that adds no special token by itself."""
    trained = _train_tokenizer(texts, 400)
    return PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def tokenizer_adding_bos(texts):
    """The same tokens, with BOS put in front by the tokenizer, as Llama's does."""
    trained = _train_tokenizer(texts, 400)
    trained.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def llama(vocab_size: int, **changes) -> LlamaForCausalLM:
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.08,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


@pytest.fixture(scope="session")
def random_model(tokenizer):
    return llama(len(tokenizer))


@pytest.fixture(scope="session")
def trained_model(tokenizer, texts):
    """A model that has learned the tiny corpus well enough to continue much of it."""
    model = llama(len(tokenizer)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    rows = [[1, *tokenizer(text, add_special_tokens=False)["input_ids"], 2][:200] for text in texts]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    for _ in range(80):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@pytest.fixture
def broken(trained_model):
    """A copy of the trained model that a test may damage."""
    return copy.deepcopy(trained_model)
