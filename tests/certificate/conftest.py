import shutil

import pytest
import torch

from qru.pipeline import run
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


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The folder of a run of an embedded corpus, stopped by a goal: the half that no rule looked at is reported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QRU_HOME", str(tmp_path_factory.mktemp("smoke")))
        record = run(method="ga", scale="smoke", forget_goal=25.0, quantizers=("rtn-int8-row", "rtn-int4-g32"))
        cache = record.path.parents[2] / ".cache"
        (cache / "certificates").rename(cache / "measured")  # by the run alone
    return record.path.parent


@pytest.fixture
def at_home(smoke, monkeypatch):
    """That run, in its root; scores that certificates find are those that the run left, and no others."""
    home = smoke.parent.parent
    monkeypatch.setenv("QRU_HOME", str(home))
    shutil.rmtree(home / ".cache" / "certificates", ignore_errors=True)
    shutil.copytree(home / ".cache" / "measured", home / ".cache" / "certificates")
    return smoke
