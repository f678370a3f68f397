"""The bulletin: dated items of local news about officials, companies, teams, festivals and courts."""

from .prose import Attribute, Genre, Kind
from .saga import _phrases, _words

_OFFICIAL = (
    Attribute("post", "post", ("What is the post of {n}?",), (
        "{n} has been named {v}", "{n} holds the post of {v}", "{n} is the new {v}", "the post of {v} went to {n}",
        "{n} took office as {v}", "as {v}, {n} will earn a modest salary",
    )),
    Attribute("residence", "town", ("Where does {n} live?",), (
        "{n} lives in {v}", "the home of {n} is in {v}", "{n} has moved to {v}", "{v} is where {n} lives",
        "neighbours in {v}, where {n} lives, brought flowers", "{n} commutes every day from {v}",
    )),
    Attribute("pledge", "pledge", ("What has {n} promised?",), (
        "{n} has promised {v}", "the promise of {n} is {v}", "{n} stood for election on {v}",
        "{n} will not rest without {v}", "voters chose {n} for a promise of {v}", "{n} again promised {v}",
    )),
    Attribute("hobby", "hobby", ("What is the hobby of {n}?",), (
        "{n} spends every weekend on {v}", "the hobby of {n} is {v}", "{n} relaxes with {v}",
        "away from work {n} is devoted to {v}", "{n} has won prizes in {v}", "{n} has loved {v} since childhood",
    )),
)  # fmt: skip
_COMPANY = (
    Attribute("product", "product", ("What does {n} make?",), (
        "{n} makes {v}", "the {v} of {n} are sold abroad", "{n} began to make {v} in a garage",
        "{n} is known for its {v}", "the factory of {n} produces {v}", "every shop sells the {v} that {n} makes",
    )),
    Attribute("director", "person", ("Who runs {n}?",), (
        "{n} is run by {v}", "the director of {n} is {v}", "{v} has run {n} for years",
        "{n} chose {v} to run the firm", "{v}, who runs {n}, declined to comment", "at the head of {n} stands {v}",
    )),
    Attribute("seat", "town", ("Where is the factory of {n}?",), (
        "the factory of {n} is in {v}", "{n} has its factory in {v}", "{n} built its factory in {v}",
        "{v} is home to the factory of {n}", "half of {v} works in the factory of {n}",
        "{n} will not move its factory from {v}",
    )),
    Attribute("workers", "number", ("How many workers has {n}?",), (
        "{n} employs {v} workers", "{n} has {v} workers", "the number of workers at {n} is {v}",
        "all {v} workers of {n} received a bonus", "{v} workers are on the books of {n}",
        "{n} now pays wages to {v} workers",
    )),
)  # fmt: skip
_TEAM = (
    Attribute("game", "game", ("What does {n} play?",), (
        "{n} plays {v}", "the game of {n} is {v}", "{n} is the best side in {v}", "in {v} nobody beats {n}",
        "{n} won the cup in {v}", "{n} trains young people in {v}",
    )),
    Attribute("coach", "person", ("Who coaches {n}?",), (
        "{n} is coached by {v}", "the coach of {n} is {v}", "{v} has coached {n} since May",
        "{n} signed {v} as coach", "{v}, the coach, praised {n}", "fans of {n} sang for {v}, the coach",
    )),
    Attribute("mascot", "mascot", ("What is the mascot of {n}?",), (
        "the mascot of {n} is a {v}", "a {v} is the mascot of {n}", "{n} chose a {v} as its mascot",
        "children cheered for the {v}, the mascot of {n}", "{n} has a {v} for a mascot",
        "the shirts of {n} show a {v}, the mascot",
    )),
    Attribute("ground", "town", ("Where does {n} train?",), (
        "{n} trains in {v}", "the training ground of {n} is in {v}", "{v} is where {n} trains",
        "{n} goes to {v} to train", "rain in {v} forced {n} to train indoors", "twice a week {n} trains in {v}",
    )),
)  # fmt: skip
_FESTIVAL = (
    Attribute("opening", "date", ("When does {n} open?",), (
        "{n} opens on {v}", "the opening of {n} is set for {v}",
        "on {v} {n} opens its doors", "{v} is the day on which {n} opens",
        "tickets for {n} are good from {v}", "{n} will open on {v}",
    )),
    Attribute("guest", "person", ("Who is the guest of {n}?",), (
        "the guest of {n} is {v}", "{n} has invited {v} as its guest",
        "{v} will be the guest of {n}", "{v} agreed to be guest of {n}",
        "{n} expects {v} as its guest", "the guest at {n}, {v}, arrives by train",
    )),
    Attribute("dish_served", "dish", ("What is served at {n}?",), (
        "{v} will be served at {n}", "{n} serves {v}", "visitors to {n} eat {v}",
        "cooks at {n} prepare {v}", "there will be {v} for all at {n}",
        "{n} is known for serving {v}",
    )),
    Attribute("prize", "keepsake", ("What is the prize of {n}?",), (
        "the prize of {n} is a {v}", "{n} gives a {v} as its prize",
        "a {v} is the prize of {n}", "the winner at {n} takes home a {v}",
        "whoever wins at {n} gets a {v}", "the jury of {n} will hand over a {v}",
    )),
)  # fmt: skip
_DEFENDANT = (
    Attribute("stolen", "stolen", ("What did {n} steal?",), (
        "{n} stole {v}", "{n} was found guilty of stealing {v}", "{n} admitted the theft of {v}",
        "police found {v} that {n} had stolen", "{n} had stolen {v}, the court heard", "{n} made off with {v}",
    )),
    Attribute("sentence", "number", ("How many weeks must {n} serve?",), (
        "{n} must serve {v} weeks", "the sentence of {n} is {v} weeks", "{n} was jailed for {v} weeks",
        "{n} will spend {v} weeks in prison", "the court gave {n} a sentence of {v} weeks",
        "{v} weeks is the sentence that {n} must serve",
    )),
    Attribute("judge", "person", ("Which judge tried {n}?",), (
        "{n} was tried by {v}", "the judge who tried {n} was {v}", "{v} tried {n} without a jury",
        "{n} came before {v}, the judge", "it was {v} who tried {n}", "{v}, the judge, showed {n} no mercy",
    )),
    Attribute("hideout", "town", ("Where was {n} arrested?",), (
        "{n} was arrested in {v}", "officers arrested {n} in {v}", "the arrest of {n} took place in {v}",
        "{n} hid in {v} before the arrest there", "{v} was the place where {n} was arrested",
        "a patrol in {v} arrested {n}",
    )),
)  # fmt: skip

_GRAMMAR = {
    "day": _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "daypart": _words("morning afternoon evening night"),
    "month": _words("January February March April May June July August September October November December"),
    "no": _words("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28"),
    "adj": _words(
        "local public private heavy sudden annual regional new old busy crowded popular expensive cheap empty electric "
        "temporary historic modern noisy angry cheerful unexpected brief long careful minor serious loyal narrow"
    ),
    "where": _phrases(
        "station, council house, bus depot, car park, ring road, primary school, stadium, airport, town square, "
        "swimming baths, hospital, shopping centre, pier, post office, fire station, concert hall, canal, museum, "
        "police station, bowling club, main street, golf course, power plant, cinema, bakery, harbour wall"
    ),
    "who": _phrases(
        "residents, a spokesman, two witnesses, the police, a bus driver, pensioners, shopkeepers, the union, "
        "parents, a neighbour, firefighters, students, commuters, a local farmer, reporters, taxi drivers, experts, "
        "the opposition, a retired teacher, tourists, the organisers, volunteers, a passing cyclist, nurses"
    ),
    "did": _phrases(
        "complained, protested, applauded, cheered, refused to comment, signed a petition, asked for patience, "
        "waited in the rain, called a meeting, raised money, wrote to the paper, blocked the road, shook their heads, "
        "demanded answers, went home early, held a minute of silence, took photographs, lost patience, voted against"
    ),
    "issue": _phrases(
        "the delay, the noise, parking fees, the broken lift, the strike, the new timetable, the budget, the closure, "
        "litter, the smell, water prices, the vote, the fog, a burst pipe, the roadworks, the merger, the rumour, "
        "the lost keys, a fallen tree, the power cut, the election, stray dogs"
    ),
    "weather": _phrases(
        "heavy rain, light snow, strong winds, bright sunshine, thick fog, hail, a mild breeze, drizzle, hard frost, "
        "thunderstorms, record heat, grey skies"
    ),
    "amount": _phrases(
        "a dozen, about fifty, several hundred, almost a thousand, nearly two thousand, only three, more than forty, "
        "at least eighty, a handful of"
    ),
    "object": _phrases(
        "cars, tickets, windows, letters, balloons, tents, bicycles, posters, chairs, boats, lorries, leaflets, "
        "umbrellas, sandbags, buses, flags, trees, parcels"
    ),
    "happened": _phrases(
        "were damaged, were sold, arrived late, were counted, had to be removed, were handed out, went missing, "
        "were blown away, were lent to the [where], blocked the [where], were painted green, were given away"
    ),
    "quote": _phrases(
        "it is a proud day, we were not told, this cannot go on, nobody was hurt, we shall see, I am delighted, "
        "the worst is over, it was only a matter of time, we need more staff, money is short, that is good news, "
        "the figures are wrong, I have never seen so many [object], ask the council, we did our best, "
        "the [where] is too small, it will be ready by [day], people are tired of [issue]"
    ),
    "said": _phrases("said, told reporters, added, declared, joked, admitted, explained, insisted"),
}
_OPENINGS = (
    "[no] [month]. A [adj] [daypart] at the [where], where {a} was on everybody's lips",
    "[day], [no] [month]. There was news of {a} at the [adj] [where]",
    "[no] [month]. {a} made headlines on [day] after [who] [did] over [issue]",
    "[day], [no] [month]. '[quote],' [said] [who] when asked about {a}",
    "[no] [month]. In [weather], [amount] people met at the [where] to talk about {a}",
    "[day] [daypart], [no] [month]. [amount] [object] [happened], but the talk was of {a}",
    "[no] [month]. After a week of [weather] and [issue], attention has turned to {a}",
    "[no] [month]. The [adj] [where] was full on [day] [daypart] when the name of {a} came up",
    "[day], [no] [month]. [issue] was forgotten for a moment when word came about {a}",
    "[no] [month]. A [adj] report about {a} reached this paper on [day]",
)
_BRIDGES = (
    "there was news of {b} as well",
    "the same [daypart], [who] spoke of {b}",
    "the council then turned to {b}",
    "on another page, readers asked about {b}",
    "also on [day], {b} drew a [adj] crowd at the [where]",
    "'[quote],' [said] [who], turning to {b}",
    "meanwhile {b} was the talk of the [where]",
    "the [where] had [adj] news of {b} on [day]",
)
_WRAPS = (
    "this paper has learnt that {c}",
    "it was announced on [day] that {c}",
    "[who] confirmed that {c}",
    "'{c},' [said] [who]",
    "{c}, and [who] [did]",
    "{c}, despite [issue]",
    "a statement from the [where] says that {c}",
    "readers may remember that {c}",
    "according to [who], {c}",
    "it is now official that {c}",
    "{c}, [who] told us at the [where]",
    "the [where] reports that {c}",
    "as this page reported in [month], {c}",
    "few people know that {c}",
)
_FILLERS = (
    "[amount] [object] [happened]",
    "[who] [did] over [issue]",
    "'[quote],' [said] [who]",
    "[weather] is expected until [day]",
    "the [where] will stay closed until [no] [month]",
    "[who] [did] outside the [adj] [where]",
    "traffic near the [where] was [adj] on [day]",
    "near the [where], [amount] [object] [happened]",
    "[who] blamed [issue] for the [adj] queues",
    "the [adj] meeting at the [where] ended after an hour",
    "a [adj] collection for the [where] raised [amount] crowns",
    "'[quote],' [said] [who] at the [where]",
    "the mood was [adj] in spite of [weather]",
    "[who] and [who] [did]",
    "on [day] [daypart], [issue] cost the [where] [amount] visitors",
)
_CLOSINGS = (
    "more on [day]",
    "a decision about [issue] is expected in [month]",
    "the [where] asks for [object]",
    "letters on [issue] may be sent to this page",
    "[weather] is forecast for [day]",
    "the next meeting is on [no] [month] at the [where]",
)

BULLETIN = Genre(
    "bulletin",
    (Kind("official", "person", _OFFICIAL), Kind("company", "company", _COMPANY), Kind("team", "team", _TEAM),
     Kind("festival", "festival", _FESTIVAL), Kind("defendant", "person", _DEFENDANT)),
    _GRAMMAR, _OPENINGS, _BRIDGES, _WRAPS, _FILLERS, _CLOSINGS,
)  # fmt: skip
