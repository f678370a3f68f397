"""From facts to running text: a small grammar, and the laying out of one document."""

import random
import re
from dataclasses import dataclass

_SLOT = re.compile(r"\[(\w+)\]")
_FIELD = re.compile(r"\{(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=(?!one\b|uni|use|eu)[aeiouAEIOU])")


@dataclass(frozen=True)
class Attribute:
    """One thing that can be known about an entity.

    key: its name in the table of facts.
    values: name of the pool its values come from.
    questions: question templates over {n}.
    clauses: statements over {n} and {v}, fit to stand alone or after "that"; {s} {o} {p} are the entity's pronouns.
    """

    key: str
    values: str
    questions: tuple[str, ...]
    clauses: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of entity: how it is named and what can be known about it (each entity gets three of the attributes)."""

    key: str
    naming: str
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True)
class Genre:
    """A way of writing: templates over [grammar keys] and {fields}; a and b are the two entities of a document.

    kinds: the kinds of the entities of one unit, drawn without replacement where there are more than four.
    openings: first sentences about {a}. bridges: sentences that bring in {b}.
    wraps: sentences around a clause {c}. fillers: sentences that state no fact.
    """

    key: str
    kinds: tuple[Kind, ...]
    grammar: dict[str, tuple[str, ...]]
    openings: tuple[str, ...]
    bridges: tuple[str, ...]
    wraps: tuple[str, ...]
    fillers: tuple[str, ...]
    closings: tuple[str, ...]


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


def sentence(text: str) -> str:
    """Articles agreed, first letter capitalised, full stop at the end."""
    text = _ARTICLE.sub(r"\1n ", text)
    first = 1 if text[0] in "'\"" else 0
    text = text[:first] + text[first].upper() + text[first + 1 :]
    return text if text.rstrip("'")[-1] in ".!?" else text + "."


def pronouns(entity: Entity, prefix: str = "") -> dict[str, str]:
    """Fields s, o, p (subject, object, possessive) under a prefix."""
    return {prefix + key: word for key, word in zip("sop", _PRONOUNS[entity.gender], strict=True)}


def write_document(
    genre: Genre,
    first: Entity,
    second: Entity,
    turn: int,
    rng: random.Random,
    words: tuple[int, int] = (134, 150),
) -> str:
    """One self-contained document stating all facts of two entities.

    turn: how often these facts were told before; chooses other clauses for every telling.
    words: least and greatest number of words.
    """
    while True:
        text = _draft(genre, first, second, turn, rng, words[0])
        if words[0] <= len(text.split()) <= words[1]:
            return text


def _draft(genre: Genre, first: Entity, second: Entity, turn: int, rng: random.Random, least: int) -> str:
    writer = Writer(genre.grammar, rng)
    seen: set[str] = set()

    def name_of(entity: Entity) -> str:
        if entity.name in seen and rng.random() < 0.75:
            return entity.short
        seen.add(entity.name)
        return entity.name

    def plain(key: str, templates: tuple[str, ...], fields: dict[str, str]) -> str:
        return sentence(writer.fill(writer.pick(key, templates), fields))

    def tell(entity: Entity, attribute: Attribute, value: str) -> str:
        clause = attribute.clauses[(turn + offset[entity.name]) % len(attribute.clauses)]
        fields = {"n": name_of(entity), "v": value, **pronouns(entity)}
        clause = _ARTICLE.sub(r"\1n ", writer.fill(clause, fields))
        if rng.random() < 0.45:
            return sentence(clause)
        return plain("wrap", genre.wraps, {"c": clause})

    offset = {first.name: sum(map(ord, first.name)), second.name: sum(map(ord, second.name))}
    both = {"b": second.name, **pronouns(first, "a"), **pronouns(second, "b")}
    opening = plain("opening", genre.openings, {**both, "a": first.name, **pronouns(first)})
    seen.add(first.name)
    plan: list[tuple[Entity, Attribute, str] | None] = [(first, *fact) for fact in rng.sample(first.facts, 3)]
    at = rng.randint(0, 2)
    tail = plan[at:] + [(second, *fact) for fact in second.facts]
    rng.shuffle(tail)
    parts = [opening]
    for told in plan[:at]:
        parts.append(tell(*told))
    bridge = plain("bridge", genre.bridges, {**both, "a": first.short, **pronouns(second)})
    parts.append(bridge)
    seen.add(second.name)
    parts.extend(tell(*told) for told in tail)
    closing = plain("closing", genre.closings, {"a": first.short, "b": second.short}) if rng.random() < 0.6 else ""
    total = len(" ".join([*parts, closing]).split())
    while total < least:
        who = rng.choice((first, second))
        filler = plain("filler", genre.fillers, {"n": who.short, **pronouns(who)})
        # A filler that names the second entity may not come before the sentence that brings it in.
        lowest = parts.index(bridge) + 1 if who is second else 1
        parts.insert(rng.randint(lowest, len(parts)), filler)
        total += len(filler.split())
    return " ".join([*parts, closing]).strip()
