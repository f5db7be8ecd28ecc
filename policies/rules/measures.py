"""From a rule and the facts to numbers: what was measured, on which suites and slices. Decides nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ...ops.evaluate.flips import FlipReport
from ..facts import Comparison, Facts, SuiteFacts
from .rule import Rule


@dataclass(frozen=True, slots=True)
class Reading:
    """The number a rule judges. `got` is None when it is not finite; ratio and drop rules keep both sides."""

    got: float | None
    before: float | None = None
    after: float | None = None
    n: int | None = None
    flips: FlipReport | None = None
    noise: float | None = None  # the floor that was taken off `got`


@dataclass(frozen=True, slots=True)
class Absent:
    """There is no such number in this commit. `quiet` when that is natural (a perplexity suite has no flips)."""

    reason: str
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """One thing that a rule judges: a suite, a slice of one, or (both None) the commit itself."""

    suite: SuiteFacts | None = None
    slice: str | None = None

    @property
    def label(self) -> str | None:
        """`blimp`, `blimp[island]`, or None."""
        if self.suite is None:
            return None
        return f"{self.suite.name}[{self.slice}]" if self.slice is not None else self.suite.name


def subjects(rule: Rule, facts: Facts) -> Iterator[Subject]:
    """What the rule is asked about, in suite order."""
    if rule.room not in ("suite", "flips"):
        yield Subject()
        return
    for suite in facts.suites:
        if not matches(rule.suites, suite.name):
            continue
        if rule.slice is None:
            yield Subject(suite)
            continue
        other = suite.against.get(rule.against)
        for name in sorted(other.slices if other else ()):
            if fnmatchcase(name, rule.slice):
                yield Subject(suite, name)


def matches(globs: tuple[str, ...], name: str) -> bool:
    """Whether a suite is meant: named by some glob (or only exclusions are given) and by no exclusion."""
    wanted = [glob for glob in globs if not glob.startswith("!")]
    return (not wanted or any(fnmatchcase(name, g) for g in wanted)) and not any(fnmatchcase(name, g[1:]) for g in globs if g[0] == "!")


def read(rule: Rule, subject: Subject, facts: Facts) -> Reading | Absent:
    """The rule's number for one subject."""
    if subject.suite is None:
        return _of_commit(rule, facts)
    other = subject.suite.against.get(rule.against)
    if rule.room == "flips":
        return _flips(rule, subject, other, facts)
    return _metric(rule, subject, other, facts)


def context(rule: Rule, subject: Subject, facts: Facts) -> dict[str, Any]:
    """What `when` may ask, for one subject."""
    op, _, method = facts.op.partition(".")
    asked: dict[str, Any] = {"op": op, "method": method, "branch": facts.branch}
    asked |= {"check": facts.check, "params": facts.params, "expects": facts.expects}
    if suite := subject.suite:
        other = suite.against.get(rule.against)
        guessed = suite.guessed(rule.against)
        asked["suite"] = {"name": suite.name, "kind": suite.kind, "n": suite.n, "chance": suite.chance, "guessed": guessed}
        asked |= {"before": other.before if other else {}, "after": suite.after}
    return asked


def _of_commit(rule: Rule, facts: Facts) -> Reading | Absent:
    table: Any = {"check": facts.check, "delta": facts.delta, "drift": facts.drift}[rule.room]
    for key in rule.metric.split(".")[1:]:
        if not isinstance(table, dict) or key not in table:
            return Absent(f"this commit has no {rule.metric}")
        table = table[key]
    if isinstance(table, str | list | dict):
        return Reading(None)  # a word is no number: the rule cannot be satisfied
    return Reading(finite(table), after=finite(table))


def _flips(rule: Rule, subject: Subject, other: Comparison | None, facts: Facts) -> Reading | Absent:
    suite = subject.suite
    assert suite is not None
    if other is None:
        return _uncompared(rule, suite, facts)
    flips = other.slices.get(subject.slice) if subject.slice is not None else other.flips
    if flips is None:
        return Absent(f"{suite.name} has no right and wrong answers", quiet=True)
    if rule.key in ("ks", "ks_p") and suite.kind != "truth":
        return Absent(f"{suite.name} has no truth ratios", quiet=True)
    if flips.n == 0:
        return Absent(f"no example of {suite.name} was measured on both versions")
    got = finite(getattr(flips, rule.key))
    if rule.floor is None or got is None:
        return Reading(got, n=flips.n, flips=flips)
    twin = suite.against.get(rule.floor)
    noise = floor(twin.flips if subject.slice is None else twin.slices.get(subject.slice), rule.key) if twin else None
    if noise is None:
        return Absent(facts.missing.get(rule.floor, f"{suite.name} was not measured on another seed of this recipe"))
    return Reading(max(0.0, got - noise), n=flips.n, flips=flips, noise=noise)


def floor(flips: FlipReport | None, key: str) -> float | None:
    """The rate at which two seeds of one recipe disagree. Neither is the older one: negative and positive flips count half each."""
    if flips is None or flips.nfr is None or flips.pfr is None:
        return None
    return flips.churn if key == "churn" else (flips.nfr + flips.pfr) / 2


def _metric(rule: Rule, subject: Subject, other: Comparison | None, facts: Facts) -> Reading | Absent:
    suite = subject.suite
    assert suite is not None
    if rule.key not in suite.after:
        return Absent(f"{suite.name} has no {rule.key}", quiet=True)
    after = finite(suite.after[rule.key])
    flips = _paired(other, subject)
    if rule.max is not None or rule.min is not None:
        return Reading(after, after=after, n=suite.n, flips=flips)
    if after is None:
        return Reading(None, n=suite.n)
    if other is None:
        return _uncompared(rule, suite, facts)
    if rule.test == "mcnemar" and flips is None:
        return Absent(f"{suite.name} has no paired answers to test")
    before = finite(other.before.get(rule.key))
    if flips is not None and rule.key == "accuracy":  # the paired examples only, so that number and test agree
        before, after = flips.acc_a, flips.acc_b
    if before is None or after is None:
        return Absent(f"{rule.key} of {suite.name} was not a finite number before")
    got = before - after if rule.drop_max is not None else ratio(after, before)
    return Reading(got, before, after, flips.n if flips else suite.n, flips)


def _paired(other: Comparison | None, subject: Subject) -> FlipReport | None:
    if other is None:
        return None
    return other.slices.get(subject.slice) if subject.slice is not None else other.flips


def _uncompared(rule: Rule, suite: SuiteFacts, facts: Facts) -> Absent:
    return Absent(facts.missing.get(rule.against, f"{suite.name} was not measured on {rule.against}"))


def ratio(after: float, before: float) -> float | None:
    """after / before, for quantities that are positive by nature; None where that means nothing."""
    if before > 0:
        return after / before
    return 1.0 if before == after == 0 else None


def finite(value: Any) -> float | None:
    """A number as float, a truth as 1 or 0, anything else (None, nan, infinity) as None."""
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None
