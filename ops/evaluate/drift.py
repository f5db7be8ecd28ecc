"""How a model's answers moved where accuracy may not have: mismatch, length, form, silence, variety; each with its certainty.

After "How is ChatGPT's behavior changing over time?" (arXiv 2307.09009): a version can keep its score and still answer otherwise, longer,
or in another form. Pure arithmetic on two lists of stored rows, paired by example.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .exact_tests import clopper_pearson, holm, mcnemar, student_two_sided
from .predictions import Prediction

LETTERS = 0.5  # of an answer's characters, from which it is prose


@dataclass(frozen=True, slots=True)
class FormShift:
    """One form of answers: the share of answers that have it on either side, and McNemar's p over the forms of the suite (Holm)."""

    form: str
    share_a: float
    share_b: float
    p: float


@dataclass(frozen=True, slots=True)
class Drift:
    """Two versions' answers to one suite. Shares are of the `n` examples answered by both; None where nothing can be said.

    mismatch: share of answers that differ. mismatch_lower95: with 95 % confidence it is at least this. length_ratio: geometric mean of
    the answers' lengths in characters, B over A, where both said something; length_p: paired t on the log lengths. answered: share
    that is not empty. variety: distinct answers per answer. forms: those whose share moved at all, the surest first.
    veiled: a private suite, whose stored answers are keyed digests: only mismatch and accuracy mean something.
    """

    n: int
    only_a: int
    only_b: int
    accuracy_a: float | None
    accuracy_b: float | None
    mcnemar_p: float | None
    mismatch: float | None
    mismatch_lower95: float | None
    length_ratio: float | None
    length_p: float | None
    answered_a: float | None
    answered_b: float | None
    variety_a: float | None
    variety_b: float | None
    forms: tuple[FormShift, ...]
    veiled: bool = False

    @property
    def p(self) -> float:
        """The least p of this suite's own tests, adjusted for how many there are (Bonferroni): whether anything moved."""
        tests = [t for t in (self.mcnemar_p, self.length_p, *(form.p for form in self.forms[:1])) if t is not None]
        return min(1.0, min(tests) * len(tests)) if tests else 1.0


def drift(before: Iterable[Prediction], after: Iterable[Prediction]) -> Drift:
    """The comparison of two row lists, paired by example."""
    old = {row.example: row for row in before}
    new = {row.example: row for row in after}
    pairs = [(old[name], new[name]) for name in sorted(old.keys() & new.keys())]
    n, apart = len(pairs), sum(a.answer != b.answer for a, b in pairs)
    judged = [(a.correct, b.correct) for a, b in pairs if a.correct is not None and b.correct is not None]
    veiled = any(a.answer.startswith("hmac:") for a, _ in pairs)
    texts = [] if veiled else [(a.answer, b.answer) for a, b in pairs]
    ratio, p = _lengths(texts)
    return Drift(
        n=n,
        only_a=len(old) - n,
        only_b=len(new) - n,
        accuracy_a=_share(sum(a for a, _ in judged), len(judged)),
        accuracy_b=_share(sum(b for _, b in judged), len(judged)),
        mcnemar_p=mcnemar(sum(a and not b for a, b in judged), sum(b and not a for a, b in judged)) if judged else None,
        mismatch=_share(apart, n),
        mismatch_lower95=clopper_pearson(apart, n, 0.05, "lower") if n else None,
        length_ratio=ratio,
        length_p=p,
        answered_a=_share(sum(bool(a.strip()) for a, _ in texts), len(texts)),
        answered_b=_share(sum(bool(b.strip()) for _, b in texts), len(texts)),
        variety_a=_share(len({a for a, _ in texts}), len(texts)),
        variety_b=_share(len({b for _, b in texts}), len(texts)),
        forms=_forms(texts),
        veiled=veiled,
    )


# --- length ----------------------------------------------------------------------------------------------


def _lengths(texts: Sequence[tuple[str, str]]) -> tuple[float | None, float | None]:
    """(geometric mean ratio, p of the paired t test on log lengths). The p is None for fewer than two pairs; 1 when no length moved."""
    logs = [math.log(len(b.strip()) / len(a.strip())) for a, b in texts if a.strip() and b.strip()]
    if not logs:
        return None, None
    mean = math.fsum(logs) / len(logs)
    if len(logs) < 2:
        return math.exp(mean), None
    variance = math.fsum((x - mean) ** 2 for x in logs) / (len(logs) - 1)
    if variance <= 1e-24:
        return math.exp(mean), 1.0 if abs(mean) <= 1e-12 else 0.0
    return math.exp(mean), student_two_sided(mean / math.sqrt(variance / len(logs)), len(logs) - 1)


# --- form ------------------------------------------------------------------------------------------------


def _is_json(text: str) -> bool:
    if not text.startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text.replace(",", "")))
    except ValueError:
        return False


FORMS: dict[str, Callable[[str], bool]] = {
    "code fence": lambda text: "```" in text,
    "JSON": _is_json,
    "number": _is_number,
    "list": lambda text: any(line.lstrip().startswith(("- ", "* ", "1. ", "1) ")) for line in text.splitlines()),
    "several lines": lambda text: "\n" in text,
    "whole sentence": lambda text: text.endswith((".", "!", "?")),
    "capital first": lambda text: text[:1].isupper(),
    "prose": lambda text: sum(c.isalpha() for c in text) >= LETTERS * len(text) > 0,
}


def _forms(texts: Sequence[tuple[str, str]]) -> tuple[FormShift, ...]:
    """The forms whose share differs, the surest first."""
    found: dict[str, tuple[float, float]] = {}
    tests: dict[str, float] = {}
    for form, has in FORMS.items():
        flags = [(has(a.strip()), has(b.strip())) for a, b in texts]
        lost, won = sum(a and not b for a, b in flags), sum(b and not a for a, b in flags)
        if lost or won:
            found[form] = (sum(a for a, _ in flags) / len(flags), sum(b for _, b in flags) / len(flags))
            tests[form] = mcnemar(lost, won)
    adjusted = holm(tests)
    moved = (FormShift(form, *shares, adjusted[form]) for form, shares in found.items())
    return tuple(sorted(moved, key=lambda shift: (shift.p, -abs(shift.share_b - shift.share_a), shift.form)))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
