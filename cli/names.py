"""Branches, tags and aliases: listed, set, moved, removed. One journal record each, and `mlc undo` takes it back."""

from __future__ import annotations

from typing import Literal

from ..registry.errors import BadParameter
from ..registry.ids import short
from .context import Session
from .render.refs import show_moves

Kind = Literal["branch", "tag", "alias"]
PLURALS: dict[Kind, str] = {"branch": "branches", "tag": "tags", "alias": "aliases"}


def edit_names(
    session: Session, kind: Kind, name: str | None, rev: str | None, *, delete: bool, force: bool, author: str | None, silent: bool = False
) -> None:
    """List without a name; else set NAME at `rev` (HEAD), or remove it."""
    if name is None:
        if delete:
            raise BadParameter(f"No {kind} was named to be removed.", hint=f"mlc {kind} --help")
        _list(session, kind)
        return
    from ..policies.naming import remove_name, set_name

    who = session.author(author)
    if delete:
        update = remove_name(session.repo, kind, name, author=who)
    else:
        update = set_name(session.repo, kind, name, rev, force=force, author=who, config=session.settings, progress=session.progress)
    if not silent:
        show_moves(session, [update])
        session.hint("mlc undo" if delete else f"mlc switch {name}" if kind == "branch" else "mlc refs")


def _list(session: Session, kind: Kind) -> None:
    plural, head = PLURALS[kind], session.names.head
    existing: dict[str, str] = getattr(session.names, plural)
    document: dict[str, object] = {plural: existing, "head": head} if kind == "branch" else {plural: existing}
    session.show(document, lambda: _render(session, kind, existing, head))


def _render(session: Session, kind: Kind, existing: dict[str, str], head: str) -> None:
    paint = session.paint
    mark = "@" if kind == "alias" else ""
    width = max((len(name) for name in existing), default=0) + len(mark)
    for name, commit in existing.items():
        here = kind == "branch" and name == head
        shown = f"{mark}{name}".ljust(width)
        session.line(f"{'* ' if here else '  '}{paint.green(shown) if here else shown}  {paint.yellow(short(commit))}")
    if not existing:
        session.line(f"No {PLURALS[kind]} yet.")
