import os

import pytest

# One thread: the suite shares its cores with whatever else runs, and results must not depend on the number.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def qru_home(tmp_path_factory):
    """A root of its own for runs and caches, shared by the tests of one session: the smoke models are made once."""
    home = tmp_path_factory.mktemp("qru_home")
    before = os.environ.get("QRU_HOME")
    os.environ["QRU_HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["QRU_HOME"]
    else:
        os.environ["QRU_HOME"] = before
