"""Negative flips: what the old version got right and the new one gets wrong, with the certainty the sample allows.

Pure arithmetic on counts (the catalog does the counting in SQL) or on two lists of rows; no tensor, no file.
Vocabulary and identities: "Positive-Congruent Training" (Yan et al., 2021) and MUSCLE (2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...registry.errors import BadParameter
from .exact_tests import clopper_pearson, mcnemar, mcnemar_one_sided


@dataclass(frozen=True, slots=True)
class Counts:
    """The four cells of the paired table, and how many answers changed at all."""

    both_right: int
    negative: int  # right before, wrong now
    positive: int  # wrong before, right now
    both_wrong: int
    churned: int  # the answer's text differs, right or wrong

    @property
    def n(self) -> int:
        """Examples measured on both sides."""
        return self.both_right + self.negative + self.positive + self.both_wrong


@dataclass(frozen=True, slots=True)
class FlipReport:
    """Two versions compared on one suite (or slice). Rates are shares of `n`; None when nothing was compared."""

    n: int
    acc_a: float | None
    acc_b: float | None
    negative_flips: int
    positive_flips: int
    nfr: float | None
    pfr: float | None
    nfr_upper95: float | None  # one-sided: with 95 % confidence the true rate lies below
    nfr_lower95: float | None
    mcnemar_p: float  # two-sided: did accuracy change?
    mcnemar_p_worse: float  # one-sided: is B worse?
    churn: float | None
    relative_nfr: float | None  # 1.0 is what independent errors would give
    backward_trust: float | None  # share of A's right answers that B keeps
    inconsistent: float | None  # both wrong, and differently
    backward_error: float | None = None  # share of B's wrong answers that A had wrong, too
    choice_flip: float | None = None  # MUSCLE's multiple-choice flip: wrong now and another answer than before; nfr + inconsistent
    ks: float | None = None  # of a truth suite: Kolmogorov-Smirnov distance of the two versions' truth ratios
    ks_p: float | None = None  # its p: against a version retrained without the data, TOFU's forget quality


@dataclass(frozen=True, slots=True)
class Outcome:
    """One example's result on one version. `correct` is None where right and wrong have no meaning (perplexity)."""

    example: str
    correct: bool | None
    answer: str | None = None
    slice: str | None = None


# --- comparing -------------------------------------------------------------------------------------------


def report(counts: Counts) -> FlipReport:
    """All rates, bounds and tests that follow from the counts. Raises BadParameter when the counts contradict each other."""
    changed = counts.negative + counts.positive
    churned = max(counts.churned, changed)  # a flip is a change even where the recorded texts are equal or absent
    if min(counts.both_right, counts.negative, counts.positive, counts.both_wrong) < 0 or churned > counts.n:
        raise BadParameter(f"these flip counts contradict each other: {counts}", hint="cells are >= 0 and churned is at most n")
    n, b, c = counts.n, counts.negative, counts.positive
    right_a, right_b = counts.both_right + b, counts.both_right + c
    acc_a, acc_b, nfr, pfr = _share(right_a, n), _share(right_b, n), _share(b, n), _share(c, n)
    _hold_identity(acc_a, acc_b, nfr, pfr)
    return FlipReport(
        n=n,
        acc_a=acc_a,
        acc_b=acc_b,
        negative_flips=b,
        positive_flips=c,
        nfr=nfr,
        pfr=pfr,
        nfr_upper95=clopper_pearson(b, n, 0.05, "upper") if n else None,
        nfr_lower95=clopper_pearson(b, n, 0.05, "lower") if n else None,
        mcnemar_p=mcnemar(b, c),
        mcnemar_p_worse=mcnemar_one_sided(b, c),
        churn=_share(churned, n),
        relative_nfr=_share(b * n, right_a * (n - right_b)),
        backward_trust=_share(counts.both_right, right_a),
        inconsistent=_share(churned - changed, n),
        backward_error=_share(counts.both_wrong, n - right_b),
        choice_flip=_share(b + churned - changed, n),
    )


def _hold_identity(acc_a: float | None, acc_b: float | None, nfr: float | None, pfr: float | None) -> None:
    """acc_b - acc_a = pfr - nfr, always; where it does not hold the fault is ours, never the data's."""
    if acc_a is None or acc_b is None or nfr is None or pfr is None:
        return
    if not math.isclose(acc_b - acc_a, pfr - nfr, abs_tol=1e-12):
        raise AssertionError("accuracy difference and flip rates disagree")


def compare(rows_a: Iterable[Outcome], rows_b: Iterable[Outcome]) -> FlipReport:
    """The report of two row lists, paired by example; unpaired rows and rows without right or wrong are left out."""
    return report(count(rows_a, rows_b))


def count(rows_a: Iterable[Outcome], rows_b: Iterable[Outcome]) -> Counts:
    """The paired table of two row lists. A flip counts as churn even where the answers' texts are equal or absent."""
    before = {row.example: row for row in rows_a if row.correct is not None}
    cells = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    churned = 0
    for new in rows_b:
        old = before.get(new.example)
        if old is None or new.correct is None:
            continue
        cells[bool(old.correct), bool(new.correct)] += 1
        churned += old.correct != new.correct or old.answer != new.answer
    return Counts(cells[True, True], cells[True, False], cells[False, True], cells[False, False], churned)


def compare_slices(rows_a: Sequence[Outcome], rows_b: Sequence[Outcome]) -> dict[str, FlipReport]:
    """One report per slice of B's rows, in name order. Judge many at once only after `holm`."""
    groups: dict[str, list[Outcome]] = {}
    for row in rows_b:
        if row.slice is not None:
            groups.setdefault(row.slice, []).append(row)
    return {name: compare(rows_a, groups[name]) for name in sorted(groups)}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
