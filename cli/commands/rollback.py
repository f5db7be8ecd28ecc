"""`mlc rollback`: history goes on; content goes back."""

from __future__ import annotations

from typing import Any

from ..conduct import conduct
from ..context import Session
from ..options import Mutation, NeededRev


def run(session: Session, rev: NeededRev, how: Mutation) -> None:
    """Return a branch to an earlier version's content, proven by digest."""
    from ...policies import lifecycle

    def proof(outcome: Any) -> str:
        equal = outcome.commit.check.get("equal_to")
        return f"Snapshot {outcome.commit.snapshot} is that of {equal[:12]}." if equal else ""

    conduct(
        session,
        lambda: lifecycle.rollback(session.repo, rev, **how.arguments(session, "rollback")),
        hint=lambda _: "mlc log -n 5",
        proof=proof,
    )
