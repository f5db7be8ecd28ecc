"""Moves of refs: what undo, redo, branch, tag and alias say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..context import Session
from ..views import updates_json

MARKS = {"heads/": "", "tags/": "", "aliases/": "@"}


def short_name(full: str) -> str:
    """`heads/main` as people type it: `main`; `aliases/champion`: `@champion`."""
    for prefix, mark in MARKS.items():
        if full.startswith(prefix):
            return mark + full.removeprefix(prefix)
    return full


def show_moves(session: Session, updates: Sequence[Any]) -> None:
    """One line per ref: where it was, where it is."""
    document = {"moved": updates_json(updates)}
    session.show(document, lambda: _render(session, document["moved"]))


def _render(session: Session, moved: list[dict[str, Any]]) -> None:
    paint = session.paint
    for update in moved:
        name = paint.green(short_name(update["name"]))
        old, new = (update[key][:12] if update[key] else None for key in ("old", "new"))
        if old and new:
            session.line(f"{name}  {paint.dim(old)} -> {paint.yellow(new)}")
        else:
            session.line(f"{name}  now at {paint.yellow(new)}" if new else f"{name}  removed (was at {old})")
