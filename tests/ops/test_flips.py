"""Flips: the identities of the paired table, and the exact tests and bounds against published values and SciPy."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlc.ops.evaluate.exact_tests import clopper_pearson, false_discovery, holm, mcnemar, mcnemar_one_sided
from mlc.ops.evaluate.flips import Counts, Outcome, compare, compare_slices, count, report
from mlc.registry.errors import BadParameter


@pytest.mark.parametrize(
    ("b", "c", "p"), [(5, 5, 1.0), (10, 3, 0.0923), (0, 6, 0.03125), (20, 40, 0.01349), (30, 50, 0.03299), (0, 0, 1.0), (500, 500, 1.0)]
)
def test_mcnemar_gives_the_published_values_on_either_side(b, c, p):
    assert mcnemar(b, c) == pytest.approx(p, abs=1e-5 if p != 0.0923 else 5e-5)
    assert mcnemar(c, b) == mcnemar(b, c)


@pytest.mark.parametrize("n", [0, 1, 7, 1000, 5000])
def test_the_one_sided_test_is_silent_when_nothing_got_worse(n):
    assert mcnemar_one_sided(0, n) == 1.0
    assert mcnemar_one_sided(n, 0) == pytest.approx(0.5**n if n < 1000 else 0.0, abs=1e-300)


def test_mcnemar_agrees_with_scipy_also_where_whole_numbers_are_left_behind():
    binomtest = pytest.importorskip("scipy.stats").binomtest
    rng = random.Random(0)
    for _ in range(60):
        n = int(10 ** rng.uniform(0, 6))
        b = min(n, max(0, round(n / 2 + rng.gauss(0, 1) * math.sqrt(n))))
        assert mcnemar(b, n - b) == pytest.approx(binomtest(b, n).pvalue, abs=1e-9)
        assert mcnemar_one_sided(b, n - b) == pytest.approx(binomtest(b, n, alternative="greater").pvalue, abs=1e-9)


def test_clopper_pearson_agrees_with_scipy_up_to_a_million():
    beta = pytest.importorskip("scipy.stats").beta
    rng = random.Random(1)
    cases = [(0, 1), (1, 1), (0, 400), (400, 400), (0, 1_000_000), (1_000_000, 1_000_000), (1, 1_000_000), (999_999, 1_000_000)]
    for _ in range(150):
        n = int(10 ** rng.uniform(0, 6))
        cases.append((rng.choice([rng.randint(0, n), min(n, rng.randint(0, 9))]), n))
    for k, n in cases:
        for alpha in (0.05, 0.025, 1e-4):
            upper = 1.0 if k == n else beta.ppf(1 - alpha, k + 1, n - k)
            lower = 0.0 if k == 0 else beta.ppf(alpha, k, n - k + 1)
            assert clopper_pearson(k, n, alpha, "upper") == pytest.approx(upper, abs=1e-9)
            assert clopper_pearson(k, n, alpha, "lower") == pytest.approx(lower, abs=1e-9)


def test_no_flip_in_400_still_leaves_three_quarters_of_a_percent_possible():
    assert clopper_pearson(0, 400, 0.05) == pytest.approx(1 - 0.05 ** (1 / 400), abs=1e-12)
    assert clopper_pearson(0, 400, 0.025) == pytest.approx(0.0091799, abs=1e-6)


@given(st.integers(1, 3000), st.data())
def test_the_bounds_enclose_the_observed_rate(n, data):
    k = data.draw(st.integers(0, n))
    assert clopper_pearson(k, n, 0.05, "lower") <= k / n <= clopper_pearson(k, n, 0.05, "upper")


@pytest.mark.parametrize(("k", "n", "alpha"), [(-1, 5, 0.05), (6, 5, 0.05), (0, 0, 0.05), (1, 5, 0.0), (1, 5, 1.0)])
def test_an_impossible_bound_is_refused(k, n, alpha):
    with pytest.raises(BadParameter):
        clopper_pearson(k, n, alpha)


def _rows(correct, answers=None, slices=None):
    answers = answers or [str(c) for c in correct]
    return [Outcome(f"e{i}", c, a, slices[i] if slices else None) for i, (c, a) in enumerate(zip(correct, answers, strict=True))]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_accuracy_moves_by_positive_less_negative_flips(pairs):
    found = compare(_rows([a for a, _ in pairs]), _rows([b for _, b in pairs]))
    assert found.acc_b - found.acc_a == pytest.approx(found.pfr - found.nfr, abs=1e-12)
    assert found.n == len(pairs)
    if found.acc_a:
        assert found.backward_trust == pytest.approx(1 - found.nfr / found.acc_a)


def test_a_version_compared_with_itself_has_nothing_to_report():
    rows = _rows([True, False, True, True])
    found = compare(rows, rows)
    assert (found.nfr, found.pfr, found.churn, found.mcnemar_p, found.mcnemar_p_worse, found.inconsistent) == (0, 0, 0, 1, 1, 0)
    assert found.backward_trust == 1.0


def test_independent_errors_have_a_relative_negative_flip_rate_of_one():
    rng = random.Random(3)
    a, b = ([rng.random() < 0.6 for _ in range(20_000)] for _ in range(2))
    assert 0.9 <= compare(_rows(a), _rows(b)).relative_nfr <= 1.1


def test_churn_counts_changed_answers_that_are_both_wrong():
    before = _rows([True, False, False, True], ["Paris", "Rome", "Oslo", "Bern"])
    after = _rows([True, False, False, False], ["Paris", "Lima", "Oslo", "Bonn"])
    found = compare(before, after)
    assert (found.churn, found.inconsistent, found.negative_flips) == (0.5, 0.25, 1)


def test_only_examples_with_a_result_on_both_sides_are_compared():
    before = [Outcome("a", True), Outcome("b", True), Outcome("c", None)]
    after = [Outcome("b", False), Outcome("c", True), Outcome("d", True)]
    assert count(before, after) == Counts(both_right=0, negative=1, positive=0, both_wrong=0, churned=1)


def test_nothing_in_common_gives_no_rate_rather_than_a_good_one():
    found = compare([Outcome("a", True)], [Outcome("b", True)])
    assert (found.n, found.nfr, found.nfr_upper95, found.acc_a, found.churn) == (0, None, None, None, None)


def test_slices_are_reported_one_by_one_in_name_order():
    before = _rows([True, True, True], slices=["x", "y", "y"])
    after = _rows([True, False, True], slices=["y", "x", "x"])
    found = compare_slices(before, after)
    assert list(found) == ["x", "y"]
    assert (found["x"].negative_flips, found["x"].n, found["y"].negative_flips) == (1, 2, 0)


def test_counts_that_contradict_each_other_are_refused():
    for cells in [(-1, 0, 0, 1, 0), (1, 1, 1, 1, 5)]:
        with pytest.raises(BadParameter):
            report(Counts(*cells))


def test_holm_multiplies_the_smallest_by_all_and_never_turns_back():
    assert holm({"c": 0.04, "a": 0.01, "b": 0.03}) == pytest.approx({"c": 0.06, "a": 0.03, "b": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_q_values_are_those_of_benjamini_and_hochberg():
    found = false_discovery({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5})
    assert found == pytest.approx({"a": 0.04, "b": 0.04 * 4 / 3, "c": 0.04 * 4 / 3, "d": 0.5})
    scipy = pytest.importorskip("scipy.stats")
    chance = random.Random(3)
    p = {str(i): chance.random() ** 3 for i in range(40)}
    assert list(false_discovery(p).values()) == pytest.approx(list(scipy.false_discovery_control(list(p.values()))), abs=1e-12)
