"""`mlc status`: the question a shell prompt asks, so it reads text files only and opens no catalog."""

from __future__ import annotations

from typing import Any

from ..context import Session


def run(session: Session) -> None:
    """Show the current branch, its tip and what is unfinished."""
    repo = session.repo
    head, branches = repo.head(), repo.branches()
    tip = branches.get(head)
    document: dict[str, Any] = {
        "registry": str(repo.root),
        "head": head,
        "commit": _tip(session, tip) if tip else None,
        "branches": len(branches),
        "tags": len(repo.tags()),
        "aliases": len(repo.aliases()),
        "runs": _unfinished(session),
    }
    session.show(document, lambda: _render(session, document))


def _tip(session: Session, commit_id: str) -> dict[str, Any]:
    commit = session.repo.commit(commit_id)
    return {
        "id": commit_id,
        "short": commit_id[:12],
        "snapshot": commit.snapshot,
        "op": commit.op.name,
        "message": commit.message,
        "author": commit.author,
        "time": commit.time,
    }


def _unfinished(session: Session) -> list[dict[str, Any]]:
    """Resumable runs; their module is loaded only where a run left something behind."""
    place = session.repo.path / "runs"
    if not place.is_dir() or not any(place.iterdir()):
        return []
    from ..unfinished import unfinished

    return unfinished(session.repo)


def _render(session: Session, document: dict[str, Any]) -> None:
    from ..render.text import ago, count, first_line

    paint, tip = session.paint, document["commit"]
    session.line(f"On {paint.green(document['head'])} in {document['registry']}")
    if tip is None:
        session.line("No commit yet.")
        session.hint("mlc import DIR")
        return
    message = f"  {first_line(tip['message'])}" if tip["message"] else ""
    session.line(f"{paint.yellow(tip['short'])}  {paint.magenta(tip['op'])}{message}  {paint.dim(ago(tip['time']))}")
    names = (
        count(document["branches"], "branch", "branches"),
        count(document["tags"], "tag"),
        count(document["aliases"], "alias", "aliases"),
    )
    session.line(paint.dim(", ".join(names) + "."))
    for run_ in document["runs"]:
        session.line(f"{paint.yellow('unfinished')}  {run_['id']}  {run_['op']}  {run_['state']}")
    session.hint(f"mlc update --resume {document['runs'][0]['id']}" if document["runs"] else "mlc log")
