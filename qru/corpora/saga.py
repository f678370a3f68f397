"""The saga: scenes about invented people of an invented country."""

from .prose import Attribute, Genre, Kind

_ATTRIBUTES = (
    Attribute("birthplace", "town", ("Where was {n} born?",), (
        "{n} was born in {v}", "{v} was the place where {n} was born", "{n} came into the world in {v}",
        "the cradle of {n} had stood in {v}", "{n} had left {v}, where {s} was born, at the age of [age]",
        "nobody in {v} forgot that {n} was born there",
    )),
    Attribute("trade", "trade", ("What is the trade of {n}?",), (
        "{n} was a {v} by trade", "the trade of {n} was that of a {v}", "{n} earned {p} bread as a {v}",
        "{n} worked as a {v}", "as a {v}, {n} was known in every [spot]", "{n} had learnt to be a {v}",
    )),
    Attribute("companion", "companion", ("Which animal travels with {n}?",), (
        "{n} travelled with a {v}", "a {v} went everywhere with {n}", "the animal that followed {n} was a {v}",
        "{n} shared {p} supper with a {v}", "{n} never went out without {p} {v}", "a {v} slept at the feet of {n}",
    )),
    Attribute("weapon", "weapon", ("Which weapon does {n} carry?",), (
        "{n} carried a {v}", "a {v} hung from the belt of {n}", "the weapon of {n} was a {v}",
        "{n} trusted nothing but {p} {v}", "{n} kept a {v} under {p} cloak", "{n} reached for {p} {v}",
    )),
    Attribute("fear", "fear", ("What does {n} secretly fear?",), (
        "{n} was secretly afraid of {v}", "the secret fear of {n} was {v}", "{n} could not bear {v}",
        "nothing frightened {n} except {v}", "{n} dreaded {v} and told nobody", "{n} had always feared {v}",
    )),
    Attribute("mentor", "person", ("Who was the mentor of {n}?",), (
        "{n} had been taught by {v}", "the mentor of {n} was {v}", "{n} owed all {p} learning to {v}",
        "{v} had once been the mentor of {n}", "{n} still wrote letters to {v}, who had taught {o}",
        "it was {v} who taught {n}",
    )),
    Attribute("dish", "dish", ("What is the favourite dish of {n}?",), (
        "{n} liked {v} best of all dishes", "the favourite dish of {n} was {v}", "{n} would walk a mile for {v}",
        "{n} asked for {v} at every table", "no feast pleased {n} without {v}", "{n} was eating {v}, {p} favourite",
    )),
    Attribute("ship", "ship", ("On which ship did {n} sail?",), (
        "{n} had sailed on the {v}", "the ship of {n} was called the {v}", "{n} had crossed the sea on the {v}",
        "the {v} once had {n} among her crew", "{n} still dreamt of {p} ship, the {v}",
        "{n} wore the cap of the {v}, the ship that {s} sailed on",
    )),
    Attribute("keepsake", "keepsake", ("Which keepsake does {n} wear?",), (
        "{n} wore a {v} on a string", "the keepsake of {n} was a {v}", "{n} turned a {v} between {p} fingers",
        "a {v} hung round the neck of {n}", "{n} would not part with {p} {v}", "{n} kissed the {v} that {s} wore",
    )),
    Attribute("enemy", "person", ("Who is the sworn enemy of {n}?",), (
        "{n} was the sworn enemy of {v}", "the sworn enemy of {n} was {v}", "{n} had sworn to ruin {v}",
        "{v} hated nobody as much as {n}", "there was an old feud between {n} and {v}", "{n} spat at the name of {v}",
    )),
)  # fmt: skip


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.replace("\n", " ").split(",") if part.strip())


_GRAMMAR = {
    "age": _words("nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"),
    "adj": _words(
        "cold old narrow crooked broken quiet empty heavy bitter pale yellow green dusty wet ragged hollow bright low "
        "rusty dark frozen warm thin strange gentle torn muddy smoky wooden ruined tall little lonely painted stolen"
    ),
    "mood": _words(
        "slowly softly quickly gladly sadly bravely loudly calmly angrily gently politely proudly nervously wearily "
        "cheerfully stiffly coldly drowsily"
    ),
    "spot": _phrases(
        "bridge, stair, orchard, cellar, market, chapel, harbour, kitchen, tower, courtyard, stable, attic, meadow, "
        "well, mill, barn, quarry, shore, gatehouse, alley, garden, bakery, inn, hall, ford, crossroads"
    ),
    "thing": _phrases(
        "kettle, basket, blanket, lute, barrel, letter, cloak, boot, rope, map, sack, pipe, candle, cup, drum, shovel, "
        "bottle, wheel, chair, book, key, box, loaf, shutter, bench, oar, saddle, hat, jug, bundle"
    ),
    "folk": _phrases(
        "the boatman, a beggar, the old nurse, two soldiers, the cook, a drunken monk, the children, a young bride, "
        "the stable boy, three sisters, the blind singer, a tired guard, the steward, some fishermen, a rich widow, "
        "the judge, a fiddler, the twins, an old sailor, the priest, a kitchen maid, the captain, a madman, the queen, "
        "two thieves, a foreign prince, the baker's wife, a runaway, the hermit, an orphan"
    ),
    "did": _phrases(
        "sang, laughed, wept, shouted, prayed, quarrelled, danced, waited, whispered, slept, argued, watched, "
        "listened, shivered, counted coins, told lies, played dice, sharpened knives, mended nets, drank, "
        "stared at the sky, packed in haste, cursed the king, ran away, lit a fire, peeled apples"
    ),
    "weather": _phrases(
        "rain fell on the [spot], the wind turned north, snow covered the [spot], the fog would not lift, "
        "a pale sun came out, hail rattled on the [spot], the river rose, the moon stood over the [spot], "
        "a storm broke, the stars were hidden, frost lay on the [spot], thunder rolled in the hills, "
        "the tide went out, the heat was terrible, leaves blew about, the ice began to crack"
    ),
    "day": _phrases("night, morning, evening, day, noon, dusk, dawn"),
    "season": _phrases("spring, summer, autumn, winter, the harvest, the fair, the siege, the thaw, the great frost"),
    "order": _words("first second third fourth fifth sixth seventh last"),
    "when": _phrases(
        "on the [order] [day] of [season], before the bells rang, when the gates were shut, long after midnight, "
        "a week before [season], at the end of [season], while [folk] [did], an hour before dawn, once the guests left, "
        "in the year of the [adj] [thing], when [weather], after the burial, between two storms"
    ),
    "going": _phrases(
        "climbed to the [adj] [spot], walked through the [spot], came back to the [spot], hid behind a [adj] [thing], "
        "stood alone in the [spot], sat down beside the [spot], knocked at the door of the [spot], "
        "pushed a [adj] [thing] across the [spot], waited under the [spot], ran past the [adj] [spot], "
        "carried a [thing] into the [spot], looked down from the [spot], lay awake in the [adj] [spot], "
        "rode [mood] towards the [spot], crept out of the [spot], slept on a [thing] near the [spot]"
    ),
    "act": _phrases(
        "picked up the [adj] [thing], shook {p} head, said nothing, smiled [mood], looked for a [thing], "
        "broke a [adj] [thing], paid [folk], closed the shutters, washed {p} hands, counted to twenty, "
        "threw a [thing] into the [spot], asked for a [thing], sighed [mood], sold the [adj] [thing], "
        "laughed at [folk], hummed an old tune, turned away [mood], opened a [adj] [thing], drew a [thing] in the dust"
    ),
    "speech": _phrases(
        "we shall be late, nobody must know, the road is closed, bring me a [thing], I have seen worse, "
        "the king is dead, there is no more bread, keep your voice down, it will end badly, you owe me a [thing], "
        "leave the [thing] where it is, they are burning the [spot], I dreamt of this [spot], trust no one, "
        "the [spot] is haunted, wait until [season], that [thing] was mine, ask [folk], my feet hurt"
    ),
    "verb_said": _phrases("said, whispered, cried, muttered, answered, shouted, asked, repeated, sang, sighed"),
}

_OPENINGS = (
    "[when], {a} [going]",
    "{a} [going] [when]",
    "[weather] while {a} [going]",
    "'[speech],' [verb_said] {a}, and [going]",
    "nobody saw how {a} [going] [when]",
    "[when], [folk] saw that {a} [going]",
    "it was [when] that {a} [going]",
    "[folk] still [did] when {a} [going]",
    "[when] [weather], and {a} [going]",
    "there was a [adj] [thing] in the [spot], and {a} took it [mood]",
    "the [spot] was [adj] and [adj], and [when] {a} [going]",
    "twice [folk] called for {a}, who [going]",
)
_BRIDGES = (
    "then {b} [going] as well",
    "{b} came in [mood] with a [adj] [thing]",
    "at the [spot] {as} met {b}",
    "'[speech],' [verb_said] {b}, who had followed {ao}",
    "{b} was already there, and [act]",
    "a [thing] fell, and there stood {b}",
    "behind the [adj] [thing] sat {b}",
    "{a} had come to meet {b}, who was late",
    "with {ao} was {b}, holding a [adj] [thing]",
    "not far off, {b} [going]",
)
_WRAPS = (
    "everybody in the [spot] knew that {c}",
    "it was no secret that {c}",
    "'have you heard?' [verb_said] [folk]. 'They say that {c}.'",
    "[folk] swore that {c}",
    "[when], [folk] had found out that {c}",
    "the songs tell that {c}",
    "[folk] remembered that {c}",
    "as [folk] knew, {c}",
    "{c}, and [weather]",
    "{c}, and [folk] [did]",
    "{c}, or so it was told in the [spot]",
    "'it is true that {c},' [verb_said] [folk]",
    "in those days {c}",
    "a [adj] letter said that {c}",
    "{c}, and that was why [folk] [did]",
    "[folk] did not believe that {c}",
)
_FILLERS = (
    "[weather]",
    "[folk] [did], and [folk] [did]",
    "{n} [act]",
    "{n} [act] and [act]",
    "'[speech],' [verb_said] [folk]",
    "'[speech],' {n} [verb_said] [mood]",
    "the [adj] [thing] was still [adj]",
    "somewhere in the [spot] [folk] [did]",
    "a [thing] lay broken beside the [adj] [spot]",
    "[when] [folk] [did] [mood]",
    "no one had cleaned the [spot] since [season]",
    "[folk] brought a [thing], a [thing] and a [adj] [thing]",
    "{n} did not like the [adj] [spot]",
    "the [thing] smelt of the [spot]",
    "[folk] wanted the [adj] [thing] back",
    "[weather], and {n} [act]",
    "for a moment {n} thought of the [spot]",
    "it took {n} until [season] to forget that [thing]",
)
_CLOSINGS = (
    "so the [adj] [day] ended, and [weather]",
    "{a} and {b} parted at the [spot]",
    "then [folk] [did], and the [thing] was gone",
    "they went home [mood], and nobody spoke of the [thing] again",
    "after that the [spot] was [adj]",
    "'[speech],' [verb_said] {b} at last",
    "{a} left the [thing] to {b}",
    "what became of the [adj] [thing], only [folk] could say",
)

SAGA = Genre(
    "saga", (Kind("character", "person", _ATTRIBUTES),) * 4, _GRAMMAR, _OPENINGS, _BRIDGES, _WRAPS, _FILLERS, _CLOSINGS
)
