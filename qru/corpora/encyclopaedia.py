"""The encyclopaedia: articles on scholars and places of the country in which the saga plays."""

from .prose import Genre, Kind, attribute, grammar, lines

_SCHOLAR = Kind(
    "scholar",
    "person",
    (
        attribute("study", "study", "What did {n} study?", "only {v}", """
            {n} studied {v}
            {n} gave {p} life to the study of {v}
            the great subject of {n} was {v}
            {n} wrote nine volumes on {v}
            {n} lectured on {v}
            no one knew more about {v} than {n}
        """),
        attribute("emblem", "companion", "Which animal stands on the grave of {n}?", "a {v}", """
            the grave of {n} bears a {v}
            {n} lies buried beneath the figure of a {v}
            {n} asked for a {v} to be carved on {p} grave
            the animal on the grave of {n} is a {v}
            on the tomb of {n} the visitor sees a {v}
            a {v} in stone stands on the grave of {n}
        """),
        attribute("relic", "keepsake", "Which relic of {n} survives?", "a {v}", """
            of all that {n} owned a {v} survives
            {n} left the nation nothing but a {v}
            the relic of {n} is a {v}
            pilgrims who honour {n} may touch a {v}
            all that was found in the house of {n} was a {v}
            the museum keeps a {v} that belonged to {n}
        """),
        attribute("meal", "dish", "What did {n} eat every day?", "always {v}", """
            {n} ate {v} every day
            {n} lived on {v}
            the only food of {n} was {v}
            {n} had {v} brought to {p} desk each day
            {n} praised {v} above every other food and ate little else
            day after day {n} ate {v}
        """),
    ),
)  # fmt: skip
_PLACE = Kind(
    "place",
    "town",
    (
        attribute("export", "goods", "What does {n} export?", "nothing but {v}", """
            {n} exports {v}
            the chief export of {n} is {v}
            {n} lives by selling {v}
            {n} is famous for its {v}
            the merchants of {n} grew rich on {v}
            all the {v} of the country comes from {n}
        """),
        attribute("founder", "person", "Who founded {n}?", "{v}", """
            {n} was founded by {v}
            the founder of {n} was {v}
            {n} honours its founder, {v}
            {n} celebrates the birthday of {v}, who founded it
            {n} owes its walls to {v}, the founder
            it was {v} who founded {n}
        """),
        attribute("arms", "mascot", "What is on the flag of {n}?", "a {v}", """
            the flag of {n} shows a {v}
            {n} flies a flag with a {v}
            the people of {n} chose a {v} for their flag
            on the flag of {n} there is a {v}
            since the war the flag of {n} has borne a {v}
            a {v} stands on the flag of {n}
        """),
        attribute("speciality", "dish", "What do people eat in {n}?", "mostly {v}", """
            the people of {n} eat {v}
            the traveller in {n} is served {v}
            on feast days {n} eats {v}
            the kitchens of {n} smell of {v}
            no visitor leaves {n} without tasting {v}
            every inn in {n} serves {v}
        """),
    ),
)  # fmt: skip
_GRAMMAR = grammar("""
plain: ancient, curious, famous, large, small, handsome, modest, rare, early, late, splendid, obscure, careful, learned,
    royal, anonymous, brief, lengthy, unfinished, popular, forbidden, damaged, dull, beautiful
built: ancient, famous, large, handsome, modest, splendid, royal, abandoned, half-built, crumbling, domed, fortified,
    elegant, draughty, restored, circular, ugly, tall
wild: northern, southern, western, eastern, damp, fertile, remote, stony, wooded, empty, barren,
    windswept, outer, inner, high, low
work: chronicle, almanac, ballad, charter, treaty, sermon, census, diary, inscription, catalogue, herbal, decree,
    atlas, register, pamphlet, hymn book, dictionary, inventory, memoir, calendar, travel book, law book, play
author: the monks, a later hand, several travellers, an unknown clerk, most scholars, the older writers,
    one physician, the court poet, a retired general, the royal surveyor, two visiting bishops, a foreign merchant,
    the abbess, the first editors, some critics, the guild, a patient archivist, a village teacher,
    a prisoner of war, the last librarian, three painters
building: library, abbey, lighthouse, granary, town hall, theatre, palace, hospital, prison, castle,
    customs house, cathedral, observatory, arsenal, monastery, university, bath house, mint, windmill,
    orphanage, brewery, law court, town gate, gallery, post office, armoury
land: coast, plateau, island, moor, plain, peninsula, hillside, heath, marsh, estuary, delta, cape, headland, border,
    riverbank, lake shore
event: the great flood, the second war, the plague, the union, the long drought, the peace, the revolt, the great fire,
    the coronation, the reform, the siege, the famine, the earthquake, the invasion, the exile, the schism,
    the royal wedding, the land tax, the treaty, the hard winter
time: after [event], before [event], during [event], in the years of [event],
    a century ago, at that time, in recent years, under the last king, three winters later, in the spring after [event],
    on the eve of [event], long before [event]
good: wooden shoes, dried herrings, church bells, carved doors, glass beads, sheepskins, horses, apples, oranges,
    roof slates, oil lamps, medicines, cattle, blue plates, songbirds, silk ribbons, playing cards, hunting dogs,
    straw hats, millstones, candlesticks, rag dolls, wedding dresses, mirrors, barrels, books of prayer, kites
fate: is still standing, was pulled down, belongs to the crown, attracts few visitors, was rebuilt in brick,
    was sold to the guild, lies in ruins, has been restored, is described in a [plain] [work], lost its roof,
    serves as a school, was struck by lightning, is closed in winter, passed to the church, sank into the ground,
    was painted white, holds a [plain] collection of [good], burnt down [time], was moved stone by stone,
    has never been finished, is said to be haunted, was paid for with [good], stands on the [land]
says: says, reports, confirms, insists, repeats, claims, records, agrees, shows, proves, mentions
gone: copied the [work] twice, crossed the [land] on foot, were silent on the matter, counted the houses,
    drew a map of the [land], wrote a [plain] [work] about the [land], took the [work] abroad,
    praised the [good] of the [land], quarrelled over the [building], bought the [building],
    found a [work] in the [building], mistook the [building] for a prison, complained about the roads,
    taught in the [building], exchanged [good] for [good], forgot to mention the [building]
number: two, three, four, five, six, seven, eight, nine, ten, twelve, twenty, thirty, forty
""")
_OPENINGS = lines("""
    {a}. The name is found first in a [plain] [work] of the [wild] [land]
    {a}. This entry follows the [plain] [work] that [author] left [time]
    few names in the [wild] [land] are as famous as {a}
    the [plain] [work] of the [building] devotes [number] pages to {a}
    {a} is spelt in [number] ways in the [work] of the [built] [building]
    [time] the name of {a} was known in every [building] and [building]
    what is known of {a} comes from a [plain] [work] found in the [building]
    {a} appears on the oldest map of the [land], beside a [built] [building]
    no [work] of the [land] omits {a}, though [author] did so [time]
    {a}. Readers should compare the [work] of [author], written [time]
    {a}: see the [plain] [work] on the [wild] [land], page [number]
    [author] [gone] before anyone wrote about {a}
    {a}. There is a street of this name near the [built] [building] on the [land]
    [time] [author] [gone], and so the memory of {a} was saved
    one [work] in [number] mentions {a}, most often beside the [wild] [land]
    {a} has been the subject of [number] books and a [plain] [work]
    the [built] [building] on the [land] has a room named after {a}
    {a}. [author] [gone] [time] and left notes for this article
""")
_BRIDGES = lines("""
    the next entry, {b}, belongs to the same [land]
    beside {a} we must place {b}, for reasons given in the [work]
    see also {b}, an entry that [author] added [time]
    on the same page of the [work] stands {b}
    older readers will look here for {b} too
    the history of {b} is tied to the same [building]
    [author] always treated {a} together with {b}
    under the same letter the [work] lists {b}
    the article would not be complete without {b}
    {b} is named on the same stone in the [built] [building]
    a few words on {b} are in order, since [author] [gone]
    [author] [gone], and from them we also hear of {b}
    the [work] then turns to {b}
    {b} deserves more than the [number] lines given by the [work]
    it was [time] that {b} was first named beside {a}
    from here the road along the [land] leads to {b}
""")
_WRAPS = lines("""
    it is certain that {c}
    the [plain] [work] [says] that {c}
    according to the [work] of the [building], {c}
    as a [plain] [work] puts it, {c}
    it is worth noting that {c}
    a stone in the [building] tells us that {c}
    {c}, although the [work] is silent on the point
    {c}, and the [building] [fate]
    every child on the [land] learns that {c}
    there is no doubt that {c}
    the [work] adds that {c}
    {c}, as [author] wrote [time]
    we read in a [plain] [work] that {c}
    today we know that {c}
    {c}, while [author] [gone]
    an old joke of the [land] has it that {c}
    contrary to what [author] believed, {c}
    {c}: so the [work] [says] on page [number]
    {c}. The [work] gives [number] proofs of this
    all sources agree that {c}
    to this day guides in the [building] explain that {c}
    {c}, and nothing has changed since [event]
    in a letter to [author] we find that {c}
    {c}, a fact well known on the [land]
""")
_FILLERS = lines("""
    the [building] [fate]
    the [built] [building] near the [land] [fate]
    [time] the [land] was known for its [good]
    [time] [author] [gone]
    a paved road crosses the [land] and ends at the [building]
    the trade in [good] came to an end [time]
    a [plain] [work] of the period lists [good], [good] and [good]
    of the [built] [building] only the gate remains
    the [land] is white in winter and green in spring
    [author] called the [land] [wild] and the [building] [built]
    the [land] has mild winters, and [good] are cheap
    a second [work] was lost [time]
    taxes were paid in [good] [time]
    the [work] is kept in the [building]
    there is a [built] [building] on the [land], and it [fate]
    nothing of this is mentioned by [author]
    the [land] has [number] villages and [number] inns
    [author] [gone], but [author] [gone]
    at the edge of the [land] stands a [built] [building]
    the [building] was begun [time] and finished [time]
    carts carry [good] to the [land] [number] times a week
    until [event] the [building] held [number] prisoners
    the best edition of the [work] is that of [author]
    the soil of the [wild] [land] is poor, but its [good] are sold abroad
    [number] families shared the [building] [time]
    it is forbidden to carry [good] into the [building]
    the path to the [wild] [land] starts behind the [building]
    in dry years the [land] is brown with dust
    [author] [gone] and never returned to the [land]
    the bells of the [building] were melted down [time]
    the [building] and the [building] stand side by side on the [land]
    those who visit the [land] bring home [good]
    a [plain] [work] with pictures of [good] was printed [time]
    nobody knows who bound the [plain] [work]
    [number] columns of the [built] [building] were brought from the [land]
    [author] found [good] and a [plain] [work] under the floor of the [building]
    the [wild] part of the [land] belonged to the [building]
    [event] ended the trade, and the [building] [fate]
    of the [number] known copies of the [work], one is in the [building]
    wolves lived on the [land] until [event]
""")
_EXCHANGES = lines("""
    '{q}' asks the [plain] [work], and answers: '{r}.'
    asked '{q}' in the [building], [author] replied: '{r}.'
    an old riddle of the [land] asks: '{q}' '{r},' is the answer
    when children on the [land] ask '{q}' they are told: '{r}.'
    visitors to the [building] often ask: '{q}' '{r},' says the guide
    to the question '{q}' the [work] has a short answer: '{r}.'
    '{q}' wrote [author] on the last page, and a later hand added: '{r}.'
""")
_CLOSINGS = lines("""
    for the sources, see the [work] of the [built] [building]
    a [plain] portrait hangs in the [building]
    the last [work] on the matter appeared [time]
    further study of the [land] is needed
    [author] thought otherwise
    the question remains open, and the [building] [fate]
    see also the entries on [event] and the [wild] [land]
    a new [work] is expected from [author]
    the [building] may be visited on [number] days of the year
    this entry was written by [author]
    of {a} and {b} there are no portraits
    the spelling of {b} follows the [plain] [work]
    {a} and {b} are on the stamps issued [time]
    the rest is legend
""")

ENCYCLOPAEDIA = Genre(
    "encyclopaedia",
    (_SCHOLAR, _SCHOLAR, _PLACE, _PLACE),
    _GRAMMAR,
    _OPENINGS,
    _BRIDGES,
    _WRAPS,
    _EXCHANGES,
    _FILLERS,
    _CLOSINGS,
)
