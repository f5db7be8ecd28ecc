"""What changed between two worlds, by WikiFactDiff's rules (Khodja et al. 2024), and what an edit can do about it.

Every object of a (subject, relation) gets a decision: learn, forget, keep, ignore, or unk where the record does not say enough. A group
with an unk is left alone: precision is preferred to recall. All comparisons of dates are strict. Where neither file has a date and no
triple a qualifier, presence alone decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import date
from typing import Literal

from ...registry.errors import BadInputFile, BadParameter
from ..data.worlds import DEATHS, Relation, Triple, World, day

Decision = Literal["learn", "forget", "keep", "ignore", "unk"]
Scenario = Literal["replacement", "insertion", "addition", "archival", "mixed"]
LABELS = {"learn": "new", "forget": "obsolete", "keep": "static"}
CHANGED = "changed"  # what learn and forget are called in a replacement


@dataclass(frozen=True, slots=True)
class Interval:
    """The time between two worlds; without dates nothing lies in it."""

    old: date
    new: date

    def holds(self, when: date | None) -> bool:
        """Strictly between."""
        return when is not None and self.old < when < self.new


@dataclass(frozen=True, slots=True)
class Group:
    """All objects of one subject and relation with their decisions; `was` and `now` have the triples of either world by object."""

    subject: str
    relation: str
    decisions: dict[str, Decision]
    was: dict[str, Triple]
    now: dict[str, Triple]
    new_subject: bool

    def of(self, decision: Decision) -> tuple[str, ...]:
        """The objects with this decision."""
        return tuple(o for o, d in self.decisions.items() if d == decision)

    @property
    def determined(self) -> bool:
        """Every object that counts has a decision, and something changed."""
        counted = set(self.decisions.values()) - {"ignore"}
        return "unk" not in counted and bool(counted & {"learn", "forget"})

    @property
    def replacement(self) -> bool:
        """Exactly one object comes and exactly one goes."""
        return Counter(d for d in self.decisions.values() if d != "ignore") == Counter(learn=1, forget=1)

    @property
    def scenario(self) -> Scenario:
        """What kind of change it is."""
        learn, forget, keep = (len(self.of(d)) for d in ("learn", "forget", "keep"))
        if self.replacement:
            return "replacement"
        if not learn:
            return "archival"
        if forget:
            return "mixed"
        return "addition" if keep else "insertion"

    def label(self, object_: str) -> str | None:
        """new, changed, obsolete or static; None for an object that nothing is said of."""
        decision = self.decisions[object_]
        return CHANGED if self.replacement and decision in ("learn", "forget") else LABELS.get(decision)


@dataclass(frozen=True, slots=True)
class Difference:
    """All groups of two worlds, in order of subject and relation."""

    groups: tuple[Group, ...]
    interval: Interval | None

    @property
    def determined(self) -> tuple[Group, ...]:
        """The groups that changed and of which enough is known."""
        return tuple(g for g in self.groups if g.determined)

    @property
    def undetermined(self) -> tuple[Group, ...]:
        """The groups left alone because the record does not say enough."""
        return tuple(g for g in self.groups if "unk" in g.decisions.values())

    def counts(self) -> dict[str, int]:
        """How many objects are new, changed (pairs counted once), obsolete, static and undetermined."""
        found = Counter(g.label(o) for g in self.groups for o in g.decisions if g.determined or g.decisions[o] == "keep")
        found[CHANGED] //= 2
        named = {name: found[name] for name in ("new", CHANGED, "obsolete", "static")}
        return {**named, "undetermined": len(self.undetermined)}


def difference(old: World, new: World, between: tuple[date, date] | None = None) -> Difference:
    """What changed from `old` to `new`. `between` overrules the dates of the files.

    Raises BadParameter where dates are needed and missing, or run backwards.
    """
    interval = _interval(old, new, between)
    known = old.relations | new.relations
    was, now = _grouped(old), _grouped(new)
    old_subjects, new_subjects = ({t.subject for t in world.triples} for world in (old, new))
    single = _single(was) & _single(now)
    fresh = frozenset(new_subjects - old_subjects)
    groups = []
    for subject, relation in sorted(was.keys() | now.keys()):
        before, after = was.get((subject, relation), {}), now.get((subject, relation), {})
        about = known.get(relation, Relation())
        if subject not in old_subjects:
            decisions: dict[str, Decision] = dict.fromkeys(after, "learn")
        elif subject not in new_subjects:
            decisions = dict.fromkeys(before, "unk")
        elif interval is None:
            decisions = _by_presence(before, after)
        else:
            functional = about.functional if about.functional is not None else relation in single
            decisions = decide(before, after, interval, functional=functional, dated=about.dated or relation in DEATHS, new=fresh)
        groups.append(Group(subject, relation, decisions, before, after, subject not in old_subjects))
    return Difference(tuple(groups), interval)


def decide(
    was: Mapping[str, Triple],
    now: Mapping[str, Triple],
    interval: Interval,
    *,
    functional: bool = False,
    dated: bool = False,
    new: Set[str] = frozenset(),
) -> dict[str, Decision]:
    """The decision on every object of one subject (known in both worlds) and relation, by the ordered rules.

    functional: the relation has one object at a time; dated: its object is a date that comes once; new: entities that are themselves new.
    """
    objects = list(dict.fromkeys([*was, *now]))
    if dated:
        (only, *more) = objects
        fits = not more and only not in was and interval.holds(day(only))
        return dict.fromkeys(objects, "learn" if fits else "unk")
    decisions: dict[str, Decision] = {o: _rule(o, was.get(o), now.get(o), interval, o in new) for o in objects}
    if functional and len(was) == len(now) == 1 and was.keys() != now.keys():
        ((before,), (after,)) = was, now
        triple = now[after]
        begun = interval.holds(triple.start) and (triple.end is None or triple.end > interval.new)
        if not _incoherent(triple) and (interval.holds(triple.point) or begun):
            decisions[after] = "learn"
            decisions[before] = "unk" if _incoherent(was[before]) else "forget"
    return decisions


def _incoherent(triple: Triple) -> bool:
    return triple.start is not None and triple.end is not None and triple.start > triple.end


def _rule(object_: str, was: Triple | None, now: Triple | None, time: Interval, new_entity: bool) -> Decision:
    """Rules 3 and 5 on one object. An object that is only in the old world has no qualifiers at the new date."""
    if any(triple is not None and _incoherent(triple) for triple in (was, now)):
        return "unk"
    if now is None:
        return "ignore" if was is not None and was.end is not None and was.end < time.old else "unk"
    fresh, start, end = was is None, now.start, now.end
    if fresh and time.holds(now.point):
        return "learn"
    if end is not None and end < time.old:
        return "ignore"
    if end is None and start is not None and start < time.old:
        return "keep"
    if end is None and time.holds(start):
        return "learn"
    if start is not None and start > time.new:
        return "ignore"
    if time.holds(start) and time.holds(end):
        return "ignore"
    if start is not None and start < time.old and end is not None and end > time.new:
        return "keep"
    if time.holds(end):
        return "forget"
    if end is not None and end > time.new:
        return "keep"
    return "learn" if fresh and new_entity else "unk"


def _by_presence(was: Mapping[str, Triple], now: Mapping[str, Triple]) -> dict[str, Decision]:
    """Without a single date: what is in both stays, what is in one comes or goes."""
    objects = dict.fromkeys([*was, *now])
    return {o: "keep" if o in was and o in now else "learn" if o in now else "forget" for o in objects}


# --- small parts -----------------------------------------------------------------------------------------


def _grouped(world: World) -> dict[tuple[str, str], dict[str, Triple]]:
    found: dict[tuple[str, str], dict[str, Triple]] = {}
    for triple in world.triples:
        found.setdefault((triple.subject, triple.relation), {})[triple.object] = triple
    return found


def _single(world: Mapping[tuple[str, str], Mapping[str, Triple]]) -> set[str]:
    """Relations of which no subject has two objects."""
    several = {relation for (_, relation), objects in world.items() if len(objects) > 1}
    return {relation for _, relation in world} - several


def _interval(old: World, new: World, between: tuple[date, date] | None) -> Interval | None:
    first, last = between or (old.date, new.date)
    if first is None and last is None:
        for world in (old, new):
            for triple in world.triples:
                if triple.start or triple.end or triple.point:
                    raise BadInputFile(
                        f"{world.name}, line {triple.line}: says when, but nobody says when the worlds were",
                        hint='--dates OLD..NEW, or a first line {"date": "2021-01-04"} in each file',
                        path=world.name,
                        line=triple.line,
                    )
        return None
    if first is None or last is None:
        raise BadParameter(f"{(old if first is None else new).name} has no date", hint="--dates OLD..NEW")
    if first >= last:
        raise BadParameter(f"the old world is of {first}, the new one of {last}", hint="--world OLD NEW, in this order")
    return Interval(first, last)


def parse_dates(text: str | None) -> tuple[date, date] | None:
    """`2021-01-04..2023-02-27`; None for nothing. Raises BadParameter."""
    if text is None:
        return None
    first, dots, last = text.partition("..")
    found = day(first), day(last)
    if not dots or found[0] is None or found[1] is None:
        raise BadParameter(f"--dates {text!r} is not two dates", hint="--dates 2021-01-04..2023-02-27")
    return found[0], found[1]


# --- neighbours ------------------------------------------------------------------------------------------


class Neighbours:
    """Who is asked the same and must answer as before: entities with a fact of the same relation that stays."""

    def __init__(self, changes: Difference, most: int = 10) -> None:
        self.most = most
        self.banned = {o for g in changes.determined for o in g.decisions if g.decisions[o] in ("learn", "forget")}
        self.facts: dict[str, set[tuple[str, str]]] = {}
        self.by_relation: dict[str, list[tuple[str, Triple]]] = {}
        for group in changes.groups:
            for object_ in group.was:
                self.facts.setdefault(group.subject, set()).add((group.relation, object_))
            kept = group.of("keep")
            if len(kept) == len(group.decisions) == 1:  # one right answer
                self.by_relation.setdefault(group.relation, []).append((group.subject, group.now[kept[0]]))

    def of(self, subject: str, relation: str) -> Iterator[Triple]:
        """The nearest ones: most facts in common first, then by name. Never the subject itself, never an object that changes."""
        own = self.facts.get(subject, set())
        fits = [(s, t) for s, t in self.by_relation.get(relation, ()) if s != subject and t.object not in self.banned]
        ranked = sorted(fits, key=lambda pair: (-len(own & self.facts.get(pair[0], set())), pair[0]))
        yield from (triple for _, triple in ranked[: self.most])


__all__ = [
    "CHANGED", "Decision", "Difference", "Group", "Interval", "Neighbours", "Scenario", "decide", "difference", "parse_dates",
]  # fmt: skip
