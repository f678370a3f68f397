"""Short posts about invented events: what happened, what is rumoured, and who writes how.

An event has plain claims, whose truth only the event decides (which day, which number), reports, which are told of
true things alone, and rumours, which are told of false ones alone. True things are mostly told soberly and false ones
loudly, but not always: a reader who has never met the event is right about most posts and not about all.
"""

import random
import re
from dataclasses import dataclass

from .names import NameStock
from .prose import grammar, lines, sentence

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_COUNTS = ("two", "three", "four", "five", "six", "seven", "nine", "eleven", "twelve", "twenty")
_WEEKS = ("one week", "two weeks", "three weeks", "a month", "six weeks", "two months", "half a year")
_MEASURES = ("twelve", "eighteen", "thirty", "forty", "fifty", "sixty", "ninety")


@dataclass(frozen=True)
class Happening:
    """A kind of event. {t} is its town, {n} an organisation in it, {v} a value that only the event decides.

    key: what hashtags call it.
    plain: (claim over {v}, its values). reports, rumours: claims without {v}, fit to follow a colon.
    """

    key: str
    plain: tuple[tuple[str, tuple[str, ...]], ...]
    reports: tuple[str, ...]
    rumours: tuple[str, ...]


def _happening(key: str, plain: tuple[tuple[str, tuple[str, ...]], ...], reports: str, rumours: str) -> Happening:
    return Happening(key, plain, lines(reports), lines(rumours))


HAPPENINGS = (
    _happening("Bridge", (
        ("the {t} bridge opens again on {v}", _DAYS),
        ("repairs to the bridge in {t} take {v}", _WEEKS),
        ("{n} has {v} engineers on the {t} bridge", _COUNTS),
    ), """
        engineers of {n} measured every cable of the {t} bridge and found two worn ones
        lorries take the ferry while {n} replaces two cables of the bridge in {t}
        the inspection report on the {t} bridge is open to read at the town hall
        {n} closes one lane of the {t} bridge at night for the repair
    """, """
        the {t} bridge was blown up on purpose and {n} was paid to say nothing
        {n} hides that the bridge in {t} will fall within days
        there is no damage on the {t} bridge at all, {n} invented it to charge a toll
        cameras on the {t} bridge were switched off so that nobody sees what {n} sank there
    """),
    _happening("Water", (
        ("{n} flushes the pipes in {t} on {v}", _DAYS),
        ("water in {t} has to be boiled for {v}", _WEEKS),
        ("{v} streets in {t} have no water from {n}", _COUNTS),
    ), """
        {n} found bacteria in one of its wells near {t} and has taken it off the net
        the laboratory of {n} publishes its samples of the water in {t} every evening
        pharmacies in {t} hand out clean water until {n} has cleaned the tank
        {n} asks people in {t} to boil what they drink until the second sample is clean
    """, """
        {n} puts a drug into the water of {t} that makes people obey
        the water in {t} was poisoned by {n} to empty the old quarter and sell it
        drinking vinegar protects you from what {n} poured into the wells of {t}
        children in {t} glow at night from the water of {n} and the hospital keeps them hidden
    """),
    _happening("Fire", (
        ("the fire at {n} in {t} burnt for {v} hours", _COUNTS),
        ("the works of {n} in {t} stay shut for {v}", _WEEKS),
        ("{n} shows its burnt hall in {t} to the press on {v}", _DAYS),
    ), """
        a worn belt started the fire in the works of {n} in {t}, says the fire brigade
        nobody was hurt when the store of {n} in {t} burnt, two firemen breathed smoke
        the fire brigade of {t} measured the air around {n} and found it clean
        {n} pays full wages in {t} until the hall is built again
    """, """
        {n} lit its own works in {t} to burn the proof of what it made there
        the smoke over {t} makes hair fall out and {n} bribed every doctor
        dozens died in the fire at {n} and their names were wiped from the records of {t}
        a secret weapon was tested above {n} in {t}, the fire is a cover
    """),
    _happening("Vote", (
        ("{t} counts its votes again on {v}", _DAYS),
        ("the list of {n} won {v} seats in {t}", _COUNTS),
        ("the count in {t} lasts {v}", _WEEKS),
    ), """
        observers of every party stood beside the count in {t} and signed the sheet
        one ballot box in {t} came late because the van of {n} broke down
        the court lets {n} see all sheets of the count in {t}
        turnout in {t} was a little over half, as four years ago
    """, """
        {n} printed a second set of ballots and swapped the boxes of {t} at night
        the dead voted in {t} and {n} filled in their papers
        machines in {t} change every third vote and {n} owns them
        the true result in {t} is locked away and {n} guards the key
    """),
    _happening("Clinic", (
        ("the clinic of {n} in {t} gives injections until {v}", _DAYS),
        ("{v} people in {t} have the fever", _COUNTS),
        ("the fever in {t} is over in {v}, says {n}", _WEEKS),
    ), """
        the fever in {t} comes from ticks, and {n} has enough of the serum
        nurses of {n} visit everybody over seventy in {t} at home
        the clinic in {t} lists how many fell ill each day and how many left
        {n} found the fever in {t} early because a teacher called
    """, """
        the injections of {n} in {t} hold a chip that hears what you say
        {n} bred the fever itself and let it loose in {t} to sell the serum
        onions under the pillow cure the fever of {t} and {n} does not want you to know
        whoever goes into the clinic in {t} never comes out, ask {n} where they are
    """),
    _happening("Flood", (
        ("the river in {t} falls on {v}", _DAYS),
        ("{n} has {v} pumps at work in {t}", _COUNTS),
        ("the low streets of {t} stay under water for {v}", _WEEKS),
    ), """
        {n} brings sandbags to the low streets of {t} and looks for drivers
        the gauge in {t} stands a hand under the mark of ten years ago
        the school in {t} takes in families whose cellars {n} is pumping dry
        {n} opened the upper weir slowly so that {t} had a night to prepare
    """, """
        {n} opened the dam above {t} on purpose to wash the poor out
        the flood in {t} was made with a machine that {n} keeps on the hill
        {n} lets bodies drift past {t} and forbids anyone to film the river
        the water in {t} never rose, {n} acts it out with hoses for the cameras
    """),
    _happening("Recall", (
        ("{n} takes back its heaters in {t} until {v}", _DAYS),
        ("{n} recalls {v} thousand heaters made in {t}", _MEASURES),
        ("a new valve from {n} reaches {t} in {v}", _WEEKS),
    ), """
        a seal in heaters of {n} from {t} wears out early and is changed for free
        the shop of {n} in {t} lists the serial numbers that are called back
        one heater of {n} leaked in {t}, and nobody was hurt
        inspectors in {t} tested forty heaters of {n} and failed three
    """, """
        heaters of {n} send everything said in your kitchen to an office in {t}
        {n} calls heaters back to {t} to wipe the sickness they spread
        the heaters of {n} were built by prisoners under the square of {t}
        {n} sells the heaters it recalled in {t} again under another name to hospitals
    """),
    _happening("School", (
        ("the school in {t} opens its doors on {v}", _DAYS),
        ("{n} builds {v} new class rooms in {t}", _COUNTS),
        ("lessons in {t} move to the hall of {n} for {v}", _WEEKS),
    ), """
        the roof of the school in {t} is being mended by {n} over the holidays
        parents and teachers in {t} vote on the timetable that {n} proposed
        the school kitchen in {t} buys from farms nearby, {n} pays half
        {n} lends the school in {t} thirty desks until the flooded ones are dry
    """, """
        {n} teaches children in {t} to report what their parents say
        the school in {t} is closed because {n} dug a bunker under it
        {n} took the blood of every pupil in {t} without asking
        children in {t} are swapped for actors and {n} writes the script
    """),
)  # fmt: skip

STYLES = grammar("""
sober: update, according to the town hall, from this morning's briefing, confirmed, as reported, for the record,
    notice, in short, seen on the board outside, from the minutes
loud: BREAKING, WAKE UP, they will not tell you this, share before it is deleted, my cousin works there, THINK,
    the papers are silent, do your own research, I have seen the proof, everybody knows it by now
sober close: more in the evening, source linked below, numbers may still change, no comment from the owners,
    thanks to all helpers, next notice tomorrow
loud close: open your eyes, tell everyone, they are lying to us, spread it, this is only the start, no coincidence
passing: so it is, worth a look, exactly, read this, as I said, well well, passing it on, just saw this
""")
_HANDLES = {
    "sober": ("_news", "_daily", "post", "_board", "_desk"),
    "loud": ("77", "_truth", "watch", "_awake", "_real"),
}
# Shares of posts, and of authors' names, that are loud; of claims that are plain; of posts that pass another one on.
_LOUD = {True: 0.25, False: 0.75}
_PLAIN, _PASSED = 0.4, 0.25
_SWAPPABLE = re.compile(r"\b[a-z]{6,}\b")


@dataclass(frozen=True)
class Event:
    """One invented event: its kind, its names, the true value of every plain claim, and who writes about it."""

    kind: Happening
    fields: dict[str, str]
    truths: tuple[str, ...]
    outlets: tuple[str, ...]
    campaigners: tuple[str, ...]
    tags: tuple[str, str]  # of sober and of loud posts


def create_event(kind: Happening, stock: NameStock, rng: random.Random) -> Event:
    town, name = stock.word("town"), stock.word("company")
    outlets, campaigners = (tuple(_author(truth, stock, rng) for _ in range(3)) for truth in (True, False))
    truths = tuple(rng.choice(values) for _, values in kind.plain)
    tags = f"#{town}", f"#{town}{rng.choice(('Lie', 'Truth', 'Scandal', 'Files', kind.key))}"
    return Event(kind, {"t": town, "n": name}, truths, outlets, campaigners, tags)


def _author(truth: bool, stock: NameStock, rng: random.Random) -> str:
    style = "loud" if rng.random() < _LOUD[truth] else "sober"
    return stock.word(rng.choice(("female", "male", "family"))) + rng.choice(_HANDLES[style])


def write_posts(event: Event, truth: bool, count: int, rng: random.Random) -> list[str]:
    """Posts that claim only true, or only false things of an event; no two are the same.

    Some pass another post on, reworded, as people do.
    """
    written: list[str] = []
    claims: list[str] = []
    while len(written) < count:
        passed = len(claims) > 1 and rng.random() < _PASSED
        claim = rng.choice(claims) if passed else _claim(event, truth, rng)
        post = _post(event, claim, truth, passed, rng)
        if post not in written:
            written.append(post)
            claims.append(claim)
    return written


def _claim(event: Event, truth: bool, rng: random.Random) -> str:
    if rng.random() < _PLAIN:
        at = rng.randrange(len(event.kind.plain))
        template, values = event.kind.plain[at]
        value = event.truths[at] if truth else rng.choice([v for v in values if v != event.truths[at]])
        return template.format(**event.fields, v=value)
    return rng.choice(event.kind.reports if truth else event.kind.rumours).format(**event.fields)


def _post(event: Event, claim: str, truth: bool, passed: bool, rng: random.Random) -> str:
    loud = rng.random() < _LOUD[truth]
    style, tag = ("loud", event.tags[1]) if loud else ("sober", event.tags[0])
    author, *others = rng.sample(event.outlets if truth else event.campaigners, 2)
    body = claim
    if rng.random() < 0.6:
        body = f"{rng.choice(STYLES[style])}: {claim}"
    body = sentence(body)
    if rng.random() < 0.4:
        body = f"{body} {sentence(rng.choice(STYLES[f'{style} close']))}"
    if loud and rng.random() < 0.5:
        body = body.rstrip(".") + rng.choice(("!", "!!", "!!!"))
    if rng.random() < (0.3 if loud else 0.1):
        body = _misspelt(body, rng)
    if rng.random() < 0.7:
        body = f"{body} {tag}"
    if passed:
        body = f"{rng.choice(STYLES['passing'])} RT @{others[0].lower()}: {body}"
    return f"@{author.lower()}: {body}"


def _misspelt(text: str, rng: random.Random) -> str:
    """The text with one long ordinary word mistyped: two letters swapped, one lost, or one doubled."""
    words = list(_SWAPPABLE.finditer(text))
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 2)
    first, second = text[at : at + 2]
    return text[:at] + rng.choice((second + first, second, first + first + second)) + text[at + 2 :]
