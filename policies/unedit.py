"""Taking single facts of an edit back on a branch: the operation `edit.revert`, aimed at the commit that REV means now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from ..ops.edit.revert import RevertFacts
from . import lifecycle
from .outcome import How, Outcome, Request
from .takeback import must_be_behind
from .targets import aim

if TYPE_CHECKING:
    from ..registry.repository import Repository


def revert_facts(repo: Repository, rev: str, facts: tuple[str, ...], *, ref: str | None = None, **how: Unpack[How]) -> Outcome:
    """Take these facts of the edit `rev` back on the branch of `ref` (HEAD); the edit's other facts stay. Judged like every change.

    Raises BadParameter when `rev` is no edit behind the branch, for facts that it did not write, and for facts that are gone already.
    """
    undone = repo.resolve(rev)
    must_be_behind(repo, undone, aim(repo, ref, Request.of(repo, **how).branch))
    return lifecycle.run(repo, RevertFacts(rev=undone, facts=facts), ref=ref, **how)
