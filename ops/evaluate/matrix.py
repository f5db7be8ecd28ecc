"""What a lineage learned and kept: the accuracy matrix of continual learning, and the numbers that follow from it.

R[i][j] is the score on suite j after version i (0 the oldest); None where it was not measured. Lopez-Paz and Ranzato (2017) for BWT and
FWT, Chaudhry et al. (2018) for forgetting in its max form. Scores are such that more is better: accuracy, else minus the log of a
perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Matrix = Sequence[Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Summary:
    """Numbers of one matrix; None where a cell that is needed is missing.

    last: mean score of the last version (ACC). forgetting: mean over suites of (best score before the last version - last score). bwt: mean
    over suites learned before the last version of (last score - score right after learning). fwt: mean over suites learned after the
    first version of (score just before learning - score of guessing). accumulation, retention: mean last score of the suites that some
    version was to learn, and of the others, which none was trained on.
    """

    last: float | None
    forgetting: float | None
    bwt: float | None
    fwt: float | None
    accumulation: float | None
    retention: float | None


def summarise(matrix: Matrix, suites: Sequence[str], learned: Mapping[str, int], chance: Mapping[str, float]) -> Summary:
    """The numbers of `matrix` [versions][suites].

    learned: suite -> index of the version that was to learn it. chance: suite -> score of guessing, 0 where it is not given.
    """
    if not matrix or not suites:
        return Summary(None, None, None, None, None, None)
    end = len(matrix) - 1
    place = {name: j for j, name in enumerate(suites)}
    final = {name: matrix[end][j] for name, j in place.items()}
    tasks = {name: at for name, at in learned.items() if name in place}
    return Summary(
        last=_mean(final.values()),
        forgetting=_mean(_fall([row[j] for row in matrix]) for j in place.values()) if end else None,
        bwt=_mean(_less(final[name], matrix[at][place[name]]) for name, at in tasks.items() if at < end),
        fwt=_mean(_less(matrix[at - 1][place[name]], chance.get(name, 0.0)) for name, at in tasks.items() if at > 0),
        accumulation=_mean(final[name] for name in tasks),
        retention=_mean(final[name] for name in place if name not in tasks),
    )


def _fall(column: Sequence[float | None]) -> float | None:
    """From the best score before the end to the score at the end; negative when the end is the best."""
    before = [value for value in column[:-1] if value is not None]
    return max(before) - column[-1] if before and column[-1] is not None else None


def _less(a: float | None, b: float | None) -> float | None:
    return a - b if a is not None and b is not None else None


def _mean(values: Iterable[float | None]) -> float | None:
    given = list(values)
    numbers = [value for value in given if value is not None]
    if not numbers or len(numbers) < len(given):
        return None
    return math.fsum(numbers) / len(numbers)
