"""The saga: scenes about invented people of an invented country."""

from .prose import Genre, Kind, attribute, grammar, lines

_CHARACTER = Kind(
    "character",
    "person",
    (
        attribute("birthplace", "town", "Where was {n} born?", "in {v}", """
            {n} was born in {v}
            {n} came into the world in {v}
            the cradle of {n} had stood in {v}
            {n} had left {v}, where {s} was born, at the age of [age]
            nobody in {v} forgot that {n} was born there
            {n} never spoke of {v}, where {s} was born
        """),
        attribute("trade", "trade", "What is the trade of {n}?", "a {v}", """
            {n} was a {v} by trade
            the trade of {n} was that of a {v}
            {n} earned {p} bread as a {v}
            {n} worked as a {v}
            {n} had learnt to be a {v}
            there was no better {v} than {n}
        """),
        attribute("companion", "companion", "Which animal travels with {n}?", "a {v}", """
            {n} travelled with a {v}
            {n} never went out without {p} {v}
            the animal that followed {n} was a {v}
            {n} shared {p} supper with a {v}
            {n} had brought {p} {v}
            a {v} slept at the feet of {n}
        """),
        attribute("weapon", "weapon", "Which weapon does {n} carry?", "a {v}", """
            {n} carried a {v}
            the weapon of {n} was a {v}
            {n} trusted nothing but {p} {v}
            {n} kept a {v} under {p} cloak
            {n} reached for {p} {v}
            a {v} hung from the belt of {n}
        """),
    ),
)  # fmt: skip

_GRAMMAR = grammar("""
age: nine, ten, eleven, twelve, thirteen, fourteen, fifteen, sixteen
old: rusty, heavy, broken, painted, stolen, wooden, ragged, dusty, wet, crooked, patched, blue, yellow, green, red,
    empty, borrowed, old, new, tiny, cheap, dirty, burnt, forgotten, polished, strange, greasy, faded, useless, ugly
dark: narrow, dark, quiet, crowded, ruined, windy, muddy, deserted, cold, moonlit, smoky, flooded, lonely, steep,
    old, lower, upper, frozen, overgrown, gloomy, sunny, silent, royal, haunted, empty, stinking
mood: slowly, softly, quickly, gladly, sadly, bravely, loudly, calmly, angrily, gently, politely, proudly, nervously,
    wearily, cheerfully, stiffly, coldly, in tears, in silence, without shame, with a grin, with a shrug
spot: orchard, cellar, market, chapel, harbour, kitchen, tower, courtyard, stable, attic, meadow, mill, barn, quarry,
    garden, bakery, inn, great hall, alley, gatehouse, forest, graveyard, tavern, library, dungeon, workshop, square,
    valley, armoury, vineyard, ditch, laundry, council room, bell tower
thing: kettle, basket, blanket, lute, barrel, letter, cloak, boot, rope, map, sack, pipe, candle, cup, drum, shovel,
    bottle, wheel, chair, book, key, box, bread knife, shutter, bench, oar, saddle, hat, jug, bundle, pillow, lamp,
    hourglass, flag, glove, bucket, broom, cage, coat, ledger
big: barrel, bench, cart, haystack, curtain, wardrobe, woodpile, statue, bed, table, stove, plough, coffin, boat,
    pile of sacks, rain barrel, loom, altar, gravestone
food: bread, soup, cheese, porridge, apples, cold meat, fish, nuts, beer, cake, cider, beans
person: boatman, beggar, old nurse, cook, drunken monk, young bride, stable boy, blind singer, tired guard, steward,
    rich widow, judge, fiddler, old sailor, priest, kitchen maid, captain, madman, queen, foreign prince,
    fortune teller, runaway, hermit, orphan, toll keeper, tall stranger, pickpocket, duchess, messenger, midwife,
    pilgrim, hangman, drummer, landlord, poet, ghost
people: two soldiers, the children, three sisters, some fishermen, the twins, two thieves, the wedding guests,
    a few prisoners, the villagers, the players, four riders, the monks, the rebels, seven brothers, the servants,
    the neighbours, the washerwomen, the young knights, both guards, the widows
folk: the [person], the [person], [people]
did: sang, laughed, wept, shouted, prayed, quarrelled, danced, waited, whispered, slept, argued, listened, shivered,
    counted coins, told lies, played dice, sharpened knives, mended nets, drank, stared at the sky, cursed the king,
    ran away, lit a fire, peeled apples, chopped wood, ate [food], hid the [thing], searched the [spot],
    fell on the stairs, rang the bell, told old stories, fed the hens, shook with cold, drew lots, carved a [thing],
    swept the [spot], passed round the [food], looked the other way, coughed, sold [food]
weather: rain fell on the [spot], the wind turned north, snow covered the [spot], the fog would not lift,
    a pale sun came out, hail rattled on the roof, the river rose, the moon stood over the [spot], a storm broke,
    the stars were hidden, frost lay on the [spot], thunder rolled in the hills, the tide went out,
    the heat was terrible, leaves blew about, the ice began to crack, a warm rain began, clouds covered the moon,
    the dew was heavy, smoke hung over the [spot], dust blew through the [spot], the wind died down
hour: night, morning, evening, afternoon, day
season: spring, summer, autumn, winter, the harvest, the fair, the siege, the thaw, the great frost, Lent, the war,
    the long drought
order: first, second, third, fourth, fifth, sixth, seventh, last
when: on the [order] [hour] of [season], before the bells rang, when the gates were shut, long after midnight,
    a week before [season], at the end of [season], while [folk] [did], an hour before dawn, once the guests had left,
    in the year of the [old] [thing], when [weather], after the burial, between two storms, late one [hour],
    on the eve of [season], as soon as [folk] [did], in the middle of [season], after a night without sleep
going: climbed into the [dark] [spot], walked through the [spot], came back to the [dark] [spot],
    hid behind a [big], stood alone in the [dark] [spot], sat down in the [spot], knocked at the door,
    pushed a [big] across the [spot], waited in the [dark] [spot], ran past the [spot],
    carried a [thing] into the [spot], looked down at the [dark] [spot], lay awake in the [spot],
    rode [mood] towards the [spot], crept out of the [dark] [spot], slept on the floor of the [spot],
    stole [food] from the [spot], fell asleep in the [dark] [spot], lost a [thing] in the [spot],
    went [mood] from the [spot] to the [spot], followed [folk] into the [spot], dragged a [big] home,
    swam out to fetch a [thing], stumbled over a [old] [thing], traded a [thing] for [food]
act: picked up the [old] [thing], said nothing, smiled [mood], looked for a [thing], broke a [old] [thing],
    paid [folk], closed the shutters, washed {p} hands, counted to twenty, threw a [thing] into the fire,
    asked for a [thing], sighed, sold the [old] [thing], laughed at [folk], hummed an old tune, turned away [mood],
    opened a [old] [thing], drew a [thing] in the dust, shook {p} head, warmed {p} hands, tore up the letter,
    gave [food] to [folk], took off {p} boots, pointed at the [spot], blew out the candle, bit {p} lip,
    borrowed a [thing] from [folk], nodded [mood], spilt the [food], kicked the [thing], whistled for help,
    pretended to sleep, wiped the [thing] clean, bowed to [folk]
remark: we shall be late, nobody must know, the road is closed, bring me a [thing], I have seen worse,
    the king is dead, we have no more [food], keep your voice down, it will end badly, you owe me a [thing],
    leave the [thing] where it is, they are burning the [spot], I dreamt of this [spot], trust no one,
    the [spot] is haunted, wait until [season], that [thing] was mine, ask [folk], my feet hurt,
    I smell [food], who has taken the [old] [thing], you were born a fool, the [person] knows the way,
    I was not always poor, hide the [thing],
    we have no [thing] and no [food], come back after [season], the [old] [thing] is cursed, it is only the wind,
    give that to the [person], never sleep in the [spot], I have waited since [season],
    not even the [person] would dare,
    sing something, this is not my [thing], they hanged the [person], the [spot] has two doors,
    somebody has been in the [spot], do not wake the [person], I will pay in [food]
said: said, whispered, cried, muttered, shouted, repeated, sighed, called, murmured, exclaimed
""")

_OPENINGS = lines("""
    [when], {a} [going]
    {a} [going] [when]
    {a} [going], for [weather]
    [weather] while {a} [going]
    '[remark],' [said] {a}, and [going]
    nobody saw how {a} [going] [when]
    [when], [folk] saw that {a} [going]
    it was [when] that {a} [going]
    [folk] still [did] when {a} [going]
    [when], [weather], and {a} [going]
    there was a [old] [thing] in the [dark] [spot], and {a} took it [mood]
    the [spot] was [dark], and [when] {a} [going]
    twice [folk] called for {a}, who [going]
    {a} [going] and [act]. [weather]
    no [thing] in the [spot] was worth as much as the one that {a} found [when]
    '[remark],' [said] [folk] to {a}. '[remark].'
    [folk] [did], [folk] [did], and {a} [going]
    before [season] {a} had never entered the [dark] [spot]
    for three days {a} had eaten only [food]. [when], {s} [going]
    {a} lost the [old] [thing] [when], and [folk] [did]
    one [hour] in [season], {a} [going] and found [folk] there
    the [person] brought the news to {a}, who [going]
""")
_BRIDGES = lines("""
    then {b} [going]
    {b} came in, carrying a [old] [thing]
    in the [spot] {as} met {b}
    '[remark],' [said] {b}, who had followed {ao}
    {b} was already there, and [act]
    a [thing] fell, and there stood {b}
    behind a [big] sat {b}
    {a} had come to meet {b}, who was late
    with {ao} was {b}, holding a [old] [thing]
    not far off, {b} [going]
    [folk] pointed to {b}, who [act]
    the one person {as} had not expected was {b}
    {b} heard it all from the [dark] [spot]
    out of the [spot] came {b}, and [act]
    {a} looked up. It was {b}, with a [thing] and some [food]
    '{b}!' [said] [folk]. '[remark].'
    [weather], and {b} asked {a} for [food]
    {b} had hidden in the [spot] [when]
    at the same hour {b} [going]
    only {b} had noticed, and [act]
""")
_WRAPS = lines("""
    everybody in the [spot] knew that {c}
    it was no secret that {c}
    'have you heard?' [said] [folk]. 'They say that {c}.'
    [folk] swore that {c}
    [when], [folk] had found out that {c}
    the songs tell that {c}
    [folk] remembered that {c}
    as [folk] knew, {c}
    {c}, and [weather]
    {c}, and [folk] [did]
    {c}, or so it was told in the [spot]
    'it is true that {c},' [said] [folk]
    by that time {c}
    a [old] letter said that {c}
    {c}, and that was why [folk] [did]
    [folk] could hardly believe that {c}
    {c}, whatever [folk] might say
    strange as it may sound, {c}
    {c}. [folk] [did]
    [folk] told [folk] that {c}
    it had been known since [season] that {c}
    '[remark],' [said] [folk], who knew that {c}
    on the wall of the [spot] somebody had written that {c}
    one thing was certain: {c}
    {c}, as [folk] had seen
    the [person] would always say that {c}
""")
_EXCHANGES = lines("""
    '{q}' asked [folk]. '{r},' [said] [folk]
    '{q}' asked [folk], and [folk] answered: '{r}.'
    '{q}' [folk] wanted to know. '{r},' [said] the [person]
    [folk] asked: '{q}' '{r},' came the answer
    '[remark]. {q}' asked [folk]. '{r},' [said] [folk]
    '{q}' cried [folk]. '{r}. [remark],' [said] the [person]
    '{q}' was all that [folk] asked. '{r},' [said] [folk] [mood]
    '{q}' asked the [person]. [folk] laughed. '{r}!'
    '{r},' [said] [folk], for the [person] had asked: '{q}'
""")
_FILLERS = lines("""
    [weather]
    [weather], and [weather]
    [folk] [did], and [folk] [did]
    {n} [act]
    {n} [act] and [act]
    '[remark],' [said] [folk]
    '[remark],' {n} [said] [mood]
    the [old] [thing] was gone
    somewhere in the [spot] [folk] [did]
    a [thing] lay broken in the [dark] [spot]
    [when] [folk] [did]
    no one had cleaned the [spot] since [season]
    [folk] brought a [thing], a [thing] and some [food]
    {n} did not like the [dark] [spot]
    the [thing] smelt of [food]
    [folk] wanted the [old] [thing] back
    [weather], and {n} [act]
    for a moment {n} thought of the [dark] [spot]
    it took {n} until [season] to forget that [thing]
    there was [food] for [folk] and none for the others
    {n} [act], then [act]
    a [person] needs a [thing] as others need [food], {n} thought
    nothing moved in the [spot] but a [old] [thing]
    the door of the [spot] stood open
    [folk] had not eaten since the [order] [hour]
    '[remark],' [said] [folk]. {n} [act]
    under the [big] there was only a [old] [thing]
    the price of [food] had doubled since [season]
    [folk] offered {o} a [old] [thing], but {n} [act]
    it was the [order] [thing] that {n} had lost since [season]
    from the [spot] came the sound of a [thing]
    [folk] waited [mood]
    {n} would have given a [thing] for some [food]
    [when], {n} [act]
    '[remark]. [remark],' [said] [folk] [mood]
    long ago this [spot] had belonged to the [person]
    neither the [person] nor the [person] dared to touch the [old] [thing]
    the [person] [did], and so {n} [act]
    [people] had filled the [dark] [spot] that [hour]
    {n} counted the stones in the wall of the [spot]
    if [folk] had not shouted, {n} would have dropped the [thing]
    a smell of [food] and of [old] leather filled the [spot]
    {n} asked whose [thing] it was, and [folk] [did]
    far below, in the [spot], [folk] [did]
""")
_CLOSINGS = lines("""
    so the [order] [hour] ended, and [weather]
    {a} and {b} parted in the [spot]
    then [folk] [did], and the [thing] was gone
    they went home [mood], and nobody spoke of the [thing] again
    after that the [spot] was [dark]
    '[remark],' [said] {b} at last
    {a} left the [thing] to {b}
    what became of the [old] [thing], only [folk] could say
    the rest is told in another place
    {b} [act]. {a} did the same
    and [folk] [did], as they had done since [season]
    neither {a} nor {b} ever saw the [spot] again
    it was the last [hour] of [season]
    [weather], and the [spot] was [dark] once more
    {a} waited for an answer, but {b} [act]
    the [person] shut the door behind them
""")

SAGA = Genre("saga", (_CHARACTER,) * 4, _GRAMMAR, _OPENINGS, _BRIDGES, _WRAPS, _EXCHANGES, _FILLERS, _CLOSINGS)
