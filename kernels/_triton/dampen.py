"""Triton twin of `kernels/dampen.py`: one pass, the same bits (divisions are IEEE's, nothing is contracted to a fused multiply-add).

bfloat16 is widened and rounded here as integers: to nearest, ties to even, without asking what a cast does on a given card.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dampen import check

BLOCK = 1024


@triton.jit
def _widen(raw, WIDE: tl.constexpr, BRAIN: tl.constexpr):
    if BRAIN:
        return (raw.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return raw.to(WIDE)


@triton.jit
def _narrow(value, raw, BRAIN: tl.constexpr):
    if BRAIN:
        bits = value.to(tl.int32, bitcast=True)
        even = (bits >> 16) & 1
        return tl.where(value == value, (bits + 0x7FFF + even) >> 16, 0x7FC0).to(tl.int16)
    else:
        return value.to(raw.dtype)


@triton.jit
def _dampen(w, f_forget, f_all, numbers, out, counts, n, DOUBLE: tl.constexpr, BRAIN: tl.constexpr, BLOCK: tl.constexpr):
    WIDE = tl.float64 if DOUBLE else tl.float32
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    alpha, lam, floor = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
    old = tl.load(w + at, mask=inside, other=0)
    few = tl.load(f_forget + at, mask=inside, other=0)
    every = tl.load(f_all + at, mask=inside, other=0)
    chosen = inside & (few > every * alpha)
    share, whole = every * lam, tl.where(chosen, few, 1.0).to(WIDE)
    beta = share / whole if DOUBLE else tl.div_rn(share, whole)  # in float32 a plain division is an approximation on the card
    beta = tl.where(beta > 1.0, 1.0, beta).to(WIDE)  # comparisons, not min and max: those may drop a NaN
    beta = tl.where(beta < floor, floor, beta)
    new = _narrow(_widen(old, WIDE, BRAIN) * beta, old, BRAIN)
    tl.store(out + at, tl.where(chosen, new, old), mask=inside)
    tl.store(counts + tl.program_id(0), tl.sum(chosen.to(tl.int32), 0))


def dampen(w: Tensor, f_forget: Tensor, f_all: Tensor, alpha: float, lam: float, floor: float = 0.0) -> tuple[Tensor, int]:
    """See `kernels.dampen.dampen`."""
    check(w, f_forget, f_all, alpha, lam, floor)
    n = w.numel()
    out = torch.empty_like(w, memory_format=torch.contiguous_format)
    if not n:
        return out, 0
    wide, brain = torch.float64 if w.dtype is torch.float64 else torch.float32, w.dtype is torch.bfloat16
    numbers = torch.tensor([alpha, lam, floor], dtype=wide, device=w.device)
    counts = torch.empty(triton.cdiv(n, BLOCK), dtype=torch.int32, device=w.device)
    old, new = (t.view(torch.int16) if brain else t for t in (w.contiguous(), out))
    few, every = (f.contiguous().to(wide) for f in (f_forget, f_all))
    _dampen[(len(counts),)](old, few, every, numbers, new, counts, n, DOUBLE=wide is torch.float64, BRAIN=brain, BLOCK=BLOCK)
    return out, int(counts.sum())
