"""What an alignment would touch and cost; no tensor is read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..base import Plan
from ..data.items import read_items

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from .align import AlignEmbeddings

TOKENS = 16  # of a text, about
FLOPS_PER_SECOND = 4e10


def plan(op: AlignEmbeddings, view: ModelView) -> Plan:
    """Raises what `apply` would raise for missing or unlabelled data."""
    items = read_items(op.data, "retain")
    weights = sum(math.prod(view.entry(name).shape) for name in view.primary_names())
    trains = op.method != "procrustes"
    return Plan(
        summary=f"lay the vectors over those of an older version by {op.method}, on {len(items.items)} texts",
        touches=tuple(view.primary_names()) if trains else (),
        bytes_touched=4 * weights if trains else 0,
        trainable=weights if trains else 0,
        steps=op.steps if trains else 0,
        seconds=round(
            (6 * weights * op.steps * op.batch * TOKENS * trains + 4 * weights * len(items.items) * TOKENS) / FLOPS_PER_SECOND, 1
        ),
        memory=16 * weights if trains else 8 * weights,
        details={"method": op.method, "texts": len(items.items)},
    )
