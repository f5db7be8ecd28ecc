"""`mlc accept`: a person overrules a rule, in writing."""

from __future__ import annotations

from typing import Annotated

import typer

from ..conduct import conduct
from ..context import Session
from ..options import Author, NeededRev


def run(
    session: Session,
    rev: NeededRev,
    waive: Annotated[list[str] | None, typer.Option(metavar="RULE", help="The rule to let pass. May be repeated.")] = None,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why; kept with the verdict for ever.")] = None,
    until: Annotated[str | None, typer.Option(metavar="DATE", help="When the waiver ends, such as 2026-12-31.")] = None,
    branch: Annotated[str | None, typer.Option(metavar="NAME", help="Start this branch there instead of moving the candidate's.")] = None,
    author: Author = None,
) -> None:
    """Promote a refused candidate with a waiver and a reason."""
    from ...policies import lifecycle

    conduct(
        session,
        lambda: lifecycle.accept(
            session.repo, rev, waive=waive or [], reason=reason or "", until=until, branch=branch, author=session.author(author),
            config=session.settings, progress=session.progress,
        ),
        hint=lambda commit: f"mlc show {commit['short']}",
    )  # fmt: skip
