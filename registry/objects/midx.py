"""The multi-pack index: one sorted table of (digest, pack, position), so that a lookup among ten thousand packs opens one file.

It is derived and may vanish, lag behind or lie: an answer is a hint that the pack's own index confirms, and a miss is believed only after
the checksum of the whole file was found right. When there is none and there are many packs, the same table is made in memory.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from blake3 import blake3

from .layout import RECORD

MAGIC = b"MLCMIDX\x01"
HEADER = struct.Struct("<8sQQ")  # magic, packs, records
ENTRY = struct.Struct(">32sII")  # digest, number of the pack, position of its record; big-endian, so that bytes sort as they should


class MultiIndex:
    """A multi-pack index over mapped or plain bytes."""

    def __init__(self, data: mmap.mmap | bytes, packs: list[str], records: int) -> None:
        self._data = data
        self._order = packs
        self._start = HEADER.size + 32 * len(packs)
        self._records = records
        self._sound: bool | None = None  # not asked yet
        self.packs = frozenset(packs)

    @classmethod
    def load(cls, path: Path) -> MultiIndex | None:
        """Map the file; None when it is missing, cut or of another version."""
        try:
            with open(path, "rb") as file:
                return cls.parse(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (FileNotFoundError, ValueError):
            return None

    @classmethod
    def parse(cls, data: mmap.mmap | bytes) -> MultiIndex | None:
        """See the bytes as an index; None when lengths and magic are not right."""
        if len(data) < HEADER.size + 32:
            return None
        magic, packs, records = HEADER.unpack(data[: HEADER.size])
        if magic != MAGIC or HEADER.size + 32 * packs + ENTRY.size * records + 32 != len(data):
            return None
        names = [data[HEADER.size + 32 * i : HEADER.size + 32 * (i + 1)].hex() for i in range(packs)]
        return cls(data, names, records)

    def find(self, digest: bytes) -> Iterator[tuple[str, int]]:
        """Every (pack, position) listed for a digest."""
        low, high = 0, self._records
        while low < high:
            middle = (low + high) // 2
            if self._entry(middle)[:32] < digest:
                low = middle + 1
            else:
                high = middle
        while low < self._records and (entry := self._entry(low))[:32] == digest:
            _, number, position = ENTRY.unpack(entry)
            if number < len(self._order):
                yield self._order[number], position
            low += 1

    def sound(self) -> bool:
        """Whether the checksum is right; computed once."""
        if self._sound is None:
            self._sound = blake3(memoryview(self._data)[:-32]).digest() == self._data[-32:]
        return self._sound

    def extended(self, tables: Iterable[tuple[str, memoryview]]) -> bytes:
        """A new index that also covers these packs, given with their tables."""
        entries = [self._entry(index) for index in range(self._records)]
        return _assemble(list(self._order), entries, tables)

    def _entry(self, index: int) -> bytes:
        start = self._start + index * ENTRY.size
        return self._data[start : start + ENTRY.size]


def build(tables: Iterable[tuple[str, memoryview]]) -> bytes:
    """An index over packs, each given with its table of records."""
    return _assemble([], [], tables)


def _assemble(packs: list[str], entries: list[bytes], tables: Iterable[tuple[str, memoryview]]) -> bytes:
    for pack, table in tables:
        starts = range(0, len(table), RECORD.size)
        entries += [ENTRY.pack(bytes(table[start : start + 32]), len(packs), position) for position, start in enumerate(starts)]
        packs.append(pack)
    entries.sort()  # nearly sorted already: one merge
    body = HEADER.pack(MAGIC, len(packs), len(entries)) + b"".join(map(bytes.fromhex, packs)) + b"".join(entries)
    return body + blake3(body).digest()
