"""Coding one stream of bytes: raw, constant, Huffman-only zstd, or zstd with matches; each stream says which.

A section is `count` streams: for each one byte (the coder) and four bytes (the stored length), then the streams in order. The reader always
knows how long a decoded stream must be, checks that the coded one declares just that before it allocates, and stops there.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import zstandard as zstd

from ..errors import CorruptRecord
from .frames import compress, unzstd

RAW, CONSTANT, HUFFMAN, MATCHES = range(4)
STREAM = struct.Struct("<BI")
SAMPLE = 1 << 16  # bytes looked at before a coder is chosen
WORTH = 0.97  # a coder that saves less than this is not worth its time

# Matching on weights makes files larger and slower: hardly any is left on here, so that zstd codes literals by Huffman (and still finds runs).
_HUFFMAN = zstd.ZstdCompressionParameters(
    compression_level=1, strategy=zstd.STRATEGY_FAST, min_match=7, hash_log=6, search_log=1, write_content_size=1
)
_MATCHES = zstd.ZstdCompressionParameters.from_level(3, write_content_size=1)
_PARAMETERS = {HUFFMAN: _HUFFMAN, MATCHES: _MATCHES}


def encode_stream(data: np.ndarray) -> tuple[int, bytes | np.ndarray]:
    """The coder chosen on a sample of uint8 `[n]`, and the coded bytes."""
    if data.size == 0 or (data[0] == data[-1] and not np.any(data != data[0])):
        return CONSTANT, bytes(data[:1])
    coder = _choose(data)
    if coder != RAW:
        coded = compress(data, _PARAMETERS[coder])
        if len(coded) < data.size:
            return coder, coded
    return RAW, data


def _choose(data: np.ndarray) -> int:
    sample = data if data.size <= SAMPLE else _spread(data)
    huffman = len(compress(sample, _HUFFMAN))
    matches = len(compress(sample, _MATCHES))
    if matches < 0.95 * min(huffman, sample.size):
        return MATCHES
    return HUFFMAN if huffman < WORTH * sample.size else RAW


def _spread(data: np.ndarray, parts: int = 4) -> np.ndarray:
    length = SAMPLE // parts
    starts = [(data.size - length) * part // (parts - 1) for part in range(parts)]
    return np.concatenate([data[start : start + length] for start in starts])


def encode_section(streams: Sequence[np.ndarray]) -> list[bytes | np.ndarray]:
    """Chunks of a section holding these streams."""
    coded = [encode_stream(np.ascontiguousarray(stream)) for stream in streams]
    heads = b"".join(STREAM.pack(coder, len(body)) for coder, body in coded)
    return [heads, *(body for _, body in coded if len(body))]


def decode_section(data: memoryview, sizes: Sequence[int]) -> tuple[list[np.ndarray], memoryview]:
    """The streams of a section whose decoded lengths are `sizes`, and what follows the section. Raises CorruptRecord."""
    heads, position = [], STREAM.size * len(sizes)
    if len(data) < position:
        raise CorruptRecord("a coded section is cut short")
    for index in range(len(sizes)):
        heads.append(STREAM.unpack(data[index * STREAM.size : (index + 1) * STREAM.size]))
    streams = []
    for (coder, length), size in zip(heads, sizes, strict=True):
        if length > len(data) - position:
            raise CorruptRecord("a coded stream is cut short")
        streams.append(_decode_stream(coder, data[position : position + length], size))
        position += length
    return streams, data[position:]


def _decode_stream(coder: int, data: memoryview, size: int) -> np.ndarray:
    if coder == RAW and len(data) == size:
        return np.frombuffer(data, dtype=np.uint8)
    if coder == CONSTANT and len(data) == min(size, 1):
        return np.broadcast_to(np.frombuffer(data, dtype=np.uint8), (size,)) if size else np.empty(0, np.uint8)
    if coder in (HUFFMAN, MATCHES):
        return np.frombuffer(unzstd(data, size), dtype=np.uint8)
    raise CorruptRecord("a coded stream has an unknown coder or a wrong length")
