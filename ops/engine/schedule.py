"""Learning rate over a run: linear re-warming, then decay (Ibrahim et al., 2403.08763, with the infinite one; WSD: Hu et al., 2404.06395).

Pure Python: plans and tests use it without torch.
"""

from __future__ import annotations

import math

from .base import TrainSettings

ANNEALING = 0.1  # last share of a `wsd` or `infinite` run, in which the rate falls; before it a later run may branch off
COOLING = 0.3  # first share of an `infinite` run, in which the rate falls from its peak to the level that it then keeps
LEVEL = 0.5  # that level, as a share of the way from the last rate to the peak
STABLE = ("wsd", "infinite")


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate of step `step` (from 0). Rises linearly to `lr` over `warmup` steps, ends at `floor * lr` in the last step."""
    rate = _planned(step, settings)
    for first, factor in settings.slow:
        if step + 1 >= first:
            rate *= factor
    return rate


def stable_steps(settings: TrainSettings) -> int | None:
    """How many steps a schedule does before its rate falls for the end; None for one that has no such point, or falls at once."""
    if settings.decay not in STABLE:
        return None
    falling = (step for step in range(settings.warmup, settings.steps) if _done(step, settings) > 1 - ANNEALING)
    return next(falling, settings.steps) or None


def _planned(step: int, settings: TrainSettings) -> float:
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    return settings.lr * (settings.floor + (1 - settings.floor) * _left(step, settings))


def _done(step: int, s: TrainSettings) -> float:
    return (step - s.warmup) / max(1, s.steps - 1 - s.warmup)


def _left(step: int, s: TrainSettings) -> float:
    """How much of the way down is left: 1 at the peak, 0 in the last step."""
    done = _done(step, s)
    if s.decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if s.decay == "linear":
        return 1 - done
    if s.decay == "wsd":
        return min(1.0, (1 - done) / ANNEALING)
    if s.decay == "infinite":
        cooled = LEVEL + (1 - LEVEL) * 0.5 * (1 + math.cos(math.pi * min(1.0, done / COOLING)))
        return min(cooled, LEVEL * (1 - done) / ANNEALING)
    return 1.0
