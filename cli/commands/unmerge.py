"""`mlc unmerge`: one ingredient of a merge goes, the others stay as if it had never been there."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ...registry.errors import BadParameter
from ..conduct import conduct
from ..context import Session
from ..options import Mutation, NeededRev, complete_rev

EPILOG = """Examples:
  mlc unmerge main --remove feature
  mlc unmerge main --remove main^2                        the second parent of the merge
  mlc unmerge v1.2 --remove a3f81c --branch without-a     of an older merge, on a branch of its own
  mlc unmerge main --only feature --branch alone          one adapter back, from an rmm merge"""


def run(
    session: Session,
    rev: NeededRev,
    how: Mutation,
    remove: Annotated[
        str | None, typer.Option(metavar="REV", help="The ingredient to take out.", show_default=False, autocompletion=complete_rev)
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="REV", help="Rebuild this ingredient from what an rmm merge keeps.", autocompletion=complete_rev),
    ] = None,
) -> None:
    """Take one ingredient out of a merge, to the byte."""
    from ...policies.unmerging import rebuild, unmerge

    if (remove is None) == (only is None):
        raise BadParameter("either --remove or --only names an ingredient", hint=f"mlc unmerge {rev} --remove REV")

    def work() -> Any:
        if only is not None:
            return rebuild(session.repo, rev, only=only, **how.arguments(session, "unmerge"))
        return unmerge(session.repo, rev, remove=remove or "", **how.arguments(session, "unmerge"))

    def proof(outcome: Any) -> str:
        if only is not None:
            stated = outcome.check["rmm"]
            return f"Rebuilt with a relative error of {stated['error']:.2g}" + (", byte for byte." if stated.get("same_bytes") else ".")
        left = outcome.commit.op.params["ingredients"]
        what = "the merge of " if len(left) > 1 else ""
        return f"Snapshot {outcome.commit.snapshot} is that of {what}{', '.join(one[:12] for one in left)}."

    conduct(
        session,
        work,
        hint=lambda commit: f"mlc diff {commit['parents'][0][:12]} {commit['short']} --flips",
        proof=proof,
    )
