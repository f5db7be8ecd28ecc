"""Where a new commit will stand: its start, and the branch that moves to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..registry.errors import BadParameter, RefMoved, RefNotFound
from ..registry.ids import CommitId, RefName, short
from ..registry.records import RefUpdate
from .standing import require_accepted

if TYPE_CHECKING:
    from ..registry.repository import Repository


@dataclass(frozen=True, slots=True)
class Target:
    """A branch and where it is now (`old` None: it does not exist yet); `start` is the commit that is changed."""

    start: CommitId
    branch: str
    old: CommitId | None

    def update(self, new: CommitId) -> RefUpdate:
        """The compare-and-swap that moves the branch."""
        return RefUpdate(branch_ref(self.branch), self.old, new)


def branch_ref(branch: str) -> RefName:
    """`main` -> `heads/main`."""
    return RefName(f"heads/{branch}")


def aim(repo: Repository, ref: str | None, branch: str | None) -> Target:
    """The target of an operation on `ref` (HEAD when None).

    A branch moves itself; a tag, an id or `REV~n` needs `branch`. A `branch` that exists must stand at the start.
    A refused commit is no start: its child would be compared with it, and pass. Raises RefNotFound, BadParameter,
    RefMoved, GateRefused.
    """
    start = repo.resolve(ref)
    own = repo.resolve_branch(ref)
    require_accepted(repo, start, "nothing can be built on it")
    if branch is None:
        if own is None:
            raise BadParameter(f"{ref} is not a branch, so there is nothing to move", hint="start a branch there: --branch NAME")
        return Target(start, own, start)
    tip = repo.branches().get(branch)
    if tip is not None and tip != start:
        raise RefMoved(
            f"branch {branch} exists and stands at {short(tip)}, not at {short(start)}",
            hint=f"choose another name, or work on the branch itself: {branch}",
        )
    check_name(branch)
    return Target(start, branch, tip)


def fresh_branch(repo: Repository, branch: str | None) -> tuple[str, CommitId | None]:
    """The branch that an import starts, and its tip when there is one already."""
    name = branch or repo.head()
    check_name(name)
    return name, repo.branches().get(name)


def check_name(branch: str) -> None:
    """Raises BadParameter unless the name can be a branch."""
    from ..registry.refs import check_name as check

    check(branch_ref(branch))


def tip_of(repo: Repository, branch: str) -> CommitId:
    """Where a branch stands. Raises RefNotFound."""
    tip = repo.branches().get(branch)
    if tip is None:
        raise RefNotFound(f"there is no branch {branch}", hint="mlc branch lists them")
    return tip
