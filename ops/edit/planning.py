"""What an edit would touch and cost, from names, shapes and the fact file; no tensor is read and nothing is imported that computes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..base import Plan
from ..data.corpus import read_corpus
from .prompts import normal
from .requests import asked, requested, world_plan
from .site import check_span, editable, inner_width, stored_name

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from .edit import Edit

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
ROW_TOKENS = 24  # of a prompt with what stands in front of it, roughly
FLOPS_PER_SECOND = 4e10


def plan(op: Edit, view: ModelView) -> Plan:
    """The plan of `op` on `view`. Raises what `apply` would raise for the file, the model and too many subjects."""
    from .capacity import check_count

    family, blocks = editable(view)
    if op.span is not None:
        check_span(op.span, blocks)
    facts = (asked(op) if op.world else requested(op)).facts
    if not facts:
        return Plan(summary="write nothing: no change between these worlds is one that an edit can make", touches=(), details=_world(op))
    if op.covariance is not None:
        read_corpus(op.covariance, role="covariance")  # what is wrong with it is told before the model answers anything
    subjects, width = len({normal(f.subject) for f in facts}), inner_width(family, view)
    check_count(subjects, width, op.over_capacity)
    layers = range(op.span[0], op.span[1] + 1) if op.span else range(blocks)
    touches = tuple(stored_name(family, view, layer) for layer in layers)
    shape = view.entry(touches[0]).shape
    size = math.prod(shape) * SIZES.get(view.entry(touches[0]).dtype, 4)
    elements = sum(math.prod(view.entry(n).shape) for n in view.names())
    tokens = len(facts) * (2 + op.prefixes) * ROW_TOKENS * op.steps
    many = len(layers) if op.span else 1
    return Plan(
        summary=f"write {len(facts)} facts about {subjects} subjects into the MLP output of {_where(op)}",
        touches=touches,
        bytes_touched=many * size,
        steps=op.steps,
        seconds=round(6 * elements * tokens / FLOPS_PER_SECOND + 1, 1),
        memory=4 * elements + 8 * 3 * width * width,
        details={
            "method": op.method,
            "facts": len(facts),
            "subjects": subjects,
            "layers": op.layers,
            "key_width": width,
            "factor_bytes": 4 * subjects * sum(shape) * many,
            **_world(op),
        },
    )


def _world(op: Edit) -> dict[str, Any]:
    """What changed between the two worlds; nothing where facts are given."""
    return world_plan(op).details() if op.world else {}


def _where(op: Edit) -> str:
    if op.span is None:
        return "the block that tracing finds"
    return f"block {op.span[0]}" if op.span[0] == op.span[1] else f"blocks {op.span[0]} to {op.span[1]}"
