"""What an update would touch and cost, from names, shapes and files; no tensor is read and nothing is imported that computes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..base import Plan
from ..data.corpus import read_corpus

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from .train import Update

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def plan(op: Update, view: ModelView) -> Plan:
    """The plan of `op` on `view`."""
    corpus = read_corpus(op.data)
    names = [n for n in view.names() if view.entry(n).dtype in FLOATS]
    elements = sum(math.prod(view.entry(n).shape) for n in names)
    tokens = op.steps * op.batch * op.grad_accum * op.seq_len
    return Plan(
        summary=f"train {elements:,} parameters for {op.steps} steps on {corpus.record.name}",
        touches=tuple(names),
        bytes_touched=sum(math.prod(view.entry(n).shape) * FLOATS[view.entry(n).dtype] for n in names),
        trainable=elements,
        steps=op.steps,
        details={"tokens": tokens},
    )
