import pytest
import torch

from tests.certificate.world import World


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A corpus of nonsense, a target that knows it by heart, and a retrained model that knows what is kept."""
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A root of its own for every test: what another one scored is not found."""
    monkeypatch.setenv("QRU_HOME", str(tmp_path / "qru_home"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "qru_home"
    torch.set_num_threads(before)
