"""Do two catalogs hold the same rows? One number per table, whatever the order of its rows."""

from __future__ import annotations

from typing import Any

from .predictions import read_table

Checksum = tuple[int, int]  # rows, sum of their hashes
_LATER = ("predictions", "loaded")  # they follow their evaluation, slice by slice


def table_checksums(connection: Any) -> dict[str, Checksum]:
    """Checksum of every table, but for prediction rows, which may still be on their way in."""
    names = [row[0] for row in connection.execute("select table_name from duckdb_tables() where not internal order by 1").fetchall()]
    return {name: _checksum(connection, name) for name in names if name not in _LATER}


def loaded_checksums(connection: Any) -> dict[int, Checksum]:
    """Checksum of the prediction rows of each evaluation whose last slice is in."""
    query = """
        select evaluation, count(p.example), coalesce(sum(hash(p.example, p.answer, p.correct, p.score, p.logprob, p.slice)::hugeint), 0)
        from (select distinct evaluation from loaded where "last") l left join predictions p using (evaluation) group by evaluation"""
    return {row[0]: row[1:] for row in connection.execute(query).fetchall()}


def object_checksum(connection: Any, data: bytes, name: str) -> Checksum:
    """What `loaded_checksums` says of an evaluation whose columnar object is `data`. Raises CorruptRecord."""
    connection.register("incoming", read_table(data, name))
    try:
        query = "select count(*), coalesce(sum(hash(example, answer, correct, score, logprob, slice)::hugeint), 0) from incoming"
        return connection.execute(query).fetchall()[0]
    finally:
        connection.unregister("incoming")


def _checksum(connection: Any, table: str) -> Checksum:
    return connection.execute(f"select count(*), coalesce(sum(hash(t)::hugeint), 0) from {table} t").fetchall()[0]
