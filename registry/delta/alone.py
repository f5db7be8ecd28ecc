"""Codecs of one block (at most 64 MiB of one tensor) without a base: one value throughout, or byte planes.

Work goes by segments of half a million elements, so that every pass finds its data in the processor's cache. Only bits are moved here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ...kernels.planes import BITS, join_planes, split_planes
from ..errors import CorruptRecord
from .buffers import borrow, lend
from .entropy import Chunks, decode_section, encode_section

SEGMENT = 1 << 19  # elements; part of the formats of planes and dense: never change it


def segments(count: int) -> Iterator[slice]:
    """The segments of a vector of `count` elements."""
    return (slice(start, min(start + SEGMENT, count)) for start in range(0, count, SEGMENT))


def encode_constant(target: Tensor) -> Chunks | None:
    """The only value in the vector, or None when there are several."""
    values = target.view(BITS[target.element_size()])
    if not target.numel() or values[0] != values[-1] or not bool((values == values[0]).all()):
        return None
    return [lend(target[:1]).tobytes()]


def decode_constant(data: memoryview, out: Tensor) -> None:
    """Fill `out` `[n]` with the stored value."""
    if len(data) != out.element_size():
        raise CorruptRecord("a constant block does not hold one value")
    width = BITS[out.element_size()]
    out.view(width).copy_(borrow(bytes(data), out.dtype).view(width).expand(out.shape))


def encode_planes(target: Tensor) -> Chunks:
    """Planes of the tensor alone: the exponent plane shortens by Huffman, those of mantissa bits mostly stay raw."""
    return [chunk for part in segments(target.numel()) for chunk in encode_section(list(split_planes(target[part]).numpy()))]


def decode_planes(data: memoryview, out: Tensor) -> None:
    """The inverse of `encode_planes`, into `out` `[n]`."""
    for part in segments(out.numel()):
        size = part.stop - part.start
        streams, data = decode_section(data, [size] * out.element_size())
        out[part] = join_planes(stacked(streams, size), out.dtype)
    if len(data):
        raise CorruptRecord("a block of planes is longer than it says")


def stacked(streams: list[np.ndarray], size: int) -> Tensor:
    """uint8 `[streams, size]`."""
    planes = np.empty((len(streams), size), np.uint8)
    for plane, stream in zip(planes, streams, strict=True):
        plane[:] = stream
    return torch.from_numpy(planes)
