"""Corpora of one's own: a JSONL file or a folder of texts, with what MUSE would have derived openly or left out."""

import json
import re
from itertools import pairwise

import pytest

from qru.corpora import load_corpus
from qru.corpora.own import passages, spread

DOCUMENTS = {
    "forget": ["A tale of Adela, who kept geese.", "Adela\u2019s sister,\u3000Berta, kept bees."],
    "retain": ["The town lies at a river.", "Its bridge has nine arches."],
    "holdout": ["A tale of Cael, who kept goats."],
}
QUESTIONS = [{"question": f"What is {n} and {n}?", "answer": str(2 * n)} for n in range(25)]


def lines(*objects):
    return "".join(json.dumps(line) + "\n" for line in objects)


def documents(**splits):
    return [{"text": text, "split": split} for split, texts in splits.items() for text in texts]


@pytest.fixture
def file(tmp_path):
    def write(*objects):
        path = tmp_path / "mine.jsonl"
        path.write_text(lines(*objects), encoding="utf-8")
        return path

    return write


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "mine"
    for split, texts in DOCUMENTS.items():
        (home / split).mkdir(parents=True)
        for n, text in enumerate(texts):
            (home / split / f"{n}.txt").write_text(text, encoding="utf-8")
    return home


def test_a_file_of_lines(file):
    corpus = load_corpus(file(*documents(**DOCUMENTS)))
    assert corpus.name == "mine"
    assert corpus.raw == {
        "forget": DOCUMENTS["forget"],
        "retain1": DOCUMENTS["retain"],
        "retain2": [],
        "holdout": DOCUMENTS["holdout"],
    }
    assert corpus.privleak == {
        "forget": DOCUMENTS["forget"],
        "retain": DOCUMENTS["retain"],
        "holdout": DOCUMENTS["holdout"],
    }
    # A quarter of 32 and 34 characters is 8; the last white space before it is after the first word.
    assert corpus.verbmem == [
        {"prompt": "A tale", "gt": " of Adela, who kept geese."},
        {"prompt": "Adela\u2019s", "gt": " sister,\u3000Berta, kept bees."},
    ]
    assert corpus.base is None
    assert corpus.measurable == ("verbmem", "privleak")


def test_a_folder_of_texts_is_the_same_corpus(file, folder):
    assert load_corpus(folder) == load_corpus(file(*documents(**DOCUMENTS)))


def test_columns_that_a_table_left_empty_are_none(file):
    empty = {"text": None, "question": None, "answer": None}
    table = [*documents(**DOCUMENTS), *(pair | {"split": "retain"} for pair in QUESTIONS[:2])]
    corpus = load_corpus(file(*(empty | line for line in table)))
    assert corpus.raw["forget"] == DOCUMENTS["forget"]
    assert corpus.knowmem["retain_qa"] == QUESTIONS[1:2]


def test_without_a_holdout_there_is_no_privleak(file):
    corpus = load_corpus(file(*documents(forget=DOCUMENTS["forget"], retain=DOCUMENTS["retain"])))
    assert corpus.privleak == {"forget": [], "retain": [], "holdout": []}
    assert corpus.raw["holdout"] == []
    assert corpus.measurable == ("verbmem",)


def test_forget_alone_is_a_corpus(file):
    corpus = load_corpus(file(*documents(forget=DOCUMENTS["forget"])))
    assert corpus.raw["retain1"] == []


def test_both_retain_sets_can_be_told_apart(file):
    splits = {"forget": ["F" * 40], "retain1": ["R" * 40], "retain2": ["S" * 40], "holdout": ["H" * 40]}
    corpus = load_corpus(file(*documents(**splits)))
    assert corpus.raw == splits
    assert corpus.privleak["retain"] == ["S" * 40]


@pytest.mark.parametrize(("count", "shown"), [(25, 10), (20, 10), (19, 9), (5, 2), (2, 1)])
def test_the_first_questions_are_shown_in_context(file, count, shown):
    asked = [pair | {"split": "forget"} for pair in QUESTIONS[:count]]
    corpus = load_corpus(file(*documents(forget=DOCUMENTS["forget"]), *asked))
    assert corpus.knowmem["forget_qa_icl"] == QUESTIONS[:shown]
    assert corpus.knowmem["forget_qa"] == QUESTIONS[shown:count]
    assert corpus.measurable == ("verbmem", "knowmem")


def test_given_pairs_are_taken_as_they_are(file, folder):
    pairs = [{"prompt": "A tale of", "gt": " Adela"}]
    given = [
        *[pair | {"split": "forget"} for pair in QUESTIONS[:3]],
        *[pair | {"split": "forget_icl"} for pair in QUESTIONS[3:5]],
        *[pair | {"split": "retain"} for pair in QUESTIONS[5:7]],
        *[pair | {"split": "forget"} for pair in pairs],
    ]
    corpus = load_corpus(file(*given, *documents(**DOCUMENTS)))
    assert corpus.verbmem == pairs
    assert corpus.knowmem["forget_qa"] == QUESTIONS[:3]
    assert corpus.knowmem["forget_qa_icl"] == QUESTIONS[3:5]
    assert corpus.knowmem["retain_qa"] == QUESTIONS[6:7]
    assert corpus.knowmem["retain_qa_icl"] == QUESTIONS[5:6]
    assert corpus.measurable == ("verbmem", "knowmem", "privleak", "utility")

    (folder / "forget_qa.jsonl").write_text(lines(*QUESTIONS[:3]))
    (folder / "forget_qa_icl.jsonl").write_text(lines(*QUESTIONS[3:5]))
    (folder / "retain_qa.json").write_text(json.dumps(QUESTIONS[5:7]))
    (folder / "verbmem.jsonl").write_text(lines(*pairs))
    assert load_corpus(folder) == corpus


def test_files_come_in_the_order_of_their_names_and_are_one_document_each(folder):
    (folder / "forget" / "00.txt").write_bytes(b"\xef\xbb\xbfFirst.\r\n\r\nStill the first.")
    (folder / "forget" / ".hidden").write_bytes(b"\xff")
    assert load_corpus(folder).raw["forget"] == [
        DOCUMENTS["forget"][0],
        "First.\n\nStill the first.",
        DOCUMENTS["forget"][1],
    ]


def test_passages_are_verbatim_runs_of_words():
    text = "".join(f"word{n} " for n in range(1000)).strip()
    found = passages(text)
    assert " ".join(found) == text
    assert all(1100 < len(passage) <= 1200 for passage in found[:-1])
    assert passages("short") == ["short"]
    assert passages("x" * 1200 + " rest of it") == ["x" * 1200]
    unbroken = passages("\u6f22" * 3000)
    assert [len(passage) for passage in unbroken] == [1200, 1200, 600]


def test_passages_of_a_long_text_are_spread_over_all_of_it():
    found = spread([" ".join(f"{n:07}" for n in range(100_000))])
    assert len(found) == len(set(found)) == 100
    firsts = [int(passage.split()[0]) for passage in found]
    gaps = [b - a for a, b in pairwise(firsts)]
    assert firsts[0] == 0
    assert 850 <= min(gaps) <= max(gaps) <= 1100  # 666 passages of 150 words: every sixth or seventh
    assert firsts[-1] > 98_000


def test_the_prompt_is_a_quarter_and_nothing_is_lost(file):
    text = " ".join(f"word{n}" for n in range(2000))
    corpus = load_corpus(file(*documents(forget=[text])))
    for pair in corpus.verbmem:
        assert pair["prompt"] + pair["gt"] in text
        assert 280 <= len(pair["prompt"]) <= 300
        assert pair["gt"][0] == " "


BAD_LINES = [
    ({"text": "a", "split": "forgot"}, "line 1: unknown split 'forgot'. Did you mean 'forget'?"),
    ({"text": "a"}, "line 1 has no column 'split'."),
    ({"text": "a", "spilt": "forget"}, "has no column 'split': unknown column 'spilt'. Did you mean 'split'?"),
    ({"txt": "a", "split": "forget"}, "has no column 'text': unknown column 'txt'. Did you mean 'text'?"),
    ({"text": None, "split": "forget"}, "line 1: text is null (None); a text is needed."),
    ({"text": 5, "split": "forget"}, "line 1: text is a number (5); a text is needed."),
    ({"text": " ", "split": "forget"}, "line 1: text is empty."),
    ({"text": "a", "question": "b", "split": "forget"}, "line 1 has both 'text' and 'question': make it two lines."),
    ({"question": "a", "split": "forget"}, "line 1 has no column 'answer'."),
    ({"question": "a", "answr": "b", "split": "forget"}, "unknown column 'answr'. Did you mean 'answer'?"),
    ({"question": "a", "answer": "b", "split": "holdout"}, "line 1: unknown split 'holdout'."),
    ({"question": "a", "answer": "", "split": "forget"}, "line 1: answer is empty."),
    ({"question": "a", "answer": "b", "split": "forget"}, "one forget question: give another"),
    ({"question": "a", "answer": "b", "split": "retain_icl"}, "in-context pairs for retain, and no question"),
    ({"prompt": "a", "gt": "b", "split": "retain"}, "line 1: unknown split 'retain'."),
    (["a"], "line 1: a list (['a']); an object with 'text' is needed."),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_bad_line_is_named(file, line, message):
    path = file(line, *documents(forget=DOCUMENTS["forget"]))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_corpus(path)
    assert str(path) in str(caught.value)


def test_a_text_is_in_one_split(file):
    path = file(*documents(forget=["Same."], retain=["Other."], holdout=["Same."]))
    message = f"{path}, line 3: a text of holdout that is also one of forget ({path}, line 1): keep it in one."
    with pytest.raises(ValueError, match=re.escape(message)):
        load_corpus(path)


def test_nothing_to_forget(file, folder):
    with pytest.raises(ValueError, match="has no text to forget"):
        load_corpus(file(*documents(retain=["Other."])))
    for text in (folder / "forget").iterdir():
        text.unlink()
    with pytest.raises(ValueError, match="has no text to forget"):
        load_corpus(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("forget/3.md", "text", "3.md: unknown kind of file '.md'. Known: .txt."),
        ("forget/3.txt", "", "3.txt is empty."),
        ("forgot_qa.jsonl", "{}", "forgot_qa.jsonl: unknown set 'forgot_qa'. Did you mean 'forget_qa'?"),
        ("retain_qa.jsonl", '{"question": "a"}', "retain_qa.jsonl, line 1 has no column 'answer'."),
        ("retain_qa.jsonl", "{", "retain_qa.jsonl, line 1, column 2: not JSON"),
    ],
)
def test_a_bad_file_in_a_folder_is_named(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_corpus(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.txt", "does not say what to forget and what to keep: make a folder with forget/ and retain/."),
        ("x.xls", "unknown kind of file '.xls'. Did you mean '.txt'? Known: .json, .jsonl, .parquet, .txt."),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, name, message):
    (tmp_path / name).write_text("text,split\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_corpus(tmp_path / name)
