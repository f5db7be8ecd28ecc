"""How far a model keeps up with the world, from likelihoods that somebody measured: fresh, stale and lost (after WikiFactDiff).

Pure functions over rows; which model was asked, and in what batches, is of no concern here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Replaced:
    """A replaced fact: mean NLL per token of the new and the old object, in nats."""

    relation: str
    new: float
    old: float
    popularity: float = 0.0  # of its subject, by any measure

    @property
    def fresh(self) -> bool:
        """The new answer is the likelier one."""
        return self.new < self.old


@dataclass(frozen=True, slots=True)
class Static:
    """A fact that stays: whether the model answered it before, and answers it now."""

    relation: str
    before: bool
    now: bool


@dataclass(frozen=True, slots=True)
class Freshness:
    """Shares from 0 to 1; None where nothing was asked."""

    fresh: float | None
    stale: float | None
    lost: float | None


def freshness(replaced: Sequence[Replaced], static: Sequence[Static] = ()) -> Freshness:
    """fresh: replaced facts whose new answer is preferred; stale: 1 - fresh; lost: of static facts known before, those unknown now."""
    fresh = _mean([row.fresh for row in replaced])
    return Freshness(fresh, None if fresh is None else 1 - fresh, _mean([not row.now for row in static if row.before]))


def by_relation(replaced: Sequence[Replaced], static: Sequence[Static] = ()) -> dict[str, Freshness]:
    """The same for each relation, by name."""
    changed: dict[str, list[Replaced]] = defaultdict(list)
    kept: dict[str, list[Static]] = defaultdict(list)
    for row in replaced:
        changed[row.relation].append(row)
    for fact in static:
        kept[fact.relation].append(fact)
    return {name: freshness(changed[name], kept[name]) for name in sorted({*changed, *kept})}


def by_popularity(replaced: Sequence[Replaced], parts: int = 10) -> list[Freshness]:
    """The same in `parts` groups of equal size, least popular first; fewer where there are fewer rows."""
    ordered = sorted(replaced, key=lambda row: (row.popularity, row.relation, row.new, row.old))
    count = min(parts, len(ordered))
    return [freshness(ordered[i * len(ordered) // count : (i + 1) * len(ordered) // count]) for i in range(count)]


def bleed(before: Sequence[float], after: Sequence[float], limit: float = 0.05) -> tuple[float, float]:
    """Of neighbours' true answers with these NLLs: (mean change of exp(-NLL), share that moved by more than `limit`)."""
    from math import exp

    moved = [exp(-now) - exp(-was) for was, now in zip(before, after, strict=True)]
    if not moved:
        return 0.0, 0.0
    return sum(moved) / len(moved), sum(abs(m) > limit for m in moved) / len(moved)


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None
