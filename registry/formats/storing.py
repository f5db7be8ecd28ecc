"""Putting tensors into a transaction, with the delta record of each: what it was coded against and how far it moved."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from ..delta.dtypes import MEASURED
from ..errors import CheckFailed
from ..ids import Digest
from ..records import Snapshot, TensorDelta, TensorEntry
from .names import shown

if TYPE_CHECKING:
    from ..delta.derived import Derived
    from ..delta.distance import Stats
    from ..objects.passing import Sink
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
        return self._entered(entry, before, self._moved(entry, before, data) if before is None or before.digest != digest else {})

    def _entered(self, entry: TensorEntry, before: TensorEntry | None, moved: Stats) -> TensorEntry:
        """Write down what became of a tensor that was stored."""
        if before is None or before.digest != entry.digest:
            # What this transaction puts is not in the store before it is sealed: what is there already costs nothing.
            again = entry.digest in self._put or self.tx.repo.objects.has(entry.digest)
            self.deltas.append(self._delta(entry, again, moved))
        self._put.add(entry.digest)
        return entry

    def pass_on(self, name: str, dtype: str, shape: Sequence[int], derived: Derived, sink: Sink | None) -> TensorEntry | None:
        """As `put`, of a tensor that is what `derived` says and that nobody has computed: `sink` is given its bytes, piece by piece.

        None when it cannot be kept so. Raises CheckFailed where it is infinite or no number, of finite tensors.
        """
        before = self.before.get(name)
        measured = before is not None and (before.dtype, before.shape) == (dtype, tuple(shape)) and dtype in MEASURED
        found = self.tx.put_passing(dtype, shape, derived, reference=before.digest if before and measured else None, sink=sink)
        if found is None:
            return None
        if found.infinite:
            raise CheckFailed(f"{shown(name)} became infinite or no number, of tensors that are finite", hint="smaller weights")
        return self._entered(TensorEntry(name, dtype, tuple(shape), found.digest), before, found.moved or {})

    def copied(self, entry: TensorEntry) -> None:
        """Record that a name now holds what is stored already: no byte is read or written."""
        if entry.name not in self.before or self.before[entry.name].digest != entry.digest:
            info = self.tx.info(entry.digest)
            self.deltas.append(TensorDelta(entry.name, entry.digest, entry.digest, "ref", info.raw_size, 0))

    def _delta(self, entry: TensorEntry, again: bool, moved: Stats) -> TensorDelta:
        info, told = self.tx.info(entry.digest), cast("dict[str, Any]", moved)
        if again:
            return TensorDelta(entry.name, entry.digest, entry.digest, "ref", info.raw_size, 0, **told)
        base, rank = self.tx.coded_against(info)
        return TensorDelta(entry.name, base, entry.digest, info.codec, info.raw_size, info.stored_size, rank, **told)

    def _moved(self, entry: TensorEntry, before: TensorEntry | None, data: memoryview) -> Stats:
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

    def expects(self, name: str, dtype: str, shape: tuple[int, ...]) -> bool:
        """Whether this tensor is the next one."""
        wanted = self.header.entries[len(self.seen)] if len(self.seen) < len(self.header.entries) else None
        return wanted is not None and (wanted.name, wanted.dtype, wanted.shape) == (name, dtype, shape)

    def takes(self, entry: TensorEntry, data: memoryview) -> bool:
        """Whether this tensor is the next one; then its bytes are hashed and need not be kept."""
        if not self.expects(entry.name, entry.dtype, entry.shape):
            return False
        self.sha256.update(data)
        self.seen.append(entry)
        return True

    def took(self, entry: TensorEntry, sha256: Any) -> None:
        """The next tensor went by: `sha256` was this hash, and has seen its bytes."""
        self.sha256 = sha256
        self.seen.append(entry)


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

    def begin(self) -> int:
        """A tensor's bytes will come by `more`; returns what `end` is to be told."""
        return self._file.seek(0, os.SEEK_END)

    def more(self, data: memoryview) -> None:
        """The next bytes of a tensor that was begun."""
        self._file.write(data)

    def end(self, digest: Digest, place: int) -> None:
        """The tensor that was begun there is this one."""
        self._places.setdefault(digest, (place, self._file.tell() - place))

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
