"""Learning rate over a run: linear re-warming, then decay (Ibrahim et al., 2403.08763; WSD: Hu et al., 2404.06395).

Pure Python: plans and tests use it without torch.
"""

from __future__ import annotations

import math

from .base import TrainSettings

WSD_DECAY = 0.1  # last share of a `wsd` run, in which the rate falls; before it the rate is constant and a later run may branch off


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate of step `step` (from 0). Rises linearly to `lr` over `warmup` steps, ends at `floor * lr` in the last step."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    return settings.lr * (settings.floor + (1 - settings.floor) * _left(step, settings))


def _left(step: int, s: TrainSettings) -> float:
    """How much of the way down is left: 1 at the peak, 0 in the last step."""
    done = (step - s.warmup) / max(1, s.steps - 1 - s.warmup)
    if s.decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if s.decay == "linear":
        return 1 - done
    if s.decay == "wsd":
        return min(1.0, (1 - done) / WSD_DECAY)
    return 1.0
