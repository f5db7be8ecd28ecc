"""Which codec for which block: a small sample of each candidate, the smallest within 5 %, ties to the faster reader, raw as the way out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import HashMismatch
from . import codecs
from .blocks import block_sizes, write_table
from .buffers import Buffer, as_bytes, borrow, lend
from .decode import decode_block
from .dtypes import CONSTANT, DELTAS, DENSE, PLANES, RAW, SPARSE

SPARSE_SHARE = 0.03
DENSE_F32 = 0.90  # a dense delta must be below this share of the standalone size, else a keyframe is the better deal
WORTH = 0.97

ReadBase = Callable[[int, int], Buffer]  # (start, stop) in raw bytes


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tensor ready to be stored: `codec` is the one that most bytes went through."""

    codec: int
    blocked: bool
    uses_base: bool
    chunks: list[bytes | np.ndarray]

    @property
    def size(self) -> int:
        """Stored bytes."""
        return sum(len(chunk) for chunk in self.chunks)


def encode(word: str, shape: Sequence[int], data: Buffer, read_base: ReadBase | None = None) -> Encoded:
    """Encode a tensor's little-endian row-major bytes, against a base of the same type and shape when there is one.

    Every block is decoded again and compared before it is returned. Raises HashMismatch if that ever fails (a defect, or broken memory).
    """
    raw, blocks, start = as_bytes(data), [], 0
    for size in block_sizes(word, shape):
        base = read_base(start, start + size) if read_base else None
        blocks.append((size, *encode_block(word, raw[start : start + size], base)))
        start += size
    if len(blocks) == 1:
        _, codec, chunks = blocks[0]
        return Encoded(codec, False, codec in DELTAS, chunks)
    sizes = [(codec, size, sum(len(chunk) for chunk in chunks)) for size, codec, chunks in blocks]
    codec = max({c for c, _, _ in sizes}, key=lambda c: sum(size for other, size, _ in sizes if other == c))
    chunks = [write_table(sizes), *(chunk for _, _, part in blocks for chunk in part)]
    return Encoded(codec, True, any(c in DELTAS for c, _, _ in sizes), chunks)


def encode_block(word: str, data: np.ndarray, base: Buffer | None) -> tuple[int, codecs.Chunks]:
    """The codec and the chunks of one block, proven to decode to `data`."""
    target = borrow(data, word)
    codec, chunks = _choose(word, target, None if base is None else borrow(base, word))
    if codec != RAW:
        stored = memoryview(b"".join(chunks))
        if not np.array_equal(as_bytes(decode_block(codec, stored, word, len(data), base)), data):
            raise HashMismatch("a block did not survive its own encoding; nothing was stored", hint="mlc doctor")
        chunks = [stored]
    return codec, chunks


def _choose(word: str, target: Tensor, base: Tensor | None) -> tuple[int, codecs.Chunks]:
    raw: codecs.Chunks = [lend(target)]
    if not target.numel():
        return RAW, []
    if (value := codecs.constant_value(target)) is not None:
        return CONSTANT, [value]
    candidates = [(RAW, raw), (PLANES, codecs.encode_planes(target))]
    if base is not None:
        where = codecs.changed(target, base)
        if len(where) < SPARSE_SHARE * target.numel():
            candidates.append((SPARSE, codecs.encode_sparse(target, base, where)))
        else:
            candidates.append((DENSE, codecs.encode_dense(target, base)))
    sizes = {codec: sum(len(c) for c in chunks) for codec, chunks in candidates}
    best = min(sizes.values())
    return next((codec, chunks) for codec, chunks in candidates if sizes[codec] <= 1.05 * best)
