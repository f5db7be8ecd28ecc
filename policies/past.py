"""What still holds of the versions behind a commit: a change that was taken back is no longer part of them.

Commits are walked nearest first. A rollback stands for the version whose content it returned to, and so does a revert of the tip; any
other revert leaves the reverted commit out. What a selective revert took back of an edit is remembered with that edit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ..registry.ids import CommitId
from ..registry.records import Commit, Json

if TYPE_CHECKING:
    from ..registry.repository import Repository


class Past:
    """The versions behind `start`, itself included: the `History` that an operation may ask (see ops/base.py)."""

    def __init__(self, repo: Repository, start: CommitId) -> None:
        self.repo, self.start = repo, start
        self._lost: dict[str, set[str]] = {}

    @cached_property
    def standing(self) -> list[tuple[CommitId, Commit]]:
        """Commits whose change still holds, nearest first."""
        return list(self._walk())

    def kept(self, kind: str) -> Iterator[tuple[str, bytes]]:
        """(commit id, artifact) of every standing commit that keeps one of this kind and still has it."""
        for commit_id, commit in self.standing:
            for record in commit.artifacts:
                if record.kind == kind and self.repo.objects.has(record.digest):
                    yield commit_id, self.repo.blob(record.digest)

    def recorded(self, name: str) -> Iterator[tuple[str, dict[str, Json]]]:
        """(commit id, check) of every commit that the operation `name` made, oldest first."""
        from .traces import commits

        yield from ((commit_id, commit.check) for commit_id, commit in commits(self.repo) if commit.op.name == name)

    def lost(self, commit: str) -> frozenset[str]:
        """Ids of the facts of an edit that were taken back since."""
        assert self.standing
        return frozenset(self._lost.get(commit, ()))

    def forgotten(self, name: str, records: Sequence[tuple[bytes, ...]]) -> dict[int, str]:
        """Place of each record that a standing unlearning was to remove -> that commit. Nothing where its key is gone."""
        from .traces import Sought, Traces, unlearns

        wanted = Sought(name, "", tuple(records))
        traces = Traces(self.repo, wanted)
        found: dict[int, str] = {}
        for commit_id, commit in self.standing:
            if unlearns(commit):
                for place in sorted(traces.forgotten(commit)):
                    found.setdefault(place, commit_id)
        return found

    # --- the walk --------------------------------------------------------------------------------------------

    def _walk(self) -> Iterator[tuple[CommitId, Commit]]:
        queue, seen, gone = [self.start], {self.start}, set[str]()
        for commit_id in queue:  # the queue grows while it is read
            commit = self.repo.commit(commit_id)
            taken = commit_id in gone
            if not taken:
                self._note(commit, gone)
                yield commit_id, commit
            for near in commit.parents if taken else self._behind(commit):
                if near not in seen:
                    seen.add(near)
                    queue.append(near)

    def _note(self, commit: Commit, gone: set[str]) -> None:
        params = commit.op.params
        if commit.op.name in ("revert", "retract"):
            gone.add(str(params.get("rev")))
        elif commit.op.name == "edit.revert":
            self._lost.setdefault(str(params.get("rev")), set()).update(map(str, params.get("facts") or ()))

    def _behind(self, commit: Commit) -> tuple[CommitId, ...]:
        """Where this content comes from: its parents, or the version that it returned to."""
        params = commit.op.params
        if commit.op.name == "rollback" and params.get("to"):
            return (CommitId(params["to"]),)
        if commit.op.name in ("revert", "retract") and params.get("parent"):
            back = CommitId(params["parent"])
            if self.repo.commit(back).snapshot == commit.snapshot:
                return (back,)
        if commit.op.name == "unmerge":
            return tuple(map(CommitId, params["ingredients"]))
        return commit.parents
