"""Regression where right and wrong are too coarse: by how much a similarity or a likelihood fell, example by example.

MUSCLE (2407.09435) reports gain G = mean max(S2 - S1, 0) and regression R = mean max(S1 - S2, 0), so that G - R is the change of the mean;
the smooth negative flip rate at a tolerance e is the share of examples with S1 - S2 > e. Pure arithmetic, no tensor, no file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

TOLERANCES = (0.0, 0.05, 0.1)


@dataclass(frozen=True, slots=True)
class Smooth:
    """Two versions' scores on the same examples. None where nothing was compared."""

    n: int
    gain: float | None
    regression: float | None
    rates: dict[float, float | None]  # tolerance -> share of the examples that fell by more

    def to_json(self) -> dict[str, object]:
        """As `mlc diff` shows it."""
        return {"n": self.n, "gain": self.gain, "regression": self.regression, "smooth_nfr": {f"{e:g}": r for e, r in self.rates.items()}}


def smooth(pairs: Iterable[tuple[float | None, float | None]], tolerances: Iterable[float] = TOLERANCES) -> Smooth:
    """From (before, after) per example; a pair with a missing or broken side is left out."""
    moved = [b - a for a, b in pairs if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)]
    gain = math.fsum(max(d, 0.0) for d in moved)
    regression = math.fsum(max(-d, 0.0) for d in moved)
    return settled(len(moved), gain, regression, {e: sum(-d > e for d in moved) for e in tolerances})


def settled(n: int, gain: float, regression: float, fallen: dict[float, int]) -> Smooth:
    """The report from sums and counts (the catalog sums in SQL)."""
    if not n:
        return Smooth(0, None, None, dict.fromkeys(fallen))
    return Smooth(n, gain / n, regression / n, {e: count / n for e, count in fallen.items()})
