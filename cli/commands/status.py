"""`mlc status`: the question a shell prompt asks, so it reads text files only and opens no catalog."""

from __future__ import annotations

from ..context import Session


def run(session: Session) -> None:
    """Show the current branch, its tip and what is unfinished."""
    session.show({}, lambda: session.line("hello"))
