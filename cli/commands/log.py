"""`mlc log`: the road behind a version. One catalog query, whatever the length."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..context import Session
from ..options import Rev

if TYPE_CHECKING:
    from ...registry.ids import CommitId
    from ...registry.records import Commit

EPILOG = """Examples:
  mlc log -n 10
  mlc log --graph --all
  mlc log --op update --since 2026-01
  mlc log --metrics known,text.perplexity
  mlc log --matrix --learned oz=main~1     every version on every suite, with forgetting and transfer"""


def run(
    session: Session,
    rev: Rev = None,
    graph: Annotated[bool, typer.Option("--graph", "-g", help="Draw the lines of history beside the commits.")] = False,
    number: Annotated[int | None, typer.Option("-n", "--max-count", metavar="N", help="At most N commits.", min=1)] = None,
    op: Annotated[str | None, typer.Option("--op", metavar="NAME", help="Only this operation, such as update.")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="DATE", help="Only from this UTC date on, such as 2026-01-31.")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Suites or suite.metric names to show.", show_default="one per suite"),
    ] = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="Versions by suites: what was learned, what was kept.")] = False,
    learned: Annotated[
        list[str] | None, typer.Option(metavar="SUITE=REV", help="With --matrix: the version that was to learn a suite.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Every recorded commit, refused candidates included.")] = False,
) -> None:
    """Show the commits behind a version, newest first."""
    from ...registry.catalog import queries

    repo = session.repo
    branches = repo.branches()
    if rev is None and not branches and not everything:
        session.show({"commits": []}, lambda: session.line("No commit yet."))
        session.hint("mlc import DIR")
        return
    if matrix or learned:
        _matrix(session, repo.resolve(rev), learned or [])
        return
    start = None if everything else [repo.resolve(rev)]
    tip = start[0] if start else branches.get(repo.head())
    wanted = _wanted(metrics, repo.commit(tip) if tip else None)
    rows = queries.log(repo, start, number, op=op, since=since, metrics=wanted)
    whole = rows if graph and not (op or since) else queries.log(repo, start) if graph else None
    session.show(_document(session, rows), lambda: _render(session, rows, wanted, whole))
    if rows:
        session.hint(f"mlc show {rows[0].commit[:12]}")


def _matrix(session: Session, tip: CommitId, learned: list[str]) -> None:
    from .. import behaviour
    from ..render.behaviour import render_matrix

    document = behaviour.matrix(session.repo, tip, learned)
    session.show(document, lambda: render_matrix(session, document))


def _wanted(asked: str | None, tip: Commit | None) -> list[str]:
    """Full metric names: those asked for, a suite standing for its first metric; else one per suite of the tip."""
    known = {suite: _first(values) for suite, values in tip.metrics.items()} if tip else {}
    if asked is None:
        return [f"{suite}.{metric}" for suite, metric in known.items()][:4]
    words = [word.strip() for word in asked.split(",") if word.strip()]
    return [f"{word}.{known[word]}" if word in known else word for word in words]


def _first(values: dict[str, float | None]) -> str:
    return next((name for name in ("accuracy", "perplexity") if name in values), next(iter(values), "accuracy"))


def _document(session: Session, rows: list[Any]) -> dict[str, Any]:
    if not session.json:
        return {}
    from ...registry.catalog import queries
    from ..views import detail_json

    details = queries.details(session.repo, [row.commit for row in rows])
    return {"commits": [detail_json(row.commit, details[row.commit]) for row in rows]}


def _render(session: Session, rows: list[Any], metrics: list[str], whole: list[Any] | None) -> None:
    """`whole` is the history without gaps, for the lanes; None draws none."""
    from ..render.log import log_lines, names_of

    repo = session.repo
    branches = repo.branches()
    names = names_of(repo.head(), branches, repo.tags(), repo.aliases())
    lanes = None
    if whole is not None:
        from ..render.lanes import lanes_of

        lanes = lanes_of(whole, {row.seq for row in rows}, set(branches.values()), sys.stdout.encoding)
    columns = session.width if sys.stdout.isatty() else None
    session.lines(log_lines(rows, names, metrics, session.paint, lanes=lanes, columns=columns))
