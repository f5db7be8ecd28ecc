"""Drift of answers and the matrix of a lineage: identities, hand-made cases, SciPy's p-values."""

from __future__ import annotations

import random

import pytest

from mlc.ops.evaluate.drift import drift
from mlc.ops.evaluate.exact_tests import student_two_sided
from mlc.ops.evaluate.matrix import summarise
from mlc.ops.evaluate.predictions import Prediction


def rows(answers: list[str], right: list[bool] | None = None) -> list[Prediction]:
    return [Prediction(f"e{i}", a, right[i] if right else None, 0.5, -1.0) for i, a in enumerate(answers)]


def test_equal_answers_have_not_drifted():
    found = drift(rows(["a", "b c", ""], [True, False, True]), rows(["a", "b c", ""], [True, False, True]))
    assert (found.mismatch, found.mcnemar_p, found.length_ratio, found.length_p, found.p) == (0.0, 1.0, 1.0, 1.0, 1.0)
    assert found.forms == ()
    assert found.answered_a == found.answered_b == 2 / 3


def test_answers_may_all_change_while_accuracy_stays():
    found = drift(rows([f"x{i}" for i in range(100)], [True] * 100), rows([f"y{i}" for i in range(100)], [True] * 100))
    assert (found.mismatch, found.accuracy_a, found.accuracy_b, found.mcnemar_p) == (1.0, 1.0, 1.0, 1.0)
    assert found.mismatch_lower95 is not None
    assert found.mismatch_lower95 > 0.97


def test_a_code_fence_that_appears_is_seen_as_a_change_of_form_and_of_length():
    before = [f"print({i})" for i in range(60)]
    found = drift(rows(before), rows([f"```\n{a}\n```" for a in before]))
    assert {form.form for form in found.forms if form.p < 1e-6} >= {"code fence", "several lines"}
    assert found.length_ratio is not None
    assert found.length_ratio > 1.5
    assert found.p < 1e-6


def test_the_length_test_is_the_paired_t_test_on_logs():
    import math

    chance = random.Random(1)
    before = ["x" * chance.randint(5, 40) for _ in range(50)]
    after = [a + "x" * chance.randint(0, 3) for a in before]
    scipy = pytest.importorskip("scipy.stats")
    expected = scipy.ttest_rel([math.log(len(b)) for b in after], [math.log(len(a)) for a in before]).pvalue
    assert drift(rows(before), rows(after)).length_p == pytest.approx(expected, rel=1e-9)
    for t, freedom in ((0.3, 1), (-2.5, 7), (4.0, 200)):
        assert student_two_sided(t, freedom) == pytest.approx(2 * scipy.t.sf(abs(t), freedom), rel=1e-9)


def test_examples_on_one_side_are_counted_and_left_out():
    found = drift(rows(["a", "b", "c"]), rows(["a", "b"]))
    assert (found.n, found.only_a, found.only_b) == (2, 1, 0)
    assert drift(rows([]), rows(["a"])).mismatch is None


def test_digests_of_a_private_suite_have_no_length_and_no_form():
    found = drift(rows(["hmac:aa:11", "hmac:aa:22"]), rows(["hmac:aa:11", "hmac:aa:333"]))
    assert (found.mismatch, found.length_ratio, found.forms, found.veiled) == (0.5, None, (), True)


# --- the matrix ------------------------------------------------------------------------------------------


def test_the_numbers_of_a_matrix_made_by_hand():
    matrix = [[0.1, 0.2, 0.3], [0.9, 0.25, 0.35], [0.7, 0.8, 0.4], [0.6, 0.7, 0.95]]
    found = summarise(matrix, ["a", "b", "c"], {"a": 1, "b": 2, "c": 3}, {"c": 0.1})
    assert found.last == pytest.approx(2.25 / 3, abs=1e-12)
    assert found.forgetting == pytest.approx(((0.9 - 0.6) + (0.8 - 0.7) + (0.4 - 0.95)) / 3, abs=1e-12)
    assert found.bwt == pytest.approx(((0.6 - 0.9) + (0.7 - 0.8)) / 2, abs=1e-12)
    assert found.fwt == pytest.approx(((0.1 - 0.0) + (0.25 - 0.0) + (0.4 - 0.1)) / 3, abs=1e-12)
    assert (found.accumulation, found.retention) == (pytest.approx(2.25 / 3), None)


def test_a_lineage_that_keeps_everything_has_no_backward_transfer_and_a_hole_hides_only_what_needs_it():
    kept = summarise([[0.5, 0.0], [0.5, 0.5]], ["a", "b"], {"a": 0, "b": 1}, {})
    assert (kept.bwt, kept.forgetting) == (0.0, pytest.approx(-0.25))
    holed = summarise([[0.5, None], [0.5, 0.5]], ["a", "b"], {"a": 0, "b": 1}, {})
    assert (holed.fwt, holed.forgetting, holed.bwt, holed.last) == (None, None, 0.0, 0.5)
