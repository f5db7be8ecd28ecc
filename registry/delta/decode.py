"""From stored bytes back to a tensor's bytes. Sizes are checked before memory is taken; whatever does not fit is a CorruptRecord."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import CorruptRecord
from . import codecs
from .blocks import Block, read_table
from .buffers import Buffer, as_bytes, borrow, lend
from .dtypes import CONSTANT, DELTAS, DENSE, PLANES, RAW, SPARSE, item_size


def decode_block(codec: int, data: memoryview, word: str, size: int, base: Buffer | None) -> np.ndarray:
    """uint8 `[size]`: one block."""
    count = size // item_size(word)
    if codec == RAW:
        if len(data) != size:
            raise CorruptRecord("a raw block has a wrong length")
        return as_bytes(data)
    if codec == CONSTANT:
        return lend(codecs.decode_constant(data, word, count))
    if codec == PLANES:
        return lend(codecs.decode_planes(data, word, count))
    if base is None or len(base) != size:
        raise CorruptRecord("a delta has no base, or codec and record contradict each other")
    if codec == SPARSE:
        return lend(codecs.decode_sparse(data, borrow(base, word)))
    if codec == DENSE:
        return lend(codecs.decode_dense(data, borrow(base, word)))
    raise CorruptRecord("a block has an unknown codec")


def blocks_of(payload: memoryview, codec: int, blocked: bool, raw_size: int) -> list[Block]:
    """The blocks of a stored tensor."""
    return read_table(payload, raw_size) if blocked else [Block(codec, 0, raw_size, payload)]


def decode_range(
    payload: memoryview, word: str, codec: int, blocked: bool, raw_size: int, start: int, stop: int, read_base: Callable[[int, int], Buffer]
) -> np.ndarray:
    """uint8 `[stop - start]`: a range of raw bytes; only the blocks it touches are decoded."""
    parts = []
    for block in blocks_of(payload, codec, blocked, raw_size):
        low, high = max(start, block.start), min(stop, block.start + block.size)
        if low < high or raw_size == 0:
            base = read_base(block.start, block.start + block.size) if block.codec in DELTAS else None
            decoded = decode_block(block.codec, block.data, word, block.size, base)
            parts.append(decoded[low - block.start : high - block.start])
    return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, np.uint8)
