"""`mlc gate`: the question that every change is asked, asked by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from ..context import Session
from ..judging import judge_pair
from ..options import Rev, complete_rev


def run(
    session: Session,
    rev: Rev = None,
    against: Annotated[
        str | None, typer.Option(metavar="REV", help="What REV would replace.", show_default="its parent", autocompletion=complete_rev)
    ] = None,
) -> None:
    """Ask the policy whether one version may follow another."""
    judge_pair(session, candidate=rev, against=against)
