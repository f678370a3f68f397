"""The values facts are drawn from: at least seventy to a pool, so that guessing scores little.

Most pools cross two short lists ("grey" x "otter"): many values from few words, which a small tokenizer can afford.
"""

import random

from .names import NameStock
from .prose import grammar

_LISTS = grammar("""
colour: grey, white, black, brown, golden, spotted, striped, silver, tawny, lame, blind, tame, one-eyed, shaggy, yellow
animal: otter, raven, goat, fox, badger, owl, ferret, hound, mule, heron, toad, lynx, crow, hedgehog, pony,
    weasel, magpie, tortoise, goose, ram, donkey, squirrel, falcon, hare, newt, stoat, pigeon, mouse, lizard, swan
stuff: bone, iron, copper, oak, glass, silver, horn, leather, flint, brass, cedar, bronze, steel, ivory
arm: sling, axe, spear, dagger, mace, bow, sabre, club, pike, hatchet, trident, whip, lance, sickle, cleaver,
    harpoon, staff, hammer, scythe, flail
charm: whistle, thimble, locket, button, spoon, comb, coin, ring, bell, compass, flute, needle, mirror, buckle,
    medal, bracelet, brooch, marble, rattle, acorn, seal, feather
cooked: smoked, pickled, honeyed, peppered, salted, roasted, sour, buttered, stuffed, spiced, baked, fried
food: eel, dumplings, turnips, mackerel, cabbage, plums, mussels, barley, lentils, trout, beets, figs, onions,
    rabbit, chestnuts, leeks, crab, pears, mushrooms, carrots, oysters, herring
ware: rope, bell, candle, boot, glass, basket, lamp, clock, net, saddle, button, barrel, map, mirror, violin, hat, kite,
    carpet, umbrella, ladder
worker: maker, seller, mender, painter, thief, carver, polisher, merchant, inspector, collector
tint: red, white, blue, green, black, bitter, sweet, raw, coarse, fine, soft
good: wool, salt, wax, honey, timber, pearls, lace, cork, hemp, sugar, tar, marble, pepper, linen, chalk, soap, slate,
    mustard, ink, clay, silk, tea, amber
sort: wild, ancient, northern, frozen, royal, poisonous, hidden, singing, foreign, edible, sacred, tiny
subject: rivers, bees, bridges, coins, owls, maps, storms, snails, mushrooms, poems, clocks, stars, ferns, whales,
    tombs, beetles, canals, crystals
domain: harbour, park, school, market, bridge, museum, prison, forest, water, road, theatre, airport, tax, ferry,
    hospital, garden, traffic, library
rank: master, warden, inspector, clerk, director, minister, treasurer, guard, doctor, judge, engineer, porter
doing: painting, collecting, racing, building, photographing, carving, repairing, drawing, training, counting
hobby_thing: kites, boats, stamps, pigeons, clocks, dolls, bicycles, horses, stones, engines, rabbits, puppets, guitars,
    tractors, bottles, snails, castles, drums
plural: buttons, tables, whistles, lamps, gloves, boxes, pipes, spoons, chairs, doors, wheels, bottles, shoes, ladders,
    clocks, toys, beds, fences, violins, bathtubs
pitch: ice, beach, street, water, night, table, snow, forest, roof, mud, canoe, horseback
game: hockey, football, tennis, chess, rugby, cricket, bowls, polo, golf, boxing, handball, darts, fencing, wrestling
antic: dancing, sleepy, giant, purple, laughing, winged, knitted, orange, dizzy, weeping, singing
ten: twenty, thirty, forty, fifty, sixty, seventy, eighty, ninety
unit: one, two, three, four, five, six, seven, eight, nine
""")
_CROSSED = {
    "trade": ("ware", "worker"), "companion": ("colour", "animal"), "weapon": ("stuff", "arm"),
    "keepsake": ("stuff", "charm"), "dish": ("cooked", "food"),
    "goods": ("tint", "good"), "study": ("sort", "subject"),
    "post": ("domain", "rank"), "hobby": ("doing", "hobby_thing"),
    "product": ("stuff", "plural"), "game": ("pitch", "game"),
    "mascot": ("antic", "animal"),
}  # fmt: skip


def draw_pools(stock: NameStock) -> dict[str, tuple[str, ...]]:
    """Every pool of the world by name; the stock gives the invented names among them."""
    pools = {pool: tuple(f"{a} {b}" for a in _LISTS[one] for b in _LISTS[two]) for pool, (one, two) in _CROSSED.items()}
    pools["number"] = tuple(f"{ten}-{unit}" for ten in _LISTS["ten"] for unit in _LISTS["unit"])
    pools["town"] = tuple(stock.word("town") for _ in range(80))
    pools["person"] = tuple(" ".join(stock.person()[:2]) for _ in range(80))
    return pools


def pool_words() -> set[str]:
    """Every ordinary word of the pools, in lower case."""
    return {word.lower() for options in _LISTS.values() for option in options for word in option.split()}


class Decks:
    """Deals values from the pools; every value of a pool is dealt once before any is dealt twice."""

    def __init__(self, pools: dict[str, tuple[str, ...]], rng: random.Random):
        self._pools = pools
        self._rng = rng
        self._left: dict[str, list[str]] = {}

    def deal(self, pool: str) -> str:
        """The next value of a pool."""
        left = self._left.get(pool)
        if not left:
            left = self._left[pool] = list(self._pools[pool])
            self._rng.shuffle(left)
        return left.pop()
