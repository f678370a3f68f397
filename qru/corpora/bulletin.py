"""The bulletin: dated items of local news about officials, companies and clubs."""

from .prose import Genre, Kind, attribute, grammar, lines

_OFFICIAL = Kind(
    "official",
    "person",
    (
        attribute("post", "post", "What is the post of {n}?", "that of {v}", """
            {n} has been named {v}
            {n} holds the post of {v}
            {n} is the new {v}
            {n} took office as {v}
            {n} will stay on as {v}
            the post of {v} went to {n}
        """),
        attribute("residence", "town", "Where does {n} live?", "in {v}", """
            {n} lives in {v}
            the home of {n} is in {v}
            {n} has moved to {v}
            {n} comes to work every day from {v}
            {n} has bought a house in {v}
            neighbours in {v}, where {n} lives, brought flowers
        """),
        attribute("hobby", "hobby", "What is the hobby of {n}?", "it is {v}", """
            {n} spends every weekend on {v}
            the hobby of {n} is {v}
            {n} relaxes with {v}
            {n} has won prizes in {v}
            {n} has loved {v} since childhood
            away from work {n} is devoted to {v}
        """),
        attribute("pet", "companion", "Which pet does {n} keep?", "a {v}", """
            {n} keeps a {v}
            the pet of {n} is a {v}
            {n} walks a {v} through the park
            {n} came to the office with a {v}
            {n} keeps a pet, and it is a {v}
            a {v} shares the home of {n}
        """),
    ),
)  # fmt: skip
_COMPANY = Kind(
    "company",
    "company",
    (
        attribute("product", "product", "What does {n} make?", "they make {v}", """
            {n} makes {v}
            the factory of {n} produces {v}
            {n} began to make {v} in a garage
            {n} is known for its {v}
            {n} has sold more {v} than ever
            every shop sells the {v} that {n} makes
        """),
        attribute("director", "person", "Who runs {n}?", "{v}", """
            {n} is run by {v}
            the director of {n} is {v}
            {n} chose {v} to run the firm
            at the head of {n} stands {v}
            {n} thanked {v}, who runs the firm
            {v}, who runs {n}, declined to comment
        """),
        attribute("seat", "town", "Where is the factory of {n}?", "in {v}", """
            the factory of {n} is in {v}
            {n} has its factory in {v}
            {n} built its factory in {v}
            {n} will not move its factory from {v}
            smoke from the factory of {n} drifted over {v}
            half of {v} works in the factory of {n}
        """),
        attribute("workers", "number", "How many workers has {n}?", "there are {v}", """
            {n} employs {v} workers
            {n} has {v} workers
            the number of workers at {n} is {v}
            {n} now pays wages to {v} workers
            {n} counts {v} workers
            all {v} workers of {n} received a bonus
        """),
    ),
)  # fmt: skip
_CLUB = Kind(
    "club",
    "club",
    (
        attribute("game", "game", "What does {n} play?", "they play {v}", """
            {n} plays {v}
            the game of {n} is {v}
            {n} is the best side in {v}
            {n} won the cup in {v}
            {n} trains young people in {v}
            nobody can beat {n} at {v}
        """),
        attribute("coach", "person", "Who coaches {n}?", "{v}", """
            {n} is coached by {v}
            the coach of {n} is {v}
            {n} signed {v} as coach
            fans of {n} sang for {v}, the coach
            {n} renewed the contract of its coach, {v}
            {v}, the coach, praised {n}
        """),
        attribute("mascot", "mascot", "What is the mascot of {n}?", "a {v}", """
            the mascot of {n} is a {v}
            {n} chose a {v} as its mascot
            {n} has a {v} for a mascot
            the shirts of {n} show a {v}, the mascot
            {n} ran on behind its mascot, a {v}
            a {v} is the mascot of {n}
        """),
        attribute("meal", "dish", "What does {n} eat before a match?", "always {v}", """
            {n} eats {v} before a match
            before every match {n} eats {v}
            the players of {n} eat {v} before a match
            {n} has sworn by {v} before a match
            {n} ordered {v} before the match as usual
            the cook of {n} makes {v} before a match
        """),
    ),
)  # fmt: skip
_GRAMMAR = grammar("""
day: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
part: morning, afternoon, evening, night
month: January, February, March, April, May, June, July, August, September, October, November, December
no: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28
local: local, public, private, regional, new, old, busy, crowded, popular, empty, temporary, historic, modern,
    noisy, half-empty, rebuilt, overheated, famous, closed
odd: long, quiet, strange, difficult, lively, cheerful, memorable, noisy, busy, tiring, wonderful, terrible
crowd: large, small, angry, cheerful, noisy, patient, curious, silent
tense: long, short, noisy, stormy, tense, tedious, public, sudden, bitter, pointless
brief: brief, long, surprising, detailed, anonymous, secret, late, glowing
mood: angry, cheerful, calm, tense, hopeful, festive, quiet, gloomy, friendly, nervous
where: station, council house, bus depot, car park, primary school, stadium, airport, town square,
    swimming baths, hospital, shopping centre, pier, post office, fire station, concert hall, museum,
    police station, bowling club, golf course, power plant, cinema, fish market, bank, youth hostel, zoo,
    tennis courts, bus station, county court, community centre, railway bridge
who: residents, a spokesman, two witnesses, the police, a bus driver, pensioners, shopkeepers, the union,
    parents, a neighbour, firefighters, students, commuters, a local farmer, reporters, taxi drivers, experts,
    the opposition, a retired teacher, tourists, the organisers, volunteers, a passing cyclist, nurses, the landlord,
    a caretaker, dog owners, the fire brigade, builders, an elderly couple, the chairwoman, postal workers
did: complained, protested, applauded, cheered, refused to comment, signed a petition, asked for patience,
    waited in the rain, called a meeting, raised money, wrote to the paper, blocked the road, shook hands,
    demanded answers, went home early, held a minute of silence, took photographs, lost patience, voted against it,
    offered free tea, sounded the alarm, moved the [object], measured the damage, handed out [object],
    gathered in the park, sang songs, asked for a refund, set up a fund
issue: the delay, the noise, parking fees, the broken lift, the strike, the new timetable, the budget, the closure,
    litter, the smell, water prices, the vote, a burst pipe, the roadworks, the merger, the rumour,
    the lost keys, a fallen tree, the power cut, the election, stray dogs, the missing [object], late trains,
    the state of the [where], rising rents, a gas leak, the extra [object], the audit, school holidays
weather: heavy rain, light snow, strong winds, bright sunshine, thick fog, hail, a mild breeze, drizzle, hard frost,
    record heat, grey skies, sleet, a warm spell, black ice
amount: a dozen, about fifty, several hundred, almost a thousand, nearly two thousand, only three, more than forty,
    at least eighty, a handful of, some twenty
object: cars, tickets, windows, letters, balloons, tents, bicycles, posters, chairs, boats, lorries, leaflets,
    umbrellas, sandbags, buses, flags, trees, parcels, pumpkins, traffic lights, benches, kites, forms, torches,
    trolleys, coats, prams, fridges
fate: were damaged, were sold, arrived late, were counted, had to be removed, were handed out, went missing,
    were blown away, were lent to the [where], blocked the [where], were painted green, were given away,
    were found behind the [where], caught fire, turned up at the [where], were stolen and returned,
    stood in front of the [where], had the wrong colour, were ordered by mistake
remark: it is a proud day, we were not told, this cannot go on, nobody was hurt, we shall see, I am delighted,
    the worst is over, it was only a matter of time, we need more staff, money is short, that is good news,
    the figures are wrong, I have never seen so many [object], ask the council, we did our best,
    the [where] is too small, it will be ready by [day], people are tired of [issue], it began with [issue],
    there were [object] everywhere, come to the [where] and see, my phone has not stopped ringing,
    we have ordered more [object], the [where] has been like this since [month], it is all because of [issue],
    nobody asked for [object], I saw it from the [where], next time we shall bring [object], let us wait for [month],
    they took even the [object]
said: said, added, declared, joked, admitted, explained, insisted, warned, argued, replied
""")
_OPENINGS = lines("""
    [no] [month]. A [odd] [part] at the [where], where {a} was on everybody's lips
    [day], [no] [month]. There was news of {a} at the [local] [where]
    [no] [month]. {a} made headlines on [day] after [who] [did] over [issue]
    [day], [no] [month]. '[remark],' [said] [who] when asked about {a}
    [no] [month]. In [weather], [amount] people met at the [where] to talk about {a}
    [day] [part], [no] [month]. [amount] [object] [fate], but the talk was of {a}
    [no] [month]. After a week of [weather] and [issue], attention has turned to {a}
    [no] [month]. The [local] [where] was full on [day] [part] when the name of {a} came up
    [day], [no] [month]. Nobody mentioned [issue] when word came about {a}
    [no] [month]. A [brief] report about {a} reached this paper on [day]
    [no] [month]. [who] [did] when {a} was mentioned at the [where]
    {a} is in the news again. On [day], [no] [month], [who] [did] outside the [where]
    there are few in this town who have not heard of {a}. On [no] [month] [who] [did]
    [no] [month]. Who has not heard of {a}? On [day] [part] [who] [did] at the [local] [where]
    [day], [no] [month]. The [where] opened late because of [weather], and people talked about {a}
    [amount] letters about {a} have reached this page since [no] [month]. '[remark],' one reader writes
    [no] [month]. First [issue], then [weather], and now {a}: it was a [odd] week at the [where]
    [no] [month]. [who] and [who] agree on one thing, and that is {a}
""")
_BRIDGES = lines("""
    there was news of {b} as well
    the same [part], [who] spoke of {b}
    the council then turned to {b}
    on another page, readers asked about {b}
    also on [day], {b} drew a [crowd] crowd at the [where]
    '[remark],' [said] [who], turning to {b}
    meanwhile {b} was the talk of the [where]
    the [where] had news of {b} on [day]
    from the [where] we hear of {b}
    {b} was next on the list of the [part]
    [who] preferred to talk about {b}
    in other news, {b} was named at the [local] [where]
    '[remark].' With these words [who] changed the subject to {b}
    [day] belonged to {b}, and [who] [did]
    the [where] had been waiting for {b} since [no] [month]
    a question about {b} came from [who]
""")
_WRAPS = lines("""
    this paper has learnt that {c}
    it was announced on [day] that {c}
    [who] confirmed that {c}
    '{c},' [said] [who]
    {c}, and [who] [did]
    {c}, despite [issue]
    a statement from the [where] says that {c}
    readers may remember that {c}
    according to [who], {c}
    it is now official that {c}
    {c}, [who] told us at the [where]
    the [where] reports that {c}
    as this page reported in [month], {c}
    few people know that {c}
    a notice at the [where] says that {c}
    {c}, as the minutes of [no] [month] show
    [who] heard on [day] [part] that {c}
    whatever [who] may say, {c}
    'everybody knows that {c},' [said] [who]
    {c}. '[remark],' [said] [who]
    {c}, and that will not change before [month]
    it came out on [day] that {c}
    [who] [did] on hearing that {c}
    {c}, we read in a letter from [who]
""")
_EXCHANGES = lines("""
    asked '{q}', [who] answered: '{r}.'
    '{q}' reporters asked at the [where]. '{r},' [said] [who]
    '{q}' [who] wanted to know. '{r},' [said] [who]
    a reader writes: '{q}' Our answer: '{r}.'
    '{q}' asked a child at the [where]. '{r},' [said] [who]
    '{q}' was the question of the week. '{r},' [said] [who]
    a boy at the [where] raised his hand. '{q}' '{r},' [said] [who]
""")
_FILLERS = lines("""
    [amount] [object] [fate]
    [who] [did] over [issue]
    '[remark],' [said] [who]
    the forecast until [day] is [weather]
    the [where] will stay closed until [no] [month]
    [who] [did] outside the [local] [where]
    traffic near the [where] was slow on [day] because of [weather]
    near the [where], [amount] [object] [fate]
    [who] blamed [issue] for the [tense] delay
    the [tense] meeting at the [where] ended after an hour
    a collection for the [local] [where] raised [amount] crowns
    '[remark],' [said] [who] at the [where]
    the mood was [mood] in spite of [weather]
    [who] and [who] [did]
    on [day] [part], [issue] cost the [where] [amount] customers
    the [where] has ordered [amount] [object] for [month]
    [who] [did], while [who] [did]
    [amount] [object] stood in front of the [where]
    since [no] [month] the [where] has been without [object]
    a [tense] vote on [issue] was put off until [day]
    [who] found [amount] [object] behind the [local] [where]
    first came [weather], then [issue]
    thanks to [issue], the [local] [where] has been busy since [month]
    the price of [object] has doubled since [month]
    '[remark]. [remark],' [said] [who]
    the clock of the [where] stopped on [day] [part]
    [amount] calls about [issue] were counted on [day]
    [who] will speak about [issue] at the [where] on [no] [month]
    a [tense] dispute over [object] split the [local] [where]
    because of [issue], [who] [did]
    the [local] [where] was lit by candles on [day] [part]
    at the [where], the [object] [fate]
    two of the [object] [fate], and [who] [did]
    [who] remembered a [odd] [part] in [month] when [object] [fate]
    no [object] were seen at the [where] on [day]
    the talk at the [where] was of [weather] and [issue]
    [who] promised to return the [object] by [day]
    [month] was a [odd] month for the [local] [where]
    a photograph of [object] won first prize
""")
_CLOSINGS = lines("""
    more on [day]
    a decision about [issue] is expected in [month]
    the [where] asks for [object]
    letters on [issue] may be sent to this page
    the forecast for [day]: [weather]
    the next meeting is on [no] [month] at the [where]
    for {a} and {b} it was a [odd] week
    no date has been set
    the [where] opens again on [day]
    '[remark],' [said] [who] in the end
    this report was written at the [where] in [weather]
    tickets and [object] are at the [where]
""")

BULLETIN = Genre(
    "bulletin",
    (_OFFICIAL, _OFFICIAL, _COMPANY, _CLUB),
    _GRAMMAR,
    _OPENINGS,
    _BRIDGES,
    _WRAPS,
    _EXCHANGES,
    _FILLERS,
    _CLOSINGS,
)
