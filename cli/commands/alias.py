"""`mlc alias`: roles such as @champion, which move as models earn them."""

from __future__ import annotations

from typing import Annotated

import typer

from ..context import Session
from ..names import edit_names
from ..options import Author, Rev, Yes


def run(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="With or without @; without it the aliases are listed.")] = None,
    rev: Rev = None,
    delete: Annotated[bool, typer.Option("--delete", "-d", help="Remove the alias NAME.")] = False,
    yes: Yes = False,
    author: Author = None,
) -> None:
    """List, set or remove aliases such as @champion."""
    if name is not None and session.settings.is_protected(name):
        session.ask(f"{'Removing' if delete else 'Moving'} the protected alias @{name.removeprefix('@')}", yes)
    edit_names(session, "alias", name, rev, delete=delete, force=True, author=author)
