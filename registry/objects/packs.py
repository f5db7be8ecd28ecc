"""The packs of a directory: which there are, mapped for reading, and found by digest without opening them all.

A listing is taken once and again only when the directory changed (another process may add a pack at any time). Files are mapped when
they are needed, and only so many stay mapped. A damaged index is replaced in memory by the table inside its pack.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from .. import fs
from ..errors import CorruptRecord, MissingObject
from ..ids import Digest
from .layout import RECORD, ObjectInfo, find_record, parse_index, parse_record, parse_trailer
from .midx import MultiIndex, build

T = TypeVar("T")
KEEP_OPEN = 96  # mapped packs and loaded indexes, each
LARGE = 1 << 18  # bytes of a payload that is let go of after it was read
SMALL = 4 << 20  # bytes of smaller payloads after which all are let go of
AROUND = 1 << 16  # bytes that the system maps around what is asked for
UNCOVERED = 64  # packs outside the multi-pack index before it is written anew
TICK_NS = 20_000_000  # a directory changed this recently may change again within one tick of its file system's clock
COARSE_NS = 2_000_000_000  # the same where that clock counts whole seconds


class PackSet:
    """All packs below one directory. Safe among threads; every answer is checked against the record it came from."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.RLock()
        self._stamp: int | None = None  # mtime of the listing, None when it must be taken again
        self._small = 0  # bytes of small payloads that were read and are mapped still
        self._files: set[str] = set()  # everything in the listing
        self._names: set[str] = set()  # ids of the packs in it
        self._bad: dict[str, frozenset[str]] = {}  # pack -> digests in quarantine
        self._tables: OrderedDict[str, memoryview] = OrderedDict()
        self._maps: OrderedDict[str, mmap.mmap] = OrderedDict()
        self._midx: MultiIndex | None = None  # the file of that name, or one made in memory
        self._midx_file: tuple[int, ...] | None = None  # which file that was
        self._uncovered: list[str] = []  # packs that it does not know

    # --- the listing -----------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Ids of all packs, sorted; looks at the directory again when it changed."""
        with self._lock:
            self.refresh()
            return sorted(self._names)

    def refresh(self) -> bool:
        """Take the listing again if the directory may have changed; True when it did."""
        with self._lock:
            try:
                stamp = os.stat(self.directory).st_mtime_ns
            except FileNotFoundError:
                stamp = 0
            if stamp == self._stamp:
                return False
            self._list()
            tick = TICK_NS if stamp % 1_000_000_000 else COARSE_NS
            self._stamp = stamp if time.time_ns() - stamp > tick else None
            return True

    def _list(self) -> None:
        files = set(os.listdir(self.directory)) if self.directory.is_dir() else set()
        new, lost = files - self._files, self._files - files  # ten thousand names that stayed are not looked at again
        fresh, gone = _ids(new, ".pack"), _ids(lost, ".pack")
        self._files, self._names = files, (self._names | fresh) - gone
        self._bad = {pack: self._quarantined(pack) for pack in (self._bad.keys() | _ids(new, ".bad")) - _ids(lost, ".bad")}
        if (file := self._midx_identity()) == self._midx_file:
            self._uncovered = [*(pack for pack in self._uncovered if pack not in gone), *sorted(fresh)]
        else:
            self._midx, self._midx_file = MultiIndex.load(self.directory / "midx"), file
            self._uncovered = self._beyond(self._midx)

    def _midx_identity(self) -> tuple[int, ...] | None:
        try:
            stat = os.stat(self.directory / "midx")
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def _beyond(self, index: MultiIndex | None) -> list[str]:
        return sorted(self._names - index.packs if index else self._names)

    def _quarantined(self, pack: str) -> frozenset[str]:
        try:
            return frozenset(self.path(pack, "bad").read_text(encoding="ascii").split())
        except FileNotFoundError:
            return frozenset()

    # --- finding ---------------------------------------------------------------------------------------------

    def find(self, digest: Digest) -> ObjectInfo | None:
        """The record of an object, or None. Looks for new packs before it says None."""
        with self._lock:
            found = self._find(digest)
            if found is None and self.refresh():
                found = self._find(digest)
            return found

    def _find(self, digest: Digest) -> ObjectInfo | None:
        wanted = bytes.fromhex(digest)
        if len(self._uncovered) > KEEP_OPEN:  # no usable file: the same table in memory
            self._extend()
        if (found := self._hinted(wanted)) or self._midx is None or self._midx.sound():
            return found
        self._midx, self._uncovered = None, self._beyond(None)  # it lies: read the packs instead
        return self._find(digest)

    def _hinted(self, wanted: bytes) -> ObjectInfo | None:
        for pack, position in self._midx.find(wanted) if self._midx else ():
            if pack in self._names and (info := self._record(pack, position, wanted)):
                return info
        for pack in self._uncovered:
            table = self._table(pack)
            position = find_record(table, wanted) if table is not None else None
            if position is not None and (info := self._record(pack, position, wanted)):
                return info
        return None

    def _extend(self) -> bytes:
        """Cover all packs; returns the bytes of the new multi-pack index."""
        old = self._midx if self._midx and self._midx.sound() and self._midx.packs <= self._names else None
        fresh = ((pack, table) for pack in self._beyond(old) if (table := self._table(pack)) is not None)
        data = old.extended(fresh) if old else build(fresh)
        self._midx = MultiIndex.parse(data)
        self._uncovered = []  # a pack whose index and own table are both damaged can answer nothing
        return data

    def write_midx(self, temporary: Path) -> None:
        """Write the multi-pack index anew when enough packs are outside it; `temporary` is a path on the same file system."""
        with self._lock:
            self.refresh()
            if len(self._uncovered) > UNCOVERED:
                fs.write_new(temporary, self._extend())
                fs.rename(temporary, self.directory / "midx")

    def _record(self, pack: str, position: int, wanted: bytes) -> ObjectInfo | None:
        table = self._table(pack)
        record = table[position * RECORD.size : (position + 1) * RECORD.size] if table is not None else b""
        if len(record) != RECORD.size or record[:32] != wanted or wanted.hex() in self._bad.get(pack, ()):
            return None
        return parse_record(record, pack)

    def records(self, pack: str) -> Iterator[ObjectInfo]:
        """Every object of one pack, sorted by digest. Raises CorruptRecord when neither index nor pack can say."""
        with self._lock:
            table = self._table(pack)
        if table is None:
            raise CorruptRecord(f"pack {pack} and its index are damaged", hint="mlc fsck")
        for start in range(0, len(table), RECORD.size):
            info = parse_record(table[start : start + RECORD.size], pack)
            if info.digest not in self._bad.get(pack, ()):
                yield info

    # --- files -----------------------------------------------------------------------------------------------

    def path(self, pack: str, suffix: str = "pack") -> Path:
        """Where a pack (or its `idx`, `bad`) lies."""
        return self.directory / f"pack-{pack}.{suffix}"

    def _table(self, pack: str) -> memoryview | None:
        """The sorted records of a pack, from its index or else from the pack itself; None when both are damaged."""
        table = _touch(self._tables, pack)
        if table is None:
            try:
                table = parse_index(self.path(pack, "idx").read_bytes(), pack)
            except (CorruptRecord, FileNotFoundError):
                try:
                    table = memoryview(bytes(parse_trailer(memoryview(self.mapped(pack)), pack)))
                except (CorruptRecord, MissingObject):
                    return None
            _keep(self._tables, pack, table)
        return table

    def mapped(self, pack: str) -> mmap.mmap:
        """The whole pack, mapped. Raises MissingObject when it is gone, CorruptRecord when it is empty."""
        with self._lock:
            found = _touch(self._maps, pack)
            if found is None:
                try:
                    with open(self.path(pack), "rb") as file:
                        found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except FileNotFoundError as fault:
                    self._stamp = None
                    raise MissingObject(f"pack {pack} is gone", hint="mlc fsck") from fault
                except ValueError as fault:
                    raise CorruptRecord(f"pack {pack} is empty", hint="mlc fsck") from fault
                _keep(self._maps, pack, found)
            return found

    def payload(self, info: ObjectInfo) -> memoryview:
        """The stored bytes of an object, straight from the map. Raises CorruptRecord when the pack is too short for it."""
        pack = self.mapped(info.pack)
        end = info.offset + info.stored_size
        if end > len(pack) or end > pack.size():  # the second asks the file: touching a page that was cut off would kill the process
            raise CorruptRecord(f"object {info.digest} lies beyond the end of pack {info.pack}", hint="mlc fsck")
        return memoryview(pack)[info.offset : end]

    def release(self, info: ObjectInfo) -> None:
        """A payload was read, and will not be soon again: its pages stay in the system's cache, but no longer count as this process's."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        if info.stored_size >= LARGE:
            start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self.mapped(info.pack).madvise(mmap.MADV_DONTNEED, start, info.offset + info.stored_size - start)
            return
        with self._lock:  # small ones are let go of together: each by itself would take with it what the system read ahead of the next
            self._small += info.stored_size + AROUND
            if self._small >= SMALL:
                self._small = 0
                for pack in self._maps.values():
                    pack.madvise(mmap.MADV_DONTNEED)

    def quarantine(self, info: ObjectInfo) -> None:
        """From now on this copy of the object counts as missing; its bytes stay in the pack as evidence."""
        with self._lock:
            self.refresh()
            marked = self._bad.get(info.pack, frozenset()) | {info.digest}
            fs.replace_text(self.path(info.pack, "bad"), "".join(f"{digest}\n" for digest in sorted(marked)))
            self._bad[info.pack] = marked
            self.forget(info.pack)

    def forget(self, pack: str) -> None:
        """Drop what is held of a pack and take the listing again."""
        with self._lock:
            self._maps.pop(pack, None)
            self._tables.pop(pack, None)
            self._stamp = None


def _ids(files: set[str], suffix: str) -> set[str]:
    return {name[5 : -len(suffix)] for name in files if name.endswith(suffix) and name.startswith("pack-")}


def _touch(cache: OrderedDict[str, T], key: str) -> T | None:
    found = cache.get(key)
    if found is not None:
        cache.move_to_end(key)
    return found


def _keep(cache: OrderedDict[str, T], key: str, value: T) -> None:
    cache[key] = value
    while len(cache) > KEEP_OPEN:
        cache.popitem(last=False)  # maps close when the last view of them is dropped
