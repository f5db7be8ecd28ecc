"""Codecs of one block against a base of the same type and shape: changes here and there (sparse) or everywhere (dense).

Both code the integer distance between target and base, never a difference of floats. A dense delta is put in the order of the base's
exponent, which the reader knows too: weights of one size take steps of one size, so every stretch gets a code table that fits it.
"""

from __future__ import annotations

import struct

import numpy as np
import torch
from torch import Tensor

from ...kernels.planes import BITS, ORDERED, delta_planes, join_planes, split_planes, undelta_planes
from ..errors import CorruptRecord
from . import integers
from .alone import segments, stacked
from .entropy import Chunks, decode_section, encode_section, size_of

EXPONENT = {torch.float64: 11, torch.float32: 8, torch.float16: 5, torch.bfloat16: 8}  # bits
PART = 1 << 12  # elements below which a stretch of equal exponent joins its neighbour
PART_MAX = 1 << 16  # a longer stretch is coded in pieces, so that the code follows the rows
CLOSE = 0.95
HEAD = struct.Struct("<BI")  # form of a segment, its bytes
PLANES, INTEGERS = range(2)
COUNT = struct.Struct("<I")


# --- everywhere ----------------------------------------------------------------------------------------------


def exponents(base: Tensor) -> np.ndarray | None:
    """The exponent of each element as a small unsigned integer `[n]`; None for types without one."""
    if base.dtype not in ORDERED:
        return None
    bits, width = 8 * base.element_size(), EXPONENT[base.dtype]
    field = (base.view(BITS[base.element_size()]) >> (bits - 1 - width)) & ((1 << width) - 1)
    return field.to(torch.uint8 if width <= 8 else torch.int16).numpy()


def parts_of(exponent: np.ndarray) -> list[int]:
    """Lengths of the stretches of a segment in the order of its exponents, none too short and none too long for a code table."""
    parts, open_part = [], 0
    for count in np.bincount(exponent):
        if open_part >= PART // 2 and open_part + count > PART:
            parts, open_part = [*parts, open_part], 0
        open_part += int(count)
        while open_part >= PART_MAX:
            parts, open_part = [*parts, PART_MAX], open_part - PART_MAX
    return [*parts, open_part] if open_part else parts


def encode_dense(target: Tensor, base: Tensor) -> Chunks:
    """Every element's distance, segment by segment: as byte planes, or as integers where that is clearly shorter."""
    return [chunk for part in segments(target.numel()) for chunk in _encode_segment(target[part], base[part])]


def _encode_segment(target: Tensor, base: Tensor) -> Chunks:
    exponent, parts = exponents(base), None
    if exponent is not None:
        order, parts = torch.from_numpy(np.argsort(exponent, kind="stable")), parts_of(exponent)
        target, base = pick(target, order), pick(base, order)
    planes = delta_planes(target, base)
    body = encode_section(list(planes.numpy()), parts)
    form, coded = PLANES, body
    if integers.suits(target.dtype, len(target), size_of(body)):
        shorter = integers.encode(planes, parts)
        if len(shorter) < CLOSE * size_of(body):
            form, coded = INTEGERS, [shorter]
    return [HEAD.pack(form, size_of(coded)), *coded]


def decode_dense(data: memoryview, base: Tensor, out: Tensor) -> None:
    """The inverse of `encode_dense`, into `out` `[n]`."""
    for part in segments(out.numel()):
        if len(data) < HEAD.size:
            raise CorruptRecord("a dense block is cut short")
        form, length = HEAD.unpack(data[: HEAD.size])
        body, data = data[HEAD.size : HEAD.size + length], data[HEAD.size + length :]
        if len(body) != length:
            raise CorruptRecord("a dense block is cut short")
        _decode_segment(form, body, base[part], out[part])
    if len(data):
        raise CorruptRecord("a dense block is longer than it says")


def _decode_segment(form: int, body: memoryview, base: Tensor, out: Tensor) -> None:
    exponent = exponents(base)
    order = None if exponent is None else torch.from_numpy(np.argsort(exponent, kind="stable"))
    known = base if order is None else pick(base, order)
    if form == PLANES:
        streams, rest = decode_section(body, [len(base)] * base.element_size())
        if len(rest):
            raise CorruptRecord("a dense segment is longer than it says")
        planes = stacked(streams, len(base))
    elif form == INTEGERS:
        planes = integers.decode(body, len(base), base.dtype)
    else:
        raise CorruptRecord("a dense segment has an unknown form")
    target = undelta_planes(planes, known)
    if order is None:
        out.copy_(target)
    else:
        place(out, order, target)


# --- here and there ------------------------------------------------------------------------------------------


def changes(target: Tensor, base: Tensor) -> int:
    """How many elements differ in a bit."""
    return int(torch.count_nonzero(_differ(target, base)))


def _differ(target: Tensor, base: Tensor) -> Tensor:
    width = BITS[target.element_size()]
    return target.view(width) != base.view(width)


def encode_sparse(target: Tensor, base: Tensor) -> Chunks:
    """Gaps between the changed places, and the distances there."""
    where = torch.nonzero(_differ(target, base)).view(-1)
    gaps = torch.diff(where, prepend=where.new_full((1,), -1)).sub_(1).to(torch.int32)
    streams = [*split_planes(gaps).numpy(), *delta_planes(pick(target, where), pick(base, where)).numpy()]
    return [COUNT.pack(len(where)), *encode_section(streams)]


def decode_sparse(data: memoryview, base: Tensor, out: Tensor) -> None:
    """The inverse of `encode_sparse`, into `out` `[n]`."""
    count = COUNT.unpack(data[: COUNT.size])[0] if len(data) >= COUNT.size else -1
    if not 0 <= count <= len(base):
        raise CorruptRecord("a sparse block is cut short, or changes more elements than there are")
    streams, rest = decode_section(data[COUNT.size :], [count] * (4 + base.element_size()))
    if len(rest):
        raise CorruptRecord("a sparse block is longer than it says")
    planes = stacked(streams, count)
    where = torch.cumsum(join_planes(planes[:4], torch.int32).to(torch.int64) + 1, 0) - 1
    if count and not 0 <= int(where.min()) <= int(where.max()) < len(base):
        raise CorruptRecord("a sparse block changes elements that do not exist")
    out.copy_(base)
    place(out, where, undelta_planes(planes[4:], pick(base, where)))


# --- moving bits ---------------------------------------------------------------------------------------------


def pick(x: Tensor, where: Tensor) -> Tensor:
    """x at the places `where`; as integers, since 8-bit floats cannot be indexed everywhere."""
    return torch.from_numpy(np.take(x.view(BITS[x.element_size()]).numpy(), where.numpy())).view(x.dtype)


def place(out: Tensor, where: Tensor, values: Tensor) -> None:
    """Write `values` into `out` at the places `where`."""
    width = BITS[out.element_size()]
    out.view(width).numpy()[where.numpy()] = values.view(width).numpy()
