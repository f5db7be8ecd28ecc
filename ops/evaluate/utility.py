"""Model utility: one number for what a model still knows, the harmonic mean over the parts (TOFU: retain, real authors, world facts).

Each part is a truth suite and gives probability, ROUGE-L recall and truth ratio. One zero makes the whole zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .predictions import Prediction

PER_PART = ("probability", "rouge_l", "truth_ratio")


def model_utility(parts: Mapping[str, Mapping[str, float | None]]) -> float | None:
    """The harmonic mean of the parts' three metrics each; None when one of them has no number."""
    return harmonic_mean([metrics.get(key) for metrics in parts.values() for key in PER_PART])


def harmonic_mean(values: Sequence[float | None]) -> float | None:
    """n / sum(1/x) of numbers that are at least 0; 0.0 as soon as one is 0, None when one is missing or there is none."""
    numbers = [value for value in values if value is not None]
    if not numbers or len(numbers) < len(values):
        return None
    return 0.0 if min(numbers) <= 0.0 else len(numbers) / sum(1.0 / value for value in numbers)


def summed_up(parts: Mapping[str, Mapping[str, float | None]]) -> tuple[list[Prediction], dict[str, float | None]]:
    """One row for each number (`retain.probability`, ...) and the metric `utility`."""
    rows = [Prediction(f"{name}.{key}", "", None, metrics.get(key), None) for name, metrics in parts.items() for key in PER_PART]
    return rows, {"utility": model_utility(parts)}
