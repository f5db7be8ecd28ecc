"""`mlc branch`: lines of work."""

from __future__ import annotations

from typing import Annotated

import typer

from ..context import Session
from ..names import edit_names
from ..options import Author, Rev

EPILOG = """Examples:
  mlc branch                    list them
  mlc branch trial              start trial where HEAD is
  mlc branch trial main~2       start it two commits earlier
  mlc branch trial v1 --force   move it there
  mlc branch --delete trial     remove the name; the commits stay"""


def run(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A new branch; without it the branches are listed.")] = None,
    rev: Rev = None,
    delete: Annotated[bool, typer.Option("--delete", "-d", help="Remove the branch NAME.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Move a branch that exists.")] = False,
    author: Author = None,
) -> None:
    """List, start, move or remove branches."""
    edit_names(session, "branch", name, rev, delete=delete, force=force, author=author)
