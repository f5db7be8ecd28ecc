"""How many examples a verdict needs: exact sums against SciPy's, and the sizes that follow."""

from __future__ import annotations

import pytest

from mlc.ops.evaluate import power
from mlc.ops.evaluate.exact_tests import clopper_pearson
from mlc.ops.evaluate.power import bound_needed, examples_needed, mcnemar_power
from mlc.registry.errors import BadParameter


def summed(n: int, negative: float, positive: float, alpha: float) -> float:
    """The definition, term by term, with SciPy's binomials."""
    binom = pytest.importorskip("scipy.stats").binom
    total = 0.0
    for pairs in range(n + 1):
        weight = binom.pmf(pairs, n, negative + positive)
        if weight > 1e-13:
            critical = next(x for x in range(pairs + 2) if binom.sf(x - 1, pairs, 0.5) <= alpha or x == pairs + 1)
            total += weight * binom.sf(critical - 1, pairs, negative / (negative + positive))
    return float(total)


@pytest.mark.parametrize(
    ("n", "negative", "positive", "alpha"),
    [(2000, 0.012, 0.002, 0.05), (500, 0.05, 0.03, 0.05), (300, 0.2, 0.1, 0.01), (40, 0.3, 0.0, 0.05)],
)
def test_power_is_the_sum_over_all_numbers_of_flips(n, negative, positive, alpha):
    assert mcnemar_power(n, negative, positive, alpha) == pytest.approx(summed(n, negative, positive, alpha), abs=1e-8)


@pytest.mark.parametrize(("n", "negative", "positive"), [(100_000, 0.0105, 0.01), (40_000, 0.027, 0.025), (20_000, 0.06, 0.055)])
def test_for_many_flips_the_normal_law_meets_the_exact_sum(n, negative, positive, monkeypatch):
    quick = mcnemar_power(n, negative, positive)
    monkeypatch.setattr(power, "PAIRS", 10**9)
    assert quick == pytest.approx(mcnemar_power(n, negative, positive), abs=2e-3)


def test_a_version_that_is_no_worse_is_called_worse_at_most_as_often_as_alpha_allows():
    for n in (50, 500, 2000):
        for rate in (0.002, 0.01, 0.1):
            assert mcnemar_power(n, rate, rate, 0.05) <= 0.05


def test_the_number_of_examples_is_where_power_is_reached():
    needed = examples_needed(0.02, 0.01)
    assert needed is not None
    assert mcnemar_power(needed, 0.02, 0.01) >= 0.95 > mcnemar_power(int(needed * 0.97), 0.02, 0.01)
    assert examples_needed(0.01, 0.01) is None
    assert examples_needed(0.0100001, 0.01) is None  # no suite is that large


def test_a_rate_is_cleared_once_its_bound_is_under_the_limit():
    needed = bound_needed(0.01, 0.02)
    assert needed is not None
    assert clopper_pearson(-(-needed // 100), needed) <= 0.02
    assert bound_needed(0.0, 0.02) == 149  # ln 20 / -ln 0.98, rounded up
    assert bound_needed(0.02, 0.02) is None


def test_what_are_no_rates_is_refused():
    with pytest.raises(BadParameter, match="no flip rates"):
        mcnemar_power(10, 0.7, 0.6)
