"""The multi-pack index: one sorted file of (digest, pack, position), so that a lookup among ten thousand packs opens one file.

It is derived and may vanish, lag behind or lie: an answer is a hint that the pack's own index confirms, and a miss is believed only after
the checksum of the whole file was found right.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from blake3 import blake3

MAGIC = b"MLCMIDX\x01"
HEADER = struct.Struct("<8sQQ")  # magic, packs, records
ENTRY = struct.Struct(">32sII")  # digest, number of the pack, position of its record; big-endian, so that bytes sort as they should


class MultiIndex:
    """A mapped multi-pack index. `load` gives None for a file that cannot be one."""

    def __init__(self, data: mmap.mmap, packs: list[str], records: int) -> None:
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
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError):
            return None
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
            if self._key(middle) < digest:
                low = middle + 1
            else:
                high = middle
        while low < self._records and self._key(low) == digest:
            _, number, position = ENTRY.unpack(self._entry(low))
            if number < len(self._order):
                yield self._order[number], position
            low += 1

    def sound(self) -> bool:
        """Whether the file's checksum is right; computed once."""
        if self._sound is None:
            self._sound = self._data.size() == len(self._data) and blake3(memoryview(self._data)[:-32]).digest() == self._data[-32:]
        return self._sound

    def entries(self) -> Iterator[tuple[bytes, str, int]]:
        """All (digest, pack, position), sorted by digest."""
        for index in range(self._records):
            digest, number, position = ENTRY.unpack(self._entry(index))
            yield digest, self._order[number], position

    def _entry(self, index: int) -> bytes:
        start = self._start + index * ENTRY.size
        return self._data[start : start + ENTRY.size]

    def _key(self, index: int) -> bytes:
        start = self._start + index * ENTRY.size
        return self._data[start : start + 32]


def build(tables: Iterable[tuple[str, Iterable[bytes]]]) -> list[bytes]:
    """Chunks of a multi-pack index over packs, each given with its digests in the order of its table."""
    names, entries = [], []
    for number, (pack, digests) in enumerate(tables):
        names.append(bytes.fromhex(pack))
        entries += [ENTRY.pack(digest, number, position) for position, digest in enumerate(digests)]
    entries.sort()
    body = HEADER.pack(MAGIC, len(names), len(entries)) + b"".join(names) + b"".join(entries)
    return [body, blake3(body).digest()]
