"""How far a tensor moved: changed elements, norms of the difference, largest step. Streamed: memory does not grow with the tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...kernels.planes import BITS
from ..errors import ShapeMismatch
from .buffers import Buffer, as_bytes, borrow, dtype_of

STEP = 1 << 20  # elements at a time

Stats = dict[str, int | float | None]


def stats(word: str, target: Buffer, reference: Buffer) -> Stats:
    """`nnz` (elements that differ in a bit), `l2`, `rel_l2` (to the reference's norm) and `max_abs` of target - reference.

    Both hold little-endian elements of type `word`. Values are compared in float64. Norms are None when a changed element is not finite on
    either side, and `rel_l2` also when the reference is zero. Raises ShapeMismatch when the sizes differ.
    """
    mine, theirs = as_bytes(target), as_bytes(reference)
    if len(mine) != len(theirs):
        raise ShapeMismatch(f"{len(mine)} bytes cannot be compared with {len(theirs)}")
    a, b = borrow(mine, dtype_of(word)), borrow(theirs, dtype_of(word))
    changed, squares, norm, largest = 0, 0.0, 0.0, 0.0
    for start in range(0, len(a), STEP):
        here, there = a[start : start + STEP], b[start : start + STEP]
        values = _values(there)
        norm += float(torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).square().sum())
        differ = here.view(BITS[here.element_size()]) != there.view(BITS[here.element_size()])
        count = int(torch.count_nonzero(differ))
        if count:
            step = torch.where(differ, _values(here) - values, 0.0)  # equal infinities are no change
            squares += float(step.square().sum())
            largest = max(largest, float(step.abs().max())) if not math.isnan(largest) else largest
            changed += count
    return _report(changed, squares, norm, largest)


def _values(x: Tensor) -> Tensor:
    return x.to(torch.float64)


def _report(changed: int, squares: float, norm: float, largest: float) -> Stats:
    if not math.isfinite(squares):
        return {"nnz": changed, "l2": None, "rel_l2": None, "max_abs": None}
    l2 = math.sqrt(squares)
    relative = l2 / math.sqrt(norm) if norm else (None if l2 else 0.0)
    return {"nnz": changed, "l2": l2, "rel_l2": relative, "max_abs": largest}
