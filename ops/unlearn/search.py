"""Search over one strength by measuring: the weakest setting that forgets enough and keeps enough. Pure Python.

`weakest` serves methods whose selection grows with their strength (SSD, LFSSD): bisection on a grid. `step` serves SLUG: doubling from
a start, then bisection (card SLUG, algorithm step 5). Both assume that forgetting grows with the strength, check that on their own log,
and fall back to a logarithmic grid where it does not hold. Every try starts from the original weights, so any of them can be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

FALLBACK = 12  # points of the grid that is walked when the log is not monotone
MISSED = 4  # the grade of a trial that does not satisfy both sides
NOISE = 0.02  # a forget accuracy that rises by less than this is still called falling: it is measured on a sample


@dataclass(frozen=True, slots=True)
class Trial:
    """One strength, measured on the sample of rows."""

    strength: float
    forget: float  # accuracy on the forget sample, 0 to 1
    retain: float  # utility on the retain sample, relative to before (1 = as before)
    met: bool  # forgets enough, with room to spare for rows that were not measured
    enough: bool  # forgets enough on the measured rows
    kept: bool  # keeps enough
    safe: bool  # keeps enough with room to spare

    @property
    def grade(self) -> int:
        """See Found."""
        if not (self.enough and self.kept):
            return MISSED
        return 0 if self.met and self.safe else 1 if self.safe else 2 if self.met else 3

    def told(self) -> dict[str, Any]:
        """For the record: numbers only."""
        return {
            "strength": significant(self.strength),
            "forget": round(self.forget, 6),
            "retain": round(self.retain, 6),
            "enough": self.enough,
            "kept": self.kept,
        }


@dataclass(frozen=True, slots=True)
class Found:
    """The chosen trial, how good it is, and everything that was tried, weakest first."""

    best: Trial
    grade: int  # 0: both sides with room to spare; 1, 2: one side without; 3: neither has room; MISSED: a side is not satisfied
    log: tuple[Trial, ...]
    monotone: bool

    @property
    def reached(self) -> bool:
        """Whether the chosen trial satisfies both sides."""
        return self.grade < MISSED

    @property
    def rank(self) -> tuple[int, float]:
        """Smaller is better; among those that miss, by how much."""
        return self.grade, 0.0 if self.reached else self.best.forget - self.best.retain


Measure = Callable[[float], Trial]


def grid(weak: float, strong: float, points: int) -> tuple[float, ...]:
    """`points` strengths from `weak` to `strong`, evenly spaced in their logarithm, to 6 significant digits."""
    ratio = (strong / weak) ** (1 / (points - 1))
    return tuple(significant(weak * ratio**i) for i in range(points))


def weakest(strengths: Sequence[float], measure: Measure) -> Found:
    """The first of `strengths` (weak to strong) that is met and kept, by bisection; else the best of a walk over the grid."""
    seen: dict[int, Trial] = {}

    def at(i: int) -> Trial:
        if i not in seen:
            seen[i] = measure(strengths[i])
        return seen[i]

    low, high = -1, len(strengths)  # low is not met, high is (or beyond the grid)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle).met else (middle, high)
    log = [seen[i] for i in sorted(seen)]
    if not falling(log) or min(t.grade for t in log) > 0:
        stride = max(1, len(strengths) // FALLBACK)
        for i in range(0, len(strengths), stride):
            at(i)
        log = [seen[i] for i in sorted(seen)]
    return choose(log)


def step(start: float, measure: Measure, *, evaluations: int = 10, span: tuple[float, float] = (0.01, 10.0)) -> Found:
    """The smallest step that is met: doubled from `start` until it is, then bisected, at most `evaluations` measurements.

    Doubling ends early where the target is out of reach and too little is kept already: a longer step keeps less. A log that is not
    monotone is replaced by a grid of 12 steps over `span`.
    """
    log: list[Trial] = []
    lower, upper, now = 0.0, math.inf, start
    while len(log) < evaluations:
        trial = measure(now)
        log.append(trial)
        lower, upper = (lower, now) if trial.met else (now, upper)
        if upper == math.inf and not trial.kept:
            break
        now = significant(2 * lower if upper == math.inf else (lower + upper) / 2)
    log.sort(key=lambda t: t.strength)
    if falling(log):
        return choose(log)
    seen = {t.strength: t for t in log}
    for strength in grid(*span, FALLBACK):
        seen.setdefault(strength, measure(strength))
    return choose([seen[s] for s in sorted(seen)])


def choose(log: Sequence[Trial]) -> Found:
    """The weakest trial that satisfies both sides (with room to spare where there is one), or the one that misses by the least.

    log: at least one trial, weakest first.
    """
    for grade in range(MISSED):
        if (hit := next((t for t in log if t.grade == grade), None)) is not None:
            return Found(hit, grade, tuple(log), falling(log))
    best = min(log, key=lambda t: t.forget - t.retain)  # min keeps the first, hence the weakest, of equals
    return Found(best, MISSED, tuple(log), falling(log))


def falling(log: Iterable[Trial]) -> bool:
    """Whether the forget accuracy never rises (beyond noise) from weak to strong: what bisection relies on."""
    lowest = math.inf
    for trial in log:
        if trial.forget > lowest + NOISE:
            return False
        lowest = min(lowest, trial.forget)
    return True


def significant(value: float, digits: int = 6) -> float:
    """`value` to a few significant digits: what is used is what is recorded."""
    return float(f"{value:.{digits}g}")
