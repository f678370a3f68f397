import pytest

from tests.checkpoints import made


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """A tiny Llama in several files, an adapter of it, and its fine-tuned weights."""
    folder = tmp_path_factory.mktemp("pair")
    base = made.write(folder / "base", shard="60KB")
    adapter = made.write_adapter(folder / "adapter", made.model())
    weights = made.write(folder / "weights", shard="50KB", change=made.nudged(0.3))
    return base, adapter, weights
