"""Connections to the catalog file: how DuckDB is opened, and what its faults mean to us.

Nothing here takes a lock: `catalog.py` does, before it calls. DuckDB is imported only when a connection is made, so
that `status` and `refs` never load it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import Locked, MlcError

SCHEMA_NUMBER = 1  # raise it with every change of schema.sql or of what projection writes: catalogs of another number are rebuilt


class CatalogFault(MlcError):
    """The catalog file could not be read or written. History is safe: it stands in the journal."""


class Damaged(CatalogFault):
    """The catalog file cannot be used as it is; it is to be set aside and rebuilt."""


class Rows(NamedTuple):
    """An answer: column names, and rows as tuples of Python values."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


class State(NamedTuple):
    """How far a catalog is: the last journal record in it, and how many objects it could not read while projecting."""

    seq: int
    head: str
    unreadable: int


# threads: two are enough to join 200,000 rows, and a machine with 64 cores need not start 64 of them for a log.
_COMMON = {"threads": "2", "autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
# No query, whoever wrote it, reads a file, attaches a database, loads an extension, sees a variable of Python, or changes this again.
_READER = _COMMON | {"enable_external_access": "false", "python_enable_replacements": "false", "lock_configuration": "true"}


@contextmanager
def reader(path: Path) -> Iterator[Any]:
    """A read-only connection. Raises Damaged when the file cannot be opened, Locked when a foreign program has it."""
    connection = _connect(str(path), read_only=True, config=_READER)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def writer(path: Path) -> Iterator[Any]:
    """A read-write connection, checkpointed when the block ends well; an absent file gets the schema."""
    fresh = not path.exists()
    connection = _connect(str(path), read_only=False, config=_COMMON)
    try:
        if fresh:
            create_schema(connection)
        yield connection
        connection.execute("checkpoint")
    finally:
        connection.close()


@contextmanager
def memory() -> Iterator[Any]:
    """A catalog without a file, for checking and for registries that cannot be written."""
    connection = _connect(":memory:", read_only=False, config=_COMMON)
    try:
        create_schema(connection)
        yield connection
    finally:
        connection.close()


@contextmanager
def transaction(connection: Any) -> Iterator[None]:
    """One transaction. A failed commit has ended it already: only a failure before the commit is rolled back."""
    connection.execute("begin")
    try:
        yield
    except BaseException:
        with contextlib.suppress(duckdb_error()):  # a fatal error has ended it, and the first error is the one to tell
            connection.execute("rollback")
        raise
    connection.execute("commit")


def create_schema(connection: Any) -> None:
    """Make the tables, in one transaction, and checkpoint: DDL never waits in the write-ahead log."""
    with transaction(connection):
        connection.execute(Path(__file__).with_name("schema.sql").read_text(encoding="utf-8"))
        connection.execute("insert into schema_number values (?)", [SCHEMA_NUMBER])
    connection.execute("checkpoint")


def applied(connection: Any) -> State:
    """How far the catalog is; (0, "", 0) when it is empty. Raises Damaged for another schema or none."""
    try:
        [row] = connection.execute("select schema_version, applied_seq, head, unreadable from meta").fetchall()
    except duckdb_catalog_error() as fault:
        raise Damaged("the catalog has no schema of ours") from fault
    if row[0] != SCHEMA_NUMBER:
        raise Damaged(f"the catalog has schema {row[0]}, this program needs {SCHEMA_NUMBER}")
    return State(row[1] or 0, row[2] or "", row[3])


def duckdb_error() -> type[Exception]:
    """The base of DuckDB's errors, for an `except` clause that must not import it at module level."""
    import duckdb

    return duckdb.Error


def duckdb_catalog_error() -> tuple[type[Exception], ...]:
    """A table, view or column that is not there."""
    import duckdb

    return (duckdb.CatalogException, duckdb.BinderException)


def is_damage(fault: BaseException) -> bool:
    """True for a DuckDB error that speaks of the file and not of the query. A wrong checksum comes as the plain base class."""
    import duckdb

    file_faults = (duckdb.IOException, duckdb.InternalException, duckdb.FatalException, duckdb.SerializationException)
    return type(fault) is duckdb.Error or isinstance(fault, file_faults)


def one_line(fault: BaseException) -> str:
    """DuckDB's message without its drawing of where in the query it was."""
    lines = [line.strip() for line in str(fault).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("LINE ", "^"))) or type(fault).__name__


def _connect(path: str, *, read_only: bool, config: dict[str, Any]) -> Any:
    import duckdb

    try:
        return duckdb.connect(path, read_only=read_only, config=config)
    except duckdb.Error as fault:
        if "conflicting lock" in str(fault).lower():
            raise Locked("another program has the catalog open", hint="close it; `mlc sql` asks the catalog and lets go of it") from fault
        raise Damaged(f"the catalog cannot be opened: {one_line(fault)}") from fault
