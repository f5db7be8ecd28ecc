"""Which stored snapshot names a tensor, and where in it: so that the recipe of a commit can name snapshots in place of every tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .errors import IntegrityError
from .ids import CommitId, Digest, SnapshotId
from .records import Snapshot

if TYPE_CHECKING:
    from .repository import Repository

LOOK_AT = 128  # snapshots behind the refs, the newest of each branch first; a tensor that none of them names is named by its digest


class Places:
    """Looks in the snapshots it was told of, then behind the refs, as far as it must. Costs nothing before the first question."""

    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._tables: list[tuple[SnapshotId, dict[Digest, int]]] = []
        self._known: set[SnapshotId] = set()
        self._told: list[Snapshot] = []
        self._more = self._behind_refs()

    def tell(self, snapshot: Snapshot) -> None:
        """Look here first. A snapshot that is not stored is passed over."""
        self._told.append(snapshot)

    def find(self, digest: Digest) -> tuple[Digest, int] | None:
        """A snapshot and the place of this tensor in it; the snapshot that had the answer last is asked first."""
        while self._told:
            snapshot = self._told.pop()
            if snapshot.id not in self._known and self._repo.objects.has(Digest(snapshot.id)):
                self._take(snapshot.id, snapshot)
        for number, (name, table) in enumerate(self._tables):
            if digest in table:
                self._tables.insert(0, self._tables.pop(number))
                return Digest(name), table[digest]
        for name, table in self._more:
            if digest in table:
                return Digest(name), table[digest]
        return None

    def _take(self, name: SnapshotId, snapshot: Snapshot) -> tuple[SnapshotId, dict[Digest, int]]:
        table: dict[Digest, int] = {}
        for place, entry in enumerate(snapshot.tensors):
            table.setdefault(entry.digest, place)  # of tensors with equal bytes the first
        self._known.add(name)
        self._tables.append((name, table))
        return name, table

    def _behind_refs(self) -> Iterator[tuple[SnapshotId, dict[Digest, int]]]:
        row: list[CommitId] = list(dict.fromkeys(self._repo.refs.all().values()))
        seen: set[CommitId] = set(row)
        while row and len(self._known) < LOOK_AT:
            parents: list[CommitId] = []
            for name in row[:LOOK_AT]:
                try:
                    commit = self._repo.commit(name)
                    parents += [parent for parent in commit.parents if parent not in seen]
                    seen.update(commit.parents)
                    if commit.snapshot not in self._known:
                        yield self._take(commit.snapshot, self._repo.snapshot(commit.snapshot))
                except IntegrityError:  # fsck will name it
                    continue
            row = list(dict.fromkeys(parents))
