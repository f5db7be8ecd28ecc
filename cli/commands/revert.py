"""`mlc revert`: one change goes, what came after it stays. Of an edit, single facts can go."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ...registry.errors import BadParameter
from ..conduct import conduct
from ..context import Session
from ..options import Mutation, NeededRev

EPILOG = """Examples:
  mlc revert HEAD
  mlc revert 3f2a9c81d0e4
  mlc revert 3f2a9c81d0e4 --fact 17 --fact 20     of an edit: these facts go, its others stay"""


def run(
    session: Session,
    rev: NeededRev,
    how: Mutation,
    parent: Annotated[int | None, typer.Option(metavar="N", help="Of a merge: which parent's side to return to.", min=1)] = None,
    fact: Annotated[list[str] | None, typer.Option(metavar="ID", help="Of an edit: take back this fact alone; may be repeated.")] = None,
) -> None:
    """Take one commit's change back."""
    from ...policies import lifecycle
    from ...policies.unedit import revert_facts

    if fact and parent is not None:
        raise BadParameter("--fact and --parent cannot be combined: an edit has one parent.", hint="mlc revert --help")

    def work() -> lifecycle.Outcome:
        common = how.arguments(session, "revert")
        if fact:
            return revert_facts(session.repo, rev, tuple(fact), **common)
        return lifecycle.revert(session.repo, rev, parent=parent, **common)

    def measured(check: dict[str, Any]) -> None:
        from ..render.edit import taken_back_lines

        session.lines(taken_back_lines(check, session.paint))

    def means(outcome: Any) -> str:
        return f"Means: {outcome.commit.check['means']}." if outcome.commit.check.get("means") else ""

    conduct(
        session,
        work,
        hint=lambda commit: f"mlc diff {commit['parents'][0][:12]} {commit['short']}",
        measured=measured if fact else None,
        proof=means,
    )
