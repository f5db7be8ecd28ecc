"""`mlc undo`: refs only; commits and their bytes stay where they are."""

from __future__ import annotations

from ..context import Session
from ..options import Author
from ..render.refs import show_moves


def run(session: Session, author: Author = None) -> None:
    """Take the last move of refs back."""
    show_moves(session, session.repo.undo(session.author(author)))
    session.hint("mlc redo")
