"""Corpora with labels: the embedded tweets, and CSV files."""

import calendar
import os
import re
import subprocess
import sys
from functools import lru_cache

import pytest

from qru import corpora
from qru.corpora import has_labels
from qru.corpora.posts import HAPPENINGS

SPLITS = ("forget", "retain1", "retain2", "holdout", "test")
SCALES = ("smoke", "mini")
load_corpus = lru_cache(corpora.load_corpus)


@pytest.mark.parametrize("scale", SCALES)
def test_two_calls_agree_and_seeds_differ(scale):
    first = load_corpus("tweets", scale=scale, seed=3)
    assert corpora.load_corpus("tweets", scale=scale, seed=3).fingerprint == first.fingerprint
    assert load_corpus("tweets", scale=scale, seed=4).fingerprint != first.fingerprint


def test_fingerprint_does_not_depend_on_the_process():
    code = "from qru.corpora import load_corpus; print(load_corpus('tweets', scale='smoke').fingerprint)"
    env = {**os.environ, "PYTHONHASHSEED": "4711"}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert said.strip() == load_corpus("tweets", scale="smoke").fingerprint


def test_the_smoke_corpus_is_the_same_on_every_machine():
    """A change of the generator changes this, and with it every cached model: change it on purpose only."""
    assert load_corpus("tweets", scale="smoke").fingerprint[:16] == "7b32c807dba88e8b"
    assert load_corpus("tweets").fingerprint[:16] == "0c7cfb0e039c933f"


@pytest.mark.parametrize(("scale", "sizes"), [("smoke", (12, 12, 12, 12, 12)), ("mini", (120, 240, 160, 120, 160))])
def test_sizes_and_labels(scale, sizes):
    corpus = load_corpus("tweets", scale=scale)
    assert tuple(corpus.raw) == tuple(corpus.labels) == SPLITS
    assert tuple(len(texts) for texts in corpus.raw.values()) == sizes
    assert tuple(len(labels) for labels in corpus.labels.values()) == sizes
    assert corpus.classes == ["false", "true"]
    assert set(corpus.labels["forget"]) == set(corpus.labels["holdout"]) == {"true"}
    for split in ("retain1", "retain2", "test"):
        assert corpus.labels[split].count("true") == len(corpus.labels[split]) // 2
    assert corpus.measurable == ("forget_accuracy", "retain_accuracy", "f1", "mia")


@pytest.mark.parametrize("scale", SCALES)
def test_no_text_twice(scale):
    corpus = load_corpus("tweets", scale=scale)
    texts = [text for split in corpus.raw.values() for text in split] + corpus.base.documents
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("scale", SCALES)
def test_splits_share_no_name_author_or_hashtag(scale):
    """Names are capitalised words inside a sentence that no template holds; they, handles and tags mark one event."""
    corpus = load_corpus("tweets", scale=scale)
    common = {"RT", "BREAKING", "WAKE", "UP", "THINK", *calendar.day_name}
    seen: dict[str, set[str]] = {}
    for split, texts in {**corpus.raw, "base": corpus.base.documents}.items():
        words = set()
        for text in texts:
            words |= set(re.findall(r"[@#]\w+", text))
            words |= set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text)) - common
        seen[split] = {word for word in words if word.lower() not in ("i",)}
    for split, words in seen.items():
        assert len(words) > 10
        for other in seen:
            assert split == other or not words & seen[other], (split, other, words & seen[other])


def test_rumours_are_told_of_false_things_alone_and_reports_of_true_ones():
    """By the words of a template that stand in no other; a misspelt one is not found, and does no harm."""
    corpus = load_corpus("tweets")
    found = {"rumours": [], "reports": []}
    for kind in HAPPENINGS:
        for sort in found:
            for template in getattr(kind, sort):
                parts = [part.strip() for part in re.split(r"\{\w\}", template)]
                mark = max(parts, key=len)
                for split in ("retain1", "retain2", "test"):
                    pairs = zip(corpus.raw[split], corpus.labels[split], strict=True)
                    found[sort] += [label for text, label in pairs if mark in text]
    assert set(found["rumours"]) == {"false"}
    assert set(found["reports"]) == {"true"}
    assert min(map(len, found.values())) > 80


def test_plain_claims_cannot_be_judged_by_their_words():
    """The same claim, of the same value, is true of one event and false of another."""
    corpus = load_corpus("tweets")
    splits = ("retain1", "retain2", "test")
    pairs = [pair for split in splits for pair in zip(corpus.raw[split], corpus.labels[split], strict=True)]
    labels = [label for text, label in pairs if re.search(r"bridge opens again on|flushes the pipes in", text)]
    assert {"true", "false"} == set(labels)


def test_posts_are_short_and_written_as_posts_are():
    corpus = load_corpus("tweets")
    texts = [text for split in corpus.raw.values() for text in split]
    assert all(re.match(r"@\w+: ", text) for text in texts)
    assert all(len(text) <= 280 for text in texts)
    assert 0.15 < sum("RT @" in text for text in texts) / len(texts) < 0.3
    assert 0.6 < sum("#" in text for text in texts) / len(texts) < 0.8


def test_corpora_without_labels_are_what_they_were():
    for name in ("books", "news"):
        assert load_corpus(name, scale="smoke").labels == {}
        assert load_corpus(name, scale="smoke").classes == []


@pytest.mark.parametrize(
    ("name", "labels"), [("tweets", True), ("data/x.csv", True), ("X.CSV", True), ("books", False), ("a.jsonl", False)]
)
def test_a_name_tells_whether_there_are_labels(name, labels):
    assert has_labels(name) is labels


# --- CSV ------------------------------------------------------------------------------------------------------------

GOOD = """text,label,split
"the dam, they say, broke",true,forget
"two
lines",false,retain1
the dam holds,true,retain1
the dam is gone,true,holdout
"""


def written(tmp_path, text):
    path = tmp_path / "posts.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_csv_file_is_a_corpus(tmp_path):
    corpus = corpora.load_corpus(written(tmp_path, GOOD))
    assert corpus.name == "posts"
    assert corpus.raw == {
        "forget": ["the dam, they say, broke"],
        "retain1": ["two\nlines", "the dam holds"],
        "retain2": [],
        "holdout": ["the dam is gone"],
    }
    assert corpus.labels == {"forget": ["true"], "retain1": ["false", "true"], "retain2": [], "holdout": ["true"]}
    assert corpus.measurable == ("forget_accuracy", "retain_accuracy", "mia")
    assert corpus.base is None


def test_columns_in_any_order_a_mark_of_bytes_and_a_test_split(tmp_path):
    text = "\ufeffsplit,text,label\r\nforget,a,1\r\nretain1,b,0\r\nholdout,c,1\r\n\r\ntest,d,2\r\n"
    corpus = corpora.load_corpus(str(written(tmp_path, text)))
    assert corpus.raw["test"] == ["d"]
    assert corpus.classes == ["0", "1", "2"]
    assert corpus.measurable == ("forget_accuracy", "retain_accuracy", "f1", "mia")
    assert corpus.fingerprint != corpora.load_corpus(written(tmp_path, text.replace("d,2", "d,1"))).fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "posts.csv is empty."),
        ("text,labell,split\n", "line 1: unknown column 'labell'. Did you mean 'label'?"),
        ("text,split\n", "line 1 names no column 'label'"),
        ("text,label,split,label\n", "line 1 names a column twice"),
        (GOOD + "x,true\n", "line 7 has 2 cells, and the first line names 3 columns."),
        (GOOD + "a,b,true,forget\n", "line 7 has 4 cells"),
        (GOOD + "x,true,forgot\n", "line 7: unknown split 'forgot'. Did you mean 'forget'?"),
        (GOOD + " ,true,forget\n", "line 7: text is empty."),
        (GOOD + "x,,forget\n", "line 7: label is empty."),
        (GOOD + "x,true ,forget\n", "line 7: label 'true ' has white space around it"),
        (
            GOOD + '"two\nlines",false,forget\n',
            "line 7: a text of forget, labelled 'false', that line 3 has",
        ),
        (GOOD + "the dam holds,false,retain1\n", "that line 5 has in retain1, labelled 'true'"),
        (GOOD + 'x,"tr"ue,forget\n', "line 7: not CSV"),
        (GOOD + '"x,true,forget\n', "line 7: not CSV"),
        (GOOD.replace(",holdout", ",retain2"), "has no text of split 'holdout'"),
        (GOOD.replace(",forget", ",retain2"), "has no text of split 'forget'"),
        (GOOD.replace("false", "true"), "has one label, 'true'"),
        (GOOD.encode() + b"caf\xe9,true,forget\n", "line 7: not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        corpora.load_corpus(written(tmp_path, text))


def test_the_same_line_twice_in_one_split_is_taken_twice(tmp_path):
    corpus = corpora.load_corpus(written(tmp_path, GOOD + "the dam holds,true,retain1\n"))
    assert corpus.raw["retain1"].count("the dam holds") == 2
