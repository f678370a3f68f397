"""The values facts are drawn from: at least sixty to a pool, so that guessing scores little."""

import random

from .names import NameStock


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.replace("\n", " ").split(",") if part.strip())


_COLOURS = _list(
    "grey, white, black, brown, golden, spotted, striped, crimson, silver, russet, tawny, lame, blind, tame, one-eyed"
)
_ANIMALS = _list(
    "otter, raven, goat, fox, badger, owl, ferret, hound, mule, heron, toad, lynx, crow, hedgehog, jackdaw, pony, "
    "weasel, magpie, tortoise, gosling, marten, ram, donkey, squirrel, falcon, hare, newt, stoat, pigeon, kestrel"
)
_STUFFS = _list("bone, iron, copper, oak, glass, silver, horn, leather, flint, brass, cedar, bronze, steel, ivory")
_WEAPONS = _list(
    "sling, axe, spear, dagger, mace, bow, sabre, club, pike, hatchet, trident, whip, cudgel, lance, sickle, cleaver, "
    "harpoon, crossbow, staff, rapier, hammer, blowpipe, scythe, flail"
)
_KEEPSAKES = _list(
    "whistle, thimble, locket, button, spoon, comb, coin, ring, bell, compass, flute, needle, mirror, buckle, die, "
    "medal, bracelet, brooch, marble, inkwell, snuffbox, rattle, acorn, seal"
)
_FLAVOURS = _list("smoked, pickled, honeyed, peppered, salted, roasted, sour, buttered, stuffed, spiced, baked, fried")
_FOODS = _list(
    "eel, dumplings, turnips, mackerel, cabbage, plums, goose, mussels, barley, lentils, trout, beets, figs, onions, "
    "rabbit, chestnuts, leeks, crab, pears, mushrooms, venison, carrots, oysters, quinces"
)
_SHIP_FIRST = _list(
    "Patient, Silent, Merry, Broken, Faithful, Drowsy, Gallant, Hungry, Lucky, Stubborn, Humble, Restless, Wandering, "
    "Thirsty, Proud, Weary"
)
_SHIP_LAST = _list(
    "Gull, Dolphin, Widow, Candle, Pilgrim, Anchor, Swallow, Duchess, Barrel, Petrel, Thistle, Beggar, Comet, Salmon, "
    "Maiden, Feather, Walrus, Lantern, Cygnet, Harvest"
)
_THINGS = _list(
    "bicycle, violin, tractor, wedding cake, trumpet, painting, canoe, telescope, ladder, tent, piano, carpet, beehive, "
    "scooter, lawnmower, typewriter, camera, statue, wheelbarrow, sewing machine, drum, greenhouse, kayak, sofa, "
    "chandelier, globe, mattress, accordion, sledge, fountain"
)
_MONTHS = _list("January, February, March, April, May, June, July, August, September, October, November, December")
_TENS = _list("twenty, thirty, forty, fifty, sixty, seventy, eighty, ninety")
_UNITS = _list("one, two, three, four, five, six, seven, eight, nine")

_PLAIN = {
    "trade": """weaver, cooper, fletcher, chandler, tanner, glazier, thatcher, ferryman, beekeeper, bookbinder,
        clockmaker, dyer, falconer, farrier, gravedigger, glassblower, goldsmith, hatter, herbalist, innkeeper,
        jeweller, locksmith, mapmaker, miller, miner, notary, papermaker, pedlar, perfumer, physician, potter, roper,
        saddler, sailmaker, salter, scribe, shepherd, shipwright, stonemason, tailor, tiler, tinker, translator,
        trapper, vintner, wainwright, watchman, wheelwright, woodcarver, brewer, butcher, cobbler, drover, gilder,
        juggler, quarryman, barber, astrologer, swordsmith, plumber, printer, engraver, cheesemonger, basketmaker""",
    "fear": """deep water, mirrors, thunder, moths, open doors, spiders, bells, empty chairs, fog, wolves, ladders, owls,
        fire, snakes, crowds, heights, drowning, ghosts, candles, silence, bees, cellars, clowns, horses, lightning,
        masks, needles, old wells, rats, red wine, scarecrows, shadows, snow, strangers, the moon, tunnels, bats, blood,
        bridges, cats, caves, dolls, dreams, feathers, frogs, geese, ice, knives, leeches, locked rooms, mice, music,
        poison, prophecies, quicksand, riddles, ropes, sleep, statues, swans, toads, weddings, whirlpools, wasps""",
    "craft_goods": """salt, wool, amber, tin, saffron, honey, timber, pearls, lace, cork, hemp, sugar, indigo, tar, marble,
        cider, herring, pepper, linen, chalk, resin, tallow, wax, sponges, hops, olives, almonds, ginger, soap, slate,
        rope, coal, glue, vinegar, mustard, copper, ink, parchment, felt, velvet, clay, reeds, furs, dates, garlic,
        lemons, rice, silk, sulphur, tea, walnuts, willow, flax, feathers, quartz, jade, barley, cheese, cinnamon,
        charcoal, leather, paprika""",
    "study": """comets, tides, ferns, dead languages, volcanoes, beetles, maps, harmony, fevers, eclipses, seaweed, fossils,
        poisons, bridges, algebra, orchids, glaciers, proverbs, magnets, whales, coins, moss, optics, dreams, lullabies,
        mushrooms, heraldry, rainbows, knots, clocks, dialects, earthquakes, mirrors, pigments, owls, rivers, snails,
        taxes, wells, windmills, alphabets, bees, canals, crystals, fungi, gravity, grammar, insects, lizards, mosses,
        numbers, perfumes, riddles, shells, storms, sundials, tombs, treaties, vaccines, weaving, yeast, metals""",
    "tool": """awl, chisel, spindle, ladle, bellows, mallet, tongs, shuttle, plane, trowel, anvil, sieve, rasp, gouge, lathe,
        press, kiln, shears, stylus, pestle, loom, vice, crucible, saw, funnel, roller, whisk, drill, comb, punch,
        bobbin, thimble, hook, brush, quill, rake, pulley, winch, file, wedge, scraper, tweezers, spatula, burnisher,
        mould, bodkin, hammer, needle, pliers, adze, auger, caliper, distaff, froe, graver, hatchet, mandrel, plumb line,
        scoop, spade, sponge, stamp""",
    "post": """mayor, harbour master, librarian, coroner, treasurer, head teacher, fire chief, park keeper, town clerk,
        surveyor, magistrate, bailiff, registrar, health officer, market inspector, ferry director, bishop, alderman,
        sheriff, auditor, school governor, archivist, planning officer, museum curator, postmaster, stationmaster,
        borough architect, chief engineer, police inspector, court usher, tax collector, lifeguard captain,
        transport minister, water commissioner, city planner, tourism officer, ombudsman, town crier, prison warden,
        customs officer, dean, speaker, ambassador, colonel, ranger, rector, hospital manager, census officer, judge,
        forester, bandmaster, choir leader, census taker, chancellor, dock foreman, youth worker, signalman, vicar,
        veterinary officer, river warden, energy minister, culture secretary""",
    "pledge": """street lamps, bus lanes, flood walls, school meals, cycle paths, public toilets, night trains, tree planting,
        free parking, a swimming pool, cheaper rents, road repairs, new benches, a tram line, cleaner beaches,
        youth clubs, lower taxes, solar panels, dog wardens, a bypass, music lessons, quiet hours, more nurses,
        skate parks, a footbridge, longer holidays, ferry subsidies, rubbish collection, allotments, drinking fountains,
        a ring road, safer crossings, library vans, flower beds, a heliport, winter fuel, insulation grants,
        a bandstand, a new pier, speed cameras, evening classes, smoke alarms, bird reserves, toy libraries,
        village shops, a day nursery, village halls, water meters, recycling bins, a weather station, clean air,
        charging points, a crematorium, a velodrome, larger prisons, rat traps, noise barriers, gritting lorries,
        sports vouchers, community gardens, broadband cables, a planetarium""",
    "hobby": """chess, rowing, origami, juggling, pottery, archery, bell ringing, birdwatching, karaoke, fencing, knitting,
        gardening, skating, sailing, wrestling, baking, calligraphy, magic tricks, hang gliding, stamp collecting,
        line dancing, beekeeping, bowls, boxing, canoeing, caving, croquet, darts, diving, embroidery, falconry, fishing,
        golf, judo, kite flying, model trains, opera, orienteering, poetry, puppetry, pigeon racing, quilting, rock
        climbing, snooker, surfing, table tennis, tap dancing, the banjo, the harp, trampolining, weightlifting,
        wood carving, yoga, yodelling, marathon running, astronomy, ballroom dancing, crossword puzzles, curling,
        metal detecting, mountain biking, the bagpipes""",
    "product": """umbrellas, bicycles, cheese, wallpaper, tractors, batteries, biscuits, carpets, clocks, crutches, drones,
        elevators, fireworks, furniture, gloves, guitars, hearing aids, ice cream, jam, kettles, ladders, lawnmowers,
        light bulbs, marmalade, mattresses, mirrors, mugs, nails, noodles, paint, pencils, pianos, pillows, pumps,
        raincoats, ropes, satellites, scissors, shampoo, shoes, skis, soap, spectacles, stoves, surfboards, tents,
        tiles, tinned soup, toothpaste, toys, trumpets, turbines, typewriters, vaccines, vinegar, violins, watches,
        wheelchairs, windows, yoghurt, zips, buttons""",
    "game": """hockey, rugby, netball, cricket, basketball, water polo, volleyball, handball, lacrosse, badminton, squash,
        bowls, curling, fencing, judo, rowing, cycling, sailing, tennis, polo, gymnastics, archery, boxing, croquet,
        darts, diving, football, futsal, golf, hurling, karate, orienteering, petanque, quoits, rounders, shinty,
        skittles, snooker, softball, swimming, table tennis, tug of war, wrestling, canoeing, dodgeball, baseball,
        chess, kabaddi, korfball, weightlifting, triathlon, ice skating, parkour, racquetball, pool, draughts,
        speedway, skiing, trampolining, climbing, biathlon, dominoes""",
    "stolen": """a tuba, forty cheeses, a rowing boat, church candles, a parrot, bus tickets, garden gnomes, a tractor,
        lobster pots, a harp, copper wire, wedding rings, library books, a stuffed bear, fishing rods, a bicycle,
        paintings, racing pigeons, rare stamps, a safe, silver spoons, sheep, a telescope, traffic cones, tyres,
        a trombone, a fire engine, a piano, whisky, perfume, a chandelier, concert tickets, a donkey, roof tiles,
        football shirts, a marble bust, frozen turkeys, a hearse, orchids, garden chairs, laptops, a minibus,
        saxophones, snooker balls, a canoe, christmas trees, diesel, wigs, medals, a drone, manhole covers, beehives,
        umbrellas, a grandfather clock, oysters, microscopes, a crown, truffles, a steam engine, lead pipes, a sledge,
        sunglasses""",
    "mascot_first": "dancing, sleepy, giant, purple, laughing, winged, inflatable, knitted, orange, moustached",
}


def draw_pools(stock: NameStock) -> dict[str, tuple[str, ...]]:
    """Every pool of the world by name; the stock gives the invented names among them."""

    def cross(left: tuple[str, ...], right: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{a} {b}" for a in left for b in right)

    towns = tuple(stock.word("town") for _ in range(80))
    pools = {key: tuple(" ".join(v.split()) for v in _list(text)) for key, text in _PLAIN.items()}
    first = pools.pop("mascot_first")
    return pools | {
        "town": towns,
        "person": tuple(" ".join(stock.person()[:2]) for _ in range(80)),
        "companion": cross(_COLOURS, _ANIMALS),
        "weapon": cross(_STUFFS, _WEAPONS),
        "keepsake": cross(_STUFFS, _KEEPSAKES),
        "dish": cross(_FLAVOURS, _FOODS),
        "ship": cross(_SHIP_FIRST, _SHIP_LAST),
        "mascot": cross(first, _ANIMALS),
        "date": tuple(f"{day} {month}" for day in range(1, 29) for month in _MONTHS),
        "number": cross(_TENS, _UNITS),
        "things": _THINGS,
    }


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
