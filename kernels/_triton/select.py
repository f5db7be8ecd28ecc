"""Triton twin of `kernels/select.py`: each program counts many blocks in a table of its own and adds it to the result once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..select import BINS, DIGIT, SHIFTS, check_bits

BLOCK = 2048
STEPS = 16  # blocks per program


@triton.jit
def _count(
    bits, counts, n, prefix, shift, FIRST: tl.constexpr, DIGIT: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr
):
    table = tl.zeros([BINS], tl.int32)
    start = tl.program_id(0).to(tl.int64) * BLOCK * STEPS
    for step in range(STEPS):
        at = start + step * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(bits + at, mask=at < n, other=0)
        counted = at < n
        if not FIRST:
            counted = counted & ((value >> (shift + DIGIT)) == prefix)
        table += tl.histogram((value >> shift) & (BINS - 1), BINS, mask=counted)
    tl.atomic_add(counts + tl.arange(0, BINS), table.to(tl.int64), mask=table > 0)


def digit_histogram(bits: Tensor, prefix: int, shift: int) -> Tensor:
    """See `kernels.select.digit_histogram`."""
    check_bits(bits, shift)
    counts = torch.zeros(BINS, dtype=torch.int64, device=bits.device)
    if bits.numel():
        grid = (triton.cdiv(bits.numel(), BLOCK * STEPS),)
        first = shift == SHIFTS[0]
        _count[grid](bits.contiguous(), counts, bits.numel(), prefix, shift, FIRST=first, DIGIT=DIGIT, BINS=BINS, BLOCK=BLOCK, STEPS=STEPS)
    return counts
