"""`mlc tag`: names that stay where they are put."""

from __future__ import annotations

from typing import Annotated

import typer

from ..context import Session
from ..names import edit_names
from ..options import Author, Rev


def run(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A new tag; without it the tags are listed.")] = None,
    rev: Rev = None,
    delete: Annotated[bool, typer.Option("--delete", "-d", help="Remove the tag NAME.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Move a tag that exists.")] = False,
    author: Author = None,
) -> None:
    """List, set or remove tags."""
    edit_names(session, "tag", name, rev, delete=delete, force=force, author=author)
