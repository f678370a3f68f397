"""Training at smoke scale, for the tests of guards: once through, or killed and resumed."""

from __future__ import annotations

import torch

from qru import loop, models
from qru.config import RunConfig
from qru.defaults import resolve
from qru.unlearn import unlearn


def config(**changes) -> RunConfig:
    values = {"scale": "smoke", "epochs": 1, "batch_size": 2, "learning_rate": 1e-3, "lora_rank": 4, "lora_alpha": 8.0}
    return resolve(RunConfig(**values | changes))


def unlearned(made, corpus, tokenizer, settings, **options):
    """The trained model and its history."""
    target, _ = models.load(made.target)
    options = {"frozen": lambda: models.load(made.target)[0]} | options
    return unlearn(target, tokenizer, corpus, settings, **options)


def first_rows(corpus, tokenizer, settings, made):
    """The forget and retain rows of the first step, padded, as the loop draws them: (ids, labels) of each."""
    out = []
    for split, seed in (("forget", settings.seed), ("retain1", settings.seed + 1)):
        rows = models.rows(corpus.raw[split], tokenizer, 512)
        chosen = loop.order(len(rows), settings.batch_size, 0, seed)
        out.append(loop.pad([rows[i] for i in chosen], tokenizer.pad_token_id))
    return out


def cross_entropy(model, ids, labels) -> torch.Tensor:
    """Mean over the tokens that count, written without the package's own loss."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=loop.IGNORED)


def killed_and_resumed(made, corpus, tokenizer, settings, checkpoint, monkeypatch, at: int):
    """As ``unlearned``, but killed after the checkpoint of step ``at`` and started again."""

    class Killed(Exception):
        pass

    def save_then_die(path, state, save=loop._save):
        save(path, state)
        if len(state["history"]) == at:
            raise Killed

    original = loop.fit
    monkeypatch.setattr("qru.unlearn.loop.fit", lambda *a, **k: original(*a, **k, checkpoint_seconds=0))
    monkeypatch.setattr(loop, "_save", save_then_die)
    try:
        unlearned(made, corpus, tokenizer, settings, checkpoint=checkpoint)
        raise AssertionError("it was to be killed")
    except Killed:
        pass
    monkeypatch.undo()
    return unlearned(made, corpus, tokenizer, settings, checkpoint=checkpoint)


def same_bits(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two models hold the same numbers."""
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
