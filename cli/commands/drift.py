"""`mlc drift`: how a lineage's answers moved, also where accuracy did not."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ...registry.errors import BadParameter, InputNotFound
from ..context import Session
from ..options import complete_rev

EPILOG = """Examples:
  mlc drift                          every step behind HEAD, from stored answers
  mlc drift v1 v2 v3                 two steps: v1 to v2, v2 to v3
  mlc drift v1 v2 --measure          measure configured suites that are missing first
  mlc drift --suite chat --json

Mismatch is the share of examples answered otherwise. Length is the geometric mean ratio of the answers' characters. p is the least p of
a suite's tests (accuracy, length, form), adjusted for their number and over the suites (Holm)."""


def run(
    session: Session,
    revs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REV...]", help="Versions, the oldest first; one means the line behind it.", autocompletion=complete_rev),
    ] = None,
    suite: Annotated[list[str] | None, typer.Option(metavar="NAME|FILE", help="Only this suite.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure configured suites that are missing on a side.")] = False,
) -> None:
    """Show how answers moved from version to version."""
    from ..behaviour import line_behind, steps

    named = [session.repo.resolve(rev) for rev in revs or [None]]
    line = line_behind(session.repo, named[0]) if len(named) == 1 else named
    if len(line) < 2:
        raise BadParameter("there is one version only, and nothing before it", hint="mlc drift OLD NEW")
    document: dict[str, Any] = {"revs": line, "steps": steps(session, line, suite, measure=measure)}
    if suite and document["steps"] and not any(step["suites"] for step in document["steps"]):
        raise InputNotFound(f"{', '.join(suite)} was measured on both sides of no step", hint=f"mlc eval REV --suite {suite[0]}")
    session.show(document, lambda: _render(session, document))
    if document["steps"]:
        last = document["steps"][-1]
        session.hint(f"mlc diff {last['a'][:12]} {last['b'][:12]} --flips")


def _render(session: Session, document: dict[str, Any]) -> None:
    from ..render.behaviour import render_drift

    render_drift(session, document["steps"])
