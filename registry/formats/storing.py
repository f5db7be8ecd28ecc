"""Putting tensors into a transaction, with the delta record of each: what it was coded against and how far it moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..records import Snapshot, TensorDelta, TensorEntry

if TYPE_CHECKING:
    from ..transaction import Transaction


class Storing:
    """Tensors on their way into one transaction. `deltas` lists those that differ from the parent's tensor of the same name."""

    def __init__(self, tx: Transaction, parent: Snapshot | None = None) -> None:
        self.tx = tx
        self.before = {entry.name: entry for entry in parent.tensors} if parent is not None else {}
        self.deltas: list[TensorDelta] = []

    def put(self, name: str, dtype: str, shape: Sequence[int], data: memoryview, base: str | None = None) -> TensorEntry:
        """Store one tensor; `base` names the parent's tensor it is best coded against (default: the one of its own name)."""
        before, hint = self.before.get(name), self.before.get(base or name)
        digest = self.tx.put_tensor(
            dtype, tuple(shape), data, base=hint.digest if hint else None, reference=before.digest if before else None
        )
        entry = TensorEntry(name, dtype, tuple(shape), digest)
        if before is None or before.digest != digest:
            self.deltas.append(self._delta(entry, before, len(data)))
        return entry

    def _delta(self, entry: TensorEntry, before: TensorEntry | None, size: int) -> TensorDelta:
        info = self.tx.info(entry.digest)
        return TensorDelta(entry.name, info.base, entry.digest, info.codec, size, info.stored_size)
