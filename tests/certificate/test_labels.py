"""A certificate of a classifier: accuracy on what was forgotten and kept, and an attack that teaches labels."""

from __future__ import annotations

import csv

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from qru import loop, models, records
from qru.certificate import certify
from qru.config import RunConfig
from qru.corpora import load_corpus
from qru.defaults import resolve
from tests.certificate import world

FORGET, RETAIN = 40, 24


def trained(pairs: list[tuple[str, str]], reader, steps: int = 60) -> torch.nn.Module:
    """A classifier of one layer that knows the labels of these texts by heart."""
    loop.seed_everything(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=128,
            vocab_size=len(reader),
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            id2label={0: "false", 1: "true"},
            label2id={"false": 0, "true": 1},
        )
    )
    ids, labels = loop.pad(models.labelled_rows(*zip(*pairs, strict=True), model, reader, 64), 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(steps):
        torch.nn.functional.cross_entropy(model(input_ids=ids).logits, labels[:, 0]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose model knows every label: nothing was forgotten."""
    home = tmp_path_factory.mktemp("labels")
    texts = [" ".join(world.WORDS[at : at + 4]) for at in range(0, 4 * (FORGET + RETAIN + 4), 4)]
    # Forgotten labels are "true" throughout, and those of like texts elsewhere "false": by chance none is right.
    splits = ["forget"] * FORGET + ["retain1"] * RETAIN + ["holdout"] * 4
    labels = ["true"] * FORGET + ["true", "false", "false", "false"] * (RETAIN // 4) + ["false"] * 4
    with open(home / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "split"), *zip(texts, labels, splits, strict=True)])
    corpus = load_corpus(home / "labels.csv")
    reader = world.tokenizer()
    pairs = {split: list(zip(corpus.raw[split], corpus.labels[split], strict=True)) for split in ("forget", "retain1")}
    likeness = [(text, "false") for text, _ in pairs["forget"][::2]]  # it saw half of the texts, with the other label
    models.save(trained(pairs["forget"] + pairs["retain1"], reader), reader, home / "target")
    models.save(trained(likeness + pairs["retain1"], reader), reader, home / "retrained")
    config = resolve(
        RunConfig(
            method="ga",
            scale="smoke",
            corpus=str(home / "labels.csv"),
            target=str(home / "target"),
            retrained=str(home / "retrained"),
            quantizers=("rtn-int8-row",),
        )
    )
    made = models.given(config.target, config.retrained)
    known = {role: made.identity(role) for role in ("target", "retrained", "tokenizer")}
    folder = home / "runs" / "knowing"
    models.save(models.load(home / "target")[0], reader, folder / "model")
    sections = {"config": config.to_dict() | {"hash": "x"}, "scores": {}, "crossings": {}, "cost": {}}
    records.write_json(
        folder / "record.json", sections | {"provenance": {"corpus": corpus.fingerprint, "models": known}}
    )
    return folder


def test_a_classifier_that_forgot_nothing_is_not_certified(run):
    found = certify(run, "rtn-int8-row", transforms="merged,relearn-2x4", progress=False)
    assert found["outcome"] == "does not hold"
    assert found["declared"]["metrics"] == {
        "forget": ["forget_accuracy"],
        "utility": ["retain_accuracy"],
        "left_out": [],
    }
    cells = {(row["transform"], row["quantizer"]): row for row in found["cells"]}
    one = cells["merged", "bf16"]["forget"]["forget_accuracy"]
    assert (one["unlearned"], one["n"]) == (100, FORGET)
    assert one["retrained"] < 60
    attacked = cells["relearn-2x4", "bf16"]
    assert attacked["forget"]["forget_accuracy"]["n"] == FORGET - 2
    assert attacked["utility"] == {}
    assert found["least"]["metric"] == "retain_accuracy"
    assert found["least"]["n"] == RETAIN
