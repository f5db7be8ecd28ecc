"""The bytes of packs and of their indexes: fixed-width records, headers and trailers; nothing here opens a file.

    pack-<id>.pack   header (magic, zeros) · payloads, each aligned to 64 · table of records sorted by digest · trailer
    pack-<id>.idx    header (magic, count) · the same table · BLAKE3 of all before
    midx             header (magic, packs, records) · pack ids · sorted (digest, pack, position) · BLAKE3 of all before

A pack's id is the BLAKE3 of the whole file. Its trailer holds the place and the digest of the table and the digest of everything before
itself, so a pack describes itself: its index can be lost or damaged and written again.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from blake3 import blake3

from ..delta.dtypes import CODECS, CODES, MAX_DIMS, WORDS, byte_size
from ..errors import CorruptRecord, UsageError
from ..ids import Digest

PACK_HEADER = b"MLCPACK\x01" + bytes(56)
PACK_MAGIC_SIZE = 8
IDX_MAGIC = b"MLCIDX\x00\x01"
END_MAGIC = b"MLCPEND\x01"
ALIGN = 64
MAX_DEPTH_READ = 32  # a chain longer than this is an attack or a bug, never our writing

# digest, base, checksum of the payload, offset, stored, raw, path, kind, dtype, codec, depth, dims, blocked, key (0: not encrypted), shape
RECORD = struct.Struct("<32s32s32sQQQQBBBBBBH8Q")
TRAILER = struct.Struct("<8sQQ32s")  # magic, table offset, count, digest of the table; then the digest of everything before it
TRAILER_SIZE = TRAILER.size + 32
IDX_HEADER = struct.Struct("<8sQ")
NO_BASE = bytes(32)

KINDS = {"blob": 0, "tensor": 1}
KIND_OF = {code: kind for kind, code in KINDS.items()}
CODEC_OF = {code: codec for codec, code in CODECS.items()}


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Where and how one object is stored. Sizes are bytes; `path_size` sums the stored deltas from the keyframe to here."""

    digest: Digest
    kind: Literal["tensor", "blob"]
    dtype: str  # "" for a blob
    shape: tuple[int, ...]
    raw_size: int
    stored_size: int
    base: Digest | None
    depth: int
    codec: str
    pack: str  # id of the pack
    offset: int  # of the payload in the pack
    checksum: str  # BLAKE3 of the stored bytes
    path_size: int = 0
    blocked: bool = False  # the payload is a table of blocks and then the blocks


def pack_record(info: ObjectInfo) -> bytes:
    """One fixed-width record."""
    return RECORD.pack(
        bytes.fromhex(info.digest),
        bytes.fromhex(info.base) if info.base else NO_BASE,
        bytes.fromhex(info.checksum),
        info.offset,
        info.stored_size,
        info.raw_size,
        info.path_size,
        KINDS[info.kind],
        CODES.get(info.dtype, 0),
        CODECS[info.codec],
        info.depth,
        len(info.shape),
        info.blocked,
        0,
        *info.shape,
        *[0] * (MAX_DIMS - len(info.shape)),
    )


def parse_record(data: bytes | memoryview, pack: str) -> ObjectInfo:
    """The inverse of `pack_record`. Raises CorruptRecord when a field contradicts another, before anything is allocated by it."""
    digest, base, checksum, offset, stored, raw, path, kind, dtype, codec, depth, dims, blocked, key, *shape = RECORD.unpack(data)
    name = digest.hex()
    if kind not in KIND_OF or codec not in CODEC_OF or dims > MAX_DIMS or blocked > 1 or key or any(shape[dims:]):
        raise CorruptRecord(f"object {name} has a record that this version cannot read", hint="mlc fsck")
    word, sides = WORDS.get(dtype, ""), tuple(shape[:dims])
    if kind == KINDS["tensor"]:
        try:
            right = bool(word) and byte_size(word, sides) == raw
        except UsageError:
            right = False
        if not right:
            raise CorruptRecord(f"object {name} declares {raw} bytes, which its type and shape contradict", hint="mlc fsck")
    if (base == NO_BASE) != (depth == 0):
        raise CorruptRecord(f"object {name} has a base and a depth that contradict each other", hint="mlc fsck")
    return ObjectInfo(
        digest=Digest(name),
        kind=KIND_OF[kind],  # type: ignore[arg-type]
        dtype=word,
        shape=sides,
        raw_size=raw,
        stored_size=stored,
        base=None if base == NO_BASE else Digest(base.hex()),
        depth=depth,
        codec=CODEC_OF[codec],
        pack=pack,
        offset=offset,
        checksum=checksum.hex(),
        path_size=path,
        blocked=bool(blocked),
    )


def table_of(infos: list[ObjectInfo]) -> bytes:
    """The records of a pack, sorted by digest."""
    return b"".join(pack_record(info) for info in sorted(infos, key=lambda info: info.digest))


def trailer(table: bytes, offset: int) -> bytes:
    """What follows the table, without the last 32 bytes (the digest of everything before them)."""
    return TRAILER.pack(END_MAGIC, offset, len(table) // RECORD.size, blake3(table).digest())


def index_bytes(table: bytes) -> bytes:
    """The whole content of an index file."""
    body = IDX_HEADER.pack(IDX_MAGIC, len(table) // RECORD.size) + table
    return body + blake3(body).digest()


def parse_index(data: bytes | memoryview, pack: str) -> memoryview:
    """The table inside an index file. Raises CorruptRecord when a single bit of the file is wrong."""
    view = memoryview(data)
    if len(view) < IDX_HEADER.size + 32 or blake3(view[:-32]).digest() != view[-32:]:
        raise CorruptRecord(f"the index of pack {pack} is damaged", hint="mlc reindex")
    magic, count = IDX_HEADER.unpack(view[: IDX_HEADER.size])
    table = view[IDX_HEADER.size : -32]
    if magic != IDX_MAGIC or len(table) != count * RECORD.size:
        raise CorruptRecord(f"the index of pack {pack} is of an unknown version", hint="mlc doctor")
    return table


def parse_trailer(pack_bytes: memoryview, pack: str) -> memoryview:
    """The table inside a pack file, checked against the trailer. Raises CorruptRecord."""
    end = len(pack_bytes) - TRAILER_SIZE
    if end < len(PACK_HEADER) or pack_bytes[:PACK_MAGIC_SIZE] != PACK_HEADER[:PACK_MAGIC_SIZE]:
        raise CorruptRecord(f"pack {pack} is cut short or not a pack", hint="mlc fsck")
    magic, offset, count, digest = TRAILER.unpack(pack_bytes[end : end + TRAILER.size])
    if magic != END_MAGIC or offset + count * RECORD.size != end:
        raise CorruptRecord(f"pack {pack} has a damaged end", hint="mlc fsck")
    table = pack_bytes[offset:end]
    if blake3(table).digest() != digest:
        raise CorruptRecord(f"pack {pack} has a damaged table", hint="mlc fsck")
    return table


def find_record(table: memoryview, digest: bytes) -> int | None:
    """Position of the record with this digest in a sorted table, by bisection."""
    low, high, size = 0, len(table) // RECORD.size, RECORD.size
    while low < high:
        middle = (low + high) // 2
        if bytes(table[middle * size : middle * size + 32]) < digest:
            low = middle + 1
        else:
            high = middle
    found = low * size < len(table) and table[low * size : low * size + 32] == digest
    return low if found else None
