"""Evaluations and predictions: into the catalog slice by slice, and compared example by example."""

from __future__ import annotations

import random

import pytest

from mlc.registry.catalog import queries
from mlc.registry.catalog.behaviour import compare, evaluations, find_evaluation, moved, predictions
from mlc.registry.errors import CorruptRecord, MissingObject
from mlc.registry.ids import blob_digest
from mlc.tests.registry.history import History, dump


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / ".mlc")


@pytest.fixture
def grown(history):
    """Three commits in a line, two of them evaluated, projected."""
    a = history.commit(tensors={"w": "1"}, op="import")
    b = history.commit(a, tensors={"w": "2"})
    c = history.commit(b, tensors={"w": "3"})
    history.evaluate(b, {"example": ["1", "2", "3", "4"], "correct": [True, True, False, None], "answer": ["p", "q", "r", "s"]})
    history.evaluate(c, {"example": ["1", "2", "3", "5"], "correct": [False, True, True, True], "answer": ["x", "q", "r", "t"]})
    history.before = dump(history)
    return history


# --- predictions ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_slices(monkeypatch):
    monkeypatch.setattr("mlc.registry.catalog.predictions.SLICE", 3)


def many(n, right=lambda i: i % 2 == 0):
    return {"example": [f"e{i:04}" for i in range(n)], "correct": [right(i) for i in range(n)]}


def test_predictions_go_in_by_slices_each_under_its_own_lock(history, small_slices):
    a = history.commit(tensors={"w": "1"})
    dump(history)
    number = history.evaluate(a, many(7))
    history.catalog.apply(history)
    history.locks.taken.clear()
    history.catalog.load_predictions(history)
    assert history.locks.taken.count("exclusive catalog") == 3
    rows = history.catalog.query(history, 'select first, rows, "last" from loaded where evaluation = ? order by first', [number]).rows
    assert rows == [(0, 3, False), (3, 3, False), (6, 1, True)]
    assert len(predictions(history, number)) == 7


@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_a_crash_between_slices_is_repaired_by_the_next_reader(history, small_slices, monkeypatch, dies_at):
    a = history.commit(tensors={"w": "1"})
    number = history.evaluate(a, many(8))
    history.catalog.apply(history)
    from mlc.registry.catalog import catalog as module

    real, calls = module.insert_slice, []

    def dying(connection, evaluation, table, first):
        calls.append(first)
        done = real(connection, evaluation, table, first)
        if len(calls) == dies_at + 1:
            raise KeyboardInterrupt  # after the rows, before the transaction ends
        return done

    history.catalog.read(history, lambda c: None)
    monkeypatch.setattr(module, "insert_slice", dying)
    fresh = history.evaluate(a, many(8), suite="other")
    history.catalog.apply(history)
    with pytest.raises(KeyboardInterrupt):
        history.catalog.load_predictions(history, fresh)
    monkeypatch.setattr(module, "insert_slice", real)
    assert [row[0] for row in predictions(history, fresh)] == many(8)["example"]
    assert [row[0] for row in predictions(history, number)] == many(8)["example"]
    incremental = dump(history)
    history.catalog.rebuild(history)
    assert dump(history) == incremental


def test_an_evaluation_without_rows_is_loaded_once(history):
    a = history.commit(tensors={"w": "1"})
    number = history.evaluate(a, many(0))
    assert predictions(history, number) == []
    assert history.catalog.query(history, "from loaded").rows == [(number, 0, 0, True)]


def test_missing_predictions_are_an_error_and_history_is_still_told(history):
    a = history.commit(tensors={"w": "1"})
    evaluation = history.evaluation(a, many(3))
    del history.objects[evaluation.predictions]
    number = history.record_evaluation(evaluation)
    assert queries.log(history, [a])[0].commit == a
    with pytest.raises(MissingObject, match=evaluation.predictions):
        compare(history, number, number)


def test_predictions_that_are_no_table_are_an_error(history):
    a = history.commit(tensors={"w": "1"})
    evaluation = history.evaluation(a, many(3))
    for damage in (b"not arrow at all", history.objects[evaluation.predictions][:200]):
        history.objects[evaluation.predictions] = damage
        number = history.record_evaluation(evaluation)
        with pytest.raises(CorruptRecord, match="not a table"):
            predictions(history, number)


# --- behaviour -----------------------------------------------------------------------------------------------


def test_compare_counts_only_examples_that_both_judged(grown):
    found = compare(grown, 5, 6)
    assert found.total == (None, 3, 2, 2, 1, 1, 1)
    assert (found.only_a, found.only_b) == (1, 1)
    assert [(flip.example, flip.answer_a, flip.answer_b, flip.kind) for flip in found.flips] == [
        ("1", "p", "x", "negative"),
        ("3", "r", "r", "positive"),
    ]
    assert compare(grown, 5, 6, limit=1).flips == found.flips[:1]
    assert compare(grown, 5, 6, limit=0).flips == []
    assert compare(grown, 5, 6, limit=0).total == found.total


def test_compare_agrees_with_counting_by_hand(history):
    seed = random.Random(3)
    a = history.commit(tensors={"w": "1"})
    sides = []
    for _ in range(2):
        names = [f"e{i}" for i in range(300) if seed.random() < 0.9]
        seed.shuffle(names)
        right = [seed.choice([True, False, None]) for _ in names]
        sides.append(
            {"example": names, "correct": right, "answer": [seed.choice("xyz") for _ in names], "slice": [f"s{hash(n) % 3}" for n in names]}
        )
    first, second = (dict(zip(s["example"], zip(s["correct"], s["answer"], s["slice"], strict=True), strict=True)) for s in sides)
    found = compare(history, *(history.evaluate(a, side) for side in sides))
    both = [(first[n], second[n]) for n in first if n in second and first[n][0] is not None and second[n][0] is not None]
    assert found.total[1:] == (
        len(both), sum(p[0] for p, _ in both), sum(q[0] for _, q in both), sum(p[0] and not q[0] for p, q in both),
        sum(q[0] and not p[0] for p, q in both), sum(p[1] != q[1] for p, q in both),
    )  # fmt: skip
    assert {s.slice: s.n for s in found.slices} == {k: sum(p[2] == k for p, _ in both) for k in ("s0", "s1", "s2")}
    assert [f.example for f in found.flips if f.kind == "negative"] == sorted(
        n for n in first if n in second and first[n][0] and second[n][0] is False
    )


def test_comparing_nothing_with_nothing_counts_nothing(history):
    a = history.commit(tensors={"w": "1"})
    first, second = history.evaluate(a, many(0)), history.evaluate(a, many(2))
    assert compare(history, first, second).total == (None, 0, 0, 0, 0, 0, 0)
    assert compare(history, first, second).only_b == 2


def test_an_evaluation_is_found_by_snapshot_suite_and_limit(grown):
    b = queries.log(grown, None)[1].commit
    snapshot, suite = grown.snapshot_of(b), blob_digest(b"facts")
    limited = grown.evaluate(b, {"example": ["1"]}, limit=1, metrics={"accuracy": 1.0, "nll": None})
    assert find_evaluation(grown, snapshot, suite, None).evaluation == 5
    found = find_evaluation(grown, snapshot, suite, 1)
    assert (found.evaluation, found.metrics, found.n, found.kind) == (limited, {"accuracy": 1.0, "nll": None}, 1, "cloze")
    assert find_evaluation(grown, snapshot, suite, 2) is None
    assert find_evaluation(grown, snapshot, blob_digest(b"other"), None) is None
    assert find_evaluation(grown, snapshot, suite, None, scorer="lm-eval:1") is None
    again = grown.evaluate(b, {"example": ["1", "2"]}, metrics={"accuracy": 0.25})
    assert find_evaluation(grown, snapshot, suite, None).evaluation == again
    assert [row.evaluation for row in evaluations(grown, snapshot)] == [again, limited, 5]


def test_the_evaluations_view_says_the_latest_per_commit(grown):
    b = queries.log(grown, None)[1].commit
    grown.evaluate(b, {"example": ["1", "2"]}, metrics={"accuracy": 0.25})
    rows = grown.catalog.query(grown, "select suite, metric, value, n from evaluations where commit = ?", [b]).rows
    assert rows == [("facts", "accuracy", 0.25, 2)]


def test_how_a_number_moved_is_summed_over_the_examples_that_have_it_twice(history):
    a = history.commit(tensors={"w": "1"}, op="import")
    b = history.commit(a, tensors={"w": "2"})
    nan = float("nan")
    first = history.evaluate(a, {"example": ["1", "2", "3", "4"], "correct": [True] * 4, "score": [0.5, 0.5, nan, 0.2]})
    second = history.evaluate(b, {"example": ["1", "2", "3", "5"], "correct": [True] * 4, "score": [0.25, 0.75, 0.5, 0.9]})
    found = moved(history, first, second, "score", (0.0, 0.3))
    assert found == (2, pytest.approx(0.25), pytest.approx(0.25), (1, 0))
    with pytest.raises(ValueError, match="no number"):
        moved(history, first, second, "answer", ())
