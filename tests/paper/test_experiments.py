"""The declaration of the experiments: what it expands to, and what it refuses before anything runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from qru import experiments
from qru.experiments import drop_damaged, keep, plan

ROOT = Path(__file__).resolve().parents[2]
DECLARED = ROOT / "paper" / "experiments.yaml"


@pytest.fixture
def changed(tmp_path):
    """Write the paper's declaration with one piece of text replaced."""

    def write(old: str, new: str) -> Path:
        text = DECLARED.read_text()
        assert old in text, f"{DECLARED.name} has changed; the test replaces {old!r}"
        path = tmp_path / "experiments.yaml"
        path.write_text(text.replace(old, new, 1))
        return path

    return write


def test_the_core_is_every_method_on_every_arm():
    made = plan(DECLARED, "mini")
    configs = [cell.config for cell in made.cells.values()]
    arms = {(config["method"], config["adapter"], config["weights"]) for config in configs}
    methods = ("ga_gdr", "ga_klr", "npo_gdr", "npo_klr")
    assert arms >= {(m, *arm) for m in methods for arm in (("full", "bf16"), ("lora", "fp32"))}
    assert len(configs) <= 60
    assert made.artefacts["table_scores"].files == ("tables/scores.typ", "tables/scores.tex")
    assert made.artefacts["fig_recovery"].files == ("figures/recovery.pdf", "figures/recovery.svg")


def test_smoke_is_one_run_an_experiment():
    names = re.findall(r"^  (\w+):\n    why", DECLARED.read_text().split("artefacts:")[0], flags=re.MULTILINE)
    assert 1 <= len(plan(DECLARED, "smoke").cells) <= len(names)


def test_a_changed_setting_is_another_run(changed):
    before = set(plan(DECLARED, "smoke").cells)
    after = set(plan(changed("seed: 0", "seed: 0\n  learning_rate: 3e-4"), "smoke").cells)
    assert not before & after


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        ("[ga_gdr,", "[ga_gdl,", ["experiment 'arms'", "unknown method", "ga_gdr"]),
        ("seed: 0", "sede: 0", ["experiment 'arms'", "Did you mean 'seed'"]),
        ("corpus: books", "corpus: book", ["experiment 'arms'", "Did you mean 'books'"]),
        ("full-bf16, lora]", "full-fp16, lora]", ["experiment 'arms'", "full-fp32"]),
        ("seed: 0", "seed: zero", ["experiment 'arms'", "it must be int"]),
        ("seed: 0", "seed: 0\n  quantizers: [rtm-int4-g128]", ["experiment 'arms'", "rtn"]),
        ("smoke: {method: npo_gdr", "smoke: {method: npo", ["experiment 'arms'", "none of its runs"]),
        ("experiments: [arms]", "experiments: [arm]", ["artefact 'table_scores'", "Did you mean 'arms'"]),
        ("fig_recovery:", "fig_recovry:", ["artefact 'fig_recovry'", "fig_recovery"]),
        ("precisions: [", "precision: [", ["artefact 'table_scores'", "Did you mean 'precisions'"]),
        ("    why: The rise", "    reason: The rise", ["fig_recovery", "unknown key 'reason'"]),
        ("seed: 0", "seed: 0\n  seed: 1", ["'seed' is given twice"]),
        ("experiments:\n", "experiment:\n", ["Did you mean 'experiments'"]),
        ("defaults:", "defaults: [", ["no YAML"]),
    ],
)
def test_a_mistake_is_named_with_its_line(changed, old, new, messages):
    path = changed(old, new)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        plan(path, "mini")
    assert re.search(r"experiments.yaml:\d+|no YAML", str(caught.value))
    for message in messages:
        assert message in str(caught.value)


def test_a_plan_is_remembered_until_its_sources_change(changed, tmp_path, monkeypatch):
    kept = tmp_path / "plan.json"
    made = plan(DECLARED, "smoke", kept)
    monkeypatch.setattr(experiments, "_plan", None)  # calling it again would fail
    again = plan(DECLARED, "smoke", kept)
    assert json.loads(json.dumps(list(again.cells))) == list(made.cells)
    assert [cell.config for cell in again.cells.values()] == [cell.config for cell in made.cells.values()]
    with pytest.raises(TypeError):
        plan(changed("seed: 0", "seed: 1"), "smoke", kept)


def test_damaged_and_foreign_records_are_named_and_removed(tmp_path):
    made = plan(DECLARED, "mini")
    first, second, third, *_ = made.cells.values()
    sections = {"scores": {}, "crossings": {}, "cost": {}, "provenance": {}}
    texts = {
        first.name: json.dumps(sections | {"config": first.config}),
        second.name: json.dumps(sections | {"config": second.config | {"epochs": 99}}),
        third.name: '{"config": {',
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.json").write_text(text)
    found = drop_damaged(made, tmp_path)
    assert [path.stem for path in tmp_path.iterdir()] == [first.name]
    assert len(found) == 2
    assert "another epochs" in " ".join(found)
    assert "not whole JSON" in " ".join(found)


def test_keep_needs_a_record_in_the_log(tmp_path):
    log = tmp_path / "run.log"
    log.write_text("nothing of the kind\n")
    with pytest.raises(ValueError, match="names no record"):
        keep(log, tmp_path / "out.json")
    folder = tmp_path / "run"
    folder.mkdir()
    record = {"config": {}, "scores": {}, "crossings": {}, "cost": {}, "provenance": {}}
    (folder / "record.json").write_text(json.dumps(record))
    log.write_text(f"scoring\nrecord: {folder / 'record.json'}\nrecord: {folder / 'record.json'}\n")
    keep(log, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == record


def test_no_number_is_typed_into_the_paper():
    source = (ROOT / "paper" / "paper.typ").read_text()
    body = source[source.index("= Question") :]
    body = re.sub(r"\d+(?:\.\d+)?(?:pt|em|%)|columns: \d|[>=] \d", "", body)  # how it looks, and code
    body = re.sub(r"@\w+|bf16|fp32|2#super\[N−1\]|95~%", "", body)  # names, and the level of every interval
    assert not re.findall(r".{20}\d.{20}", body)


def test_everything_that_the_paper_reads_is_made_by_the_graph():
    source = (ROOT / "paper" / "paper.typ").read_text()
    made = {file for artefact in plan(DECLARED, "mini").artefacts.values() for file in artefact.files}
    read = set(re.findall(r'(?:include|image\() ?"([^"]+)"', source))
    assert read <= made, read - made
