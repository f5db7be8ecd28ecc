"""Which files an export consists of: those of the import, or the same tensors laid out anew as one file or as shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..ids import Digest
from ..records import Snapshot

if TYPE_CHECKING:
    from ..objects.store import ObjectStore

Layout = Literal["hf", "single", "shards"]


@dataclass(frozen=True, slots=True)
class OutFile:
    """A file to write: its first bytes, then tensors in order. `sha256` is known for files that were imported."""

    path: str
    head: bytes | Digest  # a digest names the stored blob that holds them
    tensors: tuple[str, ...] = ()
    sha256: str | None = None


def as_imported(snapshot: Snapshot) -> list[OutFile]:
    """The files of the snapshot as they were."""
    return [OutFile(file.path, file.digest, file.tensors, file.sha256) for file in snapshot.files]


def relayout(objects: ObjectStore, snapshot: Snapshot, layout: Layout, max_shard_size: int) -> list[OutFile]:
    raise NotImplementedError
