"""Branches, tags and aliases: listed, set, moved, removed. One journal record each, and `mlc undo` takes it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..registry.errors import BadParameter, GateRefused, RefMoved, RefNotFound
from ..registry.ids import CommitId, short
from ..registry.records import RefUpdate
from .context import Session
from .render.refs import show_moves

KINDS: dict[str, tuple[str, str, Callable[[Any], dict[str, CommitId]]]] = {
    "branch": ("heads/", "branches", lambda repo: repo.branches()),
    "tag": ("tags/", "tags", lambda repo: repo.tags()),
    "alias": ("aliases/", "aliases", lambda repo: repo.aliases()),
}


def edit_names(
    session: Session, kind: str, name: str | None, rev: str | None, *, delete: bool, force: bool, author: str | None, silent: bool = False
) -> None:
    """List without a name; else set NAME at `rev` (HEAD), or remove it.

    Raises RefMoved for a name that exists (without `force`), RefNotFound for one to remove that does not.
    """
    prefix, plural, listing = KINDS[kind]
    existing = listing(session.repo)
    if name is None:
        if delete or rev is not None:
            raise BadParameter(f"No name was given to {'remove' if delete else 'set'}.", hint=f"mlc {kind} --help")
        _list(session, kind, plural, existing)
        return
    old = existing.get(name)
    new = None if delete else session.repo.resolve(rev)
    if delete:
        _may_go(session, kind, plural, name, old)
    elif old is not None and old != new and not force:
        raise RefMoved(f"The {kind} {name} exists and stands at {short(old)}.", hint=f"mlc {kind} {name} {rev or 'HEAD'} --force")
    if new is not None:
        _may_be_named(session, new)
    update = RefUpdate(f"{prefix}{name}", old, new)
    if old != new:
        session.repo.move_refs([update], reason=kind, author=session.author(author))
    if not silent:
        show_moves(session, [update])
        session.hint("mlc undo" if delete else f"mlc switch {name}" if kind == "branch" else "mlc refs")


def _may_go(session: Session, kind: str, plural: str, name: str, old: CommitId | None) -> None:
    if old is None:
        raise RefNotFound(f"There is no {kind} {name}.", hint=f"mlc {kind} lists the {plural}")
    if kind == "branch" and name == session.repo.head():
        raise BadParameter(f"{name} is the current branch.", hint="mlc switch OTHER, then remove it")


def _may_be_named(session: Session, commit_id: CommitId) -> None:
    """No gate, no ref: a refused candidate gets a name by `accept` only."""
    if session.repo.commit(commit_id).verdict.outcome != "refused":
        return
    from ..registry.catalog.queries import commit_detail

    if commit_detail(session.repo, commit_id).verdict["outcome"] == "refused":
        raise GateRefused(
            f"The gate refused {short(commit_id)}, so no name may point at it.",
            hint=f"mlc accept {short(commit_id)} --waive RULE --reason TEXT",
        )


def _list(session: Session, kind: str, plural: str, existing: dict[str, CommitId]) -> None:
    head = session.repo.head()
    document = {plural: dict(existing)} | ({"head": head} if kind == "branch" else {})
    session.show(document, lambda: _render(session, kind, plural, existing, head))


def _render(session: Session, kind: str, plural: str, existing: dict[str, CommitId], head: str) -> None:
    paint = session.paint
    mark = "@" if kind == "alias" else ""
    width = max((len(name) for name in existing), default=0) + len(mark)
    for name, commit in existing.items():
        here = kind == "branch" and name == head
        shown = f"{mark}{name}".ljust(width)
        session.line(f"{'* ' if here else '  '}{paint.green(shown) if here else shown}  {paint.yellow(short(commit))}")
    if not existing:
        session.line(f"No {plural} yet.")
