"""Published numbers: copied right, and checked at the door. The values here were typed apart from the files."""

from __future__ import annotations

import shutil

import pytest

from qru.reported import COLUMNS, FOLDER, METRICS, reported


@pytest.fixture(scope="module")
def published():
    return reported()


def test_every_published_cell_is_there(published):
    counts = published.groupby(["source", "table"]).size().to_dict()
    assert counts == {
        ("QRU", "II"): 8 * 4,  # method on corpus x arm and precision
        ("QRU", "I"): 2 * 8 * 3,
        ("SURE", ""): 11,
        ("MUSE", "3"): 8 + 2,
    }
    first = published[published["table"] == "I"]
    # GA and GA+GDR in three precisions, and three methods in two, on each corpus.
    assert first["utility"].notna().sum() == 2 * (2 * 3 + 3 * 2)
    assert published[(published["source"] != "QRU")][list(METRICS)].notna().all(axis=None)
    assert published[published["table"] == "II"][list(METRICS)].notna().all(axis=None)


@pytest.mark.parametrize(
    ("cell", "values"),
    [
        ("QRU II books ga_gdr full bf16", (0.00, 36.30, -24.01, 68.74)),
        ("QRU II books ga_klr lora 4-bit", (0.14, 0.00, -5.86, 50.30)),
        ("QRU II books npo_gdr lora bf16", (22.67, 36.63, -60.07, 59.65)),
        ("QRU II books npo_klr full 4-bit", (38.65, 26.00, -57.87, 48.50)),
        ("QRU II news ga_gdr full 4-bit", (42.07, 48.19, -99.79, 40.06)),
        ("QRU II news ga_klr lora bf16", (52.33, 60.11, -99.74, 52.29)),
        ("QRU II news npo_gdr full bf16", (26.89, 52.11, -86.04, 48.90)),
        ("QRU II news npo_klr lora 4-bit", (28.24, 48.40, -95.42, 39.96)),
        ("QRU I books ga full int8", (0, 0, -18.97, 0)),
        ("QRU I news ga full int4", (0, 0, 64.00, 0)),
        ("QRU I books ga_gdr full int8", (None, 30.86, -23.96, 69.26)),
        ("QRU I news ga_gdr full int8", (50.22, 58.32, -99.79, 46.19)),
        ("QRU I books npo_klr full int4", (38.65, 26.00, -57.87, 48.50)),
        ("QRU I books npo_klr full int8", (None, None, None, None)),
        ("SURE  news target  4-bit", (34.2, 54.4, -99.8, 48.2)),
        ("SURE  news ga_gdr full bf16", (0, 28.9, 87.1, 34.2)),
        ("SURE  books npo_klr full 4-bit", (70.9, 34.2, -60.1, 50.4)),
        ("SURE  books npo_klr sure 4-bit", (16.1, 36.9, -58.9, 34.9)),
        ("MUSE 3 news npo_gdr full bf16", (1.16, 54.58, 105.8, 40.49)),
        ("MUSE 3 books retrained  bf16", (14.35, 28.90, 0, 74.48)),
    ],
)
def test_cells_are_as_published(published, cell, values):
    names = ("source", "table", "corpus", "method", "arm", "precision")
    found = published.set_index(list(names)).loc[tuple(cell.split(" ")), list(METRICS)]
    assert [None if value != value else value for value in found.to_numpy(float).ravel()] == list(values)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",99.81,", ",998.1,", r"muse_table_3.csv:10: verbmem is 998.1; it must be from 0 to 100"),
        (",99.81,", ",much,", "verbmem is 'much'; it must be a number"),
        ("ga_gdr", "ga_gdl", "Did you mean 'ga_gdr'"),
        ("MUSE,3,news,ga,full,bf16,0,0,5.2,0,", "MUSE,3,news,ga,full,bf16,,,,,", "no number and no note"),
        ("MUSE,3,news,ga,full,bf16,0,0,5.2,0,", "MUSE,3,news,ga,full,bf16,0,0", "fewer than 11 fields"),
        ("news,npo,full", "news,ga,full", "the same cell as .*muse_table_3.csv:4: MUSE 3 news ga full bf16"),
        ("source,table", "table,source", "they must be source, table, corpus"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, old, new, message):
    shutil.copy(FOLDER / "muse_table_3.csv", tmp_path)
    file = tmp_path / "muse_table_3.csv"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        reported(tmp_path)


def test_without_files_the_message_says_where_they_come_from(tmp_path):
    with pytest.raises(FileNotFoundError, match="clone"):
        reported(tmp_path)


def test_the_readme_says_what_every_file_is():
    text = (FOLDER / "README.md").read_text()
    for file in FOLDER.glob("*.csv"):
        assert f"`{file.name}`" in text
    assert len(COLUMNS) == 11
