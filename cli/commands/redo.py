"""`mlc redo`: refs only; commits and their bytes stay where they are."""

from __future__ import annotations

from ..context import Session
from ..options import Author
from ..render.refs import show_moves


def run(session: Session, author: Author = None) -> None:
    """Repeat a move that was undone."""
    show_moves(session, session.repo.redo(session.author(author)))
    session.hint("mlc undo")
