"""Which codec for which block: what is promising is tried, the smallest within 5 % wins, ties go to the faster reader, raw is the way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import HashMismatch
from . import against, alone
from .blocks import block_sizes, write_table
from .buffers import Buffer, as_bytes, borrow, dtype_of, lend
from .decode import ReadBase, decode_block
from .dtypes import CONSTANT, DELTAS, DENSE, PLANES, RAW, SPARSE
from .entropy import Chunks, size_of

SPARSE_SHARE = 0.03  # of changed elements; above it a dense delta with fractional bits is shorter
WIDE_DENSE = 0.90  # 4- and 8-byte types: a dense delta must be below this share of the standalone size, else a keyframe is the better deal
CLOSE = 1.05
SAMPLE = 1 << 17  # elements of a block on which candidates are compared


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tensor ready to be stored: `codec` is the one that most bytes went through."""

    codec: int
    blocked: bool
    uses_base: bool
    chunks: Chunks


def encode(word: str, shape: Sequence[int], data: Buffer, read_base: ReadBase | None = None) -> Encoded:
    """Encode a tensor's little-endian row-major bytes, against a base of the same type and shape when there is one.

    Every block is decoded again and compared before it is returned. Raises HashMismatch if that ever fails (a defect, or broken memory).
    """
    raw, blocks, start = as_bytes(data), [], 0
    for size in block_sizes(word, shape):
        base = read_base(start, start + size) if read_base else None
        blocks.append((*encode_block(word, raw[start : start + size], base), size))
        start += size
    if len(blocks) == 1:
        codec, chunks, _ = blocks[0]
        return Encoded(codec, False, codec in DELTAS, chunks)
    entries = [(codec, size, size_of(chunks)) for codec, chunks, size in blocks]
    shares = {codec: sum(size for other, size, _ in entries if other == codec) for codec, _, _ in entries}
    chunks: Chunks = [write_table(entries), *(chunk for _, part, _ in blocks for chunk in part)]
    return Encoded(max(shares, key=lambda codec: shares[codec]), True, any(codec in DELTAS for codec in shares), chunks)


def encode_block(word: str, data: np.ndarray, base: Buffer | None) -> tuple[int, Chunks]:
    """The codec and the chunks of one block, proven to decode to `data`."""
    dtype = dtype_of(word)
    codec, chunks = _choose(borrow(data, dtype), None if base is None else borrow(base, dtype))
    if codec != RAW:
        stored = b"".join(chunks)
        again = np.empty_like(data)
        decode_block(codec, memoryview(stored), word, again, base)
        if not np.array_equal(again, data):
            raise HashMismatch("a block did not survive its own encoding; nothing was stored", hint="mlc doctor")
        chunks = [stored]
    return codec, chunks


def _choose(target: Tensor, base: Tensor | None) -> tuple[int, Chunks]:
    raw: Chunks = [memoryview(lend(target))]
    if not target.numel():
        return RAW, []
    if (constant := alone.encode_constant(target)) is not None:
        return CONSTANT, constant
    if base is None or (where := against.changed(target, base)).numel() >= SPARSE_SHARE * target.numel():
        candidates = [PLANES] if base is None or not _delta_pays(target, base) else [DENSE]
    else:
        return SPARSE, against.encode_sparse(target, base, where)
    codec = candidates[0]
    chunks = alone.encode_planes(target) if codec == PLANES else against.encode_dense(target, base)  # type: ignore[arg-type]
    return (codec, chunks) if CLOSE * size_of(chunks) < size_of(raw) else (RAW, raw)


def _delta_pays(target: Tensor, base: Tensor) -> bool:
    """Whether a dense delta is clearly shorter than planes alone, on a sample."""
    limit = WIDE_DENSE if target.element_size() >= 4 else 1 / CLOSE
    sample = _sample(target), _sample(base)
    return size_of(against.encode_dense(*sample)) < limit * size_of(alone.encode_planes(sample[0]))


def _sample(x: Tensor, pieces: int = 4) -> Tensor:
    if len(x) <= SAMPLE:
        return x
    length = SAMPLE // pieces
    starts = [(len(x) - length) * piece // (pieces - 1) for piece in range(pieces)]
    return torch.cat([x[start : start + length] for start in starts])
