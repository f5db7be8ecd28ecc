"""Codecs of one block (at most 64 MiB of one tensor) without a base: one value throughout, or byte planes.

Work goes by segments of half a million elements, so that every pass finds its data in the processor's cache. Only bits are moved here.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import CorruptRecord
from .buffers import bits
from .crew import each, join_planes, split_planes
from .entropy import Chunks, decode_section, encode_section, section_size

SEGMENT = 1 << 19  # elements; part of the formats of planes and dense: never change it
GLANCE = 1 << 12  # elements that are compared first


def segments(count: int) -> list[slice]:
    """The segments of a vector of `count` elements."""
    return [slice(start, min(start + SEGMENT, count)) for start in range(0, count, SEGMENT)]


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


def encode_planes(target: Tensor) -> Chunks:
    """Planes of the tensor alone: the exponent plane shortens by Huffman, those of mantissa bits mostly stay raw."""
    coded = each(lambda part: encode_section(list(split_planes(target[part]).numpy())), segments(len(target)))
    return [chunk for section in coded for chunk in section]


def decode_planes(data: memoryview, out: Tensor) -> None:
    """The inverse of `encode_planes`, into `out` `[n]`."""
    work = []
    for part in segments(len(out)):
        length = section_size(data, out.element_size())
        work.append((part, data[:length]))
        data = data[length:]
    if len(data):
        raise CorruptRecord("a block of planes is longer than it says")
    each(lambda item: _decode_segment(item[1], out[item[0]]), work)


def _decode_segment(data: memoryview, out: Tensor) -> None:
    join_planes(stacked(decode_section(data, [len(out)] * out.element_size())[0], len(out)), out)


def stacked(streams: list[np.ndarray], size: int) -> Tensor:
    """uint8 `[streams, size]`."""
    planes = np.empty((len(streams), size), np.uint8)
    for plane, stream in zip(planes, streams, strict=True):
        plane[:] = stream
    return torch.from_numpy(planes)
