"""From stored bytes back to a tensor's bytes. Sizes are checked before memory is taken; whatever does not fit is a CorruptRecord."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import CorruptRecord
from . import against, alone, forecast
from .blocks import Block, read_table
from .buffers import Buffer, as_bytes, borrow, dtype_of
from .dtypes import CONSTANT, DELTAS, DENSE, FORECAST, PLANES, RAW, SPARSE

ReadBase = Callable[[int, int], Buffer]  # (start, stop) in raw bytes


def decode_block(codec: int, data: memoryview, word: str, out: np.ndarray, base: Buffer | None) -> None:
    """Fill `out`, uint8 `[bytes]` that are the caller's own, with one block. Raises CorruptRecord."""
    dtype = dtype_of(word)
    if codec == RAW:
        if len(data) != len(out):
            raise CorruptRecord("a raw block has a wrong length")
        out[:] = as_bytes(data)
    elif codec == CONSTANT:
        alone.decode_constant(data, borrow(out, dtype))
    elif codec == PLANES:
        alone.decode_planes(data, borrow(out, dtype))
    elif codec not in DELTAS:
        raise CorruptRecord("a block has an unknown codec")
    elif base is None or len(base) != len(out):
        raise CorruptRecord("a delta has no base of its size")
    elif codec == SPARSE:
        against.decode_sparse(data, borrow(base, dtype), borrow(out, dtype))
    elif codec == DENSE:
        known = borrow(base, dtype)
        against.decode_dense(data, lambda part: known[part], borrow(out, dtype))
    elif codec == FORECAST:
        forecast.decode_forecast(data, borrow(base, dtype), borrow(out, dtype))


def decode_range(
    payload: memoryview, word: str, codec: int, blocked: bool, raw_size: int, start: int, stop: int, read_base: ReadBase
) -> np.ndarray:
    """uint8 `[stop - start]`: a range of a tensor's raw bytes; only the blocks that it touches are decoded."""
    out = np.empty(stop - start, np.uint8)
    for block in read_table(payload, raw_size) if blocked else [Block(codec, 0, raw_size, payload)]:
        low, high = max(start, block.start), min(stop, block.start + block.size)
        if low >= high:
            continue
        base = read_base(block.start, block.start + block.size) if block.codec in DELTAS else None
        whole = high - low == block.size
        room = out[low - start : high - start] if whole else np.empty(block.size, np.uint8)
        decode_block(block.codec, block.data, word, room, base)
        if not whole:
            out[low - start : high - start] = room[low - block.start : high - block.start]
    return out
