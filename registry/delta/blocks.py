"""Cutting tensors into blocks, so that memory stays bounded: one block up to 64 MiB, else row blocks of 16 MiB.

A payload of several blocks is a table (codec, raw and stored bytes of each block) followed by the blocks.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import CorruptRecord
from .dtypes import byte_size, item_size

WHOLE = 64 << 20  # tensors up to this size are one block
BLOCK = 16 << 20
COUNT = struct.Struct("<I")
ENTRY = struct.Struct("<B7xQQ")  # codec, raw bytes, stored bytes


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a stored tensor: `start` and `size` in raw bytes, `data` the stored ones."""

    codec: int
    start: int
    size: int
    data: memoryview


def block_sizes(word: str, shape: Sequence[int]) -> list[int]:
    """Raw bytes of each block of a tensor, in order."""
    total = byte_size(word, shape)
    if total <= WHOLE:
        return [total]
    row = max(total // shape[0], item_size(word))  # types narrower than a byte may have rows that end within one
    step = BLOCK // row * row if row <= BLOCK else BLOCK // item_size(word) * item_size(word)
    return [min(step, total - start) for start in range(0, total, step)]


def row_of(shape: Sequence[int]) -> int:
    """Elements of a row: what follows the first dimension; 1 where there is none."""
    return max(1, math.prod(shape[1:])) if len(shape) > 1 else 1


def write_table(entries: Sequence[tuple[int, int, int]]) -> bytes:
    """The table of (codec, raw bytes, stored bytes) per block."""
    return COUNT.pack(len(entries)) + b"".join(ENTRY.pack(*entry) for entry in entries)


def read_table(payload: memoryview, total: int) -> list[Block]:
    """The blocks of a payload that must make up `total` raw bytes. Raises CorruptRecord."""
    if len(payload) < COUNT.size:
        raise CorruptRecord("a payload is shorter than its table")
    (count,) = COUNT.unpack(payload[: COUNT.size])
    position = COUNT.size + count * ENTRY.size
    if position > len(payload):
        raise CorruptRecord("a payload is shorter than its table")
    blocks, start = [], 0
    for index in range(count):
        codec, size, stored = ENTRY.unpack(payload[COUNT.size + index * ENTRY.size : COUNT.size + (index + 1) * ENTRY.size])
        if not 0 < size <= WHOLE or stored > len(payload) - position:
            raise CorruptRecord("a payload's table names a block that cannot be")
        blocks.append(Block(codec, start, size, payload[position : position + stored]))
        start, position = start + size, position + stored
    if start != total or position != len(payload):
        raise CorruptRecord("a payload's blocks do not make up its tensor")
    return blocks
