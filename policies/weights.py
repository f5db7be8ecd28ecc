"""How far a candidate's weights moved, as the few numbers that `delta.*` rules ask for."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..registry.records import Snapshot, TensorDelta


def delta_facts(before: Snapshot | None, after: Snapshot, deltas: Iterable[TensorDelta]) -> dict[str, float | None]:
    """Counts from the snapshots, norms from the recorded deltas of the tensors that both sides have.

    rel_l2: norm of all differences over the norm of the tensors that moved; max_rel_l2: that of the tensor which moved
    most; max_abs: the largest step of one weight; changed_share: changed and new elements over all elements. None where
    a weight is not finite, so that every rule on it fails; left out where nothing was measured.
    """
    old = {entry.name: entry for entry in before.tensors} if before is not None else {}
    new = {entry.name: entry for entry in after.tensors}
    moved = sorted(name for name, entry in new.items() if name in old and old[name].digest != entry.digest)
    added = sorted(set(new) - set(old))
    facts: dict[str, float | None] = {
        "tensors_total": len(new),
        "tensors_changed": len(moved) + len(added),
        "tensors_added": len(added),
        "tensors_removed": len(set(old) - set(new)),
    }
    if before is None or before.kind != after.kind:
        return facts
    known = {delta.tensor: delta for delta in deltas if delta.nnz is not None}
    if any(name not in known for name in moved):
        return facts
    size = {name: math.prod(entry.shape) for name, entry in new.items()}
    changed = sum(known[name].nnz or 0 for name in moved) + sum(size[name] for name in added)
    return facts | {"changed_share": changed / max(1, sum(size.values()))} | _norms([known[name] for name in moved])


def _norms(moved: list[TensorDelta]) -> dict[str, float | None]:
    steps = [delta.l2 for delta in moved if delta.l2 is not None]
    if len(steps) < len(moved):
        return {"rel_l2": None, "max_rel_l2": None, "max_abs": None}
    if not moved:
        return {"rel_l2": 0.0, "max_rel_l2": 0.0, "max_abs": 0.0}
    shares = [delta.rel_l2 for delta in moved if delta.rel_l2]  # none for a tensor that was all zeros
    norms = [(delta.l2 / delta.rel_l2) ** 2 for delta in moved if delta.l2 is not None and delta.rel_l2]
    whole = math.sqrt(math.fsum(step**2 for step in steps) / math.fsum(norms)) if norms else None
    return {"rel_l2": whole, "max_rel_l2": max(shares, default=None), "max_abs": max(delta.max_abs or 0.0 for delta in moved)}
