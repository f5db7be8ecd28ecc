"""A magnitude trim over whole models (TIES as published): one threshold per ingredient for all its tensors, found without sorting.

The k-th greatest magnitude of a task vector of any size comes from counts of its digits, in three passes over the tensors; nothing but a
table of counts per tensor is kept. Equals are taken by order of the tensors, then by flat index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.merge import NEVER
from ...kernels.select import BINS, DIGIT, SHIFTS, digit_histogram
from ...registry.errors import BadParameter, CheckFailed
from .case import Threshold
from .layout import Output
from .recipe import Recipe
from .trims import kept_count


@dataclass(frozen=True, slots=True)
class Cut:
    """Keep what is greater than `low` in magnitude, and the first `equals` of what equals it."""

    low: float
    equals: int


ReadDelta = Callable[[Output, int], Tensor | None]


def cuts_over_model(recipe: Recipe, outputs: Sequence[Output], delta: ReadDelta) -> Mapping[tuple[str, int], Cut]:
    """(name of the tensor, number of the ingredient) -> where its task vector is cut. BadParameter for a density that varies by tensor."""
    found: dict[tuple[str, int], Cut] = {}
    for index in range(len(outputs[0].parts) if outputs else 0):
        densities = {output.each[index]["density"] for output in outputs}
        if len(densities) > 1:
            raise BadParameter(
                f"{recipe.method} over whole models needs one density per ingredient, not one per tensor", hint="use --scope tensor"
            )
        found |= _cuts(outputs, index, densities.pop(), delta)
    return found


def _cuts(outputs: Sequence[Output], index: int, density: float, delta: ReadDelta) -> dict[tuple[str, int], Cut]:
    if density >= 1:
        return {(output.name, index): Cut(NEVER, 0) for output in outputs}
    prefix, k, counts = 0, 0, []
    for shift in SHIFTS:
        counts = [_histogram(output, delta(output, index), prefix, shift) for output in outputs]
        total = torch.stack(counts).sum(dim=0)
        if shift == SHIFTS[0]:
            k = kept_count(int(total.sum()), density) if int(total.sum()) else 0
            if not k:
                return {(output.name, index): Cut(NEVER, 0) for output in outputs}
        above = total.flip(0).cumsum(0)
        place = int((above < k).sum())
        k -= int(above[place - 1]) if place else 0
        digit = BINS - 1 - place
        prefix = prefix << DIGIT | digit
    low = torch.tensor(prefix, dtype=torch.int32).view(torch.float32).item()
    found = {}
    for output, table in zip(outputs, counts, strict=True):
        taken = min(k, int(table[prefix & (BINS - 1)]))
        found[output.name, index] = Cut(low, taken)
        k -= taken
    return found


def _histogram(output: Output, delta: Tensor | None, prefix: int, shift: int) -> Tensor:
    if delta is None:
        return torch.zeros(BINS, dtype=torch.int64)
    scores = delta.abs().reshape(-1)
    if scores.numel() and bool(torch.isnan(scores.amax())):
        raise CheckFailed(f"{output.name} holds what is no number: its entries cannot be ranked")
    return digit_histogram(scores.view(torch.int32), prefix, shift).cpu()


def cut_at(delta: Tensor, cut: Cut) -> Threshold:
    """The cut of one task vector as a threshold and the flat index of the last entry that is kept among its equals."""
    if cut.low < 0 or not cut.equals:
        return cut.low, -1
    equal = (delta.abs().reshape(-1) == cut.low).nonzero().reshape(-1)
    return cut.low, int(equal[cut.equals - 1])
