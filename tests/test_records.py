import json
import subprocess

import pytest

from qru import paths, records

SECTIONS = {name: {} for name in records.SECTIONS}


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path):
    file = tmp_path / "a.json"
    records.write_json(file, {"old": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        records.write_json(file, {"new": float("nan")})
    with pytest.raises(TypeError):
        records.write_json(file, {"new": object()})
    assert json.loads(file.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_load_record_by_folder_or_file(tmp_path):
    records.write_json(tmp_path / "record.json", SECTIONS | {"config": {"seed": 3}, "history": [1]})
    for path in (tmp_path, tmp_path / "record.json"):
        record = records.load_record(path)
        assert record.config == {"seed": 3}
        assert record.extra == {"history": [1]}


def test_a_half_written_record_is_named(tmp_path):
    file = tmp_path / "record.json"
    file.write_text('{"config": {"se')
    with pytest.raises(ValueError, match=r"record\.json is not whole JSON"):
        records.load_record(tmp_path)


def test_a_record_cut_inside_a_character_is_named(tmp_path):
    file = tmp_path / "record.json"
    records.write_json(file, SECTIONS | {"verdict": ["60 → 3"]})
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.index("→".encode()) + 1])
    with pytest.raises(ValueError, match=r"record\.json is not whole JSON"):
        records.load_record(tmp_path)


@pytest.mark.parametrize(
    "damage", [b'{"config": {"se', b'{"verdict": "\xe2', b'{"config": {}}', b"[]", b"", b'{"config": 3}']
)
def test_a_damaged_record_is_named_and_left_out(tmp_path, monkeypatch, capfd, damage):
    monkeypatch.setenv("QRU_HOME", str(tmp_path))
    for seed in (0, 1, 2):
        records.write_json(tmp_path / "runs" / f"run{seed}" / "record.json", SECTIONS | {"config": {"seed": seed}})
    (tmp_path / "runs" / "run2" / "record.json").write_bytes(damage)
    assert {record.config["seed"] for record in records.load_records()} == {0, 1}
    assert records.latest(seed=1).config == {"seed": 1}
    with pytest.raises(LookupError, match="-p seed 2"):
        records.latest(seed=2)
    assert f"left out: {tmp_path / 'runs' / 'run2' / 'record.json'}" in capfd.readouterr().err


def test_a_record_without_scores_is_named(tmp_path):
    records.write_json(tmp_path / "record.json", {"config": {}})
    with pytest.raises(ValueError, match="lacks scores, crossings, cost, provenance"):
        records.load_record(tmp_path)


def test_no_record_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="no record at"):
        records.load_record(tmp_path / "nothing")


def test_latest_picks_by_config(tmp_path):
    for seed in (0, 1):
        records.write_json(tmp_path / f"run{seed}" / "record.json", SECTIONS | {"config": {"seed": seed}})
    found = records.load_records(tmp_path)
    assert len(found) == 2
    assert records.latest(found, seed=1).config == {"seed": 1}
    with pytest.raises(LookupError, match="-p seed 7"):
        records.latest(found, seed=7)


def test_root_follows_qru_home(tmp_path, monkeypatch):
    monkeypatch.setenv("QRU_HOME", str(tmp_path))
    monkeypatch.chdir("/")
    assert paths.runs_dir() == tmp_path / "runs"
    monkeypatch.delenv("QRU_HOME")
    assert (paths.root() / "pyproject.toml").is_file()


def test_provenance_names_versions_and_machine():
    found = records.provenance()
    assert found["versions"]["torch"]
    assert found["hardware"]["processor"]


def test_new_records_do_not_make_a_clean_tree_dirty(tmp_path, monkeypatch):
    package = tmp_path / "qru"
    package.mkdir()
    (package / "code.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "code"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(records, "__file__", str(package / "records.py"))
    records.write_json(tmp_path / "paper" / "records" / "mini" / "run.json", {})
    assert records.provenance()["dirty"] is False
    (package / "code.py").write_text("changed")
    assert records.provenance()["dirty"] is True


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.00 KB"), (71_968, "72.0 KB"), (99_960, "100 KB"),
        (999_499, "999 KB"), (999_500, "1.00 MB"), (13_476_831_232, "13.5 GB"),
    ],
)  # fmt: skip
def test_sizes_are_said_in_a_unit_that_fits(count, said):
    assert records.file_size(count) == said
