"""The catalog file: always as far as the journal, whatever happened to it; opened under our lock and never kept open."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from mlc.registry import fs
from mlc.registry.catalog import Catalog, CatalogFault, connection, queries
from mlc.registry.catalog.behaviour import compare, evaluations, find_evaluation, predictions
from mlc.registry.errors import BadParameter, CorruptRecord, Locked, MissingObject, RefNotFound
from mlc.registry.ids import blob_digest
from mlc.tests.registry.history import History, OpenLocks, dump


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


def damaged(history):
    """Names of what lies in quarantine."""
    place = history.path / "quarantine"
    return sorted(path.name for folder in place.iterdir() for path in folder.iterdir()) if place.exists() else []


# --- freshness -----------------------------------------------------------------------------------------------


def test_a_reader_finds_what_was_journaled_and_not_yet_projected(grown):
    d = grown.commit(tensors={"w": "4"})
    assert grown.catalog.applied()[0] == len(grown.journal) - 1
    assert queries.log(grown, [d])[0].commit == d
    assert grown.catalog.applied() == grown.journal.head()


def test_projecting_a_record_twice_changes_nothing(grown):
    grown.catalog.apply(grown, [grown.journal[-1]])
    grown.catalog.apply(grown, grown.journal)
    grown.catalog.apply(grown)
    assert dump(grown) == grown.before


def test_projecting_a_record_brings_in_those_before_it(grown):
    grown.commit(tensors={"w": "4"})
    e = grown.commit(tensors={"w": "5"})
    grown.catalog.apply(grown, [grown.journal[-1]])
    assert grown.catalog.applied() == grown.journal.head()
    assert len(queries.log(grown, None)) == 5
    assert queries.log(grown, [e])[0].commit == e


def test_a_long_way_behind_is_caught_up_in_short_transactions(grown, monkeypatch):
    monkeypatch.setattr("mlc.registry.catalog.catalog.TAIL", 2)
    for step in range(5):
        grown.commit(tensors={"w": f"n{step}"})
    grown.locks.taken.clear()
    grown.catalog.apply(grown)
    assert grown.locks.taken == ["exclusive catalog"] * 3
    caught_up = dump(grown)
    grown.catalog.rebuild(grown)
    assert dump(grown) == caught_up


def test_very_far_behind_is_rebuilt_beside_the_live_file(grown, monkeypatch):
    monkeypatch.setattr("mlc.registry.catalog.catalog.FAR", 2)
    for step in range(5):
        grown.commit(tensors={"w": f"n{step}"})
    grown.locks.taken.clear()
    grown.catalog.apply(grown)
    assert grown.locks.taken == ["exclusive catalog"] * 2
    assert grown.catalog.applied() == grown.journal.head()
    assert damaged(grown) == []


def test_a_catalog_ahead_of_the_journal_is_set_aside_and_rebuilt(grown):
    grown.journal.pop()
    rows = queries.log(grown, None)
    assert len(rows) == 3
    assert grown.catalog.applied() == grown.journal.head()
    assert damaged(grown) == ["catalog.duckdb"]


def test_a_catalog_of_another_history_is_set_aside_and_rebuilt(grown, tmp_path):
    other = History(tmp_path / "other" / ".mlc")
    a = other.commit(tensors={"w": "7"})
    for _ in range(len(grown.journal) + 1):
        a = other.commit(a, tensors={"w": "8"})
    grown.catalog.path.rename(other.catalog.path)
    assert len(queries.log(other, [a])) == len(grown.journal) + 2
    assert damaged(other) == ["catalog.duckdb"]


def test_a_catalog_of_another_schema_is_set_aside_and_rebuilt(grown, monkeypatch):
    monkeypatch.setattr(connection, "SCHEMA_NUMBER", connection.SCHEMA_NUMBER + 1)
    after = dump(grown)
    assert after.pop("schema_number") != grown.before.pop("schema_number")
    assert after == grown.before
    assert damaged(grown) == ["catalog.duckdb"]


def test_a_reader_gives_a_writer_the_time_to_project(grown, monkeypatch):
    """Between a writer's journal record and its projection the catalog is behind: a reader waits and takes no exclusive lock."""
    line = grown.record({"kind": "note"})
    monkeypatch.setattr("mlc.registry.catalog.catalog.time.sleep", lambda _: grown.catalog.apply(grown, [line]))
    grown.locks.taken.clear()
    queries.log(grown, None)
    assert grown.locks.taken == ["shared catalog", "exclusive catalog", "shared catalog"]  # the exclusive one is the writer's


def test_where_nothing_can_be_written_the_answer_comes_from_memory(grown, monkeypatch):
    d = grown.commit(tensors={"w": "4"})
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert queries.log(grown, [d])[0].commit == d
    assert "put together in memory" in grown.warnings[0]
    assert grown.catalog.applied()[0] == len(grown.journal) - 1


def test_a_full_disk_does_not_keep_a_reader_from_its_answer(grown, monkeypatch):
    d = grown.commit(tensors={"w": "4"})

    def full(self, *_):
        raise CatalogFault("the catalog could not be written: no space left")

    monkeypatch.setattr(Catalog, "apply", full)
    assert queries.log(grown, [d])[0].commit == d
    assert "no space left" in grown.warnings[0]


# --- damage --------------------------------------------------------------------------------------------------


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize("harm", ["absent", "empty", "text", "cut", "header", "zeroed"])
def test_a_damaged_file_is_rebuilt_with_identical_rows(grown, harm):
    path = grown.catalog.path
    data = path.read_bytes()
    if harm == "absent":
        path.unlink()
    else:
        content = {"empty": b"", "text": b"not a database\n" * 400, "cut": data[: len(data) // 2], "zeroed": bytes(len(data))}
        path.write_bytes(content.get(harm, bytes([data[0] ^ 1]) + data[1:]))
    assert dump(grown) == grown.before
    assert damaged(grown) == ([] if harm == "absent" else ["catalog.duckdb"])


def test_no_flipped_bit_is_ever_believed(grown):
    """Whatever bit of the file is flipped: the same rows, be it that the file was rebuilt or that the bit meant nothing."""
    path, seed = grown.catalog.path, random.Random(7)
    data = path.read_bytes()
    for _ in range(16):
        path.write_bytes(data)
        flip(path, seed.choice([seed.randrange(3 * 4096), seed.randrange(len(data))]))
        assert dump(grown) == grown.before
    assert damaged(grown)


KILLED = """
import os, duckdb
connection = duckdb.connect({path!r})
connection.execute("insert into journal values ({seq}, {hash!r}, 'note', 't', 'a', 'now')")
os._exit(9)
"""


@pytest.mark.parametrize("harm", ["none", "zeroed", "cut", "gone"])
def test_a_write_ahead_log_left_behind_costs_nothing(grown, harm):
    """A writer was killed between commit and checkpoint: the log holds its rows; a damaged log holds fewer, and the journal all."""
    line = grown.record({"kind": "note"})
    script = KILLED.format(path=str(grown.catalog.path), seq=line.seq, hash=line.hash)
    subprocess.run([sys.executable, "-c", script], check=False)
    log = grown.catalog.path.with_name("catalog.duckdb.wal")
    data = log.read_bytes()
    if harm == "gone":
        log.unlink()
    elif harm != "none":
        log.write_bytes(bytes(len(data)) if harm == "zeroed" else data[: len(data) // 2])
    assert grown.catalog.read(grown, lambda c: c.execute("select count(*) from journal").fetchone()) == (len(grown.journal),)
    grown.catalog.rebuild(grown)
    assert not log.exists()
    assert len(queries.log(grown, None)) == 3


def test_a_foreign_program_in_the_file_is_named_and_not_fought(grown):
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import duckdb; c = duckdb.connect({str(grown.catalog.path)!r}); print('open', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(Locked, match="another program has the catalog open"):
            queries.log(grown, None)
    finally:
        holder.communicate("\n")
    assert len(queries.log(grown, None)) == 3
    assert damaged(grown) == []


def test_nothing_keeps_the_file_open(grown):
    queries.log(grown, None)
    assert grown.locks.held == []
    script = f"import duckdb; duckdb.connect({str(grown.catalog.path)!r}).execute('create table mine (a integer)')"
    subprocess.run([sys.executable, "-c", script], check=True)


# --- rebuilding ----------------------------------------------------------------------------------------------


def test_a_rebuild_gives_identical_rows_and_drops_the_old_file(grown):
    before = grown.catalog.path.stat().st_ino
    grown.catalog.rebuild(grown)
    assert grown.catalog.path.stat().st_ino != before
    assert dump(grown) == grown.before
    assert damaged(grown) == []
    assert list((grown.path / "tmp").iterdir()) == []


def test_a_rebuild_takes_the_lock_only_for_the_swap(grown, monkeypatch):
    """What is journaled while the new file is built is in it."""
    original = grown.journal.records
    late = []

    def records(after_seq=0):
        yield from list(original(after_seq))
        if not late:
            late.append(grown.commit(tensors={"w": "late"}))

    monkeypatch.setattr(grown.journal, "records", records, raising=False)
    grown.locks.taken.clear()
    grown.catalog.rebuild(grown)
    assert grown.locks.taken == ["exclusive catalog"]
    assert grown.catalog.applied() == grown.journal.head()
    assert queries.log(grown, late)[0].commit == late[0]


def test_of_two_that_find_the_catalog_missing_one_builds_it(grown, monkeypatch):
    """The other finds it built when it gets the lock, and leaves it."""
    grown.catalog.path.unlink()
    original, built = grown.journal.records, []

    def records(after_seq=0):
        if not built:
            built.append(None)
            Catalog(grown.catalog.path, OpenLocks()).rebuild(grown)
            built[0] = grown.catalog.path.stat().st_ino
        return original(after_seq)

    monkeypatch.setattr(grown.journal, "records", records, raising=False)
    assert len(queries.log(grown, None)) == 3
    assert grown.catalog.path.stat().st_ino == built[0]
    assert damaged(grown) == []


def test_a_rebuild_that_fails_leaves_the_old_catalog(grown, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fs, "rename", fail)
    grown.journal.pop()  # else the old file would be removed, not renamed
    with pytest.raises(OSError, match="No space left"):
        grown.catalog.rebuild(grown)
    assert grown.catalog.path.exists()
    assert list((grown.path / "tmp").iterdir()) == []


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


# --- log -----------------------------------------------------------------------------------------------------


@pytest.fixture
def forked(history):
    a = history.commit(tensors={"w": "1"}, op="import", message="a", metrics={"facts": {"accuracy": 0.5}})
    b = history.commit(a, tensors={"w": "2"}, op="unlearn.ssd", message="b")
    c = history.commit(a, tensors={"w": "3"}, branch="dev", message="c")
    d = history.commit(b, c, tensors={"w": "4"}, op="merge", message="d")
    e = history.commit(d, tensors={"w": "5"}, op="unlearn", message="e")
    history.names = {"a": a, "b": b, "c": c, "d": d, "e": e}
    return history


def told(rows):
    return "".join(row.message for row in rows)


def test_log_tells_what_lies_behind_newest_first(forked):
    names = forked.names
    assert told(queries.log(forked, [names["e"]])) == "edcba"
    assert told(queries.log(forked, [names["b"]])) == "ba"
    assert told(queries.log(forked, [names["b"], names["c"]])) == "cba"
    assert told(queries.log(forked, None)) == "edcba"
    assert told(queries.log(forked, [names["e"]], 2)) == "ed"
    assert told(queries.log(forked, [names["c"]], 1)) == "c"
    assert queries.log(forked, []) == []
    assert queries.log(forked, ["f" * 64]) == []


def test_log_filters_and_its_rows_still_hang_together(forked):
    rows = queries.log(forked, [forked.names["e"]], op="unlearn")
    assert told(rows) == "eb"
    assert rows[0].parent_seqs == [rows[1].seq]
    assert told(queries.log(forked, [forked.names["e"]], op="unlearn.ssd")) == "b"
    assert told(queries.log(forked, [forked.names["e"]], op="unl")) == ""
    assert told(queries.log(forked, [forked.names["e"]], 1, op="unlearn")) == "e"
    assert told(queries.log(forked, [forked.names["e"]], since=queries.log(forked, None)[1].time)) == "ed"


def test_log_shows_a_metric_as_the_commit_says_it_or_as_measured_later(forked):
    forked.evaluate(forked.names["d"], many(2), metrics={"accuracy": 0.75})
    forked.evaluate(forked.names["a"], many(2), metrics={"accuracy": 0.1})
    rows = queries.log(forked, [forked.names["e"]], metrics=["facts.accuracy", "facts.nothing"])
    assert [row.metrics for row in rows] == [[None, None], [0.75, None], [None, None], [None, None], [0.5, None]]
    with pytest.raises(BadParameter, match="does not name a metric"):
        queries.log(forked, None, metrics=["accuracy"])


def test_details_hold_the_whole_commit(forked):
    detail = queries.commit_detail(forked, forked.names["d"])
    assert (detail.record["op"]["name"], detail.branch, detail.codecs, detail.tensors_changed) == ("merge", "main", {"ref": 1}, 1)
    assert detail.record["parents"] == [forked.names["b"], forked.names["c"]]
    with pytest.raises(RefNotFound):
        queries.commit_detail(forked, "f" * 64)


def test_the_lineage_macro_agrees_with_the_log(forked):
    rows = forked.catalog.query(forked, "select message from lineage('heads/dev')").rows
    assert [row[0] for row in rows] == ["c", "a"]
    rows = forked.catalog.query(forked, "select message from lineage(?)", [forked.names["e"]]).rows
    assert "".join(row[0] for row in rows) == "edcba"


def test_storage_is_counted_by_operation_and_branch(forked):
    assert {row.key: (row.objects, row.bytes_logical) for row in queries.storage(forked, "branch")} == {"main": (4, 128), "dev": (1, 32)}
    assert {row.key for row in queries.storage(forked, "op")} == {"import", "unlearn.ssd", "update", "merge", "unlearn"}
    with pytest.raises(BadParameter):
        queries.storage(forked, "colour")


def test_the_catalog_is_imported_without_a_database():
    code = "import sys, mlc.registry.catalog, mlc.registry.catalog.queries, mlc.registry.catalog.console, mlc.registry.lineage\n"
    code += "print([m for m in ('duckdb', 'pyarrow', 'numpy', 'torch', 'pydantic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
