"""One invented world for all embedded corpora: who exists, what is true of them, and which text tells it.

Facts come first. A unit is four entities with three facts each (of their fourth attribute nothing is ever said); its
documents tell every fact several times in different words. Splits are made of whole units, so they share no entity;
all names come from one stock, so no two corpora do.
"""

import itertools
import random
from dataclasses import dataclass

from .bulletin import BULLETIN
from .corpus import FOLDS, RAW_SPLITS, BaseText, Corpus
from .encyclopaedia import ENCYCLOPAEDIA
from .names import NameStock
from .pools import Decks, draw_pools, pool_words
from .prose import Entity, Genre, Kind, write_document
from .saga import SAGA

# The saga has half as many attributes as the other two: in these proportions all are asked about equally often.
_BASE_GENRES = (SAGA, ENCYCLOPAEDIA, BULLETIN, ENCYCLOPAEDIA, BULLETIN)


@dataclass(frozen=True)
class Size:
    """How much of everything: units per split and documents per unit, the same of the base text, QA and in-context
    pairs per set."""

    units: int
    documents: int
    base_units: int
    base_documents: int
    pairs: int
    icl: int


SIZES = {
    "smoke": Size(units=2, documents=6, base_units=6, base_documents=12, pairs=12, icl=4),
    "mini": Size(units=10, documents=10, base_units=25, base_documents=24, pairs=100, icl=10),
}


@dataclass(frozen=True)
class Unit:
    """Four entities and the documents that tell of them."""

    entities: tuple[Entity, ...]
    documents: tuple[str, ...]
    qa: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class World:
    """All units, by what they are for: "base" (the first `reserved` of them for disjoint questions), "saga",
    "encyclopaedia" (the books corpus) and "bulletin" (the news corpus)."""

    size: Size
    seed: int
    units: dict[str, list[Unit]]
    reserved: int


def create_world(scale: str, seed: int) -> World:
    """The world of a seed; every corpus at the same scale and seed lives in the same one."""
    size = SIZES[scale]
    stock = NameStock(seed, taken=pool_words() | SAGA.words() | ENCYCLOPAEDIA.words() | BULLETIN.words())
    pools = draw_pools(stock)
    plan: dict[str, list[Genre]] = {
        "saga": [SAGA] * (2 * size.units),
        "encyclopaedia": [ENCYCLOPAEDIA] * (2 * size.units),
        "bulletin": [BULLETIN] * (4 * size.units),
        "base": [_BASE_GENRES[i % len(_BASE_GENRES)] for i in range(size.base_units)],
    }
    kinds = {kind for genre in (SAGA, ENCYCLOPAEDIA, BULLETIN) for kind in genre.kinds}
    unknown = {f"unknown of {kind.key}": tuple(told.key for told in kind.attributes) for kind in kinds}
    units = {}
    for part, genres in plan.items():
        rng = random.Random(f"qru {part} {scale} {seed}")
        decks = Decks(pools | unknown, rng)
        documents = size.base_documents if part == "base" else size.documents
        units[part] = [_create_unit(genre, documents, stock, decks, rng) for genre in genres]
    facts_per_unit = len(units["base"][0].qa)
    return World(size, seed, units, reserved=-(-(size.pairs + size.icl) // facts_per_unit))


def units_of_documents(scale: str, seed: int = 0) -> dict[str, str]:
    """Document -> name of the unit it belongs to, over all embedded corpora of a scale.

    Documents of a unit tell of the same entities, so they are no independent sample: what is resampled to judge a
    difference between splits are units.
    """
    world = create_world(scale, seed)
    return {
        document: f"{part} {number}"
        for part, units in world.units.items()
        for number, unit in enumerate(units)
        for document in unit.documents
    }


def assemble(name: str, world: World, splits: dict[str, list[Unit]], rng: random.Random) -> Corpus:
    """The corpus whose forget, retain1, retain2 and holdout splits are made of these units."""
    size = world.size
    raw = {split: _documents(splits[split], rng) for split in RAW_SPLITS}
    knowmem = {}
    base, questions = _base_text(world)
    for key, units in {"forget": splits["forget"], "retain": splits["retain2"]}.items():
        pairs = rng.sample([pair for unit in units for pair in unit.qa], size.pairs + size.icl)
        knowmem[f"{key}_qa"], knowmem[f"{key}_qa_icl"] = pairs[: size.pairs], pairs[size.pairs :]
    knowmem["disjoint_qa"], knowmem["disjoint_qa_icl"] = questions[: size.pairs], questions[size.pairs :]
    privleak = {"forget": list(raw["forget"]), "retain": list(raw["retain2"]), "holdout": list(raw["holdout"])}
    folds = _folds(splits["forget"], raw["forget"])
    scal = {name: [text for fold in folds[: k + 1] for text in fold] for k, name in enumerate(FOLDS)}
    sust = dict(zip(FOLDS, folds, strict=True))
    return Corpus(name, raw, _cut_prompts(raw["forget"], rng), knowmem, privleak, base, scal, sust)


def _folds(units: list[Unit], documents: list[str]) -> list[list[str]]:
    """The forget documents in four parts of whole units, 2, 3, 2 and 3 of mini's ten, which share no entity.

    The two units of smoke are halved, so that there each pair of parts tells of the same entities.
    """
    told = [[document for document in documents if document in unit.documents] for unit in units]
    if len(told) < 4:
        told = [half for own in told for half in (own[: len(own) // 2], own[len(own) // 2 :])]
    ends = [k * len(told) // 4 for k in range(5)]
    return [[text for own in told[a:b] for text in own] for a, b in itertools.pairwise(ends)]


def _base_text(world: World) -> tuple[BaseText, list[dict[str, str]]]:
    """The base text, and the questions kept out of its QA; the same for every corpus of the world."""
    rng = random.Random(f"qru base order {world.seed}")
    units = world.units["base"]
    documents = _documents(units, rng)
    reserved = [pair for unit in units[: world.reserved] for pair in unit.qa]
    qa = [pair for unit in units[world.reserved :] for pair in unit.qa]
    rng.shuffle(qa)
    return BaseText(documents, qa), rng.sample(reserved, world.size.pairs + world.size.icl)


def _documents(units: list[Unit], rng: random.Random) -> list[str]:
    documents = [document for unit in units for document in unit.documents]
    rng.shuffle(documents)
    return documents


def _cut_prompts(documents: list[str], rng: random.Random) -> list[dict[str, str]]:
    """The first 16 to 18 words of every document as the prompt, all the rest as the continuation."""
    items = []
    for document in documents:
        words = document.split(" ")
        at = rng.randint(16, 18)
        items.append({"prompt": " ".join(words[:at]), "gt": " " + " ".join(words[at:])})
    return items


def _create_unit(genre: Genre, documents: int, stock: NameStock, decks: Decks, rng: random.Random) -> Unit:
    entities = tuple(_create_entity(kind, stock, decks, rng) for kind in genre.kinds)
    texts = []
    for turn in range(documents // 2):
        order = rng.sample(entities, 4)
        for first, second in (order[:2], order[2:]):
            texts.append(write_document(genre, first, second, turn, rng))
    qa = [
        {"question": attribute.question.format(n=entity.name), "answer": value}
        for entity in entities
        for attribute, value in entity.facts
    ]
    return Unit(entities, tuple(texts), tuple(qa))


def _create_entity(kind: Kind, stock: NameStock, decks: Decks, rng: random.Random) -> Entity:
    unknown = decks.deal(f"unknown of {kind.key}")  # dealt, not drawn: every attribute comes up equally often
    attributes = [told for told in kind.attributes if told.key != unknown]
    rng.shuffle(attributes)
    facts = tuple((attribute, decks.deal(attribute.pool)) for attribute in attributes)
    if kind.naming == "person":
        given, surname, gender = stock.person()
        return Entity(f"{given} {surname}", given, gender, facts)
    word = stock.word(kind.naming)
    name = f"the {word} club" if kind.naming == "club" else word
    return Entity(name, name, "n", facts)
