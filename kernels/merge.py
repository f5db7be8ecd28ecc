"""The two sums that most merges end in, each in one pass over memory: a weighted sum, and a sum after an election of signs.

Every product, sum and quotient is float32's and rounded by itself (nothing is fused), in the order in which the tensors are given, so that
all roads and machines give the same bits. Models go in as they are stored; a task vector is what one of them adds to a base.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import exact
from .dispatch import accelerated

FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
LARGE = 1 << 22  # bytes
NEVER = -1.0  # a threshold below every magnitude: nothing is trimmed


@accelerated("merge")
def weighted_sum(*tensors: Tensor, weights: Sequence[float], total: float | None = None) -> Tensor:
    """(w_1 x_1 + ... + w_n x_n) / total: float32, in the order given, each step rounded by itself, at last rounded to x_1's type.

    Args: tensors of one shape, any of FLOATS; one weight for each; total: what the sum is divided by (None: nothing). The sum starts with
    the first product, not with zero, so that -0.0 stays. Returns a tensor of that shape in the first one's type; bit-exact on every road.
    Raises ValueError for shapes, types or counts that do not fit.
    """
    check(tensors, weights)
    out = _room(tensors[0])
    return exact.weighted_sum(_single(tensors), weights, out.dtype, total, out)


@accelerated("merge")
def task_sum(base: Tensor, *tensors: Tensor, weights: Sequence[float], factor: float = 1.0, total: float | None = None) -> Tensor:
    """base + factor * (w_1 (x_1 - base) + ... + w_n (x_n - base)) / total: steps, types and errors as `weighted_sum`.

    The sum of the differences is divided by `total` first (unless None), then multiplied by `factor`, then added to the base.
    """
    check((base, *tensors), (1.0, *weights))
    out = _room(base)
    known, *others = _single((base, *tensors))
    return exact.task_sum(known, others, weights, factor, out.dtype, total, out)


@accelerated("merge")
def elect_sum(
    base: Tensor,
    *tensors: Tensor,
    weights: Sequence[float],
    low: Sequence[float],
    last: Sequence[int],
    normalize: bool = True,
    factor: float = 1.0,
    vectors: bool = False,
) -> Tensor:
    """Trim task vectors, elect a sign per element, and add to the base the mean of those that agree with it (TIES, 2306.01708, section 3).

    Args: base of any of FLOATS; tensors of its shape: models x_i, whose task vectors are d_i = x_i - base, or with `vectors` the d_i
    themselves. For each a weight, a threshold `low` (NEVER: keep all) and an index `last`: dropped is what is smaller than `low` in
    magnitude, and of those equal to it the ones at a flat index beyond `last`. With e_i = w_i d_i the sign s is + where sum e_i >= 0 (a tie
    goes to +), n = sum of the |e_i| of that sign, m = sum of their w_i, 1 where it is 0. Returns base + factor * (s n / m), or s n alone
    unless `normalize`, in the base's type; float32, sums in the order given, bit-exact on every road. NaN is never dropped.
    """
    check((base, *tensors), (1.0, *weights))
    check_trims(tensors, low, last)
    out, (known, *others) = _room(base), _single((base, *tensors))
    cuts = list(zip(low, last, strict=True))
    return exact.elect_sum(known, others, weights, cuts, factor, out.dtype, normalize, out, vectors=vectors)


def check_trims(tensors: Sequence[Tensor], low: Sequence[float], last: Sequence[int]) -> None:
    """Raise ValueError unless every tensor has a threshold and a last index."""
    if not len(low) == len(last) == len(tensors):
        raise ValueError(f"{len(tensors)} task vectors cannot be trimmed with {len(low)} thresholds and {len(last)} indices")


def check(tensors: Sequence[Tensor], weights: Sequence[float]) -> None:
    """Raise ValueError unless there are tensors of one shape and floating types, each with a weight."""
    if not tensors or len(tensors) != len(weights):
        raise ValueError(f"{len(tensors)} tensors cannot be summed with {len(weights)} weights")
    for x in tensors:
        if x.shape != tensors[0].shape or x.dtype not in FLOATS:
            raise ValueError(
                f"floats of one shape are summed, not {tensors[0].dtype} {list(tensors[0].shape)} and {x.dtype} {list(x.shape)}"
            )


def _room(like: Tensor) -> Tensor:
    """Empty memory for a result, row-major. numpy asks the system for large pages: with small ones, taking them costs more than a sum."""
    if like.device.type != "cpu" or like.nbytes < LARGE:
        return torch.empty_like(like, memory_format=torch.contiguous_format)
    return torch.from_numpy(np.empty(like.nbytes, np.uint8)).view(like.dtype).view(like.shape)


def _single(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of types that float32 holds: float64 is rounded to it."""
    return [x.to(torch.float32) if x.dtype == torch.float64 else x for x in tensors]
