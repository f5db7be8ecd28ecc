"""Rows into tables, a column at a time. Types come from the tables themselves, so that schema.sql is their only home."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

BULK = 2000  # rows of one table; from here on Arrow's 0.2 s of import is earned back (80,000 rows/s through lists, 700,000 through Arrow)


class Inserter:
    """Collects rows per table and writes them in one statement per table. No order among tables: nothing refers by key."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._pending: dict[str, list[Sequence[Any]]] = {}
        self._types: dict[str, list[tuple[str, str]]] = {}

    def add(self, table: str, *row: Any) -> None:
        """One row, in the order of the table's columns."""
        self._pending.setdefault(table, []).append(row)

    def extend(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Several rows of one table."""
        self._pending.setdefault(table, []).extend(rows)

    def flush(self) -> None:
        """Write everything collected. The caller holds the transaction."""
        for table, rows in self._pending.items():
            if len(rows) >= BULK:
                self._insert_arrow(table, rows)
            elif rows:
                self._insert_lists(table, rows)
        self._pending.clear()

    def _columns(self, table: str) -> list[tuple[str, str]]:
        """Name and type of each column; asked of an empty answer, twenty times quicker than of the system tables."""
        if table not in self._types:
            self._types[table] = [(column[0], str(column[1])) for column in self._connection.execute(f"from {table} limit 0").description]
        return self._types[table]

    def _insert_lists(self, table: str, rows: list[Sequence[Any]]) -> None:
        columns = ", ".join(f"unnest(?::{kind}[])" for _, kind in self._columns(table))
        self._connection.execute(f"insert into {table} select {columns}", [list(column) for column in zip(*rows, strict=True)])

    def _insert_arrow(self, table: str, rows: list[Sequence[Any]]) -> None:
        import pyarrow as pa

        columns = zip(self._columns(table), zip(*rows, strict=True), strict=True)
        data = pa.table({name: pa.array(list(values), type=_arrow_type(kind)) for (name, kind), values in columns})
        self._connection.register("incoming", data)
        self._connection.execute(f"insert into {table} select * from incoming")
        self._connection.unregister("incoming")


def _arrow_type(kind: str) -> Any:
    import pyarrow as pa

    if kind.endswith("[]"):
        return pa.list_(_arrow_type(kind[:-2]))
    return {
        "VARCHAR": pa.string(),
        "JSON": pa.string(),
        "BIGINT": pa.int64(),
        "INTEGER": pa.int32(),
        "DOUBLE": pa.float64(),
        "BOOLEAN": pa.bool_(),
    }[kind]
