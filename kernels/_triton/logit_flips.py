"""Triton twin of `kernels/logit_flips.py`: one pass over the vocabulary, a row per program, nothing but `[N]` is written.

Running maxima m and sums s as in an online softmax; the cross term c = sum e^(x - m) ((x - m) - (y - n)) moves with them, x and y the two
versions' logits over the temperature and n the running maximum of y: when the maxima rise by a and b, every weight shrinks by e^-a and
every difference by a - b, so c' = e^-a (c - s (a - b)). Then KL = c / s - log s + log t. Differences are taken from the maxima, so that
a large common offset costs no digits. Where y is -inf and x is not, the greatest such x is kept: it decides whether KL is infinite.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..logit_flips import Flips, check

BLOCK = 1024  # elements of the vocabulary per step


@triton.jit
def _zero(m):
    """The maximum as something that can be subtracted: 0 where nothing finite was seen."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def _best(z, at, best, place, WIDTH: tl.constexpr):
    """(maximum, its lowest index) of a block and of what came before it."""
    most = tl.max(z, 0)
    first = tl.min(tl.where(z == most, at, WIDTH), 0)
    better = (most > best) | (place < 0)
    return tl.where(better, most, best), tl.where(better, first, place)


@triton.jit
def _flips(
    old, new, targets, choices, numbers, rows, width, tau, old_row, old_step, new_row, new_step,
    BLOCK: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    low: tl.constexpr = float("-inf")
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    best_x, best_y, place_x, place_y = low, low, -1, -1
    m, n, hole = low, low, low
    s, t, c = 0.0, 0.0, 0.0
    plain_x, plain_y = 0.0, 0.0  # sums at temperature 1, from the same maxima
    other_x, other_y, own_x, own_y = low, low, low, low
    broken_x, broken_y = 0.0, 0.0
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < width
        x = tl.load(old + row * old_row + at.to(tl.int64) * old_step, mask=inside, other=low).to(tl.float32)
        y = tl.load(new + row * new_row + at.to(tl.int64) * new_step, mask=inside, other=low).to(tl.float32)
        broken_x += tl.sum(tl.where(x != x, 1.0, 0.0), 0)
        broken_y += tl.sum(tl.where(y != y, 1.0, 0.0), 0)
        mine = at == target
        own_x, own_y = tl.maximum(own_x, tl.max(tl.where(mine, x, low), 0)), tl.maximum(own_y, tl.max(tl.where(mine, y, low), 0))
        other_x = tl.maximum(other_x, tl.max(tl.where(mine, low, x), 0))
        other_y = tl.maximum(other_y, tl.max(tl.where(mine, low, y), 0))
        best_x, place_x = _best(x, at, best_x, place_x, FAR)
        best_y, place_y = _best(y, at, best_y, place_y, FAR)
        old_m, old_n, m, n = m, n, tl.maximum(m, best_x), tl.maximum(n, best_y)
        rise = (_zero(m) - _zero(old_m)) / tau  # from 0, which stands for -inf: then nothing is carried on
        climb = (_zero(n) - _zero(old_n)) / tau
        dx, dy = (x - _zero(m)) / tau, (y - _zero(n)) / tau
        w, v = tl.exp(dx), tl.exp(dy)
        gone = (y == low) & (x != low)
        hole = tl.maximum(hole, tl.max(tl.where(gone, x, low), 0))
        term = tl.where((w > 0) & (y != low), w * (dx - dy), 0.0)
        # Weights without a partner (y = -inf) are in s, and their differences count as -dy = 0: infinite anyway, or nothing.
        c = tl.where(old_m == low, 0.0, tl.exp(-rise) * (c - s * (rise - climb))) + tl.sum(term, 0)
        s = tl.where(old_m == low, 0.0, s * tl.exp(-rise)) + tl.sum(w, 0)
        t = tl.where(old_n == low, 0.0, t * tl.exp(-climb)) + tl.sum(v, 0)
        plain_x = tl.where(old_m == low, 0.0, plain_x * tl.exp(-rise * tau)) + tl.sum(tl.exp(x - _zero(m)), 0)
        plain_y = tl.where(old_n == low, 0.0, plain_y * tl.exp(-climb * tau)) + tl.sum(tl.exp(y - _zero(n)), 0)
    kl = c / s - tl.log(s) + tl.log(t)
    kl = tl.where((hole > low) & (tl.exp((hole - _zero(m)) / tau) / s > 0), float("inf"), kl)
    nothing, nobody = (broken_x > 0) | (m == low), (broken_y > 0) | (n == low)
    nan = float("nan")
    tl.store(choices + row, tl.minimum(place_x, width - 1))
    tl.store(choices + rows + row, tl.minimum(place_y, width - 1))
    tl.store(numbers + row, tl.where(nothing | nobody, nan, kl))
    tl.store(numbers + rows + row, tl.where(nothing, nan, own_x - m - tl.log(plain_x)))
    tl.store(numbers + 2 * rows + row, tl.where(nobody, nan, own_y - n - tl.log(plain_y)))
    tl.store(numbers + 3 * rows + row, tl.where(nothing, nan, own_x - other_x))
    tl.store(numbers + 4 * rows + row, tl.where(nobody, nan, own_y - other_y))


def logit_flips(old: Tensor, new: Tensor, targets: Tensor, tau: float = 1.0) -> Flips:
    """See `kernels.logit_flips.logit_flips`."""
    check(old, new, targets, tau)
    rows, width = old.shape
    choices = torch.empty(2, rows, dtype=torch.int64, device=old.device)
    numbers = torch.empty(5, rows, dtype=torch.float32, device=old.device)
    if rows:
        strides = (*old.stride(), *new.stride())
        _flips[(rows,)](old, new, targets.contiguous(), choices, numbers, rows, width, tau, *strides, BLOCK=BLOCK, FAR=1 << 30)
    return Flips(*choices, *numbers)


@triton.jit
def _sums(old, new, sums, rows, width, tau, old_row, old_step, new_row, new_step, BLOCK: tl.constexpr):
    """Maximum of both rows, and the logarithm of the sum of e^((x - maximum) / tau): apart, so that a large offset costs no digits."""
    low: tl.constexpr = float("-inf")
    row = tl.program_id(0).to(tl.int64)
    m, n, s, t = low, low, 0.0, 0.0
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < width
        x = tl.load(old + row * old_row + at.to(tl.int64) * old_step, mask=inside, other=low).to(tl.float32)
        y = tl.load(new + row * new_row + at.to(tl.int64) * new_step, mask=inside, other=low).to(tl.float32)
        old_m, old_n, m, n = m, n, tl.maximum(m, tl.max(x, 0)), tl.maximum(n, tl.max(y, 0))
        s = tl.where(old_m == low, 0.0, s * tl.exp((_zero(old_m) - _zero(m)) / tau)) + tl.sum(tl.exp((x - _zero(m)) / tau), 0)
        t = tl.where(old_n == low, 0.0, t * tl.exp((_zero(old_n) - _zero(n)) / tau)) + tl.sum(tl.exp((y - _zero(n)) / tau), 0)
    tl.store(sums + row, m)
    tl.store(sums + rows + row, tl.log(s))
    tl.store(sums + 2 * rows + row, n)
    tl.store(sums + 3 * rows + row, tl.log(t))


@triton.jit
def _gradient(
    old, new, sums, kl, scale, out, rows, width, tau, old_row, old_step, new_row, new_step,
    OF_OLD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    low: tl.constexpr = float("-inf")
    x = tl.load(old + row * old_row + at.to(tl.int64) * old_step, mask=inside, other=low).to(tl.float32)
    y = tl.load(new + row * new_row + at.to(tl.int64) * new_step, mask=inside, other=low).to(tl.float32)
    x = (x - tl.load(sums + row)) / tau - tl.load(sums + rows + row)
    y = (y - tl.load(sums + 2 * rows + row)) / tau - tl.load(sums + 3 * rows + row)
    value = tl.exp(x) * (tl.where(x == low, 0.0, x - y) - tl.load(kl + row)) if OF_OLD else tl.exp(y) - tl.exp(x)
    value *= tl.load(scale + row) / tau
    tl.store(out + row * width + at, value.to(out.dtype.element_ty), mask=inside)


def kl_gradient(old: Tensor, new: Tensor, kl: Tensor, scale: Tensor, tau: float, of_old: bool) -> Tensor:
    """See `kernels.logit_flips.kl_gradient`."""
    rows, width = old.shape
    out = torch.empty_like(old if of_old else new, memory_format=torch.contiguous_format)
    if rows:
        sums = torch.empty(4, rows, dtype=torch.float32, device=old.device)
        strides = (*old.stride(), *new.stride())
        _sums[(rows,)](old, new, sums, rows, width, tau, *strides, BLOCK=BLOCK)
        grid = (rows, triton.cdiv(width, BLOCK))
        _gradient[grid](old, new, sums, kl.contiguous(), scale.contiguous(), out, rows, width, tau, *strides, OF_OLD=of_old, BLOCK=BLOCK)
    return out
