"""Exact order statistics over many tensors at once: the k greatest scores, or a percentile, without sorting and without joining tensors.

The bits of a float that is not negative, read as an integer, rise with the number. So the k-th greatest is found digit by digit: count how
often each leading digit occurs, keep the digit that holds the k-th, and look at the next digit among those alone. Three passes over
the scores, a table of 2048 counts, and the answer is an element of the data, not an approximation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .dispatch import accelerated

DIGIT = 11  # bits per pass
BINS = 1 << DIGIT
SHIFTS = (22, 11, 0)  # three digits cover the 31 bits below the sign
CHUNK = 1 << 18


@accelerated("select")
def digit_histogram(bits: Tensor, prefix: int, shift: int) -> Tensor:
    """How often each digit `(bits >> shift) % 2048` occurs among the elements whose higher bits are `prefix`.

    Args: bits int32 `[n]`, none negative; shift one of SHIFTS; prefix `bits >> (shift + 11)` of the elements that count (0 for the
    first digit). Returns int64 `[2048]`; exact on every road.
    """
    check_bits(bits, shift)
    counts = torch.zeros(BINS, dtype=torch.int64, device=bits.device)
    for part in bits.split(CHUNK):
        digits = (part >> shift) & (BINS - 1)
        if shift != SHIFTS[0]:
            digits = digits[(part >> (shift + DIGIT)) == prefix]
        counts += torch.bincount(digits, minlength=BINS)
    return counts


def check_bits(bits: Tensor, shift: int) -> None:
    """Raise ValueError unless bits is an int32 vector and shift one of SHIFTS."""
    if bits.dtype != torch.int32 or bits.dim() != 1 or shift not in SHIFTS:
        raise ValueError(f"digits are counted in int32 vectors at shifts {SHIFTS}, not in {bits.dtype} {list(bits.shape)} at {shift}")


def kth_largest(scores: Sequence[Tensor], k: int) -> float:
    """The k-th greatest (k from 1) of all elements of float32 tensors. ValueError for NaN, negative scores, or a k out of range."""
    bits = [_bits(s) for s in scores]
    return _number(_kth(bits, _checked_k(bits, k, least=1))[0])


def top_k_masks(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Masks of exactly the k greatest elements over all tensors; equals are taken by order of the tensors, then by flat index.

    Args: scores: float32, none negative, no NaN (ValueError). Returns one bool tensor per score, of its shape.
    """
    bits = [_bits(s) for s in scores]
    if _checked_k(bits, k, least=0) == 0:
        return [torch.zeros_like(s, dtype=torch.bool) for s in scores]
    threshold, equals = _kth(bits, k)
    masks = []
    for score, values in zip(scores, bits, strict=True):
        mask = values > threshold
        if equals:
            ties = (values == threshold).nonzero().reshape(-1)[:equals]
            mask[ties] = True
            equals -= len(ties)
        masks.append(mask.view(score.shape))
    return masks


def percentile(values: Sequence[Tensor], p: float) -> float:
    """The p-th percentile of the finite elements of float32 tensors, none negative; NaN and infinities do not count.

    Defined as an element of the data ("lower"): the one at floor(p / 100 * (n - 1)) of n in ascending order, so that a share of about
    1 - p / 100 lies strictly above it. Raises ValueError for negative values, p outside [0, 100], or nothing finite.
    """
    if not 0 <= p <= 100:
        raise ValueError(f"a percentile lies between 0 and 100, not at {p}")
    bits = [_bits(v[torch.isfinite(v)]) for v in values]
    count = sum(b.numel() for b in bits)
    if not count:
        raise ValueError("there is no finite value to take a percentile of")
    return _number(_kth(bits, count - math.floor(p / 100 * (count - 1)))[0])


def _kth(bits: Sequence[Tensor], k: int) -> tuple[int, int]:
    """(bits of the k-th greatest, how many equals of it belong to the k greatest)."""
    prefix = 0
    for shift in SHIFTS:
        counts = sum((digit_histogram(b, prefix, shift).cpu() for b in bits), torch.zeros(BINS, dtype=torch.int64))
        above = counts.flip(0).cumsum(0)  # elements whose digit is at least BINS - 1 - index
        index = int((above < k).sum())
        k -= int(above[index - 1]) if index else 0
        prefix = prefix << DIGIT | (BINS - 1 - index)
    return prefix, k


def _bits(score: Tensor) -> Tensor:
    if score.dtype != torch.float32:
        raise ValueError(f"scores are float32, not {score.dtype}")
    flat = score.detach().reshape(-1)
    if flat.numel() and not bool((flat >= 0).all()):  # false for NaN
        raise ValueError("scores are numbers that are not negative")
    return flat.view(torch.int32) & 0x7FFFFFFF  # -0.0 is 0.0


def _checked_k(bits: Sequence[Tensor], k: int, *, least: int) -> int:
    total = sum(b.numel() for b in bits)
    if not least <= k <= total:
        raise ValueError(f"cannot take the {k} greatest of {total} scores")
    return k


def _number(bits: int) -> float:
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32).item()
