"""Triton twins of `kernels/merge.py`: one pass over all tensors, the same bits.

The tensors come as a table of addresses, so that any number of them is read in one kernel. Quotients are IEEE's (`div_rn`), and no
product is contracted with a sum: the compiler is told so at every launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..merge import check, check_trims

BLOCK = 1024
TYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _read(table, index, at, inside, TYPE: tl.constexpr):
    if tl.bfloat16 == TYPE:  # read as its bits: Triton's interpreter does not see the type behind such an address
        where = tl.load(table + index).to(tl.pointer_type(tl.int16))
        wide = (tl.load(where + at, mask=inside, other=0).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        where = tl.load(table + index).to(tl.pointer_type(TYPE))
        wide = tl.load(where + at, mask=inside, other=0).to(tl.float32)
    return wide


@triton.jit
def _write(out, at, value, inside, TYPE: tl.constexpr):
    value = tl.where(value == value, value, float("nan"))  # every NaN becomes the canonical one
    if tl.bfloat16 == TYPE:
        raw = value.to(tl.int32, bitcast=True)
        tl.store(out + at, ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).to(tl.int16), mask=inside)  # to nearest, ties to even
    else:
        tl.store(out + at, value.to(TYPE), mask=inside)


@triton.jit
def _weighted(
    table, numbers, base, out, n, COUNT: tl.constexpr, TASK: tl.constexpr, DIVIDE: tl.constexpr, TYPE: tl.constexpr,
    RESULT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    wide = tl.load(base + at, mask=inside, other=0).to(tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for index in tl.static_range(COUNT):
        part = _read(table, index, at, inside, TYPE)
        if TASK:
            part = part - wide
        part = part * tl.load(numbers + index)
        sums = part if index == 0 else sums + part
    if DIVIDE:
        sums = tl.div_rn(sums, tl.load(numbers + COUNT) + tl.zeros([BLOCK], tl.float32))
    if TASK:
        sums = wide + sums * tl.load(numbers + COUNT + 1)
    _write(out, at, sums, inside, RESULT)


@triton.jit
def _elect(
    table, numbers, lows, lasts, base, out, n, COUNT: tl.constexpr, DIVIDE: tl.constexpr, VECTORS: tl.constexpr, TYPE: tl.constexpr,
    RESULT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    wide = tl.load(base + at, mask=inside, other=0).to(tl.float32)
    votes = tl.zeros([BLOCK], tl.float32)
    for index in tl.static_range(COUNT):
        votes = votes + _term(table, numbers, lows, lasts, index, wide, at, inside, VECTORS, TYPE)
    sign = tl.where(votes < 0, -1.0, 1.0)
    mixed, share = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for index in tl.static_range(COUNT):
        term = _term(table, numbers, lows, lasts, index, wide, at, inside, VECTORS, TYPE) * sign
        share = share + tl.where(term > 0, tl.load(numbers + index), 0.0)
        mixed = mixed + tl.where(term < 0, 0.0, term)
    mixed = mixed * sign
    if DIVIDE:
        mixed = tl.div_rn(mixed, tl.where(share == 0, 1.0, share))
    _write(out, at, wide + mixed * tl.load(numbers + COUNT), inside, RESULT)


@triton.jit
def _term(table, numbers, lows, lasts, index, wide, at, inside, VECTORS: tl.constexpr, TYPE: tl.constexpr):
    delta = _read(table, index, at, inside, TYPE)
    if not VECTORS:
        delta = delta - wide
    low = tl.load(lows + index)
    size = tl.abs(delta)
    drop = (size < low) | ((size == low) & (at > tl.load(lasts + index)))
    return tl.where(drop, 0.0, delta) * tl.load(numbers + index)


def weighted_sum(*tensors: Tensor, weights: Sequence[float], total: float | None = None) -> Tensor:
    """See `kernels.merge.weighted_sum`."""
    check(tensors, weights)
    return _launch(tensors[0], tensors, weights, 1.0, total, task=False)


def task_sum(base: Tensor, *tensors: Tensor, weights: Sequence[float], factor: float = 1.0, total: float | None = None) -> Tensor:
    """See `kernels.merge.task_sum`."""
    check((base, *tensors), (1.0, *weights))
    return _launch(base, tensors, weights, factor, total, task=True)


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
    """See `kernels.merge.elect_sum`."""
    check((base, *tensors), (1.0, *weights))
    check_trims(tensors, low, last)
    base, (held, kind) = base.contiguous(), _alike(tensors)
    out, n = torch.empty_like(base), base.numel()
    if n:
        numbers, lows = _floats([*weights, factor], base), _floats(low, base)
        lasts = torch.tensor(list(last), dtype=torch.int64, device=base.device)
        _elect[(triton.cdiv(n, BLOCK),)](
            _table(held), numbers, lows, lasts, base, _raw(out), n, COUNT=len(held), DIVIDE=normalize, VECTORS=vectors, TYPE=TYPES[kind],
            RESULT=TYPES[base.dtype], BLOCK=BLOCK, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def _launch(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], factor: float, total: float | None, *, task: bool) -> Tensor:
    base, (held, kind) = base.contiguous(), _alike(tensors)
    out, n = torch.empty_like(base), base.numel()
    if n:
        numbers = _floats([*weights, 1.0 if total is None else total, factor], base)
        _weighted[(triton.cdiv(n, BLOCK),)](
            _table(held), numbers, base, _raw(out), n, COUNT=len(held), TASK=task, DIVIDE=total is not None, TYPE=TYPES[kind],
            RESULT=TYPES[base.dtype], BLOCK=BLOCK, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def _alike(tensors: Sequence[Tensor]) -> tuple[list[Tensor], torch.dtype]:
    kind = tensors[0].dtype if len({t.dtype for t in tensors}) == 1 else torch.float32
    return [t.to(kind).contiguous() for t in tensors], kind


def _table(held: Sequence[Tensor]) -> Tensor:
    return torch.tensor([t.data_ptr() for t in held], dtype=torch.int64, device=held[0].device)


def _raw(out: Tensor) -> Tensor:
    return out.view(torch.int16) if out.dtype is torch.bfloat16 else out


def _floats(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32, device=like.device)
