"""How many examples a verdict needs: the power of McNemar's exact test, and the size at which a bound can clear a rate.

Exact up to the tails that are cut (below 1e-9 in sum) while at most PAIRS flips are expected; beyond, by the normal law, which has met the
exact value within 0.002 there. Used by the gate to say "too few examples: n needed" instead of passing in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

from ...registry.errors import BadParameter
from .exact_tests import binomial_tail, clopper_pearson, half_tail

TAIL = 1e-10  # of the numbers of discordant pairs, left out on either side
PAIRS = 2_000  # expected discordant pairs up to which power is summed exactly
MOST = 100_000_000  # examples; beyond that the answer is "not with any suite"


def mcnemar_power(n: int, negative: float, positive: float, alpha: float = 0.05) -> float:
    """Chance that the exact one-sided test at `alpha` calls B worse, for n examples with true flip rates `negative` and `positive`.

    The number of discordant pairs D is Bin(n, negative + positive); of them X are negative, Bin(D, negative / (negative + positive)); the
    test speaks when P(Bin(D, 1/2) >= X) <= alpha. Raises BadParameter when the rates are no shares.
    """
    _shares(negative, positive, alpha)
    apart = negative + positive
    if n <= 0 or apart <= 0.0:
        return 0.0
    if n * apart > PAIRS:
        return _normal_power(n, negative, positive, alpha)
    low, high = _middle(n, min(apart, 1.0))
    total = 0.0
    for pairs in range(low, high + 1):
        weight = binomial_tail(pairs, n, apart) - binomial_tail(pairs + 1, n, apart) if apart < 1.0 else float(pairs == n)
        if weight > 0.0:
            total += weight * binomial_tail(_critical(pairs, alpha), pairs, negative / apart)
    return min(1.0, total)


def examples_needed(negative: float, positive: float, alpha: float = 0.05, power: float = 0.95) -> int | None:
    """Least n (to three digits) from which McNemar's one-sided test reaches `power`; None when B is not worse or no suite is that large."""
    _shares(negative, positive, alpha)
    if negative <= positive:
        return None
    return _least(lambda n: mcnemar_power(n, negative, positive, alpha) >= power)


def bound_needed(rate: float, limit: float, alpha: float = 0.05) -> int | None:
    """Least n (to three digits) at which a rate seen as `rate` has an upper Clopper-Pearson bound of at most `limit`."""
    if not 0.0 <= rate < limit < 1.0:
        return None
    return _least(lambda n: clopper_pearson(math.ceil(rate * n), n, alpha, "upper") <= limit)


def _least(enough: Callable[[int], bool]) -> int | None:
    """Doubling, then halving to three digits: a test on whole numbers rises in small steps, so more digits would pretend."""
    high = 16
    while not enough(high):
        high *= 2
        if high > MOST:
            return None
    low = high // 2
    while high - low > max(1, high // 500):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _normal_power(n: int, negative: float, positive: float, alpha: float) -> float:
    """The same for many pairs: negative - positive flips are about normal, with mean n d and variance n (s - d^2)."""
    normal, apart, worse = NormalDist(), negative + positive, negative - positive
    reach = n * worse - normal.inv_cdf(1.0 - alpha) * math.sqrt(n * apart) - 1.0  # 1: the step of whole pairs, halved on either side
    spread = math.sqrt(n * max(apart - worse * worse, 1e-300))
    return normal.cdf(reach / spread)


def _middle(n: int, p: float) -> tuple[int, int]:
    """The range of a binomial count outside of which lies next to nothing: seven and a half standard deviations and a little."""
    mean, sd = n * p, math.sqrt(n * p * (1.0 - p))
    return max(0, math.floor(mean - 7.5 * sd - 10)), min(n, math.ceil(mean + 7.5 * sd + 30))


@lru_cache(maxsize=65536)
def _critical(pairs: int, alpha: float) -> int:
    """Least number of negative flips among `pairs` that is significant; pairs + 1 when none is."""
    low, high = (pairs + 1) // 2, pairs + 1
    while low < high:
        middle = (low + high) // 2
        if half_tail(pairs - middle, pairs) <= alpha:
            high = middle
        else:
            low = middle + 1
    return low


def _shares(negative: float, positive: float, alpha: float) -> None:
    if min(negative, positive) < 0.0 or negative + positive > 1.0 or not 0.0 < alpha < 1.0:
        raise BadParameter(f"no flip rates: {negative} and {positive} at alpha {alpha}", hint="shares from 0 to 1 that sum to at most 1")
