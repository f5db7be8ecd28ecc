"""Facts that contradict each other: twice in one file, against an earlier edit, or against a request to forget.

Two facts contradict each other when they ask the same of the same subject and want different answers. Names are compared with white space
collapsed and case folded. A request to forget is known by keyed digests only, so it is found where prompt and answer are those of a fact,
and named by its commit, never by its text. Subjects that the model itself confuses are found by their keys (`alike`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...registry.errors import BadInputFile, BadParameter
from ...registry.ids import short
from ..data.corpus import join
from ..data.facts import SLOT, Fact, FactSet
from ..data.identity import normal_form

if TYPE_CHECKING:
    from torch import Tensor

    from ..base import History, Run

# Cosine of two subjects' keys, as ordinary text weighs directions, above which they are one to the model: at a write fraction of 0.95 a
# third of what is written at one is then written at the other, even where that one is spared. Measured at the blocks that keep the facts
# (tests/benchmarks/alike.py: 200, 100 and 60 subjects of a small, a deep and a stories model): nine of ten subjects are above 0.987, 0.987
# and 0.999 with themselves in other contexts; the nearest other subject is at most at 0.963 and 0.855 in the last two. The small one has
# surnames in common that it hardly tells apart: half of its subjects have a neighbour above 0.95, one in ten has one above 0.989.
ALIKE = 0.98
NAMED = 3  # conflicts named in a refusal
KEYS = "edit-keys"  # the artifact that holds an edit's facts


@dataclass(frozen=True, slots=True)
class Conflict:
    """`fact` contradicts something: `where` is a line of the same file or a commit, `what` says which kind in a few words."""

    fact: Fact
    what: str
    where: str

    def __str__(self) -> str:
        return f"line {self.fact.line} (fact {self.fact.id}) {self.what} {self.where}"


@dataclass(frozen=True, slots=True)
class Earlier:
    """A fact that an earlier edit wrote and that still stands."""

    commit: str
    fact: Fact


# --- in one file -----------------------------------------------------------------------------------------


def within(given: FactSet, on_conflict: str) -> FactSet:
    """`given` without contradictions and without repetitions: `new` keeps the later line, `old` the earlier one.

    Raises BadInputFile naming both lines for `refuse`. The same fact said twice is kept once.
    """
    kept: dict[tuple[str, str], Fact] = {}
    for fact in given.facts:
        for key in _asked(fact):
            other = kept.get(key)
            if other is None or other is fact:
                continue
            if same_answer(other, fact):
                break
            if on_conflict == "refuse":
                raise BadInputFile(
                    f"{given.name}, line {fact.line}: asks the same of the same subject as line {other.line}, with another answer",
                    hint="remove one of them, or say which holds: --on-conflict new (the later line) or old",
                    path=given.name,
                    line=fact.line,
                    other=other.line,
                )
            if on_conflict == "new":
                kept = {k: f for k, f in kept.items() if f is not other}
                continue
            break
        else:
            kept |= dict.fromkeys(_asked(fact), fact)
    lines = {fact.line for fact in kept.values()}
    return dataclasses.replace(given, facts=tuple(f for f in given.facts if f.line in lines))


def same_answer(a: Fact, b: Fact) -> bool:
    """Whether both want the same."""
    return normal_form(a.target_new) == normal_form(b.target_new)


def _asked(fact: Fact) -> tuple[tuple[str, str], ...]:
    """What is asked of whom: by relation where there is one, and by prompt."""
    subject = " ".join(fact.subject.split()).casefold()
    prompt = " ".join(fact.prompt.split()).casefold()
    return tuple(dict.fromkeys([(subject, f"prompt {prompt}"), *([(subject, f"relation {fact.relation}")] if fact.relation else ())]))


# --- with what is behind ---------------------------------------------------------------------------------


def settled(given: FactSet, past: History, on_conflict: str) -> tuple[str, ...]:
    """Ids of the facts to leave out, by `on_conflict`: none when `new` wins, those in conflict when `old` does.

    Raises BadParameter that names commits and lines when there is a conflict and none was told to win.
    """
    found = [*with_edits(given.facts, earlier_facts(past)), *with_requests(given, past)]
    if not found or on_conflict == "new":
        return ()
    if on_conflict == "old":
        return tuple(dict.fromkeys(conflict.fact.id for conflict in found))
    told = "; ".join(str(c) for c in found[:NAMED]) + (f"; and {len(found) - NAMED} more" if len(found) > NAMED else "")
    raise BadParameter(
        f"{given.name}: {told}",
        hint="say which holds: --on-conflict new (this file) or old (what is there)",
        conflicts=[{"fact": c.fact.id, "line": c.fact.line, "what": c.what, "where": c.where} for c in found],
    )


def earlier_facts(past: History) -> Iterator[Earlier]:
    """Every fact that an edit behind wrote and nobody took back; of one asked twice the latest only."""
    seen: set[tuple[str, str]] = set()
    for commit, data in past.kept(KEYS):
        lost = past.lost(commit)
        for row in about(data).get("facts", ()):
            fact = fact_of(row)
            if fact.id in lost or any(key in seen for key in _asked(fact)):
                continue
            seen.update(_asked(fact))
            yield Earlier(commit, fact)


def with_edits(facts: Sequence[Fact], earlier: Iterator[Earlier] | Sequence[Earlier]) -> list[Conflict]:
    """Facts that an earlier edit answered otherwise."""
    before = {key: old for old in earlier for key in _asked(old.fact)}
    found = []
    for fact in facts:
        old = next((before[key] for key in _asked(fact) if key in before), None)
        if old is not None and not same_answer(fact, old.fact):
            found.append(Conflict(fact, f"contradicts fact {old.fact.id} of the edit", short(old.commit)))  # type: ignore[arg-type]
    return found


def with_requests(given: FactSet, past: History) -> list[Conflict]:
    """Facts whose question with the new or the present answer was to be forgotten."""
    found = past.forgotten(given.name, [forms(fact) for fact in given.facts])
    what = "brings back what was to be forgotten by"
    return [Conflict(given.facts[place], what, short(commit)) for place, commit in sorted(found.items())]  # type: ignore[arg-type]


def forms(fact: Fact) -> tuple[bytes, ...]:
    """How a forget set may have named this fact: every wording with every answer, also as a sentence."""
    prompts = [fact.question, *(w.replace(SLOT, fact.subject) for w in fact.wordings), *fact.paraphrases]
    answers = [a for a in (fact.target_new, fact.target_true) if a]
    texts = [join(p, a) + end for p in prompts for a in answers for end in ("", ".", " .")]
    return tuple(dict.fromkeys(map(normal_form, texts)))


# --- what an edit keeps ----------------------------------------------------------------------------------


def about(data: bytes) -> dict[str, Any]:
    """What the header of an edit's artifact says; no tensor is read."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["about"])


def fact_of(row: dict[str, Any]) -> Fact:
    """A fact as an artifact holds it."""
    return Fact(**{key: _tuples(value) for key, value in row.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# --- by key ----------------------------------------------------------------------------------------------


def alike(keys: Tensor, earlier: Tensor, spread: Any, limit: float = ALIKE) -> list[tuple[int, int, float]]:
    """(column of `keys`, column of `earlier`, cosine) of keys [d0, u] and [d0, e] that the closed form cannot hold apart, float64.

    The cosine is k^T M e / (|k| |e|) with lengths by M as well, M = C^-1 as `spread` applies it: what a write at one does at the other.
    """
    if not keys.shape[1] or not earlier.shape[1]:
        return []
    ours, theirs = spread(keys), spread(earlier)
    lengths = (keys * ours).sum(0).clamp_min(1e-300).sqrt()[:, None] * (earlier * theirs).sum(0).clamp_min(1e-300).sqrt()[None]
    cosine = (keys.T @ theirs) / lengths
    nearest, which = cosine.max(1)
    return [(i, int(which[i]), float(nearest[i])) for i in (nearest > limit).nonzero().flatten().tolist()]


def spared(
    facts: Sequence[Sequence[Fact]], keys: Tensor, earlier: Tensor, names: Sequence[str], spread: Any, on_conflict: str, run: Run
) -> Tensor:
    """The earlier keys [d0, e'] that an edit at `keys` [d0, u] spares: all, or with `new` those that are not in its way.

    facts: those of each column of `keys`. Raises BadParameter for `refuse`; with `old` the new facts are tried all the same, and noted.
    """
    found = alike(keys, earlier, spread)
    if not found:
        return earlier
    lines = sorted(fact.line for i, _, _ in found for fact in facts[i])
    i, j, cosine = max(found, key=lambda pair: pair[2])
    told = f"the model hardly tells its subject from {names[j]!r}, which was edited before (keys alike by {cosine:.2f})"
    what = f"line {facts[i][0].line}: {told}"
    if on_conflict == "refuse":
        raise BadParameter(what, hint="say which holds: --on-conflict new (this file) or old (what is there)", lines=lines)
    run.note(what)
    if on_conflict == "old":
        return earlier
    out = {j for _, j, _ in found}
    return earlier[:, [j for j in range(earlier.shape[1]) if j not in out]]
