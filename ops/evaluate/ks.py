"""The two-sample Kolmogorov-Smirnov test, exact: do two versions' truth ratios come from one distribution?

No tensor, no file. Forget quality (TOFU, Maini et al., 2024, arXiv 2401.06121) is the p-value between an unlearned model and one
retrained without the data. It depends on the number of rows: never compare it across suites. Complete separation gives the least
p there is for that number (1.86e-23 for 40 rows each), which means "completely different" and no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ...registry.errors import BadParameter

EXACT_CELLS = 1_000_000  # n * m up to which lattice paths are counted (a second at the most)


@dataclass(frozen=True, slots=True)
class KolmogorovSmirnov:
    """`statistic`: the largest distance of the two empirical distribution functions. `exact`: p was counted, not approximated."""

    statistic: float
    p: float
    exact: bool


def forget_quality(ratios_a: Sequence[float], ratios_b: Sequence[float]) -> KolmogorovSmirnov:
    """The test on two lists of truth ratios, n and m of them. Inverting every ratio changes nothing. Raises BadParameter."""
    return ks_test(ratios_a, ratios_b)


def ks_test(a: Sequence[float], b: Sequence[float]) -> KolmogorovSmirnov:
    """Two-sided test of n and m finite numbers; conservative where values are tied across the samples.

    Exact by counting lattice paths while n * m is at most EXACT_CELLS, by Kolmogorov's limit beyond (its relative error is of the
    order of 1/sqrt(n), and large in far tails). Raises BadParameter for an empty sample or a number that is not finite.
    """
    n, m = len(a), len(b)
    if not n or not m or not all(map(math.isfinite, (*a, *b))):
        raise BadParameter(f"no Kolmogorov-Smirnov test on {n} and {m} numbers", hint="both samples need finite numbers, at least one")
    gap = widest_gap(a, b)
    if n * m <= EXACT_CELLS:
        return KolmogorovSmirnov(gap / (n * m), float(tail(n, m, gap)), exact=True)
    return KolmogorovSmirnov(gap / (n * m), limit_tail(gap / (n * m) * math.sqrt(n * m / (n + m))), exact=False)


def widest_gap(a: Sequence[float], b: Sequence[float]) -> int:
    """n * m times the statistic, a whole number: max |m * #(a <= x) - n * #(b <= x)| over all x."""
    n, m = len(a), len(b)
    steps: dict[float, int] = {}
    for value in a:
        steps[value] = steps.get(value, 0) + m
    for value in b:
        steps[value] = steps.get(value, 0) - n
    height = widest = 0
    for value in sorted(steps):  # equal values move together: a tie is no distance
        height += steps[value]
        widest = max(widest, abs(height))
    return widest


def tail(n: int, m: int, gap: int) -> Fraction:
    """P(n * m * D >= gap) when all orders of n + m different values are equally likely; a fraction without rounding.

    A path from (0, 0) to (n, m) is an order. Counted are those that touch |i * m - j * n| >= gap (Hodges, 1958): the tail itself
    is summed, not its complement, so that even 1e-300 keeps all its digits.
    """
    if gap <= 0:
        return Fraction(1)
    above: list[int] = []  # touching paths to the cells inside of row i - 1
    start = 0  # the column that the first of them stands in
    for i in range(n + 1):
        first = max(0, (i * m - gap) // n + 1)
        last = min(m, (i * m + gap - 1) // n)
        left = math.comb(i + first - 1, i) if first else 0  # beside the first cell inside stands one outside: every path touches
        row = []
        for j in range(first, last + 1):
            if i and j - start < len(above):
                left += above[j - start]
            elif i:
                left += math.comb(i - 1 + j, j)
            row.append(left)
        above, start = row, first
    return Fraction(above[-1], math.comb(n + m, n))


def limit_tail(scaled: float) -> float:
    """Kolmogorov's limit: P(sqrt(n m / (n + m)) D >= x) -> 2 sum (-1)^(k - 1) exp(-2 k^2 x^2)."""
    if scaled < 0.2:  # 1 - p is below 1e-12 there, and the series converges slowly
        return 1.0
    terms = [(-1.0) ** (k - 1) * math.exp(-2.0 * k * k * scaled * scaled) for k in range(1, 101)]
    return min(1.0, max(0.0, 2.0 * math.fsum(terms)))
