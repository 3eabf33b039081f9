"""The kinds of questions of `answer_tasks`: what a document says for each, what is asked, and what an answer must name.

Each kind has three forms, one for each setting of a document: a harbour town, an opera house, a camp in the mountains.
The words of the facts never stand in the filler, which has no digits either.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_WORDS = """
Adeyemi Sjoberg Marchetti Quintana Novak Haldorsen Petrenko Sandoval Iwasaki Brandt Oyelaran Castellan Dufresne Mbeki
Vanterpool Kowalczyk Ferreira Stavros Ashworth Rautio Zielinski Amundsen Garibaldi Thackeray
---
Albatross Northwind Meridian Calypso Petrel Sirius Halcyon Bonaventure Marigold Thistle
---
Acacia Alder Aspen Beech Birch Cedar Cherry Cypress Hazel Juniper Larch Linden Maple Poplar Rowan Willow
---
crown lantern sabre goblet sceptre mandolin parasol bonnet telescope birdcage tambourine hourglass fan mirror cape
---
Orvo Tarnel Bescu Ilmar Quessa Dravik Fenwel Huldo Jastra Kelvo Lumiq Mortha Nespi Pirrol Sundal
---
Aurora Borealis Cobalt Dolomite Ember Falcon Granite Horizon Indigo
---
plumber tailor cobbler barber glazier locksmith upholsterer watchmaker mason saddler cooper
---
Chile Kenya Norway Japan Canada Egypt Portugal Vietnam Iceland Peru Morocco
---
lynx badger ibex wolverine marmot chamois hare weasel porcupine otter
"""
_PEOPLE, _SHIPS, _TREES, _PROPERTIES, _LAKES, _STATIONS, _TRADES, _COUNTRIES, _ANIMALS = (
    words.split() for words in _WORDS.split("---")
)


@dataclass(frozen=True, slots=True)
class Asked:
    """`passages` go into the document in this order. An answer states a fact if one of its lines has all its words."""

    passages: list[str]
    question: str
    facts: list[tuple[str, ...]]


@dataclass(slots=True)
class Names:
    """People and numbers of one document: each is used once."""

    dice: random.Random
    people: Iterator[str]
    numbers: Iterator[str]

    @classmethod
    def of(cls, dice: random.Random) -> Names:
        numbers = dice.sample(range(110, 990), 90)
        return cls(dice, iter(dice.sample(_PEOPLE, len(_PEOPLE))), iter(str(number) for number in numbers))

    def number(self) -> str:
        return next(self.numbers)

    def person(self) -> str:
        return next(self.people)

    def some(self, words: list[str], count: int) -> list[str]:
        return self.dice.sample(words, count)


_Form = tuple[list[str], tuple[str, ...], str]

# Words to choose from, sentences about a word and its number, and the question.
_SIX: tuple[_Form, ...] = (
    (
        _SHIPS,
        (
            "The {word} tied up at the long pier with {number} barrels of oil on board.",
            "With {number} barrels of oil on board, the {word} tied up at the long pier.",
        ),
        "Six ships tied up at the long pier with barrels of oil on board. List all six in the order of the text, one a"
        " line: the name of the ship, a colon, and the number of barrels.",
    ),
    (
        _PEOPLE,
        (
            "For the repair of the roof, the patron {word} gave {number} crowns.",
            "The patron {word} gave {number} crowns for the repair of the roof.",
        ),
        "Six patrons gave crowns for the repair of the roof. List all six in the order of the text, one a line:"
        " the name of the patron, a colon, and the number of crowns.",
    ),
    (
        _STATIONS,
        (
            "At station {word} the drill reached water after {number} centimetres.",
            "After {number} centimetres the drill reached water at station {word}.",
        ),
        "At six stations the drill reached water. List all six in the order of the text, one a line: the name of the"
        " station, a colon, and the number of centimetres.",
    ),
)
_TWELVE: tuple[_Form, ...] = (
    (
        _TREES,
        (
            "In {word} Street the council replaced {number} lamps.",
            "The council replaced {number} lamps in {word} Street.",
        ),
        "In twelve streets the council replaced lamps. List all twelve in the order of the text, one a line: the name"
        " of the street, a colon, and the number of lamps.",
    ),
    (
        _PROPERTIES,
        (
            "The {word} went into the store of properties under the inventory number {number}.",
            "Under the inventory number {number} the {word} went into the store of properties.",
        ),
        "Twelve objects went into the store of properties. List all twelve in the order of the text, one a line: the"
        " object, a colon, and its inventory number.",
    ),
    (
        _LAKES,
        (
            "From Lake {word} the team took {number} jars of water.",
            "The team took {number} jars of water from Lake {word}.",
        ),
        "The team took jars of water from twelve lakes. List all twelve in the order of the text, one a line: the name"
        " of the lake, a colon, and the number of jars.",
    ),
)
_COUNTED: tuple[_Form, ...] = (
    (
        _TRADES,
        (
            "The harbour master fined a {word} for fishing in the basin.",
            "For fishing in the basin, a {word} was fined by the harbour master.",
        ),
        "People of which trades were fined for fishing in the basin, and how many were they? First list their trades,"
        ' one a line. Then write a last line with "Total:" and their number.',
    ),
    (
        _COUNTRIES,
        (
            "A guest from {word} complained about the draught in the stalls.",
            "There was a complaint about the draught in the stalls by a guest from {word}.",
        ),
        "From which countries did guests complain about the draught in the stalls, and how many were they? First list"
        ' the countries, one a line. Then write a last line with "Total:" and their number.',
    ),
    (
        _ANIMALS,
        (
            "The night camera at the gorge took a picture of a {word}.",
            "A {word} walked past the night camera at the gorge.",
        ),
        "Which animals did the night camera at the gorge see, and how many were they? First list the animals, one a"
        ' line. Then write a last line with "Total:" and their number.',
    ),
)


def _listed(names: Names, form: _Form, count: int, *, numbered: bool = True) -> Asked:
    words, sentences, question = form
    chosen = [names.person() for _ in range(count)] if words is _PEOPLE else names.some(words, count)
    facts = [(word, names.number()) if numbered else (word,) for word in chosen]
    passages = [names.dice.choice(sentences).format(word=fact[0], number=fact[-1]) for fact in facts]
    return Asked(passages, question, facts)


def _six(names: Names, setting: int) -> Asked:
    return _listed(names, _SIX[setting], 6)


def _twelve(names: Names, setting: int) -> Asked:
    return _listed(names, _TWELVE[setting], 12)


def _aggregate(names: Names, setting: int) -> Asked:
    count = names.dice.randrange(5, 9)
    asked = _listed(names, _COUNTED[setting], count, numbered=False)
    return Asked(asked.passages, asked.question, [*asked.facts, ("total", str(count))])


# The question of `_TWELVE` with the names in it: a small target mixes and repeats what it must collect itself.
_NAMED = (
    "How many lamps did the council replace in each of these streets: {words}? Answer in twelve lines, in this order:"
    " the name of the street, a colon, and the number of lamps.",
    "Under which inventory number did each of these objects go into the store of properties: {words}? Answer in twelve"
    " lines, in this order: the object, a colon, and its inventory number.",
    "How many jars of water did the team take from each of these lakes: {words}? Answer in twelve lines, in this order:"
    " the name of the lake, a colon, and the number of jars.",
)


def twelve_named(twelve: Asked, setting: int) -> Asked:
    """Another question about the facts of the kind "twelve facts": it names them, not in the order of the text."""
    facts = sorted(twelve.facts)
    return Asked([], _NAMED[setting].format(words=", ".join(word for word, _ in facts)), facts)


# Things, the sentence from a thing to a person, the one from the person to a number, and the question.
_HOPS = (
    (
        ("the fog horn", "the harbour crane", "the fish auction", "the pilot boat"),
        "{person} is in charge of {thing}.",
        "The telephone extension of {person} is {number}.",
        "Who is in charge of {thing}, and what is the telephone extension of this person? Answer in one sentence.",
    ),
    (
        ("the miller", "the duchess", "the gravedigger", "the notary"),
        "The part of {thing} is sung by {person}.",
        "{person} uses dressing room {number}.",
        "Who sings the part of {thing}, and which dressing room does this singer use? Answer in one sentence.",
    ),
    (
        ("the radio", "the stove", "the ropes", "the medicine chest"),
        "{person} looks after {thing}.",
        "The sleeping bag of {person} has the label {number}.",
        "Who looks after {thing}, and which label has the sleeping bag of this person? Answer in one sentence.",
    ),
)


def _multi_hop(names: Names, setting: int) -> Asked:
    things, first, second, question = _HOPS[setting]
    chains = [(thing, names.person(), names.number()) for thing in names.some(list(things), 3)]
    thing, person, number = chains[0]
    passages = [first.format(thing=each, person=who) for each, who, _ in chains]
    passages += [second.format(person=who, number=value) for _, who, value in chains]
    names.dice.shuffle(passages)
    passages = [passage[0].upper() + passage[1:] for passage in passages]
    return Asked(passages, question.format(thing=thing), [(person,), (number,)])


# Names of the two that are compared, the passage about one, and the question.
_PAIRS = (
    (
        ("Tidewater Yard", "Kestrel Marine"),
        "{name} offers to build the new ferry for {a} thousand crowns. The yard needs {b} days, guarantees the hull for"
        " {c} weeks, and sends {person} to the talks.",
        "Compare the offers of {one} and {two} for the new ferry: for each give the price, the building time in days,"
        " the guarantee in weeks and who comes to the talks.",
    ),
    (
        ("the Bellini organ", "the Roth organ"),
        "Of the two instruments on offer, {name} has {a} pipes. It weighs {b} kilograms, was last tuned {c} days ago"
        " and is recommended by {person}.",
        "Compare {one} and {two}: for each give the number of pipes, the weight in kilograms, how many days ago it was"
        " tuned and who recommends it.",
    ),
    (
        ("the ridge route", "the glacier route"),
        "As a way to the summit, {name} climbs {a} metres. It takes {b} minutes, crosses {c} metres of ice and was"
        " marked by {person}.",
        "Compare {one} and {two} to the summit: for each give the metres climbed, the minutes needed, the metres of ice"
        " and who marked it.",
    ),
)


def _compare(names: Names, setting: int) -> Asked:
    pair, passage, question = _PAIRS[setting]
    passages, facts = [], list[tuple[str, ...]]()
    for name in pair:
        values = [names.number(), names.number(), names.number(), names.person()]
        a, b, c, person = values
        passages.append(passage.format(name=name, a=a, b=b, c=c, person=person))
        facts += [(value,) for value in values]
    one, two = pair
    return Asked([text[0].upper() + text[1:] for text in passages], question.format(one=one, two=two), facts)


# The sentences of a story, and the question. Facts: the four people and the six numbers.
_STORIES = (
    (
        (
            "The flood of the spring tide was first seen by {p}, who measured {n} centimetres at the quay.",
            "When the flood reached the warehouses, {p} had {n} sacks of sand laid out.",
            "The flood filled {n} cellars before midnight.",
            "After the flood, {p} lent {n} pumps to the town.",
            "Because of the flood, {n} residents slept in the school.",
            "The damage of the flood was put at {n} thousand crowns by {p}.",
        ),
        "Write a short report on the flood: who saw it first, and how many centimetres; who had sacks of sand laid"
        " out, and how many; how many cellars it filled; who lent pumps, and how many; how many residents slept in the"
        " school; who put a figure on the damage, and how many thousand crowns.",
    ),
    (
        (
            "The theft of the score was discovered by {p}, who found {n} pages gone.",
            "On the night of the theft, {p} had locked cabinet {n} as usual.",
            "After the theft the police questioned {n} members of the house.",
            "A reward of {n} crowns for solving the theft was offered by {p}.",
            "The theft was solved when {p} found the pages in a trunk with {n} old posters.",
            "Since the theft the score has been insured for {n} thousand crowns.",
        ),
        "Write a short report on the theft of the score: who discovered it, and how many pages were gone; who had"
        " locked a cabinet, and its number; how many members of the house were questioned; who offered a reward, and"
        " how many crowns; who found the pages, and with how many old posters; for how many thousand crowns the score"
        " has been insured since.",
    ),
    (
        (
            "The avalanche was announced by {p} after {n} millimetres of new snow.",
            "The avalanche came to rest {n} metres above the tents.",
            "Under the avalanche, {p} lost {n} metres of cable.",
            "To get out of the way of the avalanche, {p} led the porters to hut {n}.",
            "The avalanche buried {n} tins of food.",
            "After the avalanche, {p} ordered {n} signal rockets.",
        ),
        "Write a short report on the avalanche: who announced it, and after how many millimetres of snow; how many"
        " metres above the tents it came to rest; who lost cable, and how many metres; who led the porters, and to what"
        " hut; how many tins of food were buried; who ordered signal rockets, and how many.",
    ),
)


def _summary(names: Names, setting: int) -> Asked:
    sentences, question = _STORIES[setting]
    passages, facts = [], list[tuple[str, ...]]()
    for sentence in sentences:
        number = names.number()
        facts.append((number,))
        person = names.person() if "{p}" in sentence else ""
        if person:
            facts.append((person,))
        passages.append(sentence.format(p=person, n=number))
    return Asked(passages, question, facts)


# Things of one form, the sentence about one, and the question.
_SINGLE = (
    (
        ("the chapel", "the customs house", "the lifeboat shed"),
        "The bell of {thing} weighs {number} kilograms.",
        "How much does the bell of {thing} weigh? Answer in a full sentence.",
    ),
    (
        ("the first gallery", "the second gallery", "the orchestra pit"),
        "There is room for {number} people in {thing}.",
        "For how many people is there room in {thing}? Answer in a full sentence.",
    ),
    (
        ("the upper cairn", "the old border stone", "the broken mast"),
        "From the camp to {thing} it is {number} paces.",
        "How many paces is it from the camp to {thing}? Answer in a full sentence.",
    ),
)


def _one(names: Names, setting: int) -> Asked:
    things, sentence, question = _SINGLE[setting]
    values = [(thing, names.number()) for thing in names.some(list(things), 3)]
    passages = [sentence.format(thing=thing, number=number) for thing, number in values]
    return Asked(passages, question.format(thing=values[0][0]), [(values[0][1],)])


# Of a document in prose, by kind, and for each of the three settings.
PROSE: dict[str, Callable[[Names, int], Asked]] = {
    "six facts": _six,
    "twelve facts": _twelve,
    "aggregate": _aggregate,
    "multi-hop": _multi_hop,
    "compare": _compare,
    "summary": _summary,
    "one fact": _one,
}
# Of a module, for each of its three questions: the called function, and its argument.
_CALLED = (
    ("reserve_stock", "order", "hold_minutes"),
    ("push_notice", "region", "delay_ms"),
    ("open_ledger", "region", "page_rows"),
)
# A call with a {number}, and the question about all calls of this function.
CALLS = tuple(
    (
        f"{called}({first}, {argument}={{number}})",
        f"This module calls `{called}` five times. List all five calls in the order of the module, one a line, as they"
        f" are written, like `{called}({first}, {argument}=12)`.",
    )
    for called, first, argument in _CALLED
)
