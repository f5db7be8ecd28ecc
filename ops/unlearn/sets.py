"""The sets of records that a request names, read and held against each other. Pure Python: plans use it without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..data.items import ItemSet, Role, check_apart, read_items

if TYPE_CHECKING:
    from .unlearn import Unlearn


def read_sets(op: Unlearn) -> dict[Role, ItemSet]:
    """The sets of records by role, none of them sharing a record with the forget set. Needs no model."""
    paths: dict[Role, str | None] = {
        "forget": op.forget_set,
        "retain": None if op.stored_retain else op.retain_set,
        "holdout": op.holdout_set,
    }
    sets: dict[Role, ItemSet] = {role: read_items(path, role) for role, path in paths.items() if path}
    for role, items in sets.items():
        if role != "forget":
            check_apart(sets["forget"], items)
    return sets
