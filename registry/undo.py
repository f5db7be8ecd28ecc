"""Undo and redo: the last move of refs taken back, by a new record. Nothing of history is ever removed.

A record of kind `refs` with reason `undo` names in `undoes` the seq it takes back; with reason `redo`, in `redoes`, the one it makes again.
The name of a patch that was forgotten counts as such a move: it is told as a ref `patches/NAME`, and given back by a record of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import NotFound
from .ids import CommitId
from .journal import JournalRecord
from .publishing import warned
from .records import Json, RefUpdate

if TYPE_CHECKING:
    from .repository import Repository


class NothingToUndo(NotFound):
    """No move of refs is left to take back, or to make again."""


def undo(repo: Repository, author: str) -> list[RefUpdate]:
    """Take back the newest move that stands. Raises NothingToUndo; RefMoved when somebody moves refs at the same moment."""
    record = _last_standing(repo)
    if record is None:
        raise NothingToUndo("there is no move of a ref left to take back", hint="mlc log --all")
    updates = [RefUpdate(u.name, old=u.new, new=u.old) for u in _updates(record)]
    if _forgets(record):
        repo.record({**_named(record), "undoes": record.seq}, author=author)
        return updates
    repo.move_refs(updates, reason="undo", author=author, undoes=record.seq)
    _keep_head_valid(repo, updates)
    return updates


def redo(repo: Repository, author: str) -> list[RefUpdate]:
    """Make the move again that was taken back last, unless a new one was made since. Raises NothingToUndo or RefMoved."""
    record = _last_undone(repo)
    if record is None:
        raise NothingToUndo("nothing was taken back since the last move", hint="mlc undo")
    updates = _updates(record)
    if _forgets(record):
        repo.record({**_named(record), "forgotten": True, "redoes": record.seq}, author=author)
        return updates
    repo.move_refs(updates, reason="redo", author=author, redoes=record.seq)
    _keep_head_valid(repo, updates)
    return updates


def _last_standing(repo: Repository) -> JournalRecord | None:
    """The newest move that is not taken back. Seen from the end, the first word about a move is the last one said."""
    stands: dict[int, bool] = {}
    for record in repo.journal.backward():
        if "undoes" in record.body:
            stands.setdefault(record.body["undoes"], False)
        elif "redoes" in record.body:
            stands.setdefault(record.body["redoes"], True)
        elif (record.refs or _forgets(record)) and stands.get(record.seq, True):
            return record
    return None


def _last_undone(repo: Repository) -> JournalRecord | None:
    """The move to make again: what was taken back since the last new move, and not made again since."""
    redone: set[int] = set()
    for record in repo.journal.backward():
        if "redoes" in record.body:
            redone.add(record.body["redoes"])
        elif "undoes" in record.body:
            seq = record.body["undoes"]
            if seq not in redone:
                return next(repo.journal.records(seq - 1))
            redone.discard(seq)
        elif record.refs or _forgets(record):
            return None
    return None


def _forgets(record: JournalRecord) -> bool:
    return record.body["kind"] == "signature" and bool(record.body.get("forgotten"))


def _named(record: JournalRecord) -> dict[str, Json]:
    """The record of a patch's name without what was done to it."""
    return {key: value for key, value in record.body.items() if key not in ("forgotten", "undoes", "redoes")}


def _updates(record: JournalRecord) -> list[RefUpdate]:
    if _forgets(record):
        return [RefUpdate(f"patches/{record.body['name']}", old=CommitId(record.body["signature"]), new=None)]
    return [RefUpdate.from_json(update) for update in record.refs]


def _keep_head_valid(repo: Repository, updates: list[RefUpdate]) -> None:
    """When the current branch is gone and others are left, go to the one where it was, or else to the first."""
    head, branches = repo.head(), repo.branches()
    if head in branches or not branches:
        return
    was = next((u.old for u in updates if u.name == f"heads/{head}"), None)
    target = next((name for name, commit in branches.items() if commit == was), next(iter(branches)))
    with warned(repo, "the current branch"):
        repo.set_head(target)
    repo.warnings.append(f"branch {head!r} is gone; the current branch is now {target!r}")
