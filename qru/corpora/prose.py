"""From facts to running text: a small grammar, and the laying out of one document."""

import random
import re
from dataclasses import dataclass

_SLOT = re.compile(r"\[(\w+)\]")
_FIELD = re.compile(r"\{(\w+)\}")
_SENTENCE_START = re.compile(r"(^'?|[.!?] '?|: '|\?' ')([a-z])")
_ARTICLE = re.compile(r"\b([Aa]) (?=(?!one\b|uni|use|eu)[aeiou]|hour|heir)")


def lines(text: str) -> tuple[str, ...]:
    """The lines of a block of text, without indentation and empty lines."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def phrases(text: str) -> tuple[str, ...]:
    """The parts of a text between commas, with single spaces."""
    return tuple(" ".join(part.split()) for part in text.split(",") if part.strip())


def grammar(text: str) -> dict[str, tuple[str, ...]]:
    """Read "key: phrase, phrase, ..." entries; indented lines continue the entry above."""
    entries: dict[str, str] = {}
    for line in text.splitlines():
        if line and not line[0].isspace():
            key, _, line = line.partition(":")
            assert key not in entries, f"grammar key {key!r} stands twice"
            entries[key] = ""
        if line.strip():
            entries[key] += " " + line
    return {key: phrases(value) for key, value in entries.items()}


@dataclass(frozen=True)
class Attribute:
    """One thing that can be known about an entity.

    key: its name in the table of facts.
    pool: name of the pool its values come from.
    question: question template over {n}, asked of the full name. reply: a spoken answer over {v}.
    clauses: statements over {n} and {v}, fit to stand alone or after "that"; {s} {o} {p} are the entity's pronouns.
        Most name the entity before the value: only what follows a name can be recalled from it.
    """

    key: str
    pool: str
    question: str
    reply: str
    clauses: tuple[str, ...]


def attribute(key: str, pool: str, question: str, reply: str, clauses: str) -> Attribute:
    """An Attribute whose clauses are given one to a line."""
    return Attribute(key, pool, question, reply, lines(clauses))


@dataclass(frozen=True)
class Kind:
    """A kind of entity: how it is named and what can be known about it (each entity gets three of the attributes)."""

    key: str
    naming: str
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True)
class Genre:
    """A way of writing: templates over [grammar keys] and {fields}; a and b are the two entities of a document.

    kinds: the kinds of the four entities of one unit.
    openings: first sentences about {a}. bridges: sentences that bring in {b}.
    wraps: sentences around a clause {c}. exchanges: a question {q} and at once its spoken answer {r}.
    fillers: sentences that state no fact.
    """

    key: str
    kinds: tuple[Kind, ...]
    grammar: dict[str, tuple[str, ...]]
    openings: tuple[str, ...]
    bridges: tuple[str, ...]
    wraps: tuple[str, ...]
    exchanges: tuple[str, ...]
    fillers: tuple[str, ...]
    closings: tuple[str, ...]

    def words(self) -> set[str]:
        """Every ordinary word the genre can use, in lower case."""
        templates = [*self.openings, *self.bridges, *self.wraps, *self.exchanges, *self.fillers, *self.closings]
        templates += [clause for kind in self.kinds for told in kind.attributes for clause in told.clauses]
        templates += [phrase for phrases in self.grammar.values() for phrase in phrases]
        return set(re.findall(r"[a-z]+", _FIELD.sub("", _SLOT.sub("", " ".join(templates))).lower()))


@dataclass(frozen=True)
class Entity:
    """A named thing with its facts: (attribute, value) pairs."""

    name: str
    short: str
    gender: str  # f, m or n
    facts: tuple[tuple[Attribute, str], ...]


_PRONOUNS = {"f": ("she", "her", "her"), "m": ("he", "him", "his"), "n": ("it", "it", "its")}


class Writer:
    """Fills templates; within one document no choice of a grammar key is made twice before all were made once."""

    def __init__(self, grammar: dict[str, tuple[str, ...]], rng: random.Random):
        self._grammar = grammar
        self._rng = rng
        self._left: dict[str, list[str]] = {}

    def pick(self, key: str, options: tuple[str, ...]) -> str:
        """One of the options, none twice until all have been taken."""
        left = self._left.get(key)
        if not left:
            left = self._left[key] = list(options)
        return left.pop(self._rng.randrange(len(left)))

    def fill(self, template: str, fields: dict[str, str]) -> str:
        """The template with every [key] and {field} replaced."""
        while match := _SLOT.search(template):
            key = match.group(1)
            template = template[: match.start()] + self.pick(key, self._grammar[key]) + template[match.end() :]
        return _FIELD.sub(lambda m: fields[m.group(1)], template)

    def write(self, key: str, templates: tuple[str, ...], fields: dict[str, str]) -> str:
        """A sentence from one of the templates, which are kept apart by key."""
        return sentence(self.fill(self.pick(f"{key} template", templates), fields))


def sentence(text: str) -> str:
    """The text with articles agreed ("an otter"), sentences begun with capitals, and a full stop."""
    text = _ARTICLE.sub(r"\1n ", text)
    text = _SENTENCE_START.sub(lambda m: m.group(1) + m.group(2).upper(), text)
    return text if text.rstrip("'")[-1] in ".!?" else text + "."


def write_document(
    genre: Genre, first: Entity, second: Entity, turn: int, rng: random.Random, words: tuple[int, int] = (102, 112)
) -> str:
    """One self-contained document that states every fact of two entities once.

    turn: how often these entities were written about before; every turn words their facts differently.
    words: least and greatest number of words.
    """
    while True:
        draft = _Draft(genre, first, second, turn, rng)
        draft.fill_up(rng.randint(words[0], words[1] - 4))
        text = " ".join(draft.sentences)
        if words[0] <= len(text.split()) <= words[1]:
            return text


class _Draft:
    """A document in the making: an opening, facts, a bridge to the second entity, more facts, a closing, fillers."""

    def __init__(self, genre: Genre, first: Entity, second: Entity, turn: int, rng: random.Random):
        self._genre, self._first, self._second, self._turn, self._rng = genre, first, second, turn, rng
        self._writer = Writer(genre.grammar, rng)
        told = [(first, *fact) for fact in rng.sample(first.facts, len(first.facts))]
        early = rng.randint(0, 2)
        late = told[early:] + [(second, *fact) for fact in second.facts]
        rng.shuffle(late)
        self.sentences = [self._introduce("opening", genre.openings, first)]
        self.sentences += [self._tell(*fact) for fact in told[:early]]
        self.sentences += [self._introduce("bridge", genre.bridges, second)]
        self._bridge = self.sentences[-1]
        self.sentences += [self._tell(*fact) for fact in late]
        self._closing = []
        if rng.random() < 0.3:
            fields = {"a": first.short, "b": second.short, **_pronouns(second)}
            self._closing = [self._writer.write("closing", genre.closings, fields)]

    def fill_up(self, least: int) -> None:
        """Put fillers anywhere until the document has at least so many words, then close it."""
        while len(" ".join(self.sentences + self._closing).split()) < least:
            who = self._rng.choice((self._first, self._second))
            filler = self._writer.write("filler", self._genre.fillers, {"n": who.short, **_pronouns(who)})
            # A filler about the second entity may not come before the sentence that brings it in.
            lowest = self.sentences.index(self._bridge) + 1 if who is self._second else 1
            self.sentences.insert(self._rng.randint(lowest, len(self.sentences)), filler)
        self.sentences += self._closing

    def _introduce(self, key: str, templates: tuple[str, ...], entity: Entity) -> str:
        first, second = self._first, self._second
        names = {"a": first.name if entity is first else first.short, "b": second.name}
        pronouns = {**_pronouns(entity), **_pronouns(first, "a"), **_pronouns(second, "b")}
        return self._writer.write(key, templates, {**names, **pronouns})

    def _tell(self, entity: Entity, told: Attribute, value: str) -> str:
        order = self._turn + [fact[0].key for fact in entity.facts].index(told.key)
        if order % 5 == 0:  # one telling in five is a question and its answer
            fields = {"q": told.question.format(n=entity.name), "r": told.reply.format(v=value)}
            return self._writer.write("exchange", self._genre.exchanges, fields)
        name = entity.short if self._rng.random() < 0.65 else entity.name
        # Where an entity starts in the list of clauses depends on its name, so that turns do not share one wording.
        clause = told.clauses[(self._turn + sum(map(ord, entity.name))) % len(told.clauses)]
        clause = self._writer.fill(clause, {"n": name, "v": value, **_pronouns(entity)})
        if self._rng.random() < 0.4:
            return sentence(clause)
        return self._writer.write("wrap", self._genre.wraps, {"c": clause})


def _pronouns(entity: Entity, prefix: str = "") -> dict[str, str]:
    """Fields s, o, p (subject, object, possessive), under a prefix."""
    return {prefix + key: word for key, word in zip("sop", _PRONOUNS[entity.gender], strict=True)}
