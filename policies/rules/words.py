"""How rules and their outcomes read. Numbers become words here and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .measures import Reading
    from .rule import Rule

NOUNS = {
    "flips.nfr": "negative flips",
    "flips.nfr_upper95": "negative flips",
    "flips.nfr_lower95": "negative flips (lower bound)",
    "flips.negative_flips": "negative flips",
    "flips.pfr": "positive flips",
    "flips.churn": "changed answers",
    "delta.rel_l2": "the relative weight change",
    "delta.max_rel_l2": "the largest relative change of a tensor",
    "delta.max_abs": "the largest change of a weight",
    "delta.changed_share": "the share of weights changed",
    "delta.tensors_changed": "the number of tensors changed",
}
SHARES = {"accuracy", "accuracy_norm", "acc_a", "acc_b", "nfr", "pfr", "nfr_upper95", "nfr_lower95"}
SHARES |= {"churn", "changed_share", "backward_trust", "inconsistent"}


def percent(value: float) -> str:
    """0.155 -> `15.5 %`; 0.02 -> `2 %`."""
    return f"{100 * value:.3g} %" if abs(value) < 0.9995 else f"{100 * value:.4g} %"


def number(value: float) -> str:
    """Three digits and a thousands separator for counts."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def value_of(rule: Rule, value: float | None) -> str:
    """A metric's value as people write it: shares in percent, yes and no for truths."""
    if value is None:
        return "not a finite number"
    return percent(value) if rule.key in SHARES else number(value)


def subject(rule: Rule, suite: str | None = None) -> str:
    """What the rule looks at: `negative flips on blimp`, `perplexity of tinystories`."""
    if rule.room == "sql":
        return "the query"
    if rule.room == "suite":
        return f"{rule.key.replace('_', ' ')} of {suite or ' and '.join(rule.suites)}"
    noun = NOUNS.get(rule.metric, rule.metric)
    return f"{noun} on {suite}" if suite else noun


# --- the rule itself -------------------------------------------------------------------------------------


def rule_sentence(rule: Rule) -> str:
    """What the rule demands, as one sentence."""
    body = "its query must return no row" if rule.sql else f"{subject(rule, _whose(rule))} {_demand(rule)}"
    parts = [body]
    if rule.when:
        parts.append(f"when {rule.when}")
    if rule.detect is not None:
        parts.append(f"it says how many examples would find a fall of {percent(rule.detect)} with chance {rule.power:g}")
    if rule.min_examples:
        few = {"block": "refuses", "warn": "warns", "pass": "lets pass"}[rule.on_few]
        parts.append(f"with fewer than {rule.min_examples:,} examples it {few}")
    parts.append("otherwise the commit is refused" if rule.action == "block" else "otherwise there is a warning")
    return "; ".join(parts) + "."


def _whose(rule: Rule) -> str | None:
    if rule.room not in ("suite", "flips"):
        return None
    where = "each slice of " if rule.slice else ""
    taken = [g for g in rule.suites if not g.startswith("!")]
    left = [g[1:] for g in rule.suites if g.startswith("!")]
    text = "every suite" if taken in ([], ["*"]) else " and ".join(taken)
    return where + text + (f" but {' and '.join(left)}" if left else "")


def _demand(rule: Rule) -> str:
    other = "the parent" if rule.against == "parent" else rule.against
    compared = f", against {other}" if rule.room == "flips" else ""
    if rule.max is not None:
        bound = " (upper 95 % bound)" if rule.key == "nfr_upper95" else ""
        above = " above what two seeds of the recipe differ by" if rule.floor else ""
        return f"must be at most {value_of(rule, rule.max)}{bound}{above}{compared}"
    if rule.min is not None:
        return f"must be at least {value_of(rule, rule.min)}{compared}"
    if rule.ratio_max is not None:
        return f"must be at most {number(rule.ratio_max)} times that of {other}"
    allowed = f" more than {value_of(rule, rule.drop_max)}" if rule.drop_max else ""
    tested = f" by more than chance explains ({rule.test} test, alpha {rule.alpha:g})" if rule.test else ""
    return f"must not fall{allowed} below that of {other}{tested}"


# --- its outcome -----------------------------------------------------------------------------------------


def outcome_sentence(rule: Rule, suite: str | None, reading: Reading, ok: bool, p: float | None) -> str:
    """What was found, beside what was allowed."""
    what = subject(rule, suite)
    if reading.got is None and reading.before is not None and reading.after is not None:
        return f"{what} has no ratio: it was {value_of(rule, reading.before)} before"
    if reading.got is None:
        return f"{what} is not a finite number"
    if rule.drop_max is not None:
        return _fall(rule, what, reading, ok, p)
    limit = rule.limit
    assert limit is not None
    high, low = ("not under", "under") if rule.min is not None else ("within", "over")
    over = high if ok else low
    if rule.ratio_max is not None:
        before, after = value_of(rule, reading.before), value_of(rule, reading.after)
        return f"{what} went from {before} to {after} ({number(reading.got)} times), {over} {number(limit)} times"
    flips = reading.flips
    if reading.noise is not None:
        whole, left = value_of(rule, reading.got + reading.noise), value_of(rule, reading.got)
        return f"{what}: {whole} less the {value_of(rule, reading.noise)} between two seeds is {left}, {over} {value_of(rule, limit)}"
    if flips is not None and rule.key in ("nfr", "nfr_upper95") and flips.nfr is not None:
        bound = f", upper bound {value_of(rule, flips.nfr_upper95)}" if rule.key == "nfr_upper95" else ""
        return f"{what}: {flips.negative_flips:,} of {flips.n:,} ({percent(flips.nfr)}{bound}) is {over} {value_of(rule, limit)}"
    return f"{what} is {value_of(rule, reading.got)}, {over} {value_of(rule, limit)}"


def _fall(rule: Rule, what: str, reading: Reading, ok: bool, p: float | None) -> str:
    moved = f"{what} went from {value_of(rule, reading.before)} to {value_of(rule, reading.after)}"
    tested = f" (p {p:.2g})" if p is not None else ""
    allowed = f" more than {value_of(rule, rule.drop_max)}" if rule.drop_max else ""
    if ok:
        return f"{moved}{tested}: no {'significant ' if rule.test else ''}fall{allowed}"
    return f"{moved}{tested}: a fall{allowed}" + (f" that chance does not explain at {rule.alpha:g}" if rule.test else "")


def few_sentence(rule: Rule, suite: str | None, n: int, needed: int | None = None) -> str:
    """Why the rule did not decide: too few examples, what follows, and with `needed` how many would clear what was seen."""
    wanted = f", the rule wants {rule.min_examples:,}" if n < rule.min_examples else ""
    enough = f"; at this rate {needed:,} would be enough" if needed is not None else ""
    return f"{subject(rule, suite)}: {n:,} example{'s' if n != 1 else ''}{wanted}: {_follows(rule)}{enough}"


def blind_sentence(rule: Rule, found: str, n: int, needed: int | None) -> str:
    """What the test cannot see at this size: a fall of `detect`, given the flips that were found either way."""
    assert rule.detect is not None
    size = f"{needed:,} examples are needed" if needed is not None else "no suite is large enough"
    return f"{found}; to find a fall of {percent(rule.detect)} with chance {rule.power:g}, {size}, not {n:,}: {_follows(rule)}"


def _follows(rule: Rule) -> str:
    return {"block": "too few to accept", "warn": "too few to decide", "pass": "too few to decide, let pass"}[rule.on_few]
