"""The gate: rules and facts in, a verdict out. Pure; the same facts give the same verdict anywhere.

A number that is not finite fails its rule. A rule that has no data in this commit is `skipped` and says why. A rule
with a significance test may refuse by chance at most as often as its alpha, over all suites and slices that it judges
together (Holm's adjustment).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal

from ..ops.evaluate.exact_tests import holm
from ..ops.evaluate.power import bound_needed, examples_needed, mcnemar_power
from ..registry.ids import CommitId
from ..registry.records import RuleOutcome, Verdict, Waiver
from .facts import Facts
from .rules import words
from .rules.measures import Absent, Reading, Subject, context, matches, read, subjects
from .rules.rule import Rule
from .rules.when import holds, uses

Result = Literal["pass", "fail", "warn", "waived", "skipped"]


def judge(rules: Sequence[Rule], facts: Facts, *, against: CommitId | None = None) -> Verdict:
    """Every rule's outcome, and `refused` when one with action `block` failed."""
    outcomes = tuple(outcome for rule in rules for outcome in _outcomes(rule, facts))
    return Verdict(_decision(outcomes), outcomes, against)


def waive(verdict: Verdict, waivers: Iterable[Waiver]) -> Verdict:
    """The verdict with the failures of the named rules waived; refused still while others stand."""
    given = tuple(waivers)
    names = {waiver.rule for waiver in given}
    outcomes = tuple(dataclasses.replace(o, outcome="waived") if o.outcome == "fail" and o.rule in names else o for o in verdict.rules)
    return Verdict(_decision(outcomes), outcomes, verdict.against, (*verdict.waivers, *given))


def failures(verdict: Verdict) -> tuple[RuleOutcome, ...]:
    """The outcomes that refuse."""
    return tuple(outcome for outcome in verdict.rules if outcome.outcome == "fail")


def summary(verdict: Verdict) -> str:
    """Why a verdict refuses, in one sentence: the first failed rule, and how many more."""
    first, *rest = failures(verdict) or (None,)
    if first is None:
        return "no rule was broken"
    return f"rule {first.rule}: {first.sentence}" + (f" (and {len(rest)} more)" if rest else "")


# --- one rule --------------------------------------------------------------------------------------------


def _decision(outcomes: Iterable[RuleOutcome]) -> Literal["accepted", "refused"]:
    return "refused" if any(outcome.outcome == "fail" for outcome in outcomes) else "accepted"


def _outcomes(rule: Rule, facts: Facts) -> list[RuleOutcome]:
    if rule.condition is not None and not _per_suite(rule) and not holds(rule.condition, context(rule, Subject(), facts)):
        return [_skipped(rule, None, f"applies only when {rule.when}")]
    if rule.room == "sql":
        return [_query(rule, facts)]
    found: list[RuleOutcome] = []
    readings: list[tuple[Subject, Reading]] = []
    natural: list[str] = []
    for subject in subjects(rule, facts):
        reading = read(rule, subject, facts)
        if isinstance(reading, Absent) and reading.quiet:
            natural.append(reading.reason)
        elif rule.condition is not None and not holds(rule.condition, context(rule, subject, facts)):
            found.append(_skipped(rule, subject.label, _unmet(rule, subject)))
        elif isinstance(reading, Absent):
            found.append(_skipped(rule, subject.label, reading.reason))
        else:
            readings.append((subject, reading))
    p_values = _p_values(rule, readings)
    found += [_judged(rule, subject, reading, p_values.get(str(i))) for i, (subject, reading) in enumerate(readings)]
    return found or [_skipped(rule, None, _nothing(rule, facts, natural))]


def _per_suite(rule: Rule) -> bool:
    condition = rule.condition
    return condition is not None and rule.room in ("suite", "flips") and any(uses(condition, n) for n in ("suite", "before", "after"))


def _unmet(rule: Rule, subject: Subject) -> str:
    suite = subject.suite
    assert suite is not None
    guessed, other = suite.guessed(rule.against), suite.against.get(rule.against)
    if rule.when and "suite.guessed" in rule.when and guessed is not None and guessed > 0 and other:
        accuracy = words.percent(other.before.get("accuracy") or 0.0)
        return (
            f"the other version's accuracy of {accuracy} is near the {words.percent(suite.chance)} of guessing: "
            f"luck explains {words.percent(guessed)} of its right answers (the rule applies when {rule.when})"
        )
    return f"applies only when {rule.when}"


def _nothing(rule: Rule, facts: Facts, natural: list[str]) -> str:
    if natural:
        return natural[0] if len(natural) == 1 else f"no suite measured here has {rule.key}"
    if not facts.suites:
        return "no suite was measured"
    named = any(matches(rule.suites, suite.name) for suite in facts.suites)
    return f"no slice fits {rule.slice}" if named and rule.slice else f"no suite measured here fits {', '.join(rule.suites)}"


def _query(rule: Rule, facts: Facts) -> RuleOutcome:
    result = facts.queries.get(rule.id)
    if result is None:
        return _skipped(rule, None, "the query was not run")
    found = f"{result.rows:,} row{'s' if result.rows != 1 else ''}, the first {result.first}" if result.rows else "no row"
    text = f"the query returned {found}"
    return _outcome(rule, None, _failed(rule) if result.rows else "pass", float(result.rows), None, None, text)


def _p_values(rule: Rule, readings: list[tuple[Subject, Reading]]) -> dict[str, float]:
    """Per reading (by position), the adjusted p that it got worse; empty for rules without a test."""
    found: dict[str, float] = {}
    for index, (_, reading) in enumerate(readings):
        if rule.test == "mcnemar" and reading.flips is not None:
            found[str(index)] = reading.flips.mcnemar_p_worse
        elif rule.test == "binomial" and reading.before is not None and reading.after is not None and reading.n:
            found[str(index)] = binomial_worse(round(reading.after * reading.n), reading.n, reading.before)
    return holm(found)


def _judged(rule: Rule, subject: Subject, reading: Reading, p: float | None) -> RuleOutcome:
    if reading.n is not None and reading.n < rule.min_examples and reading.got is not None and not _convicted(rule, reading):
        sentence = words.few_sentence(rule, subject.label, reading.n, _would_clear(rule, reading))
        return _outcome(rule, subject.label, _few(rule), reading.got, p, reading.n, sentence)
    ok = _within(rule, reading.got, p)
    sentence = words.outcome_sentence(rule, subject.label, reading, ok, p)
    if ok and rule.detect is not None and (blind := _blind(rule, reading)) is not None:
        return _outcome(
            rule, subject.label, _few(rule), reading.got, p, reading.n, words.blind_sentence(rule, sentence, reading.n or 0, blind or None)
        )
    return _outcome(rule, subject.label, "pass" if ok else _failed(rule), reading.got, p, reading.n, sentence)


def _few(rule: Rule) -> Result:
    table: dict[str, Result] = {"block": _failed(rule), "warn": "warn", "pass": "pass"}
    return table[rule.on_few]


def _would_clear(rule: Rule, reading: Reading) -> int | None:
    """How many examples would bring the upper bound under the limit if the rate stayed as it is seen."""
    if rule.key != "nfr_upper95" or rule.max is None or reading.flips is None or reading.flips.nfr is None:
        return None
    return bound_needed(reading.flips.nfr, rule.max - (reading.noise or 0.0))


def _blind(rule: Rule, reading: Reading) -> int | None:
    """None when the test would have found a fall of `detect`; else how many examples it takes, 0 when no suite is large enough.

    The background is what was seen: flips either way at their mean rate, half a flip at least; the planted fall comes on top.
    """
    flips = reading.flips
    if flips is None or flips.n == 0 or rule.detect is None:
        return None
    background = max(flips.negative_flips + flips.positive_flips, 1) / (2 * flips.n)
    negative = min(background + rule.detect, 1.0 - background)
    if mcnemar_power(flips.n, negative, background, rule.alpha) >= rule.power:
        return None
    return examples_needed(negative, background, rule.alpha, rule.power) or 0


def _convicted(rule: Rule, reading: Reading) -> bool:
    """Few examples cannot clear a version, but they can be enough to show that it is over the limit."""
    if rule.room != "flips" or rule.key not in ("nfr", "nfr_upper95") or rule.max is None or reading.flips is None:
        return False
    return (reading.flips.nfr_lower95 or 0.0) > rule.max


def _within(rule: Rule, got: float | None, p: float | None) -> bool:
    if got is None:
        return False
    if rule.min is not None:
        return got >= rule.min
    if rule.drop_max is not None:
        return got <= rule.drop_max or (rule.test is not None and p is not None and p > rule.alpha)
    limit = rule.max if rule.max is not None else rule.ratio_max
    assert limit is not None
    return got <= limit


def _failed(rule: Rule) -> Result:
    return "fail" if rule.action == "block" else "warn"


def _skipped(rule: Rule, suite: str | None, reason: str) -> RuleOutcome:
    return _outcome(rule, suite, "skipped", None, None, None, f"not judged{f' on {suite}' if suite else ''}: {reason}")


def _outcome(rule: Rule, suite: str | None, result: Result, got: float | None, p: float | None, n: int | None, text: str) -> RuleOutcome:
    return RuleOutcome(rule.id, rule.metric, suite, result, rule.action, rule.limit, got, p, n, text)


def binomial_worse(right: int, n: int, before: float) -> float:
    """P(X <= right), X ~ Bin(n, before): how often a version no worse than `before` scores this low. Exact sum."""
    if before <= 0.0 or right >= n:
        return 1.0
    if before >= 1.0:
        return 0.0
    log_p, log_q, whole = math.log(before), math.log1p(-before), math.lgamma(n + 1)
    terms = (whole - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_p + (n - k) * log_q for k in range(right + 1))
    return min(1.0, math.fsum(math.exp(term) for term in terms))
