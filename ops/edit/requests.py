"""What an edit is asked to write: the facts of a file, or what changed between two worlds and an edit can do something about.

An edit can replace an answer, and give a first answer where there was none. It cannot take an answer away (that is unlearning) nor add
one beside another that stays: both are listed, and the next command for them is named.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...registry.errors import BadInputFile, BadParameter
from ...registry.ids import blob_digest
from ...registry.records import InputRecord, canonical
from ..data.facts import SLOT, Fact, FactSet, read_facts
from ..data.worlds import Relation, Triple, World, read_world
from .conflicts import within
from .world import Difference, Group, Neighbours, difference, parse_dates

if TYPE_CHECKING:
    from .edit import Edit

ROWS = 50  # of the plan's table


@dataclass(frozen=True, slots=True)
class WorldPlan:
    """What follows from two worlds: facts to write, records to unlearn, and groups that no edit can serve."""

    old: World
    new: World
    changes: Difference
    facts: tuple[Fact, ...]
    forget: tuple[dict[str, Any], ...]  # prompt, answer, and the line of the old world
    left: tuple[Group, ...]

    def details(self) -> dict[str, Any]:
        """What --dry-run shows beside the usual costs."""
        rows = [_told(g) for g in self.changes.determined]
        found: dict[str, Any] = {**self.changes.counts(), "to_write": len(self.facts), "changes": rows[:ROWS]}
        if len(rows) > ROWS:
            found["more_changes"] = len(rows) - ROWS
        if self.forget:
            found["needs_unlearning"] = list(self.forget)
        if self.left:
            found["beyond_an_edit"] = [_told(g) for g in self.left]
        return found


def requested(op: Edit) -> FactSet:
    """The facts that `op` is to write. Raises InputNotFound, BadInputFile, BadParameter."""
    given = asked(op)
    if not given.facts and op.world and not (made := world_plan(op)).facts:
        raise _unchanged(made)
    if not given.facts:
        raise BadInputFile(f"nothing in {given.name} is left to write", hint="--on-conflict new writes against what is there")
    return given


def asked(op: Edit) -> FactSet:
    """As `requested`, and none where nothing is left: what two worlds come to can be shown all the same."""
    given = _given(op)
    if unknown := set(op.skip) - {fact.id for fact in given.facts}:
        hint = "an id is the `id` of a row, else the number of its line"
        raise BadParameter(f"--skip names {min(unknown)!r}, and no fact of {given.name} has that id", hint=hint)
    given = within(given, op.on_conflict)
    return dataclasses.replace(given, facts=tuple(fact for fact in given.facts if fact.id not in op.skip))


def inputs(op: Edit, given: FactSet) -> list[InputRecord]:
    """What was read, for the record."""
    if op.facts:
        return [InputRecord("facts", given.name, given.digest, given.bytes)]
    worlds = zip(("world-old", "world-new"), map(read_world, op.world), strict=True)
    return [InputRecord(role, world.name, world.digest, world.bytes) for role, world in worlds]


def _given(op: Edit) -> FactSet:
    if op.facts:
        return read_facts(op.facts)
    made = world_plan(op)
    digest = blob_digest(canonical([made.old.digest, made.new.digest, op.dates]))
    return FactSet(made.facts, f"{made.old.name}..{made.new.name}", digest, made.old.bytes + made.new.bytes)


UNLEARN = "mlc unlearn --forget-set obsolete.jsonl (its lines: `needs_unlearning` of mlc edit --dry-run --json)"
DATED = 'a triple needs a "start", "end" or "point" between the dates of the worlds; without any date presence alone decides'


def _unchanged(made: WorldPlan) -> BadInputFile:
    """Why there is nothing to write, and what can be done about it."""
    unsure = len(made.changes.undetermined)
    why = f": of {unsure} that may have changed the files do not say when" if unsure and made.changes.interval else ""
    hint = UNLEARN if made.forget else DATED if why else "mlc edit --dry-run --world OLD NEW shows what changed"
    return BadInputFile(f"nothing changed from {made.old.name} to {made.new.name} that an edit could write{why}", hint=hint)


def world_plan(op: Edit) -> WorldPlan:
    """Classify, and choose what can be written. Raises BadInputFile with the line of a change that nobody gave a prompt for."""
    old, new = map(read_world, op.world)
    changes = difference(old, new, parse_dates(op.dates))
    known, beside = old.relations | new.relations, Neighbours(changes)
    facts, forget, left = [], [], []
    for group in changes.determined:
        if group.scenario in ("replacement", "insertion") and len(group.of("learn")) == 1:
            facts.append(_fact(group, known.get(group.relation, Relation()), beside, known, new))
        elif group.scenario == "archival":
            forget += [_record(group, group.was.get(o) or group.now[o], known, old) for o in group.of("forget")]
        else:
            left.append(group)
    return WorldPlan(old, new, changes, tuple(facts), tuple(forget), tuple(left))


def _fact(group: Group, about: Relation, beside: Neighbours, known: dict[str, Relation], world: World) -> Fact:
    (object_,) = group.of("learn")
    triple = group.now[object_]
    gone = group.of("forget")
    before = group.was.get(gone[0]) if gone else None
    paraphrases = triple.paraphrases or (before.paraphrases if before else ()) or tuple(
        p.replace(SLOT, group.subject) for p in about.paraphrases
    )  # fmt: skip
    asked = ((t, _prompt(t, None, known)) for t in beside.of(group.subject, group.relation))
    return Fact(
        id=str(triple.line),
        line=triple.line,
        subject=group.subject,
        prompt=_needed(triple, before, known, world),
        target_new=object_,
        target_true=gone[0] if gone else None,
        paraphrases=paraphrases,
        neighbourhood=tuple((p.replace(SLOT, t.subject), t.object) for t, p in asked if p),
        relation=group.relation,
    )


def _record(group: Group, triple: Triple, known: dict[str, Relation], world: World) -> dict[str, Any]:
    return {
        "prompt": _needed(triple, None, known, world).replace(SLOT, group.subject),
        "answer": triple.object,
        "line": triple.line,
    }


def _prompt(triple: Triple, other: Triple | None, known: dict[str, Relation]) -> str | None:
    return triple.prompt or (other.prompt if other else None) or known.get(triple.relation, Relation()).prompt


def _needed(triple: Triple, other: Triple | None, known: dict[str, Relation], world: World) -> str:
    found = _prompt(triple, other, known)
    if found is None:
        raise BadInputFile(
            f"{world.name}, line {triple.line}: nobody says how to ask for this relation",
            hint=f'give the triple a "prompt" with {SLOT}, or the first line {{"relations": {{NAME: {{"prompt": "{SLOT} ..."}}}}}}',
            path=world.name,
            line=triple.line,
        )
    return found


def _told(group: Group) -> dict[str, Any]:
    """One row of the table."""
    return {
        "subject": group.subject,
        "relation": group.relation,
        "scenario": group.scenario,
        "new": ", ".join(group.of("learn")),
        "obsolete": ", ".join(group.of("forget")),
        "static": ", ".join(group.of("keep")),
    }
