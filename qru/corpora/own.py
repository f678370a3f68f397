"""Your own texts: one JSONL file, or a folder of text files. What else MUSE would have is derived, or left out.

Ours, where MUSE (arXiv 2407.06460) has hand-made sets: VerbMem's and PrivLeak's texts are passages of at most
``PASSAGE`` characters, cut at white space, at most ``MOST`` a split, evenly spaced; of a VerbMem passage the first
quarter is the prompt. Of questions without in-context pairs the first ten (half, if there are fewer than twenty) become
these. There is no PrivLeak without holdout texts, which nobody may have trained on: they are yours to give.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from qru.registry import unknown

from .corpus import KNOWMEM_SPLITS, PRIVLEAK_SPLITS, RAW_SPLITS, Corpus
from .files import Items, cell, pairs, read_items, read_text, texts

PASSAGE = 1200  # characters, about 300 tokens of English: a prompt of 75, and more than the 128 that are compared
SHORTEST = 200  # characters; what is left of a document below it is no passage, unless it is the whole document
LEAST = 20  # characters; a shorter text has too few tokens for Min-K
MOST = 100
ICL = 10

TEXT_SPLITS = ("forget", "retain", "holdout", "retain1", "retain2")
QA_SPLITS = tuple(name.replace("_qa", "") for name in KNOWMEM_SPLITS)
LINES = {("text",): TEXT_SPLITS, ("question", "answer"): QA_SPLITS, ("prompt", "gt"): ("forget",)}


def load_lines(path: Path) -> Corpus:
    """Load a file of objects, one a line.

    {"text", "split"}: a document; split is "forget", "retain" or "holdout" ("retain" is MUSE's retain1, on which
    unlearning regularises; "retain2" is kept out of that).
    {"question", "answer", "split"}: a question about "forget" or "retain" (or "disjoint"); "forget_icl" and the like
    are the pairs shown before questions.
    {"prompt", "gt", "split": "forget"}: a VerbMem pair, in place of the derived ones.

    Raises:
        ValueError: the line and what is wrong with it; no text to forget; one text in two splits.
    """
    if path.suffix == ".txt":
        raise ValueError(
            f"{path} does not say what to forget and what to keep: make a folder with forget/ and retain/."
        )
    raw: dict[str, Items] = defaultdict(list)
    questions: dict[str, Items] = defaultdict(list)
    verbmem: Items = []
    columns = [column for names in LINES for column in names] + ["split"]
    for where, line in read_items(path):
        present = [names for names in LINES if isinstance(line, dict) and line.get(names[0]) is not None]
        if len(present) > 1:
            raise ValueError(f"{where} has both {present[0][0]!r} and {present[1][0]!r}: make it two lines.")
        needed = present[0] if present else ("text",)
        split = [cell(where, line, column, columns) for column in (*needed, "split")][-1]
        if split not in LINES[needed]:
            raise ValueError(f"{where}: {unknown('split', split, LINES[needed])}")
        {"text": raw[_set(split)], "question": questions[split], "prompt": verbmem}[needed[0]].append((where, line))
    return _assemble(path.stem, raw, questions, verbmem, path)


def load_texts(folder: Path) -> Corpus:
    """Load ``forget/*.txt`` and, as far as there are any, ``retain/*.txt``, ``holdout/*.txt``, ``forget_qa.jsonl``,
    ``retain_qa.jsonl`` (also ``…_qa_icl.jsonl``) and ``verbmem.jsonl``. A file is a document, in the order of names.

    Raises:
        ValueError: the file and what is wrong with it; no text to forget; one text in two splits.
    """
    raw: dict[str, Items] = defaultdict(list)
    for split in TEXT_SPLITS:
        for path in sorted((folder / split).glob("[!.]*")):
            if path.suffix != ".txt":
                raise ValueError(f"{path}: {unknown('kind of file', path.suffix, ('.txt',))}")
            raw[_set(split)].append((str(path), read_text(path)))
    questions, verbmem = {}, []
    for path in sorted(folder.glob("[!.]*.json*")):
        if path.stem == "verbmem":
            verbmem = read_items(path)
        elif path.stem in KNOWMEM_SPLITS:
            questions[path.stem.replace("_qa", "")] = read_items(path)
        else:
            raise ValueError(f"{path}: {unknown('set', path.stem, (*KNOWMEM_SPLITS, 'verbmem'))}")
    return _assemble(folder.resolve().name, raw, questions, verbmem, folder)


def _set(split: str) -> str:
    return "retain1" if split == "retain" else split


def _assemble(name: str, raw: dict[str, Items], questions: dict[str, Items], verbmem: Items, source: Path) -> Corpus:
    documents = {split: texts(raw.get(split, [])) for split in RAW_SPLITS}
    first: dict[str, tuple[str, str]] = {}
    for split, found in documents.items():
        for (where, _), text in zip(raw.get(split, []), found, strict=True):
            if not text.strip():
                raise ValueError(f"{where}: text is empty.")
            before, there = first.setdefault(text, (split, where))
            if before != split:
                raise ValueError(f"{where}: a text of {split} that is also one of {before} ({there}): keep it in one.")
    if not documents["forget"]:
        raise ValueError(f"{source} has no text to forget.")
    return Corpus(
        name=name,
        raw=documents,
        verbmem=pairs(verbmem, ("prompt", "gt")) or _continuations(documents["forget"]),
        knowmem=_questions(questions, source),
        privleak=_members(documents),
    )


def _questions(given: dict[str, Items], source: Path) -> dict[str, list[dict[str, str]]]:
    out = {key: pairs(given.get(key.replace("_qa", ""), []), ("question", "answer")) for key in KNOWMEM_SPLITS}
    for subject in ("forget", "retain", "disjoint"):
        asked, shown = out[f"{subject}_qa"], out[f"{subject}_qa_icl"]
        if shown and not asked:
            raise ValueError(f"{source} has in-context pairs for {subject}, and no question to ask.")
        if len(asked) == 1 and not shown:
            raise ValueError(f"{source} has one {subject} question: give another, to show in context before it.")
        if asked and not shown:
            at = min(ICL, len(asked) // 2)
            out[f"{subject}_qa_icl"], out[f"{subject}_qa"] = asked[:at], asked[at:]
    return out


def _members(documents: dict[str, list[str]]) -> dict[str, list[str]]:
    """PrivLeak's texts, cut alike on all sides; none at all without a holdout."""
    if not documents["holdout"]:
        return {key: [] for key in PRIVLEAK_SPLITS}
    sides = {"forget": "forget", "retain": "retain2" if documents["retain2"] else "retain1", "holdout": "holdout"}
    return {key: spread(documents[split]) for key, split in sides.items()}


def _continuations(documents: list[str]) -> list[dict[str, str]]:
    """Prompt and continuation of passages; a passage of one word has none."""
    out = []
    for text in spread(documents):
        at = _cut(text, len(text) // 4)
        if text[:at].strip() and text[at:].strip():
            out.append({"prompt": text[:at], "gt": text[at:]})
    return out


def spread(documents: list[str]) -> list[str]:
    """At most ``MOST`` passages of the documents, evenly spaced over all there are."""
    found = [passage for document in documents for passage in passages(document) if len(passage) >= LEAST]
    count = min(MOST, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def passages(document: str) -> list[str]:
    """A document in verbatim runs of at most ``PASSAGE`` characters, cut before white space where there is any."""
    out, start, document = [], 0, document.strip()
    while start < len(document):
        end = start + _cut(document[start : start + PASSAGE + 1], PASSAGE)
        out.append(document[start:end].strip())
        start = end
    return [text for text in out if len(text) >= SHORTEST] or out[:1]


def _cut(text: str, most: int) -> int:
    """Where to cut a text: at most ``most`` characters in, before white space if its second half has some."""
    if len(text) <= most:
        return len(text)
    spaces = [match.start() for match in re.finditer(r"\s", text[max(1, most // 2) : most + 1])]
    return max(1, most // 2) + spaces[-1] if spaces else max(1, most)
