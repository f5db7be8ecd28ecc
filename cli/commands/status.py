"""`mlc status`: the question a shell prompt asks, so it reads text files only and opens no catalog."""

from __future__ import annotations

from typing import Any

from ...registry.ids import CommitId, short
from ..context import Session


def run(session: Session) -> None:
    """Show the current branch, its tip and what is unfinished."""
    names = session.names
    tip = names.branches.get(names.head)
    document: dict[str, Any] = {
        "registry": str(names.path.parent.absolute()),
        "head": names.head,
        "commit": _tip(session, tip) if tip else None,
        "branches": len(names.branches),
        "tags": len(names.tags),
        "aliases": len(names.aliases),
        "runs": _unfinished(session),
    }
    session.show(document, lambda: _render(session, document))


def _tip(session: Session, commit_id: str) -> dict[str, Any]:
    record = session.names.commit(commit_id) or session.repo.commit(CommitId(commit_id)).to_json()  # the second says what is wrong
    shown = {key: record[key] for key in ("snapshot", "message", "author", "time")}
    return {"id": commit_id, "short": short(commit_id), "op": record["op"]["name"], **shown}


def _unfinished(session: Session) -> list[dict[str, Any]]:
    """Resumable runs; their module is loaded only where a run left something behind."""
    place = session.names.path / "runs"
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
    if document["runs"]:
        from ..unfinished import going_on

        session.hint(going_on(document["runs"][0]))
    else:
        session.hint("mlc log")
