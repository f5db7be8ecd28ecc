"""Putting tensors into a transaction, with the delta record of each: what it was coded against and how far it moved."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..delta.dtypes import MEASURED
from ..ids import Digest
from ..records import Snapshot, TensorDelta, TensorEntry

if TYPE_CHECKING:
    from ..delta.derived import Derived
    from ..transaction import Transaction
    from .safetensors import Header

SPOOL_MEMORY = 256 << 20  # bytes
CHUNK = 8 << 20  # bytes


class Storing:
    """Tensors on their way into one transaction. `deltas` lists those that differ from the parent's tensor of the same name."""

    def __init__(self, tx: Transaction, parent: Snapshot | None = None) -> None:
        self.tx = tx
        self.before = {entry.name: entry for entry in parent.tensors} if parent is not None else {}
        self.deltas: list[TensorDelta] = []
        self._put: set[Digest] = set()
        if parent is not None:
            tx.places.tell(parent)

    def put(
        self, name: str, dtype: str, shape: Sequence[int], data: memoryview, base: str | None = None, derived: Derived | None = None
    ) -> TensorEntry:
        """Store one tensor; `base` names the parent's tensor it is best coded against (default: the one of its own name).

        `derived` says which function of stored tensors it is.
        """
        before, hint = self.before.get(name), self.before.get(base or name)
        known, replaced = (entry.digest if entry else None for entry in (hint, before))
        digest = self.tx.put_tensor(dtype, tuple(shape), data, base=known, reference=replaced, derived=derived)
        entry = TensorEntry(name, dtype, tuple(shape), digest)
        if before is None or before.digest != digest:
            # What this transaction puts is not in the store before it is sealed: what is there already costs nothing.
            again = digest in self._put or self.tx.repo.objects.has(digest)
            self.deltas.append(self._delta(entry, before, data, again))
        self._put.add(digest)
        return entry

    def copied(self, entry: TensorEntry) -> None:
        """Record that a name now holds what is stored already: no byte is read or written."""
        if entry.name not in self.before or self.before[entry.name].digest != entry.digest:
            info = self.tx.info(entry.digest)
            self.deltas.append(TensorDelta(entry.name, entry.digest, entry.digest, "ref", info.raw_size, 0))

    def _delta(self, entry: TensorEntry, before: TensorEntry | None, data: memoryview, again: bool) -> TensorDelta:
        info, moved = self.tx.info(entry.digest), self._moved(entry, before, data)
        if again:
            return TensorDelta(entry.name, entry.digest, entry.digest, "ref", len(data), 0, **moved)
        base, rank = self.tx.coded_against(info)
        return TensorDelta(entry.name, base, entry.digest, info.codec, len(data), info.stored_size, rank, **moved)

    def _moved(self, entry: TensorEntry, before: TensorEntry | None, data: memoryview) -> dict[str, Any]:
        """nnz, l2, rel_l2 and max_abs against the parent's tensor of the same name, type and shape; nothing when there is none."""
        if before is None or (before.dtype, before.shape) != (entry.dtype, entry.shape) or entry.dtype not in MEASURED:
            return {}
        from ..delta import stats

        return stats(entry.dtype, data, self.tx.repo.objects.glimpse(before.digest))


class Running:
    """The SHA-256 of a weight file in the making, for as long as its tensors come one by one in the order in which they stand there."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.sha256 = hashlib.sha256(header.raw)
        self.seen: list[TensorEntry] = []

    def takes(self, entry: TensorEntry, data: memoryview) -> bool:
        """Whether this tensor is the next one; then its bytes are hashed and need not be kept."""
        wanted = self.header.entries[len(self.seen)] if len(self.seen) < len(self.header.entries) else None
        if wanted is None or (wanted.name, wanted.dtype, wanted.shape) != (entry.name, entry.dtype, entry.shape):
            return False
        self.sha256.update(data)
        self.seen.append(entry)
        return True


class Spool:
    """New tensors' bytes, kept for the hash of the files they end up in: in memory up to a bound, then in an unlinked file."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._file = tempfile.SpooledTemporaryFile(max_size=SPOOL_MEMORY, dir=str(tx.repo.path / "tmp"))  # noqa: SIM115 - closed by __exit__
        self._places: dict[Digest, tuple[int, int]] = {}

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *fault: object) -> None:
        self._file.close()

    def keep(self, digest: Digest, data: memoryview) -> None:
        """Remember the bytes of a tensor that was just stored."""
        if digest not in self._places:
            self._places[digest] = (self._file.seek(0, os.SEEK_END), len(data))
            self._file.write(data)

    def read_into(self, consume: Callable[[bytes | memoryview], object], digest: Digest) -> None:
        """Hand the bytes of a new tensor, or of one that the registry had before, to `consume`."""
        if digest not in self._places:
            consume(self._tx.tensor_bytes(digest))
            return
        place, left = self._places[digest]
        self._file.seek(place)
        while left:
            chunk = self._file.read(min(left, CHUNK))
            consume(chunk)
            left -= len(chunk)
