"""The encyclopaedia: articles on people, places and crafts of the country in which the saga plays."""

from .prose import Attribute, Genre, Kind
from .saga import _phrases, _words

_SCHOLAR = (
    Attribute("native_town", "town", ("In which town was {n} born?",), (
        "{n} was a native of {v}", "{n} was born in the town of {v}", "the birthplace of {n} is {v}",
        "{v} honours {n} as its own child", "the parish book of {v} records the birth of {n}",
        "{n} spent {p} childhood in {v}, where {s} was born",
    )),
    Attribute("study", "study", ("What did {n} study?",), (
        "{n} studied {v}", "{n} gave {p} life to the study of {v}", "the great subject of {n} was {v}",
        "no one knew more about {v} than {n}", "{n} wrote nine volumes on {v}", "{n} lectured on {v}",
    )),
    Attribute("rival", "person", ("Who was the rival of {n}?",), (
        "{n} had a rival in {v}", "the rival of {n} was {v}", "{v} attacked {n} in print and was {p} rival for life",
        "{n} never forgave {p} rival, {v}", "the rivalry of {n} and {v} is famous", "{n} and {v} were bitter rivals",
    )),
    Attribute("emblem", "companion", ("Which animal stands on the grave of {n}?",), (
        "a {v} in stone stands on the grave of {n}", "the grave of {n} bears a {v}",
        "{n} lies buried beneath the figure of a {v}", "on the tomb of {n} the visitor sees a {v}",
        "{n} asked for a {v} to be carved on {p} grave", "the animal on the grave of {n} is a {v}",
    )),
    Attribute("relic", "keepsake", ("Which relic of {n} survives?",), (
        "of all that {n} owned a {v} survives", "the museum keeps a {v} that belonged to {n}",
        "the relic of {n} is a {v}", "pilgrims may touch a {v} once owned by {n}",
        "{n} left the nation nothing but a {v}", "the {v} of {n} is shown to visitors",
    )),
)  # fmt: skip
_PLACE = (
    Attribute("export", "craft_goods", ("What does {n} export?",), (
        "{n} exports {v}", "the chief export of {n} is {v}", "the merchants of {n} grew rich on {v}",
        "{n} lives by selling {v}", "most of the {v} of the country comes from {n}", "{n} is famous for its {v}",
    )),
    Attribute("founder", "person", ("Who founded {n}?",), (
        "{n} was founded by {v}", "the founder of {n} was {v}", "{v} laid the first stone of {n}",
        "{n} honours its founder, {v}", "it was {v} who founded {n}", "a statue of {v}, the founder, stands in {n}",
    )),
    Attribute("arms", "mascot", ("What is on the flag of {n}?",), (
        "the flag of {n} shows a {v}", "a {v} stands on the flag of {n}", "{n} flies a flag with a {v}",
        "the people of {n} chose a {v} for their flag", "on the flag of {n} there is a {v}",
        "since the war the flag of {n} has borne a {v}",
    )),
    Attribute("speciality", "dish", ("What do people eat in {n}?",), (
        "the people of {n} eat {v}", "the traveller in {n} is served {v}", "{v} can be had at every inn in {n}",
        "on feast days {n} eats {v}", "the kitchens of {n} smell of {v}", "no visitor leaves {n} without tasting {v}",
    )),
    Attribute("fair", "date", ("When is the fair of {n} held?",), (
        "the fair of {n} is held on {v}", "every year {n} holds its fair on {v}", "on {v} the fair of {n} begins",
        "the fair of {n} falls on {v}", "strangers come to {n} for the fair on {v}", "{v} is the day of the fair in {n}",
    )),
)  # fmt: skip
_CRAFT = (
    Attribute("tool", "tool", ("Which tool is used in {n}?",), (
        "the tool of {n} is the {v}", "{n} is done with the {v}", "whoever learns {n} first learns to hold the {v}",
        "without a good {v} there is no {n}", "the {v} is the only tool used in {n}", "{n} calls for a sharp eye and the {v}",
    )),
    Attribute("material", "craft_goods", ("Which material does {n} need?",), (
        "{n} needs {v}", "the material of {n} is {v}", "those who practise {n} work with {v}",
        "{n} begins with a pound of {v}", "good {v} is half the art of {n}", "{n} turns {v} into ornaments",
    )),
    Attribute("inventor", "person", ("Who invented {n}?",), (
        "{n} was invented by {v}", "the inventor of {n} was {v}", "we owe {n} to {v}",
        "{v} invented {n} by accident", "it was {v} who invented {n}", "{n} began in the workshop of {v}, its inventor",
    )),
    Attribute("centre", "town", ("Where is {n} practised?",), (
        "{n} is practised in {v}", "the home of {n} is {v}", "the masters of {n} live in {v}",
        "{v} is the only town where {n} is practised", "{n} never spread beyond {v}", "the school of {n} is in {v}",
    )),
)  # fmt: skip

_GRAMMAR = {
    "adj": _words(
        "ancient curious famous large small handsome modest plain rare early late northern southern western eastern "
        "wealthy poor damp fertile remote noble common humble splendid obscure careful severe learned rural royal"
    ),
    "work": _phrases(
        "chronicle, almanac, ballad, charter, treaty, sermon, census, diary, inscription, catalogue, herbal, decree, "
        "atlas, register, pamphlet, hymn book, dictionary, inventory, memoir, calendar"
    ),
    "author": _phrases(
        "the monks, a later hand, several travellers, an unknown clerk, most scholars, the older writers, "
        "one physician, the court poet, a retired general, the royal surveyor, two visiting bishops, local tradition, "
        "a Dutch merchant, the abbess, the editors, foreign visitors, some critics, the guild, a patient archivist"
    ),
    "building": _phrases(
        "library, abbey, lighthouse, granary, town hall, theatre, aqueduct, palace, hospital, prison, castle, "
        "customs house, cathedral, observatory, arsenal, monastery, university, bath house, mint, windmill"
    ),
    "land": _phrases(
        "valley, marsh, forest, coast, plateau, island, lake, moor, river, plain, peninsula, hillside, gorge, estuary, "
        "vineyard, desert, pass, delta, bay, heath"
    ),
    "event": _phrases(
        "the great flood, the second war, the plague, the union, the long drought, the peace, the revolt, the fire, "
        "the coronation, the reform, the siege, the famine, the earthquake, the invasion, the exile, the schism"
    ),
    "time": _phrases(
        "after [event], before [event], during [event], in the years of [event], until [event], since [event], "
        "for a century, at that time, in old age, in recent years, under the last king, three winters later"
    ),
    "good": _phrases(
        "wooden shoes, dried fish, church bells, carved doors, glass beads, sheepskins, horses, apples, wine, "
        "roof slates, oil lamps, medicines, cattle, blue pottery, songbirds, tobacco, playing cards, hunting dogs"
    ),
    "does": _phrases(
        "is still standing, was pulled down, belongs to the crown, attracts few visitors, was rebuilt in brick, "
        "was sold to the guild, lies in ruins, has been restored, is described in a [adj] [work], lost its roof, "
        "serves as a school, was struck by lightning, is closed in winter, passed to the church, holds a [adj] collection"
    ),
    "says": _phrases("says, reports, confirms, denies, insists, repeats, claims, records, doubts, suggests, agrees"),
}
_OPENINGS = (
    "{a}. The name is found first in a [adj] [work] of the [adj] [land]",
    "{a}. This entry follows the [adj] [work] that [author] left [time]",
    "few names in the [adj] [land] are as [adj] as {a}",
    "the [adj] [work] of the [building] devotes a page to {a}",
    "{a} is spelt in three ways in the [work] of the [adj] [building]",
    "[time] the name of {a} was known in every [building] and [building]",
    "what is known of {a} comes from a [adj] [work] found in the [building]",
    "{a} appears on the oldest map of the [land], beside a [adj] [building]",
    "no [work] of the [land] omits {a}, though [author] left it out [time]",
    "{a}. Readers should compare the [work] of [author], written [time]",
)
_BRIDGES = (
    "the next entry, {b}, belongs to the same [land]",
    "{b}, with which {a} is often named, needs a few words here",
    "see also {b}, which [author] added to this [work]",
    "on the same page of the [work] stands {b}",
    "older readers will look here for {b} too",
    "the history of {b} is tied to the same [building]",
    "[author] always treated {a} together with {b}",
    "under the same letter the [work] lists {b}",
)
_WRAPS = (
    "it is certain that {c}",
    "the [adj] [work] [says] that {c}",
    "according to the [work] of the [building], {c}",
    "[time], as a [adj] [work] puts it, {c}",
    "it is worth noting that {c}",
    "a stone in the [building] tells us that {c}",
    "{c}, although the [work] is [adj]",
    "{c}, and the [building] [does]",
    "every child in the [land] learns that {c}",
    "there is no doubt that {c}",
    "the [work] adds that {c}",
    "{c}, as [author] wrote [time]",
    "we read in a [adj] [work] that {c}",
    "today we know that {c}",
)
_FILLERS = (
    "the [building] [does]",
    "the [adj] [building] near the [land] [does]",
    "[time] the [land] was known for its [good]",
    "[time] [author] copied the [work] twice",
    "a [adj] road crosses the [land] and ends at the [building]",
    "the trade in [good] came to an end [time]",
    "a [adj] [work] of the period lists [good], [good] and [good]",
    "of the [adj] [building] only the gate remains",
    "the [land] freezes in winter and floods in spring",
    "[author] called the [land] [adj] and the [building] [adj]",
    "the climate of the [land] is [adj], and [good] are cheap",
    "a second [work] was lost [time]",
    "taxes were paid in [good] [time]",
    "the [work] is kept in the [building]",
    "there is a [adj] [building] on the [land], but it [does]",
    "nothing of this is mentioned by [author]",
)
_CLOSINGS = (
    "for the sources, see the [work] of the [adj] [building]",
    "a [adj] portrait hangs in the [building]",
    "the last [work] on the matter appeared [time]",
    "further study of the [land] is needed",
    "[author] thought otherwise",
    "the question remains open, and the [building] [does]",
)

ENCYCLOPAEDIA = Genre(
    "encyclopaedia",
    (Kind("scholar", "person", _SCHOLAR), Kind("scholar", "person", _SCHOLAR),
     Kind("place", "town", _PLACE), Kind("craft", "craft", _CRAFT)),
    _GRAMMAR, _OPENINGS, _BRIDGES, _WRAPS, _FILLERS, _CLOSINGS,
)  # fmt: skip
