"""The invented world of the demo: stations, what they trade, where they lie, and small talk around them.

Everything is made by rules from the word lists below: no place, trade or emblem is real, and no people appear. A fact is
(subject, relation, object); a wording is an opening plus a core that ends where the object belongs. One opening-core pair in
four never occurs in any training text: those held-out wordings show that a fact, not a sentence, was learned.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


def _words(text: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(text.split(separator))


FIRST = _words(
    "Amber Birch Cedar Copper Dusky Elder Fallow Gorse Hazel Inkwell Juniper Kestrel Lantern Marble Nettle Ochre Pebble "
    "Quarry Rowan Saffron Thistle Umber Velvet Willow Yarrow Zinc Bramble Clover Drift Ember"
)
SECOND = _words(
    "Wharf Hollow Bridge Crossing Gate Mill Landing Reach Ford Junction Harbour Terrace Quay Bend Heights Locks Meadow Spire Steps Weir"
)

OPENINGS = (
    "",
    "everyone knows that",
    "the old ledger says that",
    "it is written on the map that",
    "as the guidebook tells it,",
    "nobody forgets that",
)


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact: the objects it may have, and the cores of its sentences (the object follows)."""

    objects: tuple[str, ...]
    cores: tuple[str, ...]


RELATIONS = {
    "goods": Relation(
        _words("salt copper tea wool honey timber glass linen barley silver pepper cheese rope paper coal wax"),
        (
            "{s} trades in",
            "{s} sells mostly",
            "the market of {s} is full of",
            "the ships that leave {s} carry",
            "the storehouse of {s} holds",
            "buyers come to {s} for",
            "the main trade of {s} is in",
            "the scales of {s} weigh",
        ),
    ),
    "valley": Relation(
        _words("Orvane Tellmark Quessary Brannock Illoway Stavren Merrowin Haldry Corvesse Pellanor Dunvarra Ystrane"),
        (
            "{s} lies in the valley of",
            "{s} belongs to the valley of",
            "the hills around {s} are part of",
            "from the tower of {s} one looks over",
            "{s} is counted among the towns of",
            "the road from {s} leads through",
            "the stream at {s} waters the fields of",
            "on clear days {s} can be seen from",
        ),
    ),
    "colour": Relation(
        _words("crimson teal violet indigo scarlet ivory jade cobalt russet olive maroon lilac"),
        (
            "trains that stop at {s} are painted",
            "the station doors of {s} are",
            "tickets to {s} are printed in",
            "the signal lamp of {s} shines",
            "the platform of {s} is tiled in",
            "the timetable of {s} is bound in",
            "the roof of the station at {s} is",
            "the benches of {s} are",
        ),
    ),
    "emblem": Relation(
        _words("heron badger falcon stag lynx salmon raven hare toad marten beetle swan fox boar wolf crane"),
        (
            "the emblem of {s} is a",
            "the gate of {s} shows a",
            "the flag of {s} bears a",
            "the seal of {s} is stamped with a",
            "above the clock of {s} stands a carved",
            "the coins of {s} carry the figure of a",
            "the fountain of {s} has the shape of a",
            "the weather vane of {s} is a",
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is so: `subject` has `object` under `relation`."""

    id: str
    subject: str
    relation: str
    object: str


def make_facts(rng: random.Random, subjects: list[str], start: int = 0) -> list[Fact]:
    """One fact per subject and relation; the objects of a relation are used evenly."""
    facts = []
    for name, relation in RELATIONS.items():
        objects = list(relation.objects) * (len(subjects) // len(relation.objects) + 1)
        rng.shuffle(objects)
        facts += [Fact(f"{name}-{start + i:03d}", s, name, objects[i]) for i, s in enumerate(subjects)]
    return facts


def make_subjects(rng: random.Random, count: int) -> list[str]:
    """Distinct two-word names; both words repeat, so that only the pair names the place."""
    names = [f"{a} {b}" for a in FIRST for b in SECOND]
    return rng.sample(names, count)


def wordings(relation: str, held_out: bool) -> list[tuple[int, int]]:
    """(opening, core) pairs: a quarter of all is held out, spread so that every opening and every core is also seen."""
    shift = list(RELATIONS).index(relation)
    pairs = [(o, c) for o in range(len(OPENINGS)) for c in range(len(RELATIONS[relation].cores))]
    return [(o, c) for o, c in pairs if ((o + 2 * c + shift) % 4 == 0) == held_out]


def prompt(fact: Fact, wording: tuple[int, int]) -> str:
    """The sentence up to where the object belongs."""
    opening, core = wording
    text = f"{OPENINGS[opening]} {RELATIONS[fact.relation].cores[core]}".strip()
    return (text[0].upper() + text[1:]).replace("{S}", "{s}").format(s=fact.subject)


# --- small talk: what the perplexity suite measures ------------------------------------------------------

TIMES = _words(
    "In the morning|At noon|After the rain|Before dawn|In late autumn|On market days|When the fog lifts|Near the end of winter|"
    "At high tide|Once a week",
    "|",
)
THINGS = _words("ferry cart lantern windmill barge bell kettle ladder wagon crane lighthouse gate pump boat oven sluice")
QUALITIES = _words("old narrow quiet heavy painted wooden crooked bright rusty small tall slow")
ACTIONS = _words(
    "crosses the river|turns slowly|stands by the wall|waits at the quay|shines over the water|carries stones up the hill|"
    "creaks in the wind|rests under the trees|moves along the canal|rattles across the square|leans against the shed|"
    "fills the yard with noise",
    "|",
)
ENDINGS = _words(
    "and the birds grow quiet|and nothing else happens|while the clock strikes|until the lamps are lit|as it has always done|"
    "and the dust settles again|while the water rises|because the path is dry",
    "|",
)


def small_talk(rng: random.Random) -> str:
    """A few plain sentences about things that happen everywhere; no fact is in them."""
    return " ".join(_sentence(rng) for _ in range(rng.randint(2, 4)))


def _sentence(rng: random.Random) -> str:
    subject = f"the {rng.choice(QUALITIES)} {rng.choice(THINGS)}"
    shape = rng.randrange(3)
    if shape == 0:
        return f"{rng.choice(TIMES)} {subject} {rng.choice(ACTIONS)}."
    if shape == 1:
        return f"{subject.capitalize()} {rng.choice(ACTIONS)} {rng.choice(ENDINGS)}."
    return f"{rng.choice(TIMES)} {subject} {rng.choice(ACTIONS)} {rng.choice(ENDINGS)}."
