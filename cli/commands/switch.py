"""`mlc switch`: which branch HEAD stands for; no content moves."""

from __future__ import annotations

from typing import Annotated

import typer

from ..context import Session
from ..options import Rev, complete_rev


def run(
    session: Session,
    branch: Annotated[str, typer.Argument(metavar="BRANCH", help="The branch to be on.", autocompletion=complete_rev)],
    rev: Rev = None,
    create: Annotated[bool, typer.Option("--create", "-c", help="Start BRANCH at REV first.")] = False,
) -> None:
    """Make another branch the current one."""
    from ..names import edit_names

    if create:
        edit_names(session, "branch", branch, rev, delete=False, force=False, author=None, silent=True)
    session.repo.set_head(branch)
    session.show({"head": branch}, lambda: session.line(f"On {session.paint.green(branch)}."))
    session.hint("mlc log -n 5")
