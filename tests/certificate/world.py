"""A corpus of nonsense, and models so small that they learn it by heart in seconds: one all of it, one half."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qru import loop, models, records
from qru.config import RunConfig
from qru.corpora import Corpus, load_corpus
from qru.defaults import resolve
from tests.muse_folder import write_muse_folder

PASSAGES, LENGTH, PROMPT, QUESTIONS, SHOWN = 40, 9, 3, 40, 2


def corpus(home: Path) -> Corpus:
    """Passages of random words to forget and to keep; questions about the second kind."""
    rng = random.Random(0)
    words = [f"w{i}" for i in range(60)]
    forget, retain = ([" ".join(rng.choices(words, k=LENGTH)) for _ in range(PASSAGES)] for _ in range(2))
    verbmem = [
        {"prompt": " ".join(text.split()[:PROMPT]), "gt": " " + " ".join(text.split()[PROMPT:])} for text in forget
    ]
    pairs = [{"question": f"q{i}", "answer": rng.choice(words)} for i in range(QUESTIONS + SHOWN)]
    knowmem = {"retain_qa": pairs[SHOWN:], "retain_qa_icl": pairs[:SHOWN]}
    made = Corpus("nonsense", {"forget": forget, "retain1": retain, "retain2": [], "holdout": []}, verbmem, knowmem, {})
    return load_corpus(write_muse_folder(home / "nonsense", made))


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; an answer that follows "Answer:" does so with and without a space between."""
    words = ["<pad>", "<s>", "</s>", "Question", "Answer", ":", "\n\n", "\n"]
    words += [f"w{i}" for i in range(60)] + [f"q{i}" for i in range(QUESTIONS + SHOWN)]
    made = Tokenizer(tokenizer_models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.Split(":", "isolated"),
            pre_tokenizers.Split("\n\n", "isolated"),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


def trained(texts: list[str], reader: PreTrainedTokenizerFast, steps: int = 150) -> torch.nn.Module:
    """A Llama of one or two layers that knows the texts by heart."""
    loop.seed_everything(0)
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    model = LlamaForCausalLM(
        LlamaConfig(
            **size, vocab_size=len(reader), max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0
        )
    )
    ids, labels = loop.pad([torch.tensor([1, *reader(text).input_ids, 2]) for text in texts], 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
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
        shown = "".join(
            f"Question: {p['question']}\nAnswer: {p['answer']}\n\n" for p in self.corpus.knowmem["retain_qa_icl"]
        )
        asked = [
            f"{shown}Question: {p['question']}\nAnswer: {p['answer']}\n\n" for p in self.corpus.knowmem["retain_qa"]
        ]
        kept = [*self.corpus.raw["retain1"], *asked]
        self.target, self.retrained = home / "target", home / "retrained"
        models.save(trained([*self.corpus.raw["forget"], *kept], reader), reader, self.target)
        models.save(trained(kept, reader), reader, self.retrained)

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
