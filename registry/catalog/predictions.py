"""Prediction rows, from an evaluation's columnar object into the catalog, slice by slice.

Each slice is one short transaction under the exclusive lock, with its own line in `loaded`: a crash between slices leaves a
prefix, and the next call goes on from there. No row passes through Python.
"""

from __future__ import annotations

from typing import Any

from ..errors import CorruptRecord
from .connection import transaction

SLICE = 25_000  # rows of one transaction: 30 ms of one core, opening and checkpoint included, while a reader may wait 100 ms


def unfinished(connection: Any, evaluation: int | None = None) -> list[tuple[int, str, int]]:
    """(evaluation, predictions object, rows already in) of every measurement whose last slice is not in, or of the one that is named."""
    query = """
        select m.evaluation, m.predictions, coalesce(l.rows, 0) from measurements m
        left join (select evaluation, sum(rows)::bigint as rows, bool_or(last) as done from loaded group by evaluation) l using (evaluation)
        where not coalesce(l.done, false) and (?::bigint is null or m.evaluation = ?) order by m.evaluation"""
    return connection.execute(query, [evaluation, evaluation]).fetchall()


def read_table(data: bytes, name: str) -> Any:
    """The Arrow table of a predictions object, in the catalog's columns. Raises CorruptRecord when it is not one."""
    import pyarrow as pa

    schema = pa.schema(
        [
            ("example", pa.string()),
            ("answer", pa.string()),
            ("correct", pa.bool_()),
            ("score", pa.float64()),
            ("logprob", pa.float64()),
            ("slice", pa.string()),
        ]
    )
    try:
        with _reader(pa, data) as reader:
            table = reader.read_all()
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError, OSError) as fault:
        raise CorruptRecord(f"predictions {name} are not a table of the expected columns", hint="mlc fsck --level 2") from fault


def _reader(pa: Any, data: bytes) -> Any:
    magic = b"ARROW1"
    return pa.ipc.open_file(data) if data[: len(magic)] == magic else pa.ipc.open_stream(data)


def insert_all(connection: Any, evaluation: int, table: Any) -> None:
    """All slices of one evaluation, each a transaction: for a file that nobody else sees."""
    last, first = False, 0
    while not last:
        with transaction(connection):
            last = insert_slice(connection, evaluation, table, first)
        first += SLICE


def insert_slice(connection: Any, evaluation: int, table: Any, first: int) -> bool:
    """Insert the slice that begins at row `first`; True when it was the last. The caller holds the transaction."""
    part = table.slice(first, SLICE)
    last = first + part.num_rows >= table.num_rows
    if part.num_rows:
        connection.register("incoming", part)
        connection.execute("insert into predictions select ?::bigint, * from incoming", [evaluation])
        connection.unregister("incoming")
    connection.execute("insert into loaded values (?, ?, ?, ?)", [evaluation, first, part.num_rows, last])
    return last
