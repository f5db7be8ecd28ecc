"""The two sums that most merges end in, each in one pass over memory: a weighted sum, and a sum after an election of signs.

Every product, sum and quotient is float32's and rounded by itself (nothing is fused), in the order in which the tensors are given, so that
all roads and machines give the same bits. Models go in as they are stored; a task vector is what one of them adds to a base.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .dispatch import accelerated
from .exact import round_to

FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
CHUNK = 1 << 18  # elements of one step: what a processor's cache holds; no bit depends on it
NEVER = -1.0  # a threshold below every magnitude: nothing is trimmed


@accelerated("merge")
def weighted_sum(*tensors: Tensor, weights: Sequence[float], total: float | None = None) -> Tensor:
    """(w_1 x_1 + ... + w_n x_n) / total: float32, in the order given, each step rounded by itself, at last rounded to x_1's type.

    Args: tensors of one shape, any of FLOATS; one weight for each; total: what the sum is divided by (None: nothing). The sum starts with
    the first product, not with zero, so that -0.0 stays. Returns a tensor of that shape in the first one's type; bit-exact on every road.
    Raises ValueError for shapes, types or counts that do not fit.
    """
    check(tensors, weights)
    out = torch.empty_like(tensors[0], memory_format=torch.contiguous_format)
    for new, *parts in _chunks(out, *tensors):
        sums = parts[0].to(torch.float32) * weights[0]
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            sums += part.to(torch.float32) * weight
        if total is not None:
            sums /= total
        new.copy_(round_to(sums, out.dtype))
    return out


@accelerated("merge")
def task_sum(base: Tensor, *tensors: Tensor, weights: Sequence[float], factor: float = 1.0, total: float | None = None) -> Tensor:
    """base + factor * (w_1 (x_1 - base) + ... + w_n (x_n - base)) / total: steps, types and errors as `weighted_sum`.

    The sum of the differences is divided by `total` first (unless None), then multiplied by `factor`, then added to the base.
    """
    check((base, *tensors), (1.0, *weights))
    out = torch.empty_like(base, memory_format=torch.contiguous_format)
    for new, old, *parts in _chunks(out, base, *tensors):
        wide = old.to(torch.float32)
        sums = (parts[0].to(torch.float32) - wide) * weights[0]
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            sums += (part.to(torch.float32) - wide) * weight
        if total is not None:
            sums /= total
        new.copy_(round_to(wide + sums * factor, out.dtype))
    return out


@accelerated("merge")
def elect_sum(
    base: Tensor,
    *deltas: Tensor,
    weights: Sequence[float],
    low: Sequence[float],
    last: Sequence[int],
    normalize: bool = True,
    factor: float = 1.0,
) -> Tensor:
    """Trim, elect a sign per element, and add to the base the mean of the deltas that agree with it (TIES, 2306.01708, section 3).

    Args: base of any of FLOATS; deltas float32 of its shape; per delta a weight, a threshold `low` (NEVER: keep all) and an index `last`:
    dropped is what is smaller than `low` in magnitude, and of those equal to it the ones at a flat index beyond `last`. Then e_i = w_i d_i;
    the sign is + where sum e_i >= 0 (a tie goes to +); n = sum of the e_i of that sign, m = sum of their w_i, 1 where it is 0. Returns
    base + factor * n / m (n alone unless `normalize`) in the base's type; sums in the order given; bit-exact on every road.
    """
    check((base, *deltas), (1.0, *weights))
    if any(d.dtype != torch.float32 for d in deltas) or not len(low) == len(last) == len(deltas):
        raise ValueError("signs are elected among float32 deltas, each with a threshold and a last index")
    out = torch.empty_like(base, memory_format=torch.contiguous_format)
    start = 0
    for new, old, *parts in _chunks(out, base, *deltas):
        terms = [_kept(d, low[i], last[i] - start) * weights[i] for i, d in enumerate(parts)]
        plus = _sum(terms) >= 0
        agree = [torch.where(plus, e > 0, e < 0) for e in terms]
        mixed = torch.zeros_like(terms[0])
        for e, yes in zip(terms, agree, strict=True):
            mixed += torch.where(yes, e, 0.0)
        if normalize:
            share = torch.zeros_like(mixed)
            for weight, yes in zip(weights, agree, strict=True):
                share += yes.to(torch.float32) * weight
            mixed /= torch.where(share == 0, 1.0, share)
        new.copy_(round_to(old.to(torch.float32) + mixed * factor, out.dtype))
        start += new.numel()
    return out


def check(tensors: Sequence[Tensor], weights: Sequence[float]) -> None:
    """Raise ValueError unless there are tensors of one shape and floating types, each with a weight."""
    if not tensors or len(tensors) != len(weights):
        raise ValueError(f"{len(tensors)} tensors cannot be summed with {len(weights)} weights")
    for x in tensors:
        if x.shape != tensors[0].shape or x.dtype not in FLOATS:
            raise ValueError(
                f"floats of one shape are summed, not {tensors[0].dtype} {list(tensors[0].shape)} and {x.dtype} {list(x.shape)}"
            )


def _kept(delta: Tensor, low: float, last: int) -> Tensor:
    if low < 0:
        return delta
    magnitude = delta.abs()
    drop = magnitude <= low
    if last >= 0:
        drop[: last + 1] = magnitude[: last + 1] < low
    return torch.where(drop, 0.0, delta)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0].clone()
    for term in terms[1:]:
        total += term
    return total


def _chunks(*tensors: Tensor):  # -> Iterator[tuple[Tensor, ...]]
    return zip(*(t.reshape(-1).split(CHUNK) for t in tensors), strict=True)
