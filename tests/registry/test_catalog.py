"""The catalog file: always as far as the journal, whatever happened to it; opened under our lock and never kept open."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from mlc.registry import fs
from mlc.registry.catalog import Catalog, CatalogFault, connection, queries
from mlc.registry.errors import Locked
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


def test_the_catalog_is_imported_without_a_database():
    code = "import sys, mlc.registry.catalog, mlc.registry.catalog.queries, mlc.registry.catalog.console, mlc.registry.lineage\n"
    code += "print([m for m in ('duckdb', 'pyarrow', 'numpy', 'torch', 'pydantic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
