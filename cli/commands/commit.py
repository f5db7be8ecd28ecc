"""`mlc commit`: the way in for every other tool that changes weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..conduct import conduct
from ..context import Session
from ..options import Mutation, Rev


def run(
    session: Session,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The changed directory, or one safetensors file.")],
    how: Mutation,
    rev: Rev = None,
) -> None:
    """Record a directory that another tool changed."""
    from ...policies import lifecycle

    conduct(
        session,
        lambda: lifecycle.commit_directory(session.repo, directory, ref=rev, **how.arguments(session, "commit")),
        hint=lambda commit: f"mlc diff {commit['parents'][0][:12]} {commit['short']}",
    )
