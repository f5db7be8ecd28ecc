"""zstd frames, bounded: a frame must declare the size its reader expects before any memory is taken. No torch, no numpy."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import zstandard as zstd

from ..errors import CorruptRecord

Parameters = zstd.ZstdCompressionParameters | int
_LOCAL = threading.local()  # a zstd context serves one thread at a time
BLOB_LEVEL = 3


def _compressor(parameters: Parameters) -> zstd.ZstdCompressor:
    if not hasattr(_LOCAL, "compressors"):
        _LOCAL.compressors = {}
    if parameters not in _LOCAL.compressors:
        made = zstd.ZstdCompressor(level=parameters) if isinstance(parameters, int) else zstd.ZstdCompressor(compression_params=parameters)
        _LOCAL.compressors[parameters] = made
    return _LOCAL.compressors[parameters]


def compress(data: bytes | memoryview, parameters: Parameters = BLOB_LEVEL) -> bytes:
    """One frame that declares its size."""
    return _compressor(parameters).compress(data)


def compress_parts(data: memoryview, parts: Sequence[int], parameters: Parameters) -> bytes:
    """One frame in which every part (lengths, in order) has blocks and thus code tables of its own."""
    stream, start, out = _compressor(parameters).compressobj(size=len(data)), 0, []
    for part in parts:
        out += [stream.compress(data[start : start + part]), stream.flush(zstd.COMPRESSOBJ_FLUSH_BLOCK)]
        start += part
    return b"".join([*out, stream.flush()])


def decompress(data: bytes | memoryview, size: int) -> bytes:
    """The one frame in `data`, which must declare and hold exactly `size` bytes. Raises CorruptRecord."""
    if not hasattr(_LOCAL, "decompressor"):
        _LOCAL.decompressor = zstd.ZstdDecompressor()
    try:
        if zstd.frame_content_size(data) != size:
            raise CorruptRecord("a compressed stream declares another size than its object")
        decoded = _LOCAL.decompressor.decompress(data, allow_extra_data=False)
    except (zstd.ZstdError, ValueError) as fault:
        raise CorruptRecord(f"a compressed stream is damaged: {fault}") from fault
    if len(decoded) != size:
        raise CorruptRecord("a compressed stream is shorter than its object")
    return decoded
