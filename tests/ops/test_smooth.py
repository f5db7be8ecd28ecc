"""Gain and regression of scores, and the rates of MUSCLE: identities on random tables, written-out examples, the catalog's sums."""

from __future__ import annotations

import math
import random

import pytest

from mlc.ops.evaluate.flips import Counts, Outcome, compare, report
from mlc.ops.evaluate.smooth import TOLERANCES, settled, smooth


def test_gain_less_regression_is_the_change_of_the_mean():
    rng = random.Random(0)
    pairs = [(rng.random(), rng.random()) for _ in range(500)]
    found = smooth(pairs)
    change = math.fsum(b - a for a, b in pairs) / len(pairs)
    assert found.gain - found.regression == pytest.approx(change, abs=1e-12)
    assert found.rates[0.0] >= found.rates[0.05] >= found.rates[0.1] > 0


def test_the_rates_of_four_rows_written_out():
    found = smooth([(0.5, 0.5), (0.5, 0.4375), (0.5, 0.25), (0.25, 0.75)])
    assert (found.n, found.gain, found.regression) == (4, 0.125, 0.078125)
    assert found.to_json()["smooth_nfr"] == {"0": 0.5, "0.05": 0.5, "0.1": 0.25}


def test_what_is_missing_or_no_number_is_left_out():
    found = smooth([(None, 1.0), (1.0, math.nan), (-math.inf, 0.0)])
    assert found == settled(0, 0.0, 0.0, dict.fromkeys(TOLERANCES, 0))
    assert found.gain is None
    assert found.rates[0.1] is None


def test_two_equal_versions_lose_nothing():
    assert smooth([(0.3, 0.3)] * 5).to_json() == {
        "n": 5,
        "gain": 0.0,
        "regression": 0.0,
        "smooth_nfr": {"0": 0.0, "0.05": 0.0, "0.1": 0.0},
    }


def test_the_identities_of_the_flip_table_hold_on_random_answers():
    rng = random.Random(1)
    for _ in range(50):
        n = rng.randrange(1, 60)
        old, new = ([Outcome(str(i), rng.random() < 0.6, rng.choice("abc")) for i in range(n)] for _ in range(2))
        found = compare(old, new)
        assert found.acc_b - found.acc_a == pytest.approx(found.pfr - found.nfr, abs=1e-12)
        assert found.choice_flip == pytest.approx(found.nfr + found.inconsistent, abs=1e-12)
        if found.acc_a:
            assert found.backward_trust == pytest.approx(1 - found.nfr / found.acc_a, abs=1e-12)
        if found.acc_b < 1:
            assert found.backward_error == pytest.approx(1 - found.nfr / (1 - found.acc_b), abs=1e-12)


def test_independent_errors_have_a_relative_rate_of_one():
    rng = random.Random(2)
    old, new = ([Outcome(str(i), rng.random() < 0.6, "x") for i in range(20_000)] for _ in range(2))
    assert 0.9 < compare(old, new).relative_nfr < 1.1


def test_muscles_choice_flip_counts_wrong_answers_that_are_not_the_old_ones():
    found = report(Counts(both_right=5, negative=2, positive=1, both_wrong=2, churned=4))
    assert (found.nfr, found.inconsistent, found.choice_flip) == (0.2, 0.1, pytest.approx(0.3))
    assert found.backward_error == 0.5
