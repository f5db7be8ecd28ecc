"""The Kolmogorov-Smirnov test against SciPy, against the floors that published tables show, and against enumeration."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import pytest

from mlc.ops.evaluate import ks
from mlc.ops.evaluate.ks import forget_quality, ks_test, limit_tail, tail, widest_gap
from mlc.registry.errors import BadParameter


@pytest.mark.parametrize(("n", "floor"), [(40, "1.86e-23"), (200, "1.94e-119"), (400, "1.06e-239")])
def test_separated_samples_give_the_floor_that_published_tables_show(n, floor):
    found = ks_test(range(n), range(n, 2 * n))
    assert (found.statistic, f"{found.p:.2e}", found.exact) == (1.0, floor, True)


def test_equal_samples_are_no_evidence():
    values = [0.1, 0.5, 0.5, 2.0]
    assert (ks_test(values, values).statistic, ks_test(values, values).p) == (0.0, 1.0)


@pytest.mark.parametrize(("n", "m"), [(5, 7), (1, 3), (30, 45), (100, 64), (200, 200)])
def test_statistic_and_p_are_those_of_scipy(n, m):
    stats = pytest.importorskip("scipy.stats")
    draw = random.Random(n * m)
    for shift in (0.0, 0.4, 2.0):
        a, b = [draw.gauss(0, 1) for _ in range(n)], [draw.gauss(shift, 1) for _ in range(m)]
        a[0] = b[0]  # a tie
        theirs = stats.ks_2samp(a, b, method="exact")
        assert ks_test(a, b).statistic == pytest.approx(theirs.statistic, abs=1e-15)
        assert ks_test(a, b).p == pytest.approx(theirs.pvalue, rel=1e-10)


def test_the_count_of_paths_equals_trying_every_order():
    n, m = 4, 3
    gaps = [widest_gap([p for p in range(n + m) if p in a], [p for p in range(n + m) if p not in a]) for a in _subsets(n + m, n)]
    for gap in range(n * m + 1):
        assert tail(n, m, gap) == Fraction(sum(found >= gap for found in gaps), math.comb(n + m, n))


def _subsets(total, size):
    return [set(chosen) for chosen in itertools.combinations(range(total), size)]


def test_inverting_the_ratios_changes_nothing():
    draw = random.Random(1)
    a, b = [draw.uniform(0.1, 2) for _ in range(40)], [draw.uniform(0.2, 4) for _ in range(40)]
    assert forget_quality(a, b) == forget_quality([1 / x for x in a], [1 / x for x in b])
    assert forget_quality(a, b) == forget_quality(b, a)


def test_large_samples_take_the_limit_and_say_so(monkeypatch):
    draw = random.Random(2)
    a, b = [draw.random() for _ in range(900)], [draw.random() + 0.03 for _ in range(900)]
    counted = ks_test(a, b)
    monkeypatch.setattr(ks, "EXACT_CELLS", 1000)
    near = ks_test(a, b)
    assert (counted.exact, near.exact) == (True, False)
    assert near.p == pytest.approx(counted.p, rel=0.1)
    assert limit_tail(1.3581) == pytest.approx(0.05, abs=1e-4)  # the tabled 5 % point
    assert limit_tail(0.0) == 1.0


@pytest.mark.parametrize(("a", "b"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [math.inf])])
def test_samples_that_are_empty_or_not_finite_are_refused(a, b):
    with pytest.raises(BadParameter, match="no Kolmogorov-Smirnov test"):
        ks_test(a, b)
