"""`mlc recipe`: a change written down, checked before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..context import Session

File = Annotated[Path, typer.Argument(metavar="FILE", help="A TOML or YAML recipe.")]
Operation = Annotated[str | None, typer.Option("--op", metavar="NAME", help="The operation it is for.", show_default="its key `op`")]


def group() -> None:
    """Check or show a recipe file."""


def validate(session: Session, file: File, op: Operation = None) -> None:
    """Say whether every key and value is valid; line and column of the first that is not."""
    recipe = _load(file, op)
    document = {"valid": True, "op": recipe.op, "params": recipe.params}
    session.show(document, lambda: session.line(f"{file.name}: a valid recipe for {recipe.op}."))
    session.hint(f"mlc {recipe.op} --recipe {file}")


def show(session: Session, file: File, op: Operation = None) -> None:
    """Print every parameter after defaults."""
    recipe = _load(file, op)
    document: dict[str, Any] = {"op": recipe.op, "params": recipe.params}

    def render() -> None:
        width = max(len(name) for name in recipe.params)
        session.line(session.paint.magenta(recipe.op))
        for name, value in recipe.params.items():
            session.line(f"  {name.ljust(width)}  {'' if value is None else value}")

    session.show(document, render)
    session.hint(f"mlc {recipe.op} --recipe {file}")


def _load(file: Path, op: str | None) -> Any:
    from ...policies.recipe import load_recipe

    return load_recipe(file, op)


SUBVERBS = {"validate": validate, "show": show}
