"""`mlc rollback`: history goes on; content goes back."""

from __future__ import annotations

from typing import Any

from ..conduct import conduct
from ..context import Session
from ..options import Mutation, NeededRev


def run(session: Session, rev: NeededRev, how: Mutation) -> None:
    """Return a branch to an earlier version's content, proven by digest."""
    from ...policies import lifecycle

    repo = session.repo

    def proof(outcome: Any) -> str:
        wanted = repo.commit(repo.resolve(rev)).snapshot
        return f"Snapshot {outcome.commit.snapshot} {'is that of' if outcome.commit.snapshot == wanted else 'is NOT that of'} {rev}."

    conduct(session, lambda: lifecycle.rollback(repo, rev, **how.arguments(session)), hint=lambda _: "mlc log -n 5", proof=proof)
