"""Coding streams of bytes: raw, constant, Huffman-only zstd, or zstd with matches; each stream says which.

A section is a number of streams, known to the reader as are their decoded lengths: for each stream one byte (the coder) and four bytes
(the stored length), then the streams in order. A coded stream must declare just the length it has to have, before memory is taken for it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import zstandard as zstd

from ..errors import CorruptRecord
from .frames import compress, compress_parts, decompress

RAW, CONSTANT, HUFFMAN, MATCHES = range(4)
STREAM = struct.Struct("<BI")
SAMPLE = 1 << 15  # bytes looked at before a coder is chosen
WORTH = 0.97  # a coder that saves less than this is not worth its time
CLOSE = 0.95  # a slower coder must be this much smaller

# Matching on weights makes files larger and slower: hardly any is left on here; zstd codes literals by Huffman (and still finds runs).
_HUFFMAN = zstd.ZstdCompressionParameters(compression_level=1, strategy=zstd.STRATEGY_FAST, min_match=7, hash_log=6, search_log=1)
_MATCHES = zstd.ZstdCompressionParameters.from_level(3, source_size=1 << 17)  # small tables: they are cleared for every stream

Chunks = Sequence[bytes | memoryview]


def size_of(chunks: Chunks) -> int:
    """Bytes of all chunks together."""
    return sum(len(chunk) for chunk in chunks)


def encode_section(streams: Sequence[np.ndarray], parts: Sequence[int] | None = None) -> Chunks:
    """Chunks of a section holding these uint8 vectors. `parts`: lengths of stretches with statistics of their own, alike in all streams."""
    coded = [_encode_stream(np.ascontiguousarray(stream), parts) for stream in streams]
    return [b"".join(STREAM.pack(coder, len(body)) for coder, body in coded), *(body for _, body in coded if len(body))]


def _encode_stream(data: np.ndarray, parts: Sequence[int] | None) -> tuple[int, bytes | memoryview]:
    if not data.size or (data[0] == data[-1] and not np.any(data != data[0])):
        return CONSTANT, bytes(data[:1])
    coder, view = _choose(data), data.data
    if coder == RAW:
        return RAW, view
    if coder == HUFFMAN and parts and len(parts) > 1:
        coded = compress_parts(view, parts, _HUFFMAN)
    else:
        coded = compress(view, _HUFFMAN if coder == HUFFMAN else _MATCHES)
    return (coder, coded) if len(coded) < WORTH * len(view) else (RAW, view)


def _choose(data: np.ndarray) -> int:
    sample = (data if data.size <= SAMPLE else _spread(data)).data
    huffman, matches = len(compress(sample, _HUFFMAN)), len(compress(sample, _MATCHES))
    if matches < CLOSE * min(huffman, len(sample)):
        return MATCHES
    return HUFFMAN if huffman < WORTH * len(sample) else RAW


def _spread(data: np.ndarray, pieces: int = 4) -> np.ndarray:
    length = SAMPLE // pieces
    starts = [(data.size - length) * piece // (pieces - 1) for piece in range(pieces)]
    return np.concatenate([data[start : start + length] for start in starts])


def section_end(data: memoryview, streams: int, start: int) -> int:
    """Where the section of that many streams ends that begins at `start`. Raises CorruptRecord when it does not fit."""
    end = body = start + STREAM.size * streams
    if len(data) >= body:
        for at in range(start, body, STREAM.size):
            end += STREAM.unpack_from(data, at)[1]
    if len(data) < end:
        raise CorruptRecord("a coded section is cut short")
    return end


def decode_section(data: memoryview, sizes: Sequence[int]) -> tuple[list[np.ndarray], memoryview]:
    """The streams of a section whose decoded lengths are `sizes`, read-only, and what follows the section. Raises CorruptRecord."""
    position = STREAM.size * len(sizes)
    if len(data) < position:
        raise CorruptRecord("a coded section is cut short")
    streams = []
    for (coder, length), size in zip(STREAM.iter_unpack(data[:position]), sizes, strict=True):
        if length > len(data) - position:
            raise CorruptRecord("a coded stream is cut short")
        streams.append(_decode_stream(coder, data[position : position + length], size))
        position += length
    return streams, data[position:]


def _decode_stream(coder: int, data: memoryview, size: int) -> np.ndarray:
    if coder == RAW and len(data) == size:
        return np.frombuffer(data, dtype=np.uint8)
    if coder == CONSTANT and len(data) == min(size, 1):
        return np.full(size, data[0] if size else 0, dtype=np.uint8)
    if coder in (HUFFMAN, MATCHES):
        return np.frombuffer(decompress(data, size), dtype=np.uint8)
    raise CorruptRecord("a coded stream has an unknown coder or a wrong length")
