"""What an alignment would touch and cost, from names, shapes and files; no tensor is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from ..base import Plan
from ..data.corpus import read_corpus
from ..data.items import read_items
from ..evaluate.suite import load_suite
from ..update.adapters import adaptable, stored_name, target_paths, tensor_name
from ..update.limits import default_rate
from .options import TOP

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from .align import Align

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
TOKENS = 8  # of an anchor, about
FLOPS_PER_SECOND = 4e10  # two CPU cores, as for `update`
SECONDS_PER_STEP = 0.03


def records(path: str) -> int:
    """How many anchors a file holds. Raises what reading it raises."""
    if path.lower().endswith(".toml"):
        return len(load_suite(Path(path)).examples())
    return len(read_items(path, "anchor").items)


def plan(op: Align, view: ModelView) -> Plan:
    """The plan of `op` on `view`."""
    count = records(op.data)
    for text in op.texts:
        read_corpus(text.path or "", role="text")
    elements = sum(math.prod(view.entry(n).shape) for n in view.names())
    touches, trainable, size = _reach(op, view)
    tokens = count * TOKENS + op.steps * op.batch * TOKENS * 3  # the teacher once forward, the student forward and back
    method = "lora" if op.lora is not None else "full"
    return Plan(
        summary=f"train {trainable:,} of {elements:,} parameters for {op.steps} steps towards {count} answers of {op.to[:12]}",
        touches=touches,
        bytes_touched=size,
        trainable=trainable,
        steps=op.steps,
        seconds=round(op.steps * SECONDS_PER_STEP + 2 * elements * tokens / FLOPS_PER_SECOND, 1),
        memory=4 * (elements + 3 * trainable) + count * TOKENS * TOP * 8,
        details={
            "method": op.method,
            "anchors": count,
            "lr": op.lr if op.lr is not None else default_rate(elements, method),
            "text": {text.label: text.share for text in op.texts},
        },
    )


def _reach(op: Align, view: ModelView) -> tuple[tuple[str, ...], int, int]:
    """(names that may change, trained elements, bytes written)."""
    if op.lora is None:
        names = tuple(n for n in view.names() if view.entry(n).dtype in FLOATS)
        sizes = {n: math.prod(view.entry(n).shape) for n in names}
        return names, sum(sizes.values()), sum(size * FLOATS[view.entry(n).dtype] for n, size in sizes.items())
    family = adaptable(view)
    paths = target_paths(family, view)
    sides = sum(sum(view.entry(stored_name(family, view, path)).shape) for path in paths)
    names = tuple(tensor_name(path, leaf) for path in paths for leaf in ("lora_A", "lora_B"))
    return names, op.lora.rank * sides, 4 * op.lora.rank * sides
