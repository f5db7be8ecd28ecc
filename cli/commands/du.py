"""`mlc du`: what history costs on disk."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ..context import Session


def run(
    session: Session,
    by: Annotated[Literal["codec", "op", "branch"], typer.Option(metavar="codec|op|branch", help="How to split the total.")] = "codec",
) -> None:
    """Show what the registry stores and what sharing saves."""
    from ...registry.maintenance.du import du

    usage = du(session.repo, by)
    document = {
        "total_bytes": usage.total_bytes,
        "logical_bytes": usage.logical_bytes,
        "ratio": usage.ratio,
        "by": {row.key: {"objects": row.objects, "bytes_logical": row.bytes_logical, "bytes_stored": row.bytes_stored} for row in usage.by},
    }
    session.show(document, lambda: _render(session, document, by))
    session.hint("mlc fsck")


def _render(session: Session, document: dict, by: str) -> None:
    from ..render.console import print_table
    from ..render.text import percent, size

    total = document["total_bytes"]
    session.line(
        f"{size(total)} on disk for {size(document['logical_bytes'])} of versions"
        + (f" ({percent(document['ratio'])})." if document["ratio"] is not None else ".")
    )
    rows = [
        (
            key,
            f"{row['objects']:,}",
            size(row["bytes_logical"]),
            size(row["bytes_stored"]),
            percent(row["bytes_stored"] / total if total else 0),
        )
        for key, row in document["by"].items()
    ]
    if rows:
        print_table(session.console(), (by, "objects", "content", "stored", "share"), rows, right=("objects", "content", "stored", "share"))
