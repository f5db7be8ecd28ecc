"""How far a candidate's weights moved, as the few numbers that `delta.*` rules ask for. An adapter counts as merged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..registry.records import TensorDelta

if TYPE_CHECKING:
    from ..registry.view import ModelView


def delta_facts(before: ModelView, after: ModelView, deltas: Iterable[TensorDelta]) -> dict[str, float | None]:
    """Counts from the names and digests, norms from the recorded deltas of the tensors that both sides have.

    rel_l2: norm of all differences over the norm of the tensors that moved; max_rel_l2: that of the tensor which moved
    most; max_abs: the largest step of one weight; changed_share: changed and new elements over all elements. None where
    a weight is not finite, so that every rule on it fails; left out where nothing was measured.
    """
    names, moved = after.names(), moved_names(before, after)
    added = [name for name in names if not before.has(name)]
    facts: dict[str, float | None] = {
        "tensors_total": len(names),
        "tensors_changed": len(moved) + len(added),
        "tensors_added": len(added),
        "tensors_removed": sum(not after.has(name) for name in before.names()),
    }
    known = {delta.tensor: delta for delta in deltas if delta.nnz is not None}
    if any(name not in known for name in moved):
        return facts
    size = {name: math.prod(after.entry(name).shape) for name in names}
    changed = sum(known[name].nnz or 0 for name in moved) + sum(size[name] for name in added)
    return facts | {"changed_share": changed / max(1, sum(size.values()))} | _norms([known[name] for name in moved])


def with_distances(before: ModelView, after: ModelView, deltas: Iterable[TensorDelta]) -> list[TensorDelta]:
    """The records completed: for each moved tensor without figures both sides are read, one tensor at a time.

    A change that was put together from stored tensors (a revert, two versions far apart) or merged in has none of its own.
    """
    from ..registry.delta import stats

    known = {delta.tensor: delta for delta in deltas}
    for name in moved_names(before, after):
        was, entry, have = before.entry(name), after.entry(name), known.get(name)
        if have is not None and have.nnz is not None:
            continue
        record = have or TensorDelta(name, None, entry.digest, "ref", 0, 0)
        if (was.dtype, was.shape) == (entry.dtype, entry.shape):
            found: dict[str, Any] = stats(entry.dtype, after.raw(name), before.raw(name))
            record = dataclasses.replace(record, **found)
        known[name] = record
    return list(known.values())


def moved_names(before: ModelView, after: ModelView) -> list[str]:
    """Names on both sides whose tensors differ."""
    return [name for name in after.names() if before.has(name) and before.entry(name).digest != after.entry(name).digest]


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
