"""zstd frames, bounded: a frame must declare the size its reader expects before any memory is taken. No torch, no numpy."""

from __future__ import annotations

import threading

import zstandard as zstd

from ..errors import CorruptRecord

_LOCAL = threading.local()  # a zstd context serves one thread at a time
BLOB_LEVEL = 3


def _contexts() -> dict[object, zstd.ZstdCompressor]:
    if not hasattr(_LOCAL, "compressors"):
        _LOCAL.compressors = {}
    return _LOCAL.compressors


def compress(data: object, parameters: zstd.ZstdCompressionParameters | int = BLOB_LEVEL) -> bytes:
    """One frame that declares its size."""
    known = _contexts()
    if parameters not in known:
        if isinstance(parameters, int):
            known[parameters] = zstd.ZstdCompressor(level=parameters, write_content_size=True)
        else:
            known[parameters] = zstd.ZstdCompressor(compression_params=parameters)
    return known[parameters].compress(data)  # type: ignore[arg-type]


def unzstd(data: bytes | memoryview, size: int) -> bytes:
    """Decompress one frame that must declare and hold exactly `size` bytes. Raises CorruptRecord."""
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
