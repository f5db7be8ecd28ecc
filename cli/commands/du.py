"""`mlc du`: what history costs on disk."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from ..context import Session
from ..render.text import percent, size


def run(
    session: Session,
    by: Annotated[Literal["codec", "op", "branch"], typer.Option(metavar="codec|op|branch", help="How to split the total.")] = "codec",
) -> None:
    """Show what the registry stores and what sharing saves."""
    from ...registry.maintenance.du import du

    document = du(session.repo, by).to_json()
    session.show(document, lambda: _render(session, document, by))
    session.hint("mlc fsck")


def _render(session: Session, document: dict[str, Any], by: str) -> None:
    from ..render.console import print_table

    total = document["total_bytes"]
    session.line(
        f"{size(total)} on disk for {size(document['logical_bytes'])} of versions"
        + (f" ({_ratio(document['ratio'])})." if document["ratio"] is not None else ".")
    )
    parts = ", ".join(f"{name} {size(part)}" for name, part in document["parts"].items() if part)
    session.line(session.paint.dim(f"{parts}."))
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


def _ratio(value: float) -> str:
    return percent(value) if value < 1 else f"{value:.1f} times as much"
