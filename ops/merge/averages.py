"""Averages over the checkpoints of one run: coefficients of an exponential mean, coefficients found by search, and an adaptive weight.

Liu et al., 2404.02241 (LCSC: coefficients found by evolution on any score); Qiao et al., 2410.10868 (a weight chosen at every step).
Coefficients go into a `linear` merge without normalisation; a search is reproducible from its seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

POPULATION = 20
STEPS = (1e-3, 1e-1)  # the mutation's standard deviation is drawn from between these, evenly on a logarithmic scale
FALLBACK = 0.01  # weight of the new parameters where the adaptive one is not defined

Coefficients = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The best coefficients, their score (greater is better, penalty included), and the best score after every evaluation."""

    coefficients: Coefficients
    score: float
    history: tuple[float, ...]


def ema_coefficients(count: int, rate: float, interval: int = 1) -> Coefficients:
    """The weights, oldest first, that an exponential mean of this rate per step gives checkpoints saved every `interval` steps."""
    if count < 1 or not 0 <= rate <= 1:
        raise ValueError("an exponential mean has at least one checkpoint and a rate from 0 to 1")
    kept = rate**interval
    return (kept ** (count - 1), *((1 - kept) * kept ** (count - 1 - k) for k in range(1, count)))


def search_coefficients(
    count: int,
    score: Callable[[Coefficients], float],
    *,
    seed: int = 0,
    budget: int = 500,
    patience: int = 200,
    penalty: float = 1e-3,
    starts: Sequence[Coefficients] = (),
) -> Found:
    """Coefficients of `count` checkpoints that sum to one and score well, by evolution; negative ones and ones above 1 are allowed.

    score: of the combination, greater is better; asked at most `budget` times, and no more after `patience` times without gain. penalty:
    times the sum of squares is taken off, since large opposite coefficients amplify rounding. The population starts with every checkpoint
    alone, exponential means of several rates, the plain mean and `starts`. Same seed and scores give the same result. Raises ValueError.
    """
    if count < 1 or budget < 1:
        raise ValueError("a search needs checkpoints and a budget")
    source, history, stale = random.Random(seed), [], 0
    people: list[tuple[float, Coefficients]] = []

    def ask(candidate: Coefficients) -> None:
        nonlocal stale
        value = score(candidate) - penalty * sum(c * c for c in candidate)
        stale = 0 if not history or value > history[-1] else stale + 1
        history.append(max(value, history[-1]) if history else value)
        people.append((value, candidate))
        people.sort(key=lambda one: -one[0])
        del people[POPULATION:]

    for candidate in dict.fromkeys(map(_closed, [*starts, *_seeds(count)])):
        if len(history) < budget:
            ask(candidate)
    while len(history) < budget and stale < patience and count > 1:
        ask(_child(people, source))
    return Found(people[0][1], people[0][0], tuple(history))


def _seeds(count: int) -> list[Coefficients]:
    alone = [tuple(float(i == k) for i in range(count)) for k in reversed(range(count))]
    return [(1.0 / count,) * count, *(ema_coefficients(count, rate) for rate in (0.3, 0.5, 0.7, 0.9)), *alone]


def _child(people: list[tuple[float, Coefficients]], source: random.Random) -> Coefficients:
    best = people[: max(2, len(people) // 2)]
    one, other = (min(source.sample(best, 2), key=lambda p: -p[0])[1] if len(best) > 1 else best[0][1] for _ in range(2))
    if source.random() < 0.5:
        mixed = [a if source.random() < 0.5 else b for a, b in zip(one, other, strict=True)]
    else:
        share = source.random()
        mixed = [share * a + (1 - share) * b for a, b in zip(one, other, strict=True)]
    size = STEPS[0] * (STEPS[1] / STEPS[0]) ** source.random()
    moved = source.sample(range(len(mixed)), max(1, round(source.uniform(0.1, 0.3) * len(mixed))))
    for k in moved:
        mixed[k] += source.gauss(0.0, size)
    return _closed(mixed)


def _closed(values: Sequence[float]) -> Coefficients:
    """The same with the last one set so that they sum to one."""
    return (*values[:-1], 1.0 - sum(values[:-1]))


def adaptive_weight(gap: float, gradient: float, turn: float | None, *, mode: str = "code") -> tuple[float, bool]:
    """(weight of the new parameters in the mean, whether the fallback was taken) for one tensor and step.

    Args: gap: L1 norm of new parameters minus mean; gradient: L1 norm of the gradient; turn: L1 norm of its change since the step before
    (None at the first step). mode `code`: 2 (1 + g) / (a c), as the authors' program has it; `paper`: 1 - (g + 1) / c, the published
    weight (L' + 1) / (d L'') of the old mean with d L'' taken as the change of the gradient. Where that lies outside (0, 1): FALLBACK.
    """
    if mode not in ("code", "paper"):
        raise ValueError(f"the mode is code or paper, not {mode!r}")
    if not turn or not gap:
        return FALLBACK, True
    weight = 2 * (1 + gradient) / (gap * turn) if mode == "code" else 1 - (gradient + 1) / turn
    return (weight, False) if 0 < weight < 1 else (FALLBACK, True)
