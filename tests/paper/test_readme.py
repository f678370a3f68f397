"""README says what the committed records say."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def readme():
    specification = importlib.util.spec_from_file_location("readme", ROOT / "paper" / "readme.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_block_is_what_the_records_say_now():
    module, page = readme(), (ROOT / "README.md").read_text()
    assert module.rewritten(page, module.shown()) == page, "run python paper/readme.py"


def test_a_block_is_replaced_and_nothing_else():
    page = "one\n<!-- budget -->\nold\n<!-- /budget -->\nthree\n"
    assert readme().block("budget", "new", page) == "one\n<!-- budget -->\nnew\n<!-- /budget -->\nthree\n"
