import pytest

from qru import models
from qru.corpora import load_corpus


@pytest.fixture(scope="session")
def corpus():
    return load_corpus("books", scale="smoke")


@pytest.fixture(scope="session")
def made(qru_home, corpus):
    """Folders of the smoke models."""
    return models.prepare(corpus, "smoke")
