"""`mlc init`: a registry, its settings and its first policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..context import Session


def run(
    session: Session,
    directory: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Where; made when it is not there.", show_default=".")] = None,
    template: Annotated[
        Literal["minimal", "demo"], typer.Option(metavar="minimal|demo", help="demo adds the embedded model with suites and texts.")
    ] = "minimal",
    branch: Annotated[str, typer.Option("--branch", "-b", metavar="NAME", help="Name of the first branch.")] = "main",
) -> None:
    """Make a registry in a directory."""
    from ..setup import lay_out

    repo, written = lay_out(directory or session.given.registry or Path(), template, branch)
    document = {"registry": str(repo.root), "head": repo.head(), "files": written}
    session.show(document, lambda: session.line(f"A registry at {repo.root}, on {session.paint.green(repo.head())}."))
    session.hint("mlc import model" if template == "demo" else "mlc import DIR")
