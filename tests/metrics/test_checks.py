"""A tokenizer of another model is refused, also one of the same size."""

import copy

import pytest
import torch

from qru import models
from qru.metrics.checks import check_tokenizer

from .conftest import llama


@pytest.fixture
def folder(tokenizer, tmp_path):
    models.save(llama(len(tokenizer)), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_knows_its_own_tokenizer(folder, tokenizer):
    model, loaded = models.load(folder)
    check_tokenizer(model, loaded)
    check_tokenizer(model, tokenizer)


def test_another_tokenizer_of_the_same_size_is_refused(folder, tokenizer):
    model, _ = models.load(folder)
    other = models.train_tokenizer(["wholly different words make up another vocabulary"] * 3, len(tokenizer))
    other.add_tokens([f"more{i}" for i in range(len(tokenizer) - len(other))])
    assert len(other) == len(tokenizer)
    assert other.all_special_ids == tokenizer.all_special_ids
    with pytest.raises(ValueError, match="another vocabulary"):
        check_tokenizer(model, other)


def test_the_vocabulary_survives_copies_and_saving_again(folder, tokenizer, tmp_path):
    model, _ = models.load(folder)
    models.save(copy.deepcopy(model), tokenizer, tmp_path / "again")
    again, _ = models.load(tmp_path / "again")
    assert again.config.qru_vocabulary == model.config.qru_vocabulary == models.vocabulary_digest(tokenizer)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_models_saved_without_a_vocabulary_are_scored(random_model, tokenizer):
    assert not hasattr(random_model.config, "qru_vocabulary")
    check_tokenizer(random_model, tokenizer)
