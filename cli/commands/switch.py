"""`mlc switch`: which branch HEAD stands for; no content moves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from ...registry.errors import RefNotFound
from ..context import Session
from ..options import Rev, complete_rev


def run(
    session: Session,
    branch: Annotated[str, typer.Argument(metavar="BRANCH", help="The branch to be on.", autocompletion=complete_rev)],
    rev: Rev = None,
    create: Annotated[bool, typer.Option("--create", "-c", help="Start BRANCH at REV first.")] = False,
) -> None:
    """Make another branch the current one."""
    if create:
        from ..names import edit_names

        edit_names(session, "branch", branch, rev, delete=False, force=False, author=None, silent=True)
    elif session.names.branches and branch not in session.names.branches:
        raise RefNotFound(f"There is no branch {branch}.", hint=_meant(branch, session.names.branches))
    session.repo.set_head(branch)
    session.show({"head": branch}, lambda: session.line(f"On {session.paint.green(branch)}."))
    session.hint("mlc log -n 5")


def _meant(branch: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(branch, list(known), n=1)
    return f"mlc switch {close[0]}" if close else f"mlc switch --create {branch}"
