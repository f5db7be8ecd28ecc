"""The catalog as a whole: one file, opened only under our own lock, for one short transaction.

Freshness. Every opening compares (applied_seq, head) with the journal. Equal: go. Behind: the missing records are projected.
Ahead, of another history, of another schema, or not openable: file and write-ahead log are set aside in quarantine and the catalog is
rebuilt. Readers do this too, under the exclusive lock, because a wrong answer is worse than a slow one; where the registry cannot be
written, a reader replays the journal into memory and says so in `repo.warnings`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from .. import fs
from ..errors import IntegrityError
from ..journal_lines import JournalRecord
from .connection import CatalogFault, Damaged, Rows, State, applied, duckdb_error, is_damage, memory, one_line, reader, transaction, writer
from .predictions import insert_all, insert_slice, read_table, unfinished
from .projection import project
from .source import RepositorySource

T = TypeVar("T")
BATCH = 4000  # records of one transaction in a file that nobody else sees: bounds memory
TAIL = 16  # records of one transaction in the live file: bounds the time under the lock
FAR = 1000  # records behind: from here on a rebuild beside the live file is kinder to readers
PATIENCE = 0.02  # seconds a reader gives a writer that stands between its journal record and its projection


class Catalog:
    """The DuckDB projection of one repository. `repo` arguments need `.path`, `.journal`, `.objects` and `.warnings`."""

    def __init__(self, path: Path, locks: Any) -> None:
        self.path = path
        self._locks = locks

    # --- reading -----------------------------------------------------------------------------------------

    def read(self, repo: Any, work: Callable[[Any], T]) -> T:
        """What `work(connection)` answers from a catalog that holds all of the journal. `work` must not keep the connection."""
        for attempt in range(3):
            inode = self._inode()
            try:
                with self._locks.shared("catalog"), reader(self.path) as connection:
                    state = applied(connection)
                    if state[:2] == tuple(repo.journal.head()):
                        _warn(repo, state)
                        return work(connection)
            except Damaged:
                break
            except duckdb_error() as fault:
                if not is_damage(fault):
                    raise
                self._set_aside(inode)
                break
            if attempt < 2:
                time.sleep(PATIENCE)  # a writer projects its record itself, and its turn comes before ours
        return self._read_after_repair(repo, work)

    def read_loaded(self, repo: Any, evaluations: set[int] | None, work: Callable[[Any], T]) -> T:
        """As `read`, with all prediction rows of these evaluations (None: of every one) in place. Raises also IntegrityError."""
        for _ in range(2):
            answer: list[T] = []

            def ask(connection: Any, answer: list[T] = answer) -> list[int]:
                missing = [row[0] for row in unfinished(connection) if evaluations is None or row[0] in evaluations]
                if not missing:
                    answer.append(work(connection))
                return missing

            missing = self.read(repo, ask)
            if answer:
                return answer[0]
            for number in missing:
                self.load_predictions(repo, number)
        raise CatalogFault("prediction rows do not stay in the catalog", hint="mlc reindex")

    def query(self, repo: Any, sql: str, parameters: Iterable[Any] = ()) -> Rows:
        """Column names and rows of one query of ours (what people type goes through `console`)."""

        def ask(connection: Any) -> Rows:
            cursor = connection.execute(sql, list(parameters))
            return Rows([column[0] for column in cursor.description], cursor.fetchall())

        return self.read(repo, ask)

    def warm(self) -> None:
        """Load DuckDB: a writer does so before it takes a lock."""
        duckdb_error()

    def applied(self) -> tuple[int, str]:
        """(seq, hash) of the last journal record in the file; (0, "") when there is no usable file."""
        try:
            with self._locks.shared("catalog"), reader(self.path) as connection:
                return applied(connection)[:2]
        except Damaged:
            return 0, ""

    def _read_after_repair(self, repo: Any, work: Callable[[Any], T]) -> T:
        if os.access(self.path.parent, os.W_OK):
            try:
                self.apply(repo)
                with self._locks.shared("catalog"), reader(self.path) as connection:
                    _warn(repo, applied(connection))
                    return work(connection)
            except duckdb_error() as fault:
                if not is_damage(fault):
                    raise
                raise CatalogFault(f"the catalog could not answer: {one_line(fault)}", hint="mlc reindex") from fault
            except (CatalogFault, fs.ReadOnlyRegistry, fs.DiskFull, fs.DiskFault, OSError) as fault:
                reason = str(fault)
        else:
            reason = "this registry cannot be written"
        repo.warnings.append(f"the catalog is behind the journal ({reason}); the answer was put together in memory")
        with memory() as connection:
            _project_all(connection, repo)
            return work(connection)

    # --- writing -----------------------------------------------------------------------------------------

    def apply(self, repo: Any, records: Iterable[JournalRecord] = ()) -> None:
        """Project the journal's records that the catalog lacks; `records` are those the caller has at hand.

        Prediction rows are left to `load_predictions`. Raises CatalogFault; the journal stands, and the next reader or writer tries again.
        """
        at_hand = list(records)
        try:
            while self._apply_some(repo, at_hand):
                at_hand = []
        except Damaged:
            self.rebuild(repo, unless_current=True)
        except duckdb_error() as fault:
            raise CatalogFault(f"the catalog could not be written: {one_line(fault)}", hint="mlc reindex") from fault

    def refresh(self, repo: Any) -> None:
        """Everything that the journal has, prediction rows included, is in the catalog afterwards."""
        self.apply(repo)
        self.load_predictions(repo)

    def load_predictions(self, repo: Any, evaluation: int | None = None) -> None:
        """Load the prediction rows that are not in yet: all, or those of one evaluation. Each slice is a transaction of its own.

        Raises MissingObject, HashMismatch or CorruptRecord for the columnar object, CatalogFault for the catalog.
        """
        for number, digest, _ in self.read(repo, lambda connection: unfinished(connection, evaluation)):
            table = read_table(RepositorySource(repo).predictions(digest), digest)
            while self._load_slice(number, table):
                pass

    def rebuild(self, repo: Any, *, unless_current: bool = False) -> None:
        """Build the catalog again from objects and journal, beside the old one, and put it in the old one's place.

        Identical rows; a damaged catalog is kept in quarantine. `unless_current`: somebody else may have done it meanwhile, which is
        as good. Raises CatalogFault.
        """
        scratch = self.path.parent / "tmp" / f"reindex-{os.getpid()}-{secrets.token_hex(4)}"
        fs.make_dir(scratch)
        fresh = scratch / "catalog.duckdb"
        try:
            with writer(fresh) as connection:
                _project_all(connection, repo)
                state = applied(connection)
            with self._locks.exclusive("catalog"):
                if unless_current and self._is_current(repo):
                    return
                if state[:2] != tuple(repo.journal.head()):  # something was journaled while we built
                    with writer(fresh) as connection:
                        project(connection, RepositorySource(repo), _after(repo, state), TAIL)
                self._retire(repo)
                fs.rename(fresh, self.path)
                fs.fsync_dir(self.path.parent)
        except duckdb_error() as fault:
            raise CatalogFault(f"the catalog could not be rebuilt: {one_line(fault)}", hint="free some space, then: mlc reindex") from fault
        finally:
            fs.remove_tree(scratch)

    # --- one step of each --------------------------------------------------------------------------------

    def _apply_some(self, repo: Any, at_hand: list[JournalRecord]) -> bool:
        """Project one short transaction's worth; True when there is more to do."""
        with self._locks.exclusive("catalog"):
            if not self.path.exists():
                raise Damaged("there is no catalog yet")
            with writer(self.path) as connection:
                state, head = applied(connection), repo.journal.head()
                if at_hand and at_hand[0].seq == state.seq + 1 and (not state.seq or at_hand[0].prev == state.head):
                    missing: Iterable[JournalRecord] = at_hand
                elif state[:2] == tuple(head):
                    return False
                elif head[0] - state.seq > FAR:
                    raise Damaged("the catalog is far behind the journal")
                else:
                    missing = itertools.islice(_after(repo, state), TAIL)
                return state.seq + project(connection, RepositorySource(repo), missing, TAIL) < head[0]

    def _load_slice(self, number: int, table: Any) -> bool:
        """Load the next slice of an evaluation; True when there may be another."""
        try:
            with self._locks.exclusive("catalog"), writer(self.path) as connection:
                state = unfinished(connection, number)
                if not state:
                    return False  # somebody else was quicker
                with transaction(connection):
                    return not insert_slice(connection, number, table, state[0][2])
        except duckdb_error() as fault:
            raise CatalogFault(f"the catalog could not be written: {one_line(fault)}", hint="mlc reindex") from fault

    # --- files -------------------------------------------------------------------------------------------

    def _inode(self) -> int | None:
        try:
            return self.path.stat().st_ino
        except OSError:
            return None

    def _is_current(self, repo: Any) -> bool:
        try:
            with reader(self.path) as connection:
                return applied(connection)[:2] == tuple(repo.journal.head())
        except (Damaged, duckdb_error()):
            return False

    def _set_aside(self, inode: int | None) -> None:
        """Quarantine the file that just failed, unless somebody has replaced it since."""
        if not os.access(self.path.parent, os.W_OK):
            return
        with self._locks.exclusive("catalog"):
            if inode is not None and self._inode() == inode:
                self._quarantine()

    def _retire(self, repo: Any) -> None:
        """Make room for a rebuilt catalog: a sound one is dropped, it says nothing that the new one does not; any other is evidence."""
        try:
            with reader(self.path) as connection:
                _after(repo, applied(connection))
        except (Damaged, duckdb_error()):
            return self._quarantine()
        for path in reversed(self._files()):  # the log first: without its file it would be replayed into the next one
            fs.remove(path)

    def _quarantine(self) -> None:
        files = self._files()
        if files:
            place = self.path.parent / "quarantine" / f"catalog-{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(4)}"
            fs.make_dir(place)
            for path in reversed(files):
                fs.rename(path, place / path.name)
            fs.fsync_dir(place)

    def _files(self) -> list[Path]:
        return [path for path in (self.path, self.path.with_name(self.path.name + ".wal")) if path.exists()]


def _project_all(connection: Any, repo: Any) -> None:
    """The whole journal into an empty catalog. Predictions that cannot be read are left out: asking for them names the fault."""
    source = RepositorySource(repo)
    project(connection, source, repo.journal.records(), BATCH)
    for number, digest, _ in unfinished(connection):
        with contextlib.suppress(IntegrityError):
            insert_all(connection, number, read_table(source.predictions(digest), digest))


def _after(repo: Any, state: State) -> Iterator[JournalRecord]:
    """The journal's records after those in the catalog. Raises Damaged when the catalog tells another history than the journal."""
    records = iter(repo.journal.records(max(state.seq - 1, 0)))
    if state.seq:
        last = next(records, None)
        if last is None or (last.seq, last.hash) != (state.seq, state.head):
            raise Damaged("the catalog tells another history than the journal")
    return records


def _warn(repo: Any, state: State) -> None:
    sentence = f"{state.unreadable} objects could not be read when the catalog was built: rows are missing; see mlc fsck"
    if state.unreadable and sentence not in repo.warnings:
        repo.warnings.append(sentence)
