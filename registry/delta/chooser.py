"""Which codec for which block: what is promising is tried, the smallest within 5 % wins, ties go to the faster reader, raw is
the way out. Candidates are compared on a small sample; only the winner codes the whole block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import HashMismatch
from . import against, alone, forecast
from .blocks import block_sizes, row_of, write_table
from .buffers import Buffer, as_bytes, borrow, dtype_of, lend
from .decode import ReadBase, decode_block
from .dtypes import CONSTANT, DELTAS, DENSE, FORECAST, PLANES, RAW, SPARSE
from .entropy import Chunks, size_of

SPARSE_SHARE = 0.03  # of changed elements; above it a dense delta with fractional bits is shorter
WIDE_DENSE = 0.90  # 4- and 8-byte types: a dense delta must be below this share of the standalone size, else a keyframe is the better deal
CLOSE = 1.05
SAMPLE = 1 << 16  # elements of a block on which candidates are compared


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tensor ready to be stored: `codec` is the one that most bytes went through."""

    codec: int
    blocked: bool
    uses_base: bool
    chunks: Chunks

    @property
    def size(self) -> int:
        """Stored bytes."""
        return size_of(self.chunks)


def encode(word: str, shape: Sequence[int], data: Buffer, read_base: ReadBase | None = None) -> Encoded:
    """Encode a tensor's little-endian row-major bytes, against a base of the same type and shape when there is one.

    Every block is decoded again and compared before it is returned. Raises HashMismatch if that ever fails (a defect, or broken memory).
    """
    raw, blocks, start = as_bytes(data), [], 0
    row = row_of(shape)
    for size in block_sizes(word, shape):
        base = read_base(start, start + size) if read_base else None
        blocks.append((*encode_block(word, raw[start : start + size], base, row), size))
        start += size
    if len(blocks) == 1:
        codec, chunks, _ = blocks[0]
        return Encoded(codec, False, codec in DELTAS, chunks)
    entries = [(codec, size, size_of(chunks)) for codec, chunks, size in blocks]
    shares = {codec: sum(size for other, size, _ in entries if other == codec) for codec, _, _ in entries}
    chunks: Chunks = [write_table(entries), *(chunk for _, part, _ in blocks for chunk in part)]
    return Encoded(max(shares, key=lambda codec: shares[codec]), True, any(codec in DELTAS for codec in shares), chunks)


def encode_block(word: str, data: np.ndarray, base: Buffer | None, row: int = 1) -> tuple[int, Chunks]:
    """The codec and the chunks of one block, proven to decode to `data`. `row`: elements of a row."""
    dtype = dtype_of(word)
    known = None if base is None else borrow(base, dtype)
    codec, chunks = _choose(borrow(data, dtype), known, row)
    if codec != RAW:
        stored = b"".join(chunks)
        again = np.empty_like(data)
        out = borrow(again, dtype)
        back = None if known is None else lambda part: known[part]
        decode_block(codec, memoryview(stored), len(out), row, slice(0, len(out)), back, out)
        if not _same(again, data):
            raise HashMismatch("a block did not survive its own encoding; nothing was stored", hint="mlc doctor")
        chunks = [stored]
    return codec, chunks


def _same(a: np.ndarray, b: np.ndarray, step: int = 1 << 18) -> bool:
    return all(np.array_equal(a[i : i + step], b[i : i + step]) for i in range(0, len(a), step))  # in pieces: the mask stays in the cache


def _choose(target: Tensor, base: Tensor | None, row: int) -> tuple[int, Chunks]:
    if not target.numel():
        return RAW, []
    if (constant := alone.encode_constant(target)) is not None:
        return CONSTANT, constant
    codec, chunks = (PLANES, alone.encode_planes(target, row)) if base is None else _choose_delta(target, base, row)
    raw: Chunks = [lend(target).data]
    return (codec, chunks) if CLOSE * size_of(chunks) < size_of(raw) else (RAW, raw)


def _choose_delta(target: Tensor, base: Tensor, row: int) -> tuple[int, Chunks]:
    if against.changes(target, base) < SPARSE_SHARE * len(target):
        return SPARSE, against.encode_sparse(target, base)
    limit = WIDE_DENSE if target.element_size() >= 4 else 1 / CLOSE
    sample = _sample(target)
    plain = _dense_size(sample, _sample(base))
    guide = forecast.fit(target, base, row)
    if guide is not None:
        factors = size_of(forecast.encode_factors(guide)) * len(sample) / len(target)
        guided = _dense_size(sample, _joined([guide.part(part) for part in _sampled(len(target))])) + factors
        guide, plain = (guide, guided) if CLOSE * guided < plain else (None, plain)
    if plain > limit * size_of(alone.encode_planes(sample)):
        return PLANES, alone.encode_planes(target, row)
    if guide is not None:
        return FORECAST, forecast.encode_forecast(target, guide)
    return DENSE, against.encode_dense(target, lambda part: base[part], row)


def _dense_size(target: Tensor, base: Tensor) -> int:
    return size_of(against.encode_dense(target, lambda part: base[part]))


def _sample(x: Tensor) -> Tensor:
    return _joined([x[part] for part in _sampled(len(x))])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else borrow(np.concatenate([lend(part) for part in parts]), parts[0].dtype)


def _sampled(count: int, pieces: int = 4) -> list[slice]:
    if count <= SAMPLE:
        return [slice(0, count)]
    length = SAMPLE // pieces
    starts = [(count - length) * piece // (pieces - 1) for piece in range(pieces)]
    return [slice(start, start + length) for start in starts]
