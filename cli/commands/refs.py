"""`mlc refs`: every name, from the text mirror; no catalog is opened."""

from __future__ import annotations

from typing import Any

from ..context import Session


def run(session: Session) -> None:
    """List branches, tags and aliases."""
    names = session.names
    document = {"head": names.head, "branches": names.branches, "tags": names.tags, "aliases": names.aliases}
    session.show(document, lambda: _render(session, document))


def _render(session: Session, document: dict[str, Any]) -> None:
    paint = session.paint
    rows = [("* " if name == document["head"] else "  ", name, commit, paint.green, "") for name, commit in document["branches"].items()]
    rows += [("  ", name, commit, paint.yellow, "tag") for name, commit in document["tags"].items()]
    rows += [("  ", f"@{name}", commit, paint.magenta, "alias") for name, commit in document["aliases"].items()]
    width = max((len(row[1]) for row in rows), default=0)
    for mark, name, commit, colour, kind in rows:
        session.line(f"{mark}{colour(name.ljust(width))}  {commit[:12]}  {paint.dim(kind)}".rstrip())
    if not rows:
        session.line(f"No commit yet; {document['head']} is where the first import goes.")
        session.hint("mlc import DIR")
