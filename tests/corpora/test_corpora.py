"""The embedded corpora: same everywhere, disjoint where they must be, answers checkable against the text."""

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from math import log
from statistics import mean, stdev

import pytest

from qru import corpora
from qru.corpora.corpus import KNOWMEM_SPLITS, PRIVLEAK_SPLITS, RAW_SPLITS
from qru.corpora.world import SIZES, create_world, units_of_documents

NAMES = ("books", "news")
SCALES = ("smoke", "mini")
EVERY = pytest.mark.parametrize(("name", "scale"), [(name, scale) for name in NAMES for scale in SCALES])
QA_TEXT = {"forget": "forget", "retain": "retain2"}

load_corpus = lru_cache(corpora.load_corpus)
world_of = lru_cache(create_world)


@lru_cache
def entities_by_split(name, scale, seed=0):
    """split -> the entities its documents are about, "base" included."""
    corpus = load_corpus(name, scale=scale, seed=seed)
    texts = {**{split: set(corpus.raw[split]) for split in RAW_SPLITS}, "base": set(corpus.base.documents)}
    found = {split: [] for split in texts}
    for units in world_of(scale, seed).units.values():
        for unit in units:
            for split, documents in texts.items():
                if documents.issuperset(unit.documents):
                    found[split].extend(unit.entities)
    return corpus, found


@EVERY
def test_two_calls_agree_and_seeds_differ(name, scale):
    first = load_corpus(name, scale=scale, seed=3)
    assert corpora.load_corpus(name, scale=scale, seed=3).fingerprint == first.fingerprint
    assert load_corpus(name, scale=scale, seed=4).fingerprint != first.fingerprint


def test_fingerprint_does_not_depend_on_the_process():
    code = "from qru.corpora import load_corpus; print(*[load_corpus(n, scale='smoke').fingerprint for n in {}])"
    seen = set()
    for hash_seed in ("0", "1", "4711"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", code.format(NAMES)]
        seen.add(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert seen == {" ".join(load_corpus(name, scale="smoke").fingerprint for name in NAMES) + "\n"}


@EVERY
def test_sizes(name, scale):
    corpus, size = load_corpus(name, scale=scale), SIZES[scale]
    assert tuple(corpus.raw) == RAW_SPLITS
    assert set(corpus.knowmem) == set(KNOWMEM_SPLITS)
    assert tuple(corpus.privleak) == PRIVLEAK_SPLITS
    assert {len(documents) for documents in corpus.raw.values()} == {size.pairs}
    assert {len(texts) for texts in corpus.privleak.values()} == {size.pairs}
    assert len(corpus.verbmem) == size.pairs
    for split, pairs in corpus.knowmem.items():
        assert len(pairs) == (size.icl if split.endswith("icl") else size.pairs), split
    assert len(corpus.base.documents) == size.base_units * size.base_documents


def test_smoke_corpora_are_the_same_on_every_machine():
    """A change of the generator changes these, and with them every cached model: change them on purpose only."""
    seen = {name: load_corpus(name, scale="smoke").fingerprint[:16] for name in NAMES}
    assert seen == {"books": "9cb08e2d308aad14", "news": "a21cbeffc6e56b34"}


def test_mini_has_a_hundred_of_everything_as_muse():
    assert (SIZES["mini"].pairs, SIZES["mini"].icl) == (100, 10)


@EVERY
def test_no_document_and_no_question_twice(name, scale):
    corpus = load_corpus(name, scale=scale)
    documents = [document for split in corpus.raw.values() for document in split] + corpus.base.documents
    assert len(set(documents)) == len(documents)
    prompts = [item["prompt"] for item in corpus.verbmem]
    assert len(set(prompts)) == len(prompts)
    pairs = [pair for split in corpus.knowmem.values() for pair in split] + corpus.base.qa
    questions = [pair["question"] for pair in pairs]
    assert len(set(questions)) == len(questions)


@EVERY
def test_documents_are_short_and_say_nothing_twice(name, scale):
    corpus = load_corpus(name, scale=scale)
    for document in [d for split in corpus.raw.values() for d in split] + corpus.base.documents:
        assert 100 <= len(document.split()) <= 112
        sentences = re.split(r"(?<=[.!?]) ", document)
        assert max(Counter(s for s in sentences if len(s.split()) > 3).values()) == 1, document


@EVERY
def test_verbmem_is_a_verbatim_run_of_a_forget_document(name, scale):
    corpus = load_corpus(name, scale=scale)
    wholes = {item["prompt"] + item["gt"] for item in corpus.verbmem}
    assert wholes == set(corpus.raw["forget"])
    assert all(len(item["gt"].split()) >= 80 for item in corpus.verbmem)


@EVERY
def test_privleak_texts_are_whole_documents(name, scale):
    corpus = load_corpus(name, scale=scale)
    assert corpus.privleak["forget"] == corpus.raw["forget"]
    assert corpus.privleak["retain"] == corpus.raw["retain2"]
    assert corpus.privleak["holdout"] == corpus.raw["holdout"]


@EVERY
def test_forget_comes_in_four_parts_nested_and_one_after_another(name, scale):
    corpus = load_corpus(name, scale=scale)
    assert tuple(corpus.sust) == tuple(corpus.scal) == ("forget_1", "forget_2", "forget_3", "forget_4")
    parts = list(corpus.sust.values())
    assert [len(part) for part in parts] == {"smoke": [3, 3, 3, 3], "mini": [20, 30, 20, 30]}[scale]
    assert Counter(text for part in parts for text in part) == Counter(corpus.raw["forget"])
    for k, nested in enumerate(corpus.scal.values()):
        assert nested == [text for part in parts[: k + 1] for text in part]


@pytest.mark.parametrize("name", NAMES)
def test_the_four_parts_share_no_unit_at_mini(name):
    corpus, unit = load_corpus(name), units_of_documents("mini")
    told = [{unit[text] for text in part} for part in corpus.sust.values()]
    assert [len(units) for units in told] == [2, 3, 2, 3]
    assert len(set.union(*told)) == 10


def test_the_fingerprint_is_that_of_the_corpus_without_its_parts():
    corpus = load_corpus("books", scale="smoke")
    assert replace(corpus, scal={}, sust={}).fingerprint == corpus.fingerprint
    assert replace(corpus, raw=corpus.raw | {"forget": corpus.scal["forget_1"]}).fingerprint != corpus.fingerprint


@EVERY
def test_splits_and_base_share_no_entity_and_no_name_word(name, scale):
    corpus, entities = entities_by_split(name, scale)
    texts = {**corpus.raw, "base": corpus.base.documents}
    words = {split: set(re.findall(r"[\w-]+", " ".join(documents))) for split, documents in texts.items()}
    for split, members in entities.items():
        assert len(members) == 4 * (SIZES[scale].base_units if split == "base" else SIZES[scale].units)
        own = {word for entity in members for word in entity.name.split() if word[0].isupper()}
        assert own <= words[split]
        for other in texts.keys() - {split}:
            assert not own & words[other], (split, other)


@pytest.mark.parametrize("scale", SCALES)
def test_books_and_news_share_their_base_and_no_entity(scale):
    books, news = (entities_by_split(name, scale) for name in NAMES)
    assert books[0].base == news[0].base
    assert books[0].knowmem["disjoint_qa"] == news[0].knowmem["disjoint_qa"]
    names = [{e.name for split in RAW_SPLITS for e in found[split]} for _, found in (books, news)]
    assert not names[0] & names[1]


@EVERY
def test_every_fact_is_told_in_its_split_in_several_wordings(name, scale):
    corpus, entities = entities_by_split(name, scale)
    texts = {**corpus.raw, "base": corpus.base.documents}
    times = {"smoke": 3, "mini": 5}[scale]
    for split, members in entities.items():
        for entity in members:
            about = [text for text in texts[split] if entity.name in text or f"{entity.short} " in text]
            for told, value in entity.facts:
                question = told.question.format(n=entity.name)
                telling = [text for text in about if re.search(rf"\b{re.escape(value)}\b", text)]
                assert len(telling) >= times, (entity.name, told.key)
                asked = [text for text in telling if question in text]
                assert len(asked) >= times // 5, (entity.name, told.key)


@EVERY
@pytest.mark.parametrize("key", ["forget", "retain"])
def test_answers_stand_in_the_text_of_their_split_and_nowhere_else(name, scale, key):
    corpus, entities = entities_by_split(name, scale)
    split = QA_TEXT[key]
    facts = {
        told.question.format(n=entity.name): (entity, value)
        for entity in entities[split]
        for told, value in entity.facts
    }
    for pair in corpus.knowmem[f"{key}_qa"] + corpus.knowmem[f"{key}_qa_icl"]:
        entity, value = facts[pair["question"]]
        assert pair["answer"] == value
        assert any(value in text and entity.name in text for text in corpus.raw[split])
        others = [text for other in RAW_SPLITS if other != split for text in corpus.raw[other]]
        assert not any(entity.name in text for text in others + corpus.base.documents)


@EVERY
def test_disjoint_questions_are_about_base_text_and_not_trained_on(name, scale):
    corpus, entities = entities_by_split(name, scale)
    facts = {told.question.format(n=e.name): value for e in entities["base"] for told, value in e.facts}
    asked = corpus.knowmem["disjoint_qa"] + corpus.knowmem["disjoint_qa_icl"]
    assert all(facts[pair["question"]] == pair["answer"] for pair in asked + corpus.base.qa)
    assert len(asked) + len(corpus.base.qa) <= len(facts)


@EVERY
def test_no_answer_can_be_read_off_its_question_or_guessed(name, scale):
    corpus = load_corpus(name, scale=scale)
    for split, pairs in corpus.knowmem.items():
        for pair in pairs:
            words = set(re.findall(r"\w+", pair["answer"].lower()))
            assert not words & set(re.findall(r"\w+", pair["question"].lower())), (split, pair)
            assert 1 <= len(pair["answer"].split()) <= 3
    if scale == "mini":
        answers = Counter(pair["answer"] for pair in corpus.knowmem["forget_qa"])
        assert max(answers.values()) <= 3


def test_every_question_form_is_learnt_from_the_base():
    """Each question a corpus asks has its form (all but the name) in the QA pairs of the base text."""
    genres = world_of("mini", 0).units
    base = load_corpus("books").base.qa
    for part in ("saga", "encyclopaedia", "bulletin"):
        for told in {told for unit in genres[part] for entity in unit.entities for told, _ in entity.facts}:
            form = re.compile(re.escape(told.question).replace(r"\{n\}", ".+"))
            assert sum(bool(form.fullmatch(pair["question"])) for pair in base) >= 3, told.question


def _rank_auc(first, second):
    """P(a > b) for a of first and b of second, ties half."""
    return mean((a > b) + 0.5 * (a == b) for a in first for b in second)


@pytest.mark.parametrize("name", NAMES)
def test_forget_and_holdout_are_exchangeable(name):
    """No simple statistic of a document tells forget from holdout beyond chance, over several seeds."""
    statistics = {
        "words": lambda d: len(d.split()),
        "letters": len,
        "commas": lambda d: d.count(","),
        "questions": lambda d: d.count("?"),
        "capitals": lambda d: len(re.findall(r"[A-Z]", d)),
        "the": lambda d: d.lower().split().count("the"),
    }
    corpora = [load_corpus(name, seed=seed) for seed in range(8)]
    for key, statistic in statistics.items():
        sides = ([[statistic(d) for d in corpus.raw[s]] for s in ("forget", "holdout")] for corpus in corpora)
        aucs = [_rank_auc(*scores) for scores in sides]
        # One AUC of 100 texts against 100 has a standard deviation of about 0.045, the mean of eight 0.016.
        assert abs(mean(aucs) - 0.5) < 0.06, (key, aucs)


@pytest.mark.parametrize("name", NAMES)
def test_a_word_model_of_the_rest_does_not_tell_forget_from_holdout(name):
    """Unigram surprise under the text a retrained model sees: the AUC it gets must stay near one half."""
    aucs = []
    for seed in range(8):
        corpus = load_corpus(name, seed=seed)
        seen = Counter(" ".join(corpus.raw["retain1"] + corpus.raw["retain2"] + corpus.base.documents).split())
        scores = {}
        for split in ("forget", "holdout"):
            surprise = [sorted(-log(seen[word] + 0.5) for word in d.split())[::-1] for d in corpus.raw[split]]
            scores[split] = [mean(values[: int(0.4 * len(values))]) for values in surprise]
        aucs.append(_rank_auc(scores["forget"], scores["holdout"]))
    assert abs(mean(aucs) - 0.5) < 0.06, aucs
    assert stdev(aucs) < 0.1, aucs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name_or_path": "book"}, "unknown corpus 'book'. Did you mean 'books'"),
        (
            {"name_or_path": "zzz"},
            "Known: books, muse-bench/MUSE-Books, muse-bench/MUSE-News, news, tweets. Nor is there",
        ),
        ({"name_or_path": "books", "scale": "min"}, "Did you mean 'mini'"),
        ({"name_or_path": "books", "seed": -1}, "seed must be an integer >= 0, not -1"),
        ({"name_or_path": "books", "seed": 1.5}, "not 1.5"),
        ({"name_or_path": "books", "seed": True}, "not True"),
    ],
)
def test_bad_input_is_named(arguments, message):
    name = arguments.pop("name_or_path")
    with pytest.raises(ValueError, match=re.escape(message)):
        corpora.load_corpus(name, **arguments)
