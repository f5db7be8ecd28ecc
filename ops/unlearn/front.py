"""Which single tensor to step on: importance against alignment, and the Pareto front of the two (Cai et al. 2407.11867).

For every candidate l: importance I = |g_f| / |theta|, how much the forget loss asks of it for its size; alignment A = |cos(g_f, g_r)|,
how much the retain loss would feel it. Good tensors have a large I and a small A.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .exclusion import Slot
from .search import significant

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """One candidate tensor with its two numbers and the norms they came from."""

    slot: Slot
    importance: float
    alignment: float
    gradient: float  # |g_f|
    weight: float  # |theta|

    @property
    def promise(self) -> float:
        """Size of the part of the forget gradient that the retain gradient does not feel, relative to the weights: I sqrt(1 - A^2)."""
        return self.importance * max(0.0, 1 - self.alignment**2) ** 0.5

    def told(self, front: bool) -> dict[str, Any]:
        """One row of the recorded table."""
        numbers = {"importance": significant(self.importance), "alignment": round(self.alignment, 6)}
        return {"tensor": self.slot.stored[0], **numbers, "front": front}


def candidates(slots: Iterable[Slot], shapes: Mapping[str, Sequence[int]]) -> tuple[Slot, ...]:
    """The matrices (and convolutions) within blocks; without any, all matrices. shapes: parameter name -> shape."""
    matrices = tuple(s for s in slots if len(shapes[s.name]) >= 2)
    return tuple(s for s in matrices if s.layer is not None) or matrices


def place(slot: Slot, weight: Tensor, forget: Tensor, retain: Tensor) -> Place:
    """Importance and alignment of one tensor, in fp64. All three tensors have its shape; a zero gradient has alignment 0."""
    theta, g_f, g_r = (t.detach().double().flatten() for t in (weight, forget, retain))
    size, force, other = (v.norm().item() for v in (theta, g_f, g_r))
    aligned = abs((g_f @ g_r).item()) / (force * other) if force and other else 0.0
    return Place(slot, force / size if size else 0.0, min(aligned, 1.0), force, size)


def front(places: Iterable[Place]) -> tuple[Place, ...]:
    """Places that no other one beats in both numbers (at least as good in both, better in one), the most promising first.

    Contains a place of smallest alignment and one of largest importance; scaling all gradients changes nothing.
    """
    live = [p for p in places if p.importance > 0]
    best = [p for p in live if not any(_beats(o, p) for o in live)]
    return tuple(sorted(best, key=lambda p: (-p.promise, p.slot.stored)))


def _beats(one: Place, other: Place) -> bool:
    no_worse = one.alignment <= other.alignment and one.importance >= other.importance
    return no_worse and (one.alignment < other.alignment or one.importance > other.importance)
