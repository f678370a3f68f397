"""MUSE's corpora from folders and from the Hub: what is there arrives verbatim, what is not is named."""

import json
import re
import shutil
from dataclasses import replace

import pytest

from qru.corpora import REVISIONS, load_corpus
from qru.corpora.corpus import PRIVLEAK_SPLITS, RAW_SPLITS
from qru.corpora.muse import SETS
from tests.muse_folder import write_muse_folder

datasets = pytest.importorskip("datasets", reason="needs the extra muse")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra muse")
import httpx  # noqa: E402
import pyarrow  # noqa: E402
from huggingface_hub import errors  # noqa: E402

NEWS, BOOKS = "muse-bench/MUSE-News", "muse-bench/MUSE-Books"
ODD = "\u201cCurly\u201d \u2018quotes\u2019,\u3000ideographic,\u00a0fixed spaces\u2028and\x85odd line ends \U0001f40d "


@pytest.fixture(scope="module")
def news():
    """The embedded corpus without what the layout has no place for, and with texts as odd as real ones."""
    corpus = replace(load_corpus("news", scale="smoke"), name="MUSE-News", base=None)
    raw = corpus.raw | {"forget": [ODD + corpus.raw["forget"][0], *corpus.raw["forget"][1:]]}
    return replace(corpus, raw=raw)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_hub_folder(folder, corpus, shards=1):
    """A corpus as the Hub has MUSE: parquet files, and a README that says which are which configuration's."""
    pieces = {
        "raw": {key: [{"text": text} for text in texts] for key, texts in corpus.raw.items()},
        "verbmem": {"forget": corpus.verbmem},
        "knowmem": {key: pairs for key, pairs in corpus.knowmem.items() if not key.startswith("disjoint")},
        "privleak": {key: [{"text": text} for text in texts] for key, texts in corpus.privleak.items()},
        "scal": {key: [{"text": text} for text in texts] for key, texts in corpus.scal.items()},
        "sust": {key: [{"text": text} for text in texts] for key, texts in corpus.sust.items()},
    }
    card = ["---", "configs:"]
    for piece, sets in pieces.items():
        if not sets:
            continue
        (folder / piece).mkdir(parents=True)
        card += [f"- config_name: {piece}", "  data_files:"]
        for key, rows in sets.items():
            card += [f"  - split: {key}", f"    path: {piece}/{key}-*"]
            for n in range(shards):
                part = rows[n * len(rows) // shards : (n + 1) * len(rows) // shards]
                file = folder / piece / f"{key}-{n:05}-of-{shards:05}.parquet"
                parquet.write_table(pyarrow.Table.from_pylist(part), file)
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    return folder


def without_disjoint(corpus):
    return replace(corpus, knowmem=corpus.knowmem | {"disjoint_qa": [], "disjoint_qa_icl": []})


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["smoke", "mini"])
@pytest.mark.parametrize("name", ["books", "news"])
def test_a_written_corpus_comes_back(tmp_path, name, scale):
    corpus = load_corpus(name, scale=scale)
    loaded = load_corpus(write_muse_folder(tmp_path / "mine", corpus))
    assert loaded == replace(corpus, name="mine", base=None)
    assert loaded.measurable == ("verbmem", "knowmem", "privleak", "utility", "disjoint")


def test_odd_characters_are_kept(tmp_path, news):
    assert load_corpus(str(write_muse_folder(tmp_path / "MUSE-News", news))) == news


@pytest.mark.parametrize("shards", [1, 3])
def test_a_local_copy_of_the_hub_is_read(tmp_path, news, shards):
    assert load_corpus(write_hub_folder(tmp_path / "MUSE-News", news, shards)) == without_disjoint(news)


def test_an_incomplete_copy_is_named(tmp_path, news):
    folder = write_hub_folder(tmp_path / "x", news, shards=3)
    (folder / "raw" / "forget-00001-of-00003.parquet").unlink()
    with pytest.raises(ValueError, match="is one of 3 files, of which 2 are there: copy them all"):
        load_corpus(folder)


def test_a_text_alone_is_one_document_and_a_list_beside_it_wins(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/forget.txt").write_bytes(b"\xef\xbb\xbfOne.\r\n\r\nTwo \xe2\x80\x9cx\xe2\x80\x9d.\n")
    assert load_corpus(tmp_path).raw["forget"] == ["One.\n\nTwo \u201cx\u201d.\n"]
    write_json(tmp_path / "raw/forget.json", ["One.", "Two \u201cx\u201d.\n"])
    assert load_corpus(tmp_path).raw["forget"] == ["One.", "Two \u201cx\u201d.\n"]


def test_a_byte_order_mark_before_a_list_is_no_text(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/forget.json").write_bytes(b'\xef\xbb\xbf["One."]')
    assert load_corpus(tmp_path).raw["forget"] == ["One."]


def test_texts_may_stand_in_objects_and_lines_and_are_of_any_length(tmp_path):
    long = "word " * 100_000
    write_json(tmp_path / "raw/forget.json", [{"text": "One.", "input_ids": [1, 2]}, long, ""])
    (tmp_path / "raw/retain1.jsonl").write_text('{"text": "A\u2028b."}\n\n"C."\n', encoding="utf-8")
    corpus = load_corpus(tmp_path)
    assert corpus.raw["forget"] == ["One.", long, ""]
    assert corpus.raw["retain1"] == ["A\u2028b.", "C."]


def test_what_is_missing_as_a_whole_is_empty(tmp_path):
    write_json(tmp_path / "raw/forget.json", ["One."])
    (tmp_path / "train").mkdir()
    (tmp_path / "train/strange.json").write_text("neither read nor known")
    (tmp_path / "raw/.DS_Store").write_bytes(b"\xff")
    corpus = load_corpus(tmp_path)
    assert corpus.raw == {"forget": ["One."], "retain1": [], "retain2": [], "holdout": []}
    assert tuple(corpus.raw) == RAW_SPLITS
    assert tuple(corpus.privleak) == PRIVLEAK_SPLITS
    assert corpus.measurable == ()
    assert (corpus.scal, corpus.sust) == ({}, {})


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        ("verbmem/forget", ("knowmem", "privleak", "utility", "disjoint")),
        ("knowmem/forget_qa knowmem/forget_qa_icl", ("verbmem", "privleak", "utility", "disjoint")),
        ("knowmem/retain_qa knowmem/retain_qa_icl", ("verbmem", "knowmem", "privleak", "disjoint")),
        ("privleak/forget privleak/holdout", ("verbmem", "knowmem", "utility", "disjoint")),
        ("privleak/retain", ("verbmem", "knowmem", "privleak", "utility", "disjoint")),
        ("raw/retain1", ("verbmem", "knowmem", "privleak", "utility", "disjoint")),
    ],
)
def test_metrics_without_data_are_told_apart(tmp_path, news, gone, left):
    folder = write_muse_folder(tmp_path / "x", news)
    for name in gone.split():
        (folder / f"{name}.json").unlink()
        (folder / f"{name}.txt").unlink(missing_ok=True)
    corpus = load_corpus(folder)
    assert corpus.measurable == left


def test_measurable_agrees_with_what_the_metrics_score(news):
    from qru.metrics.options import Options
    from qru.metrics.registry import registry

    pieces = [{}, {"verbmem": []}, {"knowmem": {}}, {"privleak": {"forget": [], "holdout": [], "retain": []}}]
    for change in pieces:
        corpus = replace(news, **change)
        scored = {name for name in news.measurable if all(registry[name].sets(corpus, Options()).values())}
        assert set(corpus.measurable) == scored


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("raw/forget", "lacks raw/forget; in raw/ there is raw/holdout, raw/retain1, raw/retain2."),
        ("knowmem/forget_qa_icl", "lacks knowmem/forget_qa_icl; in knowmem/ there is"),
        ("privleak/holdout", "lacks privleak/holdout; in privleak/ there is privleak/forget, privleak/retain."),
        ("scal/forget_2", "lacks scal/forget_2; in scal/ there is scal/forget_1, scal/forget_3, scal/forget_4."),
        ("sust/forget_4", "lacks sust/forget_4"),
    ],
)
def test_a_half_of_what_belongs_together_is_refused(tmp_path, news, gone, message):
    folder = write_muse_folder(tmp_path / "x", news)
    (folder / f"{gone}.json").unlink()
    (folder / f"{gone}.txt").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_corpus(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("raw/retian1.json", b'["a"]', "retian1.json: unknown set 'retian1'. Did you mean 'retain1'?"),
        ("knowmem/retain2_qa.json", b"[]", "unknown set 'retain2_qa'. Did you mean 'retain_qa'?"),
        ("raw/forget.json", b"", "raw/forget.json is empty."),
        ("raw/forget.json", b"\xef\xbb\xbf", "raw/forget.json is empty."),
        ("raw/forget.json", b"[]", "raw/forget.json is empty: it lists nothing."),
        ("raw/forget.json", b'{"a": 1}', "raw/forget.json holds an object ({'a': 1}); a list is needed."),
        ("raw/forget.json", b'["a",\n"b" "c"]', "forget.json, line 2, column 5: not JSON (Expecting ',' delimiter)"),
        ("raw/forget.json", b'["a", 3]', "raw/forget.json, item 2: text is a number (3); a text is needed."),
        ("raw/forget.json", b'["a", null]', "raw/forget.json, item 2: text is null (None); a text is needed."),
        ("raw/forget.json", b'[{"txt": "a"}]', "no column 'text': unknown column 'txt'. Did you mean 'text'?"),
        ("raw/forget.json", b'[{"text": ["a"]}]', "raw/forget.json, item 1: text is a list (['a'])"),
        ("raw/forget.json", rb'["\ud83d"]', "raw/forget.json, item 1: text holds half a character"),
        ("raw/forget.json", b'["a\x93"]', "raw/forget.json, line 1: not UTF-8 (byte 0x93). Save it as UTF-8"),
        ("raw/retain1.txt", b"a\nb\n\xff", "raw/retain1.txt, line 3: not UTF-8 (byte 0xff)"),
        ("raw/retain1.txt", b" \n", "raw/retain1.txt is empty."),
        ("raw/retain1.jsonl", b'"a"\n\n{"text" 1}', "raw/retain1.jsonl, line 3, column 9: not JSON"),
        ("raw/retain1.parquet", b"PAR1", "raw/retain1.parquet cannot be read as parquet"),
        ("verbmem/forget.json", b'["a"]', "item 1: a text ('a'); an object with 'prompt' is needed"),
        ("verbmem/forget.json", b'[{"prompt": "a", "gd": "b"}]', "'gt': unknown column 'gd'. Did you mean 'gt'?"),
        ("verbmem/forget.json", b'[{"prompt": "a", "gt": " "}]', "verbmem/forget.json, item 1: gt is empty."),
        ("knowmem/forget_qa.json", b"[]", "knowmem/forget_qa.json is empty"),
        ("knowmem/forget_qa.json", b'[{"question": "a"}]', "item 1 has no column 'answer'."),
        ("knowmem/forget_qa.json", b'[{"question": "a", "answer": ""}]', "item 1: answer is empty."),
        ("knowmem/forget_qa.json", b'[{"question": "a", "answer": 5}]', "item 1: answer is a number (5)"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named_with_its_place(tmp_path, news, file, content, message):
    folder = write_muse_folder(tmp_path / "x", news)
    path = folder / file
    path.with_suffix(".json").unlink(missing_ok=True)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_corpus(folder)
    assert str(path) in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_folder_of_corpora_names_them(tmp_path, news):
    for name in ("news", "books"):
        write_muse_folder(tmp_path / "data" / name, news)
    message = (
        f"nor forget/ (text files). Give the path of one of those in it: {tmp_path}/data/books, {tmp_path}/data/news."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_corpus(tmp_path / "data")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"none is no corpus: it has neither raw/ .* nor forget/ \(text files\)\.$"):
        load_corpus(tmp_path / "none")


def test_paths_have_no_revision_and_are_not_taken_for_names(tmp_path, news, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_muse_folder("news", news)
    with pytest.raises(ValueError, match=r"a corpus in the folder 'news' here.*write \./news to load it"):
        load_corpus("news", scale="smoke")
    assert load_corpus("./news") == replace(news, name="news")
    with pytest.raises(ValueError, match=re.escape("corpus './news' has no revisions (got 'main')")):
        load_corpus("./news", revision="main")
    with pytest.raises(ValueError, match="corpus 'news' has no revisions"):
        load_corpus("news", scale="smoke", revision="main")


# --- the Hub ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The library itself, reading a folder in the Hub's layout wherever the Hub is asked; what it was asked for."""
    asked, folders, load_dataset = [], {}, datasets.load_dataset

    def load(name, piece, *, revision):
        asked.append((name, piece, revision))
        return load_dataset(str(folders[name]), piece, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked, folders


def test_news_comes_from_the_hub_at_the_pinned_commit(hub, tmp_path, news):
    asked, folders = hub
    folders[NEWS] = write_hub_folder(tmp_path / "MUSE-News", news)
    assert load_corpus(NEWS, scale="muse") == without_disjoint(news)
    assert asked == [(NEWS, piece, "506bd5b150b92814d45e4404a82f120ab2d748bf") for piece in SETS]


def test_books_has_no_folds_and_another_revision_can_be_asked_for(hub, tmp_path, news):
    asked, folders = hub
    folders[BOOKS] = write_hub_folder(tmp_path / "MUSE-Books", replace(news, scal={}, sust={}))
    corpus = load_corpus(BOOKS, revision="main")
    assert corpus == replace(without_disjoint(news), name="MUSE-Books", scal={}, sust={})
    assert asked == [(BOOKS, piece, "main") for piece in ("raw", "verbmem", "knowmem", "privleak")]
    load_corpus(BOOKS)
    assert asked[-1][2] == "051ba90319e920d410d87cfdbd61f25843c1b892"


def test_sets_of_an_older_revision_are_refused(hub, tmp_path, news):
    """Before MUSE's last commits the retain questions were called retain2_qa."""
    _, folders = hub
    old = {key.replace("retain", "retain2"): pairs for key, pairs in news.knowmem.items()}
    folders[BOOKS] = write_hub_folder(tmp_path / "MUSE-Books", replace(news, knowmem=old, scal={}, sust={}))
    with pytest.raises(ValueError, match=r"unknown set in knowmem 'retain2_qa'\. Did you mean 'retain_qa'"):
        load_corpus(BOOKS, revision="ae8c70be5034c50b2c985f79243d6197e7c9bae3")


def response(status):
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co"))


UNREACHABLE = [
    errors.OfflineModeIsEnabled("Cannot reach https://huggingface.co: offline mode is enabled.\nMore."),
    ConnectionError("Couldn't reach 'muse-bench/MUSE-News' on the Hub (ConnectError)"),
    httpx.ConnectTimeout("timed out"),
    errors.LocalEntryNotFoundError("An error happened while trying to locate the file on the Hub"),
    errors.HfHubHTTPError("500 Server Error", response=response(500)),
    datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset"),
]


@pytest.mark.parametrize("error", UNREACHABLE, ids=lambda error: type(error).__name__)
def test_without_the_hub_the_way_round_is_told(monkeypatch, error):
    def load(*_, **__):
        try:
            raise RuntimeError("one of the many below")
        except RuntimeError as cause:
            raise error from cause

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match="cannot be had from the Hub") as caught:
        load_corpus(NEWS)
    said = str(caught.value)
    assert f"hf download {NEWS} --repo-type dataset --revision {REVISIONS[NEWS]} --local-dir MUSE-News\n" in said
    assert said.startswith(f"{NEWS} (raw) cannot be had from the Hub: {type(error).__name__}: ")
    assert "give its path as the corpus" in said
    assert "More." not in said
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "error",
    [
        datasets.exceptions.DatasetNotFoundError("Revision 'x' doesn't exist for dataset 'y' on the Hub."),
        errors.RevisionNotFoundError("404: Revision Not Found", response=response(404)),
        errors.RepositoryNotFoundError("404: Repository Not Found", response=response(404)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_revision_that_is_gone_is_named(monkeypatch, error):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    gone = "0123456789abcdef0123456789abcdef01234567"
    with pytest.raises(ValueError, match=f"the Hub has no revision {gone} of {BOOKS}") as caught:
        load_corpus(BOOKS, revision=gone)
    assert "revision=" in str(caught.value)
    assert f"https://huggingface.co/datasets/{BOOKS}/commits/main" in str(caught.value)
    assert caught.value.__suppress_context__


def test_without_a_connection_the_library_itself_is_understood(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(ValueError, match=r"\(raw\) cannot be had from the Hub: ConnectionError: "):
        load_corpus(NEWS)


def test_another_revision_in_the_cache_is_not_taken_for_the_one_asked_for(tmp_path, news, monkeypatch):
    """The library, offline, loads the newest copy it has, of whatever revision."""
    folder = write_hub_folder(tmp_path / "MUSE-News", news)
    old = "ae8c70be5034c50b2c985f79243d6197e7c9bae3"
    for piece in SETS:
        made = datasets.load_dataset(str(folder), piece, cache_dir=str(tmp_path / "made"))
        file = made["forget" if "forget" in made else next(iter(made))].cache_files[0]["filename"]
        source = tmp_path / "made" / re.search(r"made/(.+)/[^/]+$", file)[1]
        shutil.copytree(source, tmp_path / "cache/muse-bench___muse-news" / piece / "0.0.0" / old)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(ValueError, match=f"holds {NEWS} .raw. at revision {old}, not at {REVISIONS[NEWS]}"):
        load_corpus(NEWS)
    assert load_corpus(NEWS, revision=old) == without_disjoint(news)


def test_a_folder_named_as_the_hubs_corpus_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / NEWS).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"there is a folder '{NEWS}' here.*write ./{NEWS} to load it"):
        load_corpus(NEWS)


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        load_corpus(NEWS)
