"""`mlc sql`: the catalog is rows, and rows are for asking."""

from __future__ import annotations

from typing import Annotated

import typer

from ..context import Session
from ..render.text import count

EPILOG = """Examples:
  mlc sql "show tables"
  mlc sql "select commit, value from evaluations where suite = 'known' and metric = 'accuracy'"
  mlc sql "select tensor, rel_l2 from deltas order by rel_l2 desc limit 10" """


def run(
    session: Session,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="One statement that only reads.")],
    limit: Annotated[int | None, typer.Option(metavar="N", help="At most N rows.", min=1)] = None,
) -> None:
    """Ask the catalog a question in SQL, read-only."""
    from ...registry.catalog.console import console

    answer = console(session.repo, query, limit=limit)
    document = {"columns": answer.columns, "rows": [list(row) for row in answer.rows]}
    session.show(document, lambda: _render(session, document))
    session.hint('mlc sql "show tables"')


def _render(session: Session, document: dict) -> None:
    from ..render.console import print_table
    from ..render.text import printable

    rows = [["" if value is None else printable(str(value)) for value in row] for row in document["rows"]]
    numeric = [name for i, name in enumerate(document["columns"]) if any(isinstance(row[i], int | float) for row in document["rows"])]
    print_table(session.console(), document["columns"], rows, right=numeric)
    session.line(session.paint.dim(f"{count(len(rows), 'row')}."))
