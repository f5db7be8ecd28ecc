"""How far a tensor moved: changed elements, norms of the difference, largest step. Streamed: memory does not grow with the tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels.planes import BITS
from ..errors import ShapeMismatch
from .buffers import Buffer, as_bytes, borrow, differ, dtype_of
from .crew import one_thread

STEP = 1 << 17  # elements at a time: what a processor's cache holds
NARROW = (torch.float32, torch.bfloat16, torch.float16)  # squares are summed in float32 within a step where nothing is lost by it
SAFE = 1e-24  # a sum of squares of one step below which some may have vanished in float32

Stats = dict[str, int | float | None]


@dataclass(frozen=True, slots=True)
class Moved:
    """Sums over a stretch of a tensor; those of the next stretch are added to them."""

    changed: int = 0
    squares: float = 0.0  # of the steps
    norm: float = 0.0  # squares of the reference
    largest: float = 0.0  # step

    def __add__(self, more: Moved) -> Moved:
        far = max(self.largest, more.largest) if not math.isnan(self.largest) else self.largest
        return Moved(self.changed + more.changed, self.squares + more.squares, self.norm + more.norm, far)

    def report(self) -> Stats:
        """What `stats` returns."""
        if not math.isfinite(self.squares):
            return {"nnz": self.changed, "l2": None, "rel_l2": None, "max_abs": None}
        l2 = math.sqrt(self.squares)
        relative = l2 / math.sqrt(self.norm) if self.norm else (None if l2 else 0.0)
        return {"nnz": self.changed, "l2": l2, "rel_l2": relative, "max_abs": self.largest}


def stats(word: str, target: Buffer, reference: Buffer) -> Stats:
    """`nnz` (elements that differ in a bit), `l2`, `rel_l2` (to the reference's norm) and `max_abs` of target - reference.

    Both hold little-endian elements of type `word`. Differences are float32's for types that it holds, else float64's; they are summed in
    float32 within a step of some hundred thousand elements (relative error of the norms below 1e-5) and in float64 over the steps. Norms
    are None when a changed element is not finite on either side, and `rel_l2` also when the reference is zero. Raises ShapeMismatch when
    the sizes differ.
    """
    mine, theirs = as_bytes(target), as_bytes(reference)
    if len(mine) != len(theirs):
        raise ShapeMismatch(f"{len(mine)} bytes cannot be compared with {len(theirs)}")
    a, b = borrow(mine, dtype_of(word)), borrow(theirs, dtype_of(word))
    with one_thread():  # sums are split by threads: one gives the same digits everywhere
        return moved(a, b).report()


def moved(a: Tensor, b: Tensor) -> Moved:
    """The sums over a stretch `[n]` of a tensor and of its reference, of one type; for callers that let torch work in one thread."""
    found = Moved()
    room = torch.empty(2, min(STEP, len(a)), dtype=torch.float32) if a.dtype in NARROW else None
    for start in range(0, len(a), STEP):
        here, there = a[start : start + STEP], b[start : start + STEP]
        count = int(np.count_nonzero(differ(here, there)))
        quick = None if room is None else _quick(here, there, count, room[:, : len(here)])
        found = found + (quick or _careful(here, there, count))
    return found


def _quick(here: Tensor, there: Tensor, count: int, room: Tensor) -> Moved | None:
    """The sums of one step in float32; None where that is not good enough."""
    values, step = room
    norm = float(torch.dot(values.copy_(there), values))
    if not SAFE <= norm < math.inf:  # all zero, tiny, or not all finite
        return None
    if not count:
        return Moved(norm=norm)
    torch.sub(step.copy_(here), values, out=step)
    squares = float(torch.dot(step, step))
    if not SAFE <= squares < math.inf:
        return None
    return Moved(count, squares, norm, max(float(torch.amax(step)), -float(torch.amin(step))))  # asked together they take longer


def _careful(here: Tensor, there: Tensor, count: int) -> Moved:
    """The same in float64, whatever the elements are."""
    values = _values(there)
    norm = float(torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).square().sum())
    if not count:
        return Moved(norm=norm)
    differs = here.view(BITS[here.element_size()]) != there.view(BITS[here.element_size()])
    step = torch.where(differs, _values(here) - values, 0.0)  # equal infinities are no change
    return Moved(count, float(step.square().sum()), norm, float(step.abs().max()))


def _values(x: Tensor) -> Tensor:
    return x.to(torch.float64)
