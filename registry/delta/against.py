"""Codecs of one block against a base of the same type and shape: changes here and there (sparse) or everywhere (dense).

Both code the integer distance between target and base, never a difference of floats. A dense delta is put in the order of the base's
exponent, which the reader knows too: weights of one size take steps of one size, so every stretch gets a code table that fits it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...kernels.planes import BITS, ORDERED
from ..errors import CorruptRecord
from . import integers
from .alone import fill, segments, stacked
from .buffers import bits, borrow, differ
from .crew import delta_planes, each, join_planes, split_planes, undelta_planes
from .entropy import Chunks, decode_section, encode_section, size_of

EXPONENT = {torch.float64: 11, torch.float32: 8, torch.float16: 5, torch.bfloat16: 8}  # bits
PART = 1 << 12  # elements below which a stretch of equal exponent joins its neighbour
PART_MAX = 1 << 16  # a longer stretch is coded in pieces, so that the code follows the rows
LONG = 1 << 16  # elements from which on exponents are sorted by counting
CLOSE = 0.95
HEAD = struct.Struct("<BI")  # form of a segment, its bytes
PLANES, INTEGERS = range(2)
COUNT = struct.Struct("<I")

Base = Callable[[slice], Tensor]  # a range of the base: stored elsewhere, or forecast, when it is needed and no more than is needed


# --- everywhere ----------------------------------------------------------------------------------------------


def exponents(base: Tensor) -> np.ndarray | None:
    """The exponent of each element as a small unsigned integer `[n]`; None for types without one."""
    if base.dtype not in ORDERED:
        return None
    width = EXPONENT[base.dtype]
    field = (bits(base) >> (8 * base.element_size() - 1 - width)) & ((1 << width) - 1)
    return field.astype(np.uint8 if width <= 8 else np.int16)


def in_order(exponent: np.ndarray) -> np.ndarray:
    """Places of the elements in the order of their exponents, equals as they stand: int64 `[n]`."""
    if exponent.dtype == np.uint8 and len(exponent) >= LONG:  # counted in one pass, where numpy's sort leaves the cache
        from pyarrow import Array, py_buffer, uint8
        from pyarrow.compute import array_sort_indices  # type: ignore[reportAttributeAccessIssue]  # made at import

        places = array_sort_indices(Array.from_buffers(uint8(), len(exponent), [None, py_buffer(exponent)]))
        return np.frombuffer(places.buffers()[1], np.int64, len(exponent))
    return np.argsort(exponent, kind="stable")


def parts_of(exponent: np.ndarray) -> list[int]:
    """Lengths of the stretches of a segment whose exponents are these, in order; none too short and none too long for a code table."""
    parts, open_part = [], 0
    ends = np.searchsorted(exponent, np.arange(int(exponent[-1]) + 1 if len(exponent) else 0).astype(exponent.dtype), side="right")
    for count in np.diff(ends, prepend=0):
        if open_part >= PART // 2 and open_part + count > PART:
            parts, open_part = [*parts, open_part], 0
        open_part += int(count)
        while open_part >= PART_MAX:
            parts, open_part = [*parts, PART_MAX], open_part - PART_MAX
    return [*parts, open_part] if open_part else parts


def encode_dense(target: Tensor, base: Base, row: int = 1) -> Chunks:
    """Every element's distance, segment by segment: as byte planes, or as integers where that is clearly shorter."""
    coded = each(lambda part: _encode_segment(target[part], base(part)), segments(len(target), row))
    return [chunk for segment in coded for chunk in segment]


def _encode_segment(target: Tensor, base: Tensor) -> Chunks:
    exponent, parts = exponents(base), None
    if exponent is not None:
        order = in_order(exponent)
        parts = parts_of(np.take(exponent, order))
        target, base = pick(target, order), pick(base, order)
    planes = delta_planes(target, base)
    form, coded = PLANES, encode_section(list(planes.numpy()), parts)
    if integers.suits(target.dtype, len(target), size_of(coded)):
        shorter = integers.encode(planes.numpy(), parts)
        if len(shorter) < CLOSE * size_of(coded):
            form, coded = INTEGERS, [shorter]
    return [HEAD.pack(form, size_of(coded)), *coded]


def decode_dense(data: memoryview, count: int, row: int, wanted: slice, base: Base, out: Tensor) -> None:
    """Elements `wanted` of the block of `count` elements that `encode_dense` coded, into `out`."""
    work = []
    for part in segments(count, row):
        form, length = HEAD.unpack(data[: HEAD.size]) if len(data) >= HEAD.size else (0, len(data))
        if HEAD.size + length > len(data):
            raise CorruptRecord("a dense block is cut short")
        work.append((part, (form, data[HEAD.size : HEAD.size + length])))
        data = data[HEAD.size + length :]
    if len(data):
        raise CorruptRecord("a dense block is longer than it says")
    fill(out, wanted, work, lambda part, coded, room: _decode_segment(coded[0], coded[1], base(part), room))


def _decode_segment(form: int, body: memoryview, base: Tensor, out: Tensor) -> None:
    if form == PLANES:
        streams, rest = decode_section(body, [len(base)] * base.element_size())
        if len(rest):
            raise CorruptRecord("a dense segment is longer than it says")
        planes = stacked(streams, len(base))
    elif form == INTEGERS:
        planes = torch.from_numpy(integers.decode(body, len(base), base.element_size()))
    else:
        raise CorruptRecord("a dense segment has an unknown form")
    exponent = exponents(base)
    if exponent is None:
        return undelta_planes(planes, base, out)
    order = in_order(exponent)
    target = torch.empty_like(base)
    undelta_planes(planes, pick(base, order), target)
    place(out, order, target)


# --- here and there ------------------------------------------------------------------------------------------


def changes(target: Tensor, base: Tensor) -> int:
    """How many elements differ in a bit."""
    return sum(int(np.count_nonzero(differ(target[part], base[part]))) for part in segments(len(target)))


def encode_sparse(target: Tensor, base: Tensor) -> Chunks:
    """Gaps between the changed places, and the distances there."""
    where = np.flatnonzero(differ(target, base))
    gaps = torch.from_numpy((np.diff(where, prepend=-1) - 1).astype(np.int32))
    streams = [*split_planes(gaps).numpy(), *delta_planes(pick(target, where), pick(base, where)).numpy()]
    return [COUNT.pack(len(where)), *encode_section(streams)]


def decode_sparse(data: memoryview, count: int, wanted: slice, base: Base, out: Tensor) -> None:
    """Elements `wanted` of the block of `count` elements that `encode_sparse` coded, into `out`."""
    changed = COUNT.unpack(data[: COUNT.size])[0] if len(data) >= COUNT.size else -1
    if not 0 <= changed <= count:
        raise CorruptRecord("a sparse block is cut short, or changes more elements than there are")
    streams, rest = decode_section(data[COUNT.size :], [changed] * (4 + out.element_size()))
    if len(rest):
        raise CorruptRecord("a sparse block is longer than it says")
    planes, gaps = stacked(streams, changed), torch.empty(changed, dtype=torch.int32)
    join_planes(list(planes[:4]), gaps)
    where = np.cumsum(gaps.numpy().astype(np.int64) + 1) - 1
    if changed and not 0 <= where.min() <= where.max() < count:
        raise CorruptRecord("a sparse block changes elements that do not exist")
    here = (where >= wanted.start) & (where < wanted.stop)
    where, planes, known = where[here] - wanted.start, planes[4:, torch.from_numpy(here)], base(wanted)
    values = torch.empty(len(where), dtype=out.dtype)
    undelta_planes(planes, pick(known, where), values)
    bits(out)[:] = bits(known)
    place(out, where, values)


# --- moving bits ---------------------------------------------------------------------------------------------


def pick(x: Tensor, where: np.ndarray) -> Tensor:
    """x at the places `where`."""
    return torch.from_numpy(np.take(bits(x), where)).view(x.dtype)


def place(out: Tensor, where: np.ndarray, values: Tensor) -> None:
    """Write `values` into `out` at the places `where` (int64)."""
    integers_of = BITS[out.element_size()]
    out.view(integers_of).scatter_(0, borrow(where.view(np.uint8), torch.int64), values.view(integers_of))
