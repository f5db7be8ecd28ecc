"""`mlc revert`: one change goes, what came after it stays."""

from __future__ import annotations

from typing import Annotated

import typer

from ..conduct import conduct
from ..context import Session
from ..options import Mutation, NeededRev


def run(
    session: Session,
    rev: NeededRev,
    how: Mutation,
    parent: Annotated[int | None, typer.Option(metavar="N", help="Of a merge: which parent's side to return to.", min=1)] = None,
) -> None:
    """Take one commit's change back."""
    from ...policies import lifecycle

    conduct(
        session,
        lambda: lifecycle.revert(session.repo, rev, parent=parent, **how.arguments(session, "revert")),
        hint=lambda commit: f"mlc diff {commit['parents'][0][:12]} {commit['short']}",
    )
