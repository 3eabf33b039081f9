"""What fills the documents of `answer_tasks`: prose in three settings, functions of a module. Without long numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator

# Sentences, and the words for their places {a}, {b} and {c}, of the three settings.
_PROSE = (
    (
        (
            "{a} was out on the water before dawn and came back with hardly anything worth selling.",
            "People on the quay talked about {b} for days, although nobody had seen it with their own eyes.",
            "{a} repainted the door of the shed because the salt had eaten through the old coat.",
            "There was a long discussion about {b} in the back room of the inn.",
            "A thick fog hid {c} until late in the morning, and the gulls were quieter than usual.",
            "The children of the town drew {c} with chalk on the pavement, and the rain washed it away.",
            "{a} mended nets in front of {c} and told the old joke about the deaf captain.",
            "Since last winter hardly a week has passed without some news about {b}.",
            "Someone left a bicycle leaning against {c}; it is still there.",
            "According to {a}, the herring stay away when the wind turns too early.",
            "The council put {b} on the agenda once more and then postponed it.",
            "In the evening {a} played the accordion, and a few couples danced near {c}.",
            "Nothing came of the plan to move {c} a little further inland.",
            "A letter about {b} was pinned to the board and taken down again by noon.",
        ),
        (
            "the widow of the net maker,the youngest pilot,a deckhand from the north,the baker,an old smuggler,"
            "the schoolteacher,the keeper of the inn"
        ),
        "the price of mooring,the smell of the cannery,the missing buoy,the new parking rules,the brass band,"
        "the regatta,the broken weather vane",
        "the breakwater,the smokehouse,the slipway,the market hall,the ice factory,the tavern,the signal mast",
    ),
    (
        (
            "{a} arrived late for the rehearsal and blamed the tram.",
            "The critics wrote about {b} as if they had slept through the second act.",
            "In the canteen {a} argued with the prompter about {b}.",
            "A smell of glue hung over {c} for most of the week.",
            "{a} asked for a softer light on the staircase and got it after a long debate.",
            "During the interval the audience gathered in {c} and spoke of {b}.",
            "The stage hands carried a painted forest through {c} and scratched the wall.",
            "Nobody remembers any more who had suggested {b} in the first place.",
            "{a} hummed the overture while the floor of {c} was being swept.",
            "The curtain stuck again, and {a} improvised a few bars on the piano.",
            "An old programme was found behind a radiator in {c}, with notes about {b}.",
            "The management has promised to think about {b} before the next season.",
            "On Sundays {c} belongs to the choir, which is louder than one would think.",
            "{a} lost a shoe on the way to the stage and sang in socks.",
        ),
        "the conductor,the second bassoon,an understudy,the lighting master,the wardrobe mistress,a retired tenor,"
        "the ballet teacher",
        "the new translation,the price of the programmes,the colour of the curtain,the length of the interval,"
        "the guest performance,the choice of the encore,the heating",
        "the painters' workshop,the foyer,the rehearsal room,the scene dock,the costume attic,the box office,"
        "the lower corridor",
    ),
    (
        (
            "{a} slept badly because of the wind and drank two pots of tea before breakfast.",
            "The clouds came down to {c} in the afternoon and stayed there.",
            "There was a quarrel about {b}, which ended when the soup was ready.",
            "{a} wrote a long entry in the diary about the silence near {c}.",
            "In the morning the snow around {c} was hard enough to walk on without skis.",
            "Nobody wanted to hear another word about {b}.",
            "{a} dried socks over the lamp, and the whole tent smelled of wool.",
            "The mules refused to go past {c}, as they had done the year before.",
            "On the way back {a} found a rusty horseshoe and kept it for luck.",
            "We spent the evening on {b} and on stories of earlier journeys.",
            "A thin layer of ice covered {c}, and in the sun it rang like glass.",
            "{a} sang to pass the time, mostly songs with a great many verses.",
            "The map is wrong about {c}, as every visitor finds out sooner or later.",
            "As for {b}, the cook has opinions that need not be repeated here.",
        ),
        "the cook,our botanist,the oldest of the porters,the surveyor,the doctor,a student of geology,the interpreter",
        "the order of the tents,the taste of the dried fish,the lost chess piece,the correct name of the peak,"
        "the weather forecast,the mending of the gloves,the division of the chocolate",
        "the frozen stream,the moraine,the flat rock,the narrow saddle,the old sheepfold,the ice fall,the snow bridge",
    ),
)

_WORDS = """
apply build check clean collect convert describe export filter format group load merge plan render sort
daily draft foreign internal late manual monthly partial private regional repeated urgent
address basket batch catalogue coupon customer delivery discount invoice label parcel payment refund
"""
_VERBS, _ROLES, _OBJECTS = (line.split() for line in _WORDS.strip().splitlines())
_BODIES = (
    '    """{text}."""\n    cleaned = [entry.strip() for entry in entries if entry]\n    return sorted(cleaned)',
    '    """{text}."""\n    found = {{}}\n    for entry in entries:\n'
    "        found.setdefault(entry.kind, []).append(entry)\n    return found",
    '    """{text}."""\n    if not entries:\n        raise ValueError("nothing to {verb}")\n'
    "    return entries[0].copy()",
    '    """{text}."""\n    return any(entry.is_open and not entry.is_locked for entry in entries)',
    '    """{text}."""\n    total = sum(entry.amount for entry in entries)\n    log.debug("{verb}: %s", total)\n'
    "    return total",
)
_CALLING = (
    '    """{text}."""\n    order.touch()\n    result = {call}\n    order.note(result)\n    return result',
    '    """{text}."""\n    if order.is_closed:\n        return None\n    return {call}',
    '    """{text}."""\n    with order.lock():\n        {call}\n    log.info("{verb} done")',
)


def prose(dice: random.Random, setting: int) -> Iterator[str]:
    """Sentences without end; no sentence comes twice within half of the forms."""
    sentences, *words = _PROSE[setting]
    people, topics, places = (each.split(",") for each in words)
    last = list[str]()
    while True:
        form = dice.choice([each for each in sentences if each not in last])
        last = [*last, form][-len(sentences) // 2 :]
        text = form.format(a=dice.choice(people), b=dice.choice(topics), c=dice.choice(places))
        yield text[0].upper() + text[1:]


def function_names(dice: random.Random) -> Iterator[tuple[str, str, str]]:
    """Every name once, in any order: verb, role and object."""
    names = [(verb, role, thing) for verb in _VERBS for role in _ROLES for thing in _OBJECTS]
    dice.shuffle(names)
    return iter(names)


def function(dice: random.Random, name: tuple[str, str, str], call: str = "") -> str:
    """The source of a function of this name, which may hold one call."""
    verb, role, thing = name
    body = dice.choice(_CALLING if call else _BODIES)
    text = f"{verb.capitalize()} the {role} {thing}"
    arguments = "order, region" if call else "entries"
    return f"def {'_'.join(name)}({arguments}):\n" + body.format(text=text, verb=verb, call=call)
