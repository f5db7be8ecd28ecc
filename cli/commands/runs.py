"""`mlc runs`: what was begun and not finished."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..context import Session
from ..unfinished import going_on, unfinished


def run(
    session: Session,
    forget: Annotated[str | None, typer.Option(metavar="RUN", help="Throw an unfinished run and its saved state away.")] = None,
) -> None:
    """List unfinished runs that can be resumed."""
    from ...policies.runs import Runs

    runs = Runs(session.repo)
    if forget is not None:
        found = runs.find(forget)
        runs.forget(found.id)
        session.show({"forgotten": found.id}, lambda: session.line(f"{found.id} is forgotten."))
        return
    document = {"runs": unfinished(session.repo)}
    session.show(document, lambda: _render(session, document["runs"]))
    if document["runs"]:
        session.hint(going_on(document["runs"][0]))


def _render(session: Session, runs: list[dict[str, Any]]) -> None:
    from ..render.text import ago

    if not runs:
        session.line("No unfinished run.")
        return
    for info in runs:
        at = f"step {info['step'] or 0}" + (f" of {info['steps']}" if info["steps"] else "")
        state = (session.paint.green if info["state"] == "running" else session.paint.yellow)(info["state"])
        name = session.paint.magenta(info["op"])
        session.line(f"{info['id']}  {name} on {info['branch']}  {at}  {state}  {session.paint.dim(ago(info['started']))}")
