"""Codecs of one block (at most 64 MiB of one tensor) without a base: one value throughout, or byte planes.

Work goes by segments of whole rows, half a million elements, so that every pass finds its data in the processor's cache, and so that a
range of a tensor, or of the base of its delta, is read without the rest. Only bits are moved here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import CorruptRecord
from .buffers import bits, borrow
from .crew import each, join_planes, split_planes
from .entropy import Chunks, decode_section, encode_section, section_end

T = TypeVar("T")
SEGMENT = 1 << 19  # elements; part of the formats of planes and dense: never change it
GLANCE = 1 << 12  # elements that are compared first


def segments(count: int, row: int = 1) -> list[slice]:
    """The segments of a vector of `count` elements: whole rows of `row` elements, unless a row is longer than a segment."""
    step = SEGMENT // row * row if 0 < row <= SEGMENT else SEGMENT
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def encode_constant(target: Tensor) -> Chunks | None:
    """The only value in the vector, or None when there are several."""
    values = bits(target)
    if not len(values) or np.any(values[:GLANCE] != values[0]) or np.any(values != values[0]):
        return None
    return [values[:1].tobytes()]


def decode_constant(data: memoryview, out: Tensor) -> None:
    """Fill `out` `[n]` with the stored value."""
    if len(data) != out.element_size():
        raise CorruptRecord("a constant block does not hold one value")
    values = bits(out)
    values[:] = np.frombuffer(data, values.dtype)


def encode_planes(target: Tensor, row: int = 1) -> Chunks:
    """Planes of the tensor alone: the exponent plane shortens by Huffman, those of mantissa bits mostly stay raw."""
    coded = each(lambda part: encode_section(list(split_planes(target[part]).numpy())), segments(len(target), row))
    return [chunk for section in coded for chunk in section]


def decode_planes(data: memoryview, count: int, row: int, wanted: slice, out: Tensor) -> None:
    """Elements `wanted` of the block of `count` elements that `encode_planes` coded, into `out`."""
    work, end, streams = [], 0, out.element_size()
    for part in segments(count, row):
        start, end = end, section_end(data, streams, end)
        work.append((part, data[start:end]))
    if len(data) > end:
        raise CorruptRecord("a block of planes is longer than it says")
    fill(out, wanted, work, lambda part, body, room: _decode_segment(body, room))


def fill(out: Tensor, wanted: slice, work: Iterable[tuple[slice, T]], decode: Callable[[slice, T, Tensor], None]) -> None:
    """Decode those segments that lie in `wanted` into `out`, which holds just that range; several at a time."""

    def one(item: tuple[slice, T]) -> None:
        part, body = item
        low, high = max(part.start, wanted.start), min(part.stop, wanted.stop)
        whole = (low, high) == (part.start, part.stop)
        here = out[low - wanted.start : high - wanted.start]
        room = here if whole else torch.empty(part.stop - part.start, dtype=out.dtype)
        decode(part, body, room)
        if not whole:
            bits(here)[:] = bits(room[low - part.start : high - part.start])

    each(one, [item for item in work if item[0].start < wanted.stop and wanted.start < item[0].stop])


def _decode_segment(data: memoryview, out: Tensor) -> None:
    streams, _ = decode_section(data, [len(out)] * out.element_size())
    join_planes([borrow(stream, torch.uint8) for stream in streams], out)


def stacked(streams: list[np.ndarray], size: int) -> Tensor:
    """uint8 `[streams, size]`."""
    planes = np.empty((len(streams), size), np.uint8)
    for plane, stream in zip(planes, streams, strict=True):
        plane[:] = stream
    return torch.from_numpy(planes)
