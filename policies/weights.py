"""How far a candidate's weights moved, as the few numbers that `delta.*` rules ask for."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..registry.records import Snapshot, TensorDelta


def delta_facts(before: Snapshot | None, after: Snapshot, deltas: Iterable[TensorDelta]) -> dict[str, float | None]:
    """Counts from the snapshots, norms from the recorded deltas.

    rel_l2: norm of all differences over the norm of the tensors that were touched; max_rel_l2: that of the tensor which
    moved most; changed_share: changed elements over all elements. A number that the deltas do not give is left out.
    """
    old = {entry.name: entry for entry in before.tensors} if before is not None else {}
    new = {entry.name: entry for entry in after.tensors}
    changed = [name for name, entry in new.items() if name not in old or old[name].digest != entry.digest]
    facts: dict[str, float | None] = {
        "tensors_total": len(new),
        "tensors_changed": len(changed),
        "tensors_added": len(set(new) - set(old)),
        "tensors_removed": len(set(old) - set(new)),
    }
    if before is None or before.kind != after.kind:
        return facts
    moved = [d for d in deltas if d.tensor in changed and d.l2 is not None and d.rel_l2 is not None]
    if not changed:
        return facts | {"rel_l2": 0.0, "max_rel_l2": 0.0, "max_abs": 0.0, "changed_share": 0.0}
    if len(moved) == len(changed):
        squares = [(d.l2 or 0.0) ** 2 for d in moved]
        norms = [((d.l2 or 0.0) / d.rel_l2) ** 2 for d in moved if d.rel_l2]
        facts["rel_l2"] = math.sqrt(math.fsum(squares) / math.fsum(norms)) if math.fsum(norms) > 0 else None
        facts["max_rel_l2"] = max(d.rel_l2 or 0.0 for d in moved)
        facts["max_abs"] = max((d.max_abs or 0.0 for d in moved), default=None)
        counted = [d.nnz for d in moved if d.nnz is not None]
        if len(counted) == len(moved):
            facts["changed_share"] = sum(counted) / max(1, sum(math.prod(e.shape) for e in new.values()))
    return facts
