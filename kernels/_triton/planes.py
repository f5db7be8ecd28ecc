"""Triton twins of `kernels/planes.py`: one pass over memory each, the same bits.

Planes are written and read as rows of a uint8 matrix whose row stride is `n`. Every item size is one loop unrolled over its bytes; signed
integers carry all arithmetic, and logical shifts go through a mask, as in the specification.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..planes import BITS, ORDERED, check_pair, check_planes

BLOCK = 1024


@triton.jit
def _order(raw, WIDTH: tl.constexpr, ORDER: tl.constexpr):
    if ORDER:
        raw = raw ^ ((raw >> (WIDTH - 1)) & ((1 << (WIDTH - 1)) - 1))
    return raw


@triton.jit
def _shift_right(raw, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    return (raw >> COUNT) & ((1 << (WIDTH - COUNT)) - 1)


@triton.jit
def _store_planes(value, planes, at, inside, n, ITEMS: tl.constexpr):
    stride = tl.zeros_like(at) + n  # 64 bits: eight planes may lie beyond what 32 can address
    for index in tl.static_range(ITEMS):
        tl.store(planes + index * stride + at, (value >> (8 * index)).to(tl.uint8), mask=inside)


@triton.jit
def _load_planes(planes, at, inside, n, like, ITEMS: tl.constexpr):
    value, stride = like ^ like, tl.zeros_like(at) + n
    for index in tl.static_range(ITEMS):
        value |= tl.load(planes + index * stride + at, mask=inside, other=0).to(value.dtype) << (8 * index)
    return value


@triton.jit
def _delta(target, base, planes, n, ITEMS: tl.constexpr, ORDER: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    known = _order(tl.load(base + at, mask=inside, other=0), 8 * ITEMS, ORDER)
    step = _order(tl.load(target + at, mask=inside, other=0), 8 * ITEMS, ORDER) - known
    _store_planes((step << 1) ^ (step >> (8 * ITEMS - 1)), planes, at, inside, n, ITEMS)


@triton.jit
def _undelta(planes, base, target, n, ITEMS: tl.constexpr, ORDER: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    known = tl.load(base + at, mask=inside, other=0)
    zigzag = _load_planes(planes, at, inside, n, known, ITEMS)
    step = _shift_right(zigzag, 1, 8 * ITEMS) ^ -(zigzag & 1)
    value = (_order(known, 8 * ITEMS, ORDER) + step).to(known.dtype)
    tl.store(target + at, _order(value, 8 * ITEMS, ORDER), mask=inside)  # the map is its own inverse


@triton.jit
def _split(x, planes, n, ITEMS: tl.constexpr, ORDER: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    raw = tl.load(x + at, mask=inside, other=0)
    if ORDER:
        raw = (raw << 1) | _shift_right(raw, 8 * ITEMS - 1, 8 * ITEMS)
    _store_planes(raw, planes, at, inside, n, ITEMS)


@triton.jit
def _join(planes, x, n, ITEMS: tl.constexpr, ORDER: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    raw = _load_planes(planes, at, inside, n, tl.zeros([BLOCK], x.dtype.element_ty), ITEMS)
    if ORDER:
        raw = _shift_right(raw, 1, 8 * ITEMS) | (raw << (8 * ITEMS - 1))
    tl.store(x + at, raw, mask=inside)


def delta_planes(target: Tensor, base: Tensor) -> Tensor:
    """See `kernels.planes.delta_planes`."""
    check_pair(target, base)
    planes = _empty_planes(target)
    _run(_delta, target.numel(), target.dtype, _bits(target), _bits(base), planes)
    return planes


def undelta_planes(planes: Tensor, base: Tensor) -> Tensor:
    """See `kernels.planes.undelta_planes`."""
    check_planes(planes, base.dtype)
    known = _bits(base)
    target = torch.empty_like(known)
    _run(_undelta, base.numel(), base.dtype, planes.contiguous(), known, target)
    return target.view(base.dtype)


def split_planes(x: Tensor) -> Tensor:
    """See `kernels.planes.split_planes`."""
    planes = _empty_planes(x)
    _run(_split, x.numel(), x.dtype, _bits(x), planes)
    return planes


def join_planes(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """See `kernels.planes.join_planes`."""
    check_planes(planes, dtype)
    x = torch.empty(planes.shape[1], dtype=BITS[dtype.itemsize], device=planes.device)
    _run(_join, x.numel(), dtype, planes.contiguous(), x)
    return x.view(dtype)


def _run(kernel: triton.JITFunction, n: int, dtype: torch.dtype, *tensors: Tensor) -> None:
    if n:
        kernel[(triton.cdiv(n, BLOCK),)](*tensors, n, ITEMS=dtype.itemsize, ORDER=dtype in ORDERED, BLOCK=BLOCK)


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(BITS[x.element_size()])


def _empty_planes(x: Tensor) -> Tensor:
    return torch.empty(x.element_size(), x.numel(), dtype=torch.uint8, device=x.device)
