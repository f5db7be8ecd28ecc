"""A whole model made from an adapter's commit: what the adapter had merged in becomes tensors of the new snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..ops.base import Change, CopyTensor, DropTensor, SetTensor

if TYPE_CHECKING:
    from ..registry.records import Snapshot
    from ..registry.view import ModelView


def merged_first(view: ModelView, changes: Iterable[Change]) -> tuple[Snapshot, Iterable[Change]]:
    """The snapshot that changes are applied to, and the changes.

    For a plain model both are its own. An adapter's commit is seen merged into its base: the base is what is rebuilt,
    with the merged tensors written first, so that what the operation leaves alone is as the operation saw it.
    """
    from ..registry.view import EffectiveView

    merged: set[str] = set()
    bottom = view
    while isinstance(bottom, EffectiveView):
        merged |= set(bottom.changed_names())
        bottom = bottom.base
    return bottom.snapshot, (_spelled_out(view, merged, changes) if merged else changes)


def _spelled_out(view: ModelView, merged: set[str], changes: Iterable[Change]) -> Iterator[Change]:
    untouched = set(merged)
    for change in changes:
        if isinstance(change, CopyTensor) and change.source in merged:
            change = SetTensor(change.name, view.tensor(change.source))
        if isinstance(change, SetTensor | CopyTensor | DropTensor):
            untouched.discard(change.name)
        yield change
    for name in sorted(untouched):
        yield SetTensor(name, view.tensor(name))
