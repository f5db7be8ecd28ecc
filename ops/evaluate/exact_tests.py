"""Exact tests and bounds for counts: McNemar, Clopper-Pearson, Holm, and the incomplete beta function behind them.

Pure arithmetic, written out so that a verdict needs no SciPy; tests compare every function with SciPy within 1e-9.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from ...registry.errors import BadParameter

Side = Literal["lower", "upper"]

EXACT_TRIALS = 1000  # up to here tail sums are done in whole numbers; beyond, by the incomplete beta function


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided McNemar p for b negative and c positive flips: min(1, 2 P(X <= min(b, c))), X ~ Bin(b + c, 1/2)."""
    return min(1.0, 2.0 * half_tail(min(b, c), b + c))


def mcnemar_one_sided(b: int, c: int) -> float:
    """Exact one-sided p for "B is worse": P(X >= b), X ~ Bin(b + c, 1/2)."""
    return half_tail(c, b + c)  # symmetric: P(X >= b) = P(X <= c)


def clopper_pearson(k: int, n: int, alpha: float = 0.05, side: Side = "upper") -> float:
    """Exact one-sided bound at confidence 1 - alpha for a rate seen k times in n. For a two-sided interval halve alpha.

    Agrees with scipy.stats.beta.ppf within 1e-9 for n up to a million. Raises BadParameter on impossible counts.
    """
    if not 0 <= k <= n or n == 0 or not 0 < alpha < 1:
        raise BadParameter(f"no bound for {k} of {n} at alpha {alpha}", hint="0 <= k <= n, n >= 1 and 0 < alpha < 1 are needed")
    if side == "upper":
        return 1.0 if k == n else _beta_quantile(1.0 - alpha, k + 1, n - k)
    return 0.0 if k == 0 else _beta_quantile(alpha, k, n - k + 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment: p-values that may be compared with one alpha however many slices were looked at."""
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: (item[1], item[0]))):
        running = max(running, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


def false_discovery(p_values: Mapping[str, float]) -> dict[str, float]:
    """Benjamini and Hochberg's q-values: at which share of false alarms among all that are called a p-value is called, too."""
    found: dict[str, float] = {}
    least = 1.0
    ranked = sorted(p_values.items(), key=lambda item: (item[1], item[0]))
    for rank in range(len(ranked), 0, -1):
        name, p = ranked[rank - 1]
        least = min(least, p * len(ranked) / rank)
        found[name] = least
    return {name: found[name] for name in p_values}


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(X >= k) for X ~ Bin(n, p)."""
    if k <= 0 or p >= 1.0:
        return float(k <= n)
    return 0.0 if k > n or p <= 0.0 else beta_cdf(p, k, n - k + 1)


def student_two_sided(t: float, freedom: int) -> float:
    """P(|T| >= |t|) for Student's t with `freedom` degrees of freedom: I_x(freedom / 2, 1 / 2) at x = freedom / (freedom + t^2)."""
    return beta_cdf(freedom / (freedom + t * t), freedom / 2, 0.5)


def half_tail(k: int, n: int) -> float:
    """P(X <= k) for X ~ Bin(n, 1/2)."""
    if k >= n:
        return 1.0
    if n > EXACT_TRIALS:
        return beta_cdf(0.5, n - k, k + 1)
    term = total = 1
    for i in range(k):
        term = term * (n - i) // (i + 1)
        total += term
    return total / (1 << n)


# --- the incomplete beta function ------------------------------------------------------------------------


def beta_cdf(x: float, a: float, b: float) -> float:
    """I_x(a, b), the regularised incomplete beta function, by its continued fraction (Lentz's method)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1.0) / (a + b + 2.0):  # the fraction converges quickly only on this side of the mean
        return 1.0 - beta_cdf(1.0 - x, b, a)
    return math.exp(_log_beta_pdf(x, a, b) + math.log(x) + math.log1p(-x)) * _fraction(x, a, b) / a


def _log_beta_pdf(x: float, a: float, b: float) -> float:
    """Log density of Beta(a, b) at x, arranged so that large terms cancel before they are rounded (Loader, 2000).

    Plain lgamma differences lose nine digits at a + b = 1e6.
    """
    n = a + b
    away = x * n - a  # distance from the mean: of the order of sqrt(n) wherever the density matters
    deviance = a * math.log1p(away / a) + b * math.log1p(-away / b)
    stirling = _stirling_rest(n) - _stirling_rest(a) - _stirling_rest(b)
    return deviance + stirling + 0.5 * math.log(a * b / n / (2.0 * math.pi)) - math.log(x) - math.log1p(-x)


def _stirling_rest(z: float) -> float:
    """What Stirling's formula leaves out of lgamma(z)."""
    if z < 20.0:
        return math.lgamma(z) - ((z - 0.5) * math.log(z) - z + 0.5 * math.log(2.0 * math.pi))
    inverse = 1.0 / (z * z)
    return (1.0 / 12 - inverse * (1.0 / 360 - inverse * (1.0 / 1260 - inverse / 1680))) / z


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction 1/(1 + d1/(1 + d2/(1 + ...))) of I_x(a, b); O(sqrt(a + b)) terms are needed."""
    tiny = 1e-300
    c, d = 1.0, 1.0 / ((1.0 - (a + b) * x / (a + 1.0)) or tiny)
    value = d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / ((1.0 + term * d) or tiny)
            c = (1.0 + term / c) or tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def _beta_quantile(q: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = q: Newton's steps, kept inside a shrinking bracket."""
    low, high = 0.0, 1.0
    x = a / (a + b)
    for _ in range(200):
        excess = beta_cdf(x, a, b) - q
        low, high = (low, x) if excess > 0 else (x, high)
        density = math.exp(_log_beta_pdf(x, a, b)) if 0.0 < x < 1.0 else 0.0
        following = x - excess / density if density > 1e-300 else math.nan  # nan: halve the bracket instead
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - x) <= 1e-15 * max(x, 1e-3):
            return following
        x = following
    return x
