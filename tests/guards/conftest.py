from dataclasses import replace

import pytest

from tests.methods.conftest import corpus, made, tokenizer  # noqa: F401 - fixtures


@pytest.fixture(scope="session")
def short(corpus):  # noqa: F811
    """A corpus of a few short documents: what is asked here needs gradients and no knowledge."""
    few = {split: [text[:200] for text in corpus.raw[split][:6]] for split in ("forget", "retain1")}
    return replace(corpus, raw=corpus.raw | few)
