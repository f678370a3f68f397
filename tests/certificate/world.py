"""A corpus of nonsense, and models so small that they learn it by heart in seconds: one all of it, one half."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qru import loop, models, records
from qru.config import RunConfig
from qru.corpora import Corpus, load_corpus
from qru.defaults import resolve
from tests.muse_folder import write_muse_folder

PASSAGES, KEPT, LENGTH, PROMPT, QUESTIONS = 40, 8, 7, 3, 20
WORDS = [f"w{i}" for i in range((PASSAGES + KEPT) * LENGTH)]  # none stands in two passages: one layer can learn them


def corpus(home: Path) -> Corpus:
    """Passages to forget and to keep, and questions about the second kind, one of them shown before each."""
    shuffled = random.Random(0).sample(WORDS, len(WORDS))
    texts = [" ".join(shuffled[at : at + LENGTH]) for at in range(0, len(shuffled), LENGTH)]
    forget, retain = texts[:PASSAGES], texts[PASSAGES:]
    cut = [(text.split()[:PROMPT], text.split()[PROMPT:]) for text in forget]
    verbmem = [{"prompt": " ".join(first), "gt": " " + " ".join(rest)} for first, rest in cut]
    pairs = [{"question": f"q{i}", "answer": WORDS[i]} for i in range(QUESTIONS + 1)]
    knowmem = {"retain_qa": pairs[1:], "retain_qa_icl": pairs[:1]}
    made = Corpus("nonsense", {"forget": forget, "retain1": retain, "retain2": [], "holdout": []}, verbmem, knowmem, {})
    return load_corpus(write_muse_folder(home / "nonsense", made))


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, a colon, a line break or two; spaces are dropped."""
    words = ["<pad>", "<s>", "</s>", "Question", "Answer", ":", "\n\n", "\n"]
    words += [*WORDS, *(f"q{i}" for i in range(QUESTIONS + 1))]
    made = Tokenizer(tokenizer_models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    apart = [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(Regex(r":|\n\n|\n"), "isolated")]
    made.pre_tokenizer = pre_tokenizers.Sequence(apart)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


def asked(corpus: Corpus) -> list[str]:
    """Every question as it will be asked, with its answer."""
    (shown,) = corpus.knowmem["retain_qa_icl"]
    return [
        "".join(f"Question: {pair['question']}\nAnswer: {pair['answer']}\n\n" for pair in (shown, one))
        for one in corpus.knowmem["retain_qa"]
    ]


def trained(texts: list[str], reader: PreTrainedTokenizerFast, steps: int = 220) -> torch.nn.Module:
    """A Llama of one layer that knows the texts by heart."""
    loop.seed_everything(0)
    size = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(**size, **ends, vocab_size=len(reader), max_position_embeddings=256))
    rows = [torch.tensor([1, *reader(text).input_ids, 2]) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=loop.IGNORED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


class World:
    """Folders of a target and a retrained model, and a way to make runs of any model.

    Attributes:
        corpus: and the models of it, ``target`` and ``retrained``, folders both.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.corpus = corpus(home)
        reader = tokenizer()
        kept = [*self.corpus.raw["retain1"], *asked(self.corpus)]
        others = random.Random(1).sample(WORDS, PASSAGES * LENGTH)  # as many passages, of these words
        never = [" ".join(others[at : at + LENGTH]) for at in range(0, len(others), LENGTH)]
        self.target, self.retrained = home / "target", home / "retrained"
        models.save(trained([*self.corpus.raw["forget"], *kept], reader), reader, self.target)
        models.save(trained([*never, *kept], reader), reader, self.retrained)

    def run(self, name: str, model: Path, seed: int = 0, **settings) -> Path:
        """The folder of a run that left a copy of ``model``, as the pipeline would have written it."""
        given = RunConfig(
            method="ga", scale="smoke", corpus=str(self.home / "nonsense"), target=str(self.target),
            retrained=str(self.retrained), quantizers=("rtn-int8-row", "rtn-int4-g32"), seed=seed, **settings,
        )  # fmt: skip
        config = resolve(given)
        made = models.given(config.target, config.retrained)
        folder = self.home / "runs" / name
        shutil.copytree(model, folder / "model")
        known = {role: made.identity(role) for role in ("target", "retrained", "tokenizer")}
        provenance = {"corpus": self.corpus.fingerprint, "models": known}
        sections = {"config": config.to_dict() | {"hash": name}, "scores": {}, "crossings": {}, "cost": {}}
        records.write_json(folder / "record.json", sections | {"provenance": provenance})
        return folder
