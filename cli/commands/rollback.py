"""`mlc rollback`: history goes on; content goes back."""

from __future__ import annotations

from ..conduct import conduct, proven
from ..context import Session
from ..options import Mutation, NeededRev


def run(session: Session, rev: NeededRev, how: Mutation) -> None:
    """Return a branch to an earlier version's content, proven by digest."""
    from ...policies import lifecycle

    conduct(
        session,
        lambda: lifecycle.rollback(session.repo, rev, **how.arguments(session, "rollback")),
        hint=lambda _: "mlc log -n 5",
        proof=proven,
    )
