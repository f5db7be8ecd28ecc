"""`mlc unmerge`: one ingredient of a merge goes, the others stay as if it had never been there."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..conduct import conduct
from ..context import Session
from ..options import Mutation, NeededRev, complete_rev

EPILOG = """Examples:
  mlc unmerge main --remove feature
  mlc unmerge main --remove main^2                        the second parent of the merge
  mlc unmerge v1.2 --remove a3f81c --branch without-a     of an older merge, on a branch of its own"""


def run(
    session: Session,
    rev: NeededRev,
    how: Mutation,
    remove: Annotated[
        str, typer.Option(metavar="REV", help="The ingredient to take out.", show_default=False, autocompletion=complete_rev)
    ],
) -> None:
    """Take one ingredient out of a merge, to the byte."""
    from ...policies.unmerging import unmerge

    def proof(outcome: Any) -> str:
        left = outcome.commit.op.params["ingredients"]
        return f"Snapshot {outcome.commit.snapshot} is that of the merge of {', '.join(one[:12] for one in left)}."

    conduct(
        session,
        lambda: unmerge(session.repo, rev, remove=remove, **how.arguments(session, "unmerge")),
        hint=lambda commit: f"mlc diff {commit['parents'][0][:12]} {commit['short']} --flips",
        proof=proof,
    )
