"""From stored bytes back to a tensor's bytes. Sizes are checked before memory is taken; whatever does not fit is a CorruptRecord."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import CorruptRecord
from . import against, alone, forecast
from .blocks import Block, read_table, row_of
from .buffers import Buffer, as_bytes, borrow, dtype_of, lend, memory
from .dtypes import CONSTANT, DENSE, FORECAST, PLANES, RAW, SPARSE, byte_size, item_size

ReadBase = Callable[[int, int], Buffer]  # (start, stop) in raw bytes


def decode_range(
    payload: memoryview, word: str, shape: Sequence[int], codec: int, blocked: bool, wanted: slice, read_base: ReadBase
) -> np.ndarray:
    """uint8 `[wanted]`: a range of a tensor's raw bytes. Only the blocks and segments that it touches are decoded, here and in the base.

    Raises CorruptRecord.
    """
    total, item, dtype = byte_size(word, shape), item_size(word), dtype_of(word)
    first, last = wanted.start // item, -(-wanted.stop // item)  # whole elements
    out = memory((last - first) * item)
    for block in read_table(payload, total) if blocked else [Block(codec, 0, total, payload)]:
        if block.size % item:
            raise CorruptRecord("a block ends within an element")
        start, count = block.start // item, block.size // item
        low, high = max(first, start), min(last, start + count)
        if low < high:
            room, part = borrow(out[(low - first) * item : (high - first) * item], dtype), slice(low - start, high - start)
            decode_block(block.codec, block.data, count, row_of(shape), part, _base_of(block, dtype, read_base), room)
    return out[wanted.start - first * item : wanted.stop - first * item]


def _base_of(block: Block, dtype: torch.dtype, read_base: ReadBase) -> against.Base:
    def base(part: slice) -> Tensor:
        return borrow(read_base(block.start + part.start * dtype.itemsize, block.start + part.stop * dtype.itemsize), dtype)

    return base


def decode_block(codec: int, data: memoryview, count: int, row: int, wanted: slice, base: against.Base | None, out: Tensor) -> None:
    """Fill `out` with the elements `wanted` of a block of `count` elements in rows of `row`. Raises CorruptRecord."""
    if codec == RAW:
        if len(data) != count * out.element_size():
            raise CorruptRecord("a raw block has a wrong length")
        lend(out)[:] = as_bytes(data)[wanted.start * out.element_size() : wanted.stop * out.element_size()]
    elif codec == CONSTANT:
        alone.decode_constant(data, out)
    elif codec == PLANES:
        alone.decode_planes(data, count, row, wanted, out)
    elif base is None:
        raise CorruptRecord("a block has an unknown codec, or a delta has no base")
    elif codec == SPARSE:
        against.decode_sparse(data, count, wanted, base, out)
    elif codec == DENSE:
        against.decode_dense(data, count, row, wanted, base, out)
    elif codec == FORECAST:
        forecast.decode_forecast(data, count, wanted, base, out)
    else:
        raise CorruptRecord("a block has an unknown codec")
