"""The read-only SQL console: what people and policy rules may ask. One statement that only reads, no files, a time limit."""

from __future__ import annotations

import datetime
import decimal
import math
import threading
from typing import Any

from ..errors import BadParameter
from .connection import Rows, duckdb_error, is_damage, one_line

TIME_LIMIT = 20.0  # seconds: below the 30 s after which a waiting writer gives up


def console(repo: Any, sql: str, *, limit: int | None = None, seconds: float = TIME_LIMIT) -> Rows:
    """Columns and rows of one SELECT (or DESCRIBE, SHOW, SUMMARIZE, EXPLAIN), as values that JSON can say.

    Prediction rows are complete when the query runs. `limit` bounds the rows that come back. Raises BadParameter with DuckDB's
    sentence for a query that is wrong, that would write or read files, that is more than one statement, or that takes too long.
    """
    import duckdb

    def ask(connection: Any) -> Rows:
        _check(connection, sql)
        alarm = threading.Timer(seconds, connection.interrupt)
        alarm.start()
        try:
            cursor = connection.execute(sql)
            rows = cursor.fetchall() if limit is None else cursor.fetchmany(limit)
            return Rows([column[0] for column in cursor.description], [tuple(_plain(value) for value in row) for row in rows])
        finally:
            alarm.cancel()

    try:
        if any(word in sql.lower() for word in ("predictions", "flips", "loaded")):
            return repo.catalog.read_loaded(repo, None, ask)
        return repo.catalog.read(repo, ask)
    except duckdb.InterruptException as fault:
        raise BadParameter(f"the query took more than {seconds:g} s and was stopped", hint="narrow it with where or limit") from fault
    except duckdb_error() as fault:
        if is_damage(fault):
            raise
        raise BadParameter(one_line(fault), hint='mlc sql "show tables" lists what there is') from fault


def _check(connection: Any, sql: str) -> None:
    import duckdb

    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise BadParameter(f"one statement at a time, not {len(statements)}", hint='mlc sql "select ..."')
    if statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
        raise BadParameter("the console only reads: SELECT, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN", hint='mlc sql "select ..."')


def _plain(value: Any) -> Any:
    """A JSON value: whole decimals as integers, dates as ISO text, bytes as hex, what is not finite as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value)
