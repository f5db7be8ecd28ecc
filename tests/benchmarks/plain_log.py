"""The yardstick for `mlc log`: one typer command, one DuckDB query, one rich table over as many rows."""

from __future__ import annotations

import duckdb
import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer()


@app.command()
def log(database: str) -> None:
    """Print every row."""
    connection = duckdb.connect(database, read_only=True)
    rows = connection.execute("select id, op, author, time, message from commits order by time desc").fetchall()
    table = Table("id", "op", "author", "time", "message")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    app()
