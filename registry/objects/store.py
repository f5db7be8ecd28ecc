"""The object store: bytes by digest, whatever pack and coding they lie in. What it returns was checked against its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from blake3 import blake3

from ..errors import CorruptRecord, HashMismatch, MissingObject
from ..ids import Digest, blob_digest, is_digest, short, tensor_digest
from . import chain, sources
from .layout import MAX_DEPTH_READ, ObjectInfo
from .making import Witness, derive
from .packs import PackSet

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..delta.derived import Derived
    from .writer import PackWriter


class ObjectStore:
    """All objects below one directory. Cheap to make: nothing is opened before the first question. Safe among threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pack_set = PackSet(directory)
        self.shelf = sources.Shelf()
        self.borrowed: chain.Borrowed = WeakValueDictionary()
        self.witness = Witness()
        self._beneath: np.ndarray | None = None  # what the last tensor that was lent is a delta of

    # --- questions -------------------------------------------------------------------------------------------

    def has(self, digest: Digest) -> bool:
        """Whether the object is stored (and not in quarantine)."""
        return is_digest(digest) and self.pack_set.find(digest) is not None

    def info(self, digest: Digest) -> ObjectInfo:
        """Where and how the object is stored. Raises MissingObject."""
        found = self.pack_set.find(digest) if is_digest(digest) else None
        if found is None:
            raise MissingObject(f"object {digest} is not in the registry", hint="mlc fsck")
        return found

    def iter_infos(self) -> Iterator[ObjectInfo]:
        """Every object of every pack; a digest stored twice comes twice."""
        for pack in self.packs():
            yield from self.pack_set.records(pack)

    def packs(self) -> list[str]:
        """Ids of all packs."""
        return self.pack_set.names()

    # --- bytes -----------------------------------------------------------------------------------------------

    def payload(self, digest: Digest) -> memoryview:
        """The stored (coded) bytes, mapped and not verified."""
        return self.pack_set.payload(self.info(digest))

    def stored(self, info: ObjectInfo) -> memoryview:
        """The stored bytes that a record points to, mapped and not verified."""
        return self.pack_set.payload(info)

    def blob(self, digest: Digest) -> bytes:
        """An opaque object. Raises MissingObject, HashMismatch or CorruptRecord."""
        info = self.info(digest)
        if info.kind != "blob":
            raise CorruptRecord(f"object {digest} is a tensor, not a blob")
        data = chain.blob_bytes(info, self.pack_set.payload(info))
        if blob_digest(data) != digest:
            raise HashMismatch(f"object {digest} does not hold the bytes of its name", hint="mlc fsck --level 2")
        return data

    def tensor_bytes(self, digest: Digest) -> memoryview:
        """The little-endian row-major bytes of a tensor, decoded through its chain and verified; do not write into it.

        Raises MissingObject, HashMismatch or CorruptRecord.
        """
        info = self.info(digest)
        data = chain.tensor_range(self, info, 0, info.raw_size)
        if tensor_digest(info.dtype, info.shape, [data]) != digest:
            raise self.mismatch(info)
        return data.toreadonly()

    def glimpse(self, digest: Digest) -> memoryview:
        """A tensor's bytes to be measured: `tensor_bytes`, or those that somebody holds and that were verified when they were lent."""
        held = self.borrowed.get(digest)
        return self.tensor_bytes(digest) if held is None else held.data

    def held(self, info: ObjectInfo, start: int, stop: int) -> memoryview | None:
        """Raw bytes [start, stop) of a tensor that somebody holds in memory; else None."""
        found = self.borrowed.get(info.digest)
        return found.data[start:stop] if found is not None and len(found) == info.raw_size else None

    def lent(self, digest: Digest) -> np.ndarray:
        """A tensor's bytes as `tensor_bytes` gives them, uint8 `[n]`, in memory that is shared by all who ask: never to be written into.

        As long as somebody holds them, whatever is read of this tensor comes from there, and is verified as ever. Raises as `tensor_bytes`.
        """
        found = self.borrowed.get(digest)
        if found is None:
            import numpy as np

            info = self.info(digest)
            if info.base is not None and info.codec != sources.DERIVED:
                self._beneath = self.lent(info.base)  # kept until the next: versions that are compared or merged mostly share it
            data = self.tensor_bytes(digest)
            mapped = info.codec == "raw" and not info.blocked  # private memory, lest the file is cut short meanwhile
            found = np.frombuffer(bytes(data) if mapped else data, dtype=np.uint8)
            self.borrowed[digest] = found
        return found

    def derive(self, derived: Derived, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor that `derived` describes. When it is put unchanged, with the same `derived`, it is not computed again to be proven."""
        return derive(self, derived, dtype, shape)

    def tensor_range(self, digest: Digest, start: int, stop: int) -> memoryview:
        """A range of a tensor's bytes, *not verified* (a digest covers the whole): for readers that verify the whole themselves."""
        return chain.tensor_range(self, self.info(digest), start, stop)

    def mismatch(self, info: ObjectInfo) -> HashMismatch:
        """Name the object of the chain whose stored bytes are damaged."""
        for link in self.chain(info.digest):
            if not self.sound(link):
                reason = f"object {link.digest} is damaged in pack {short(link.pack)}"
                return HashMismatch(reason, hint="mlc fsck --level 2", damaged=link.digest)
        reason = f"object {info.digest} does not decode to the bytes of its name"
        return HashMismatch(reason, hint="mlc fsck --level 3", damaged=info.digest)

    def release(self, info: ObjectInfo) -> None:
        """Stored bytes were read to their end: they need not stay in this process's memory."""
        self.pack_set.release(info)

    # --- integrity -------------------------------------------------------------------------------------------

    def chain(self, digest: Digest) -> list[ObjectInfo]:
        """The object, what it needs, what that needs, down to the keyframes; each once. Raises CorruptRecord when it never ends."""
        links = {digest: self.info(digest)}
        row = [links[digest]]
        for _ in range(MAX_DEPTH_READ + 1):
            wanted = dict.fromkeys(need for info in row for need in sources.needs(self, info))
            row = [self.info(need) for need in wanted]
            if not row:
                return list(links.values())
            links |= {info.digest: info for info in row if info.digest not in links}
        raise CorruptRecord(f"object {digest} hangs on a chain of more than {MAX_DEPTH_READ} deltas", hint="mlc fsck")

    def sources(self, info: ObjectInfo) -> tuple[Digest, ...]:
        """The tensors an object is coded against: none, one base, or the sources of a derived tensor. Raises IntegrityError."""
        return sources.sources_of(self, info)

    def needs(self, info: ObjectInfo) -> tuple[Digest, ...]:
        """Every object that must stay stored for this one to be read (not what those need in turn). Raises IntegrityError."""
        return sources.needs(self, info)

    def sound(self, info: ObjectInfo) -> bool:
        """Whether the stored bytes have the checksum they were written with; nothing is decoded."""
        try:
            return blake3(self.pack_set.payload(info)).hexdigest() == info.checksum
        except (CorruptRecord, MissingObject):
            return False

    def pack_sound(self, pack: str) -> bool:
        """Whether a whole pack file has the digest it is named by."""
        try:
            return blake3(memoryview(self.pack_set.mapped(pack))).hexdigest() == pack
        except (CorruptRecord, MissingObject):
            return False

    def quarantine(self, digest: Digest) -> ObjectInfo:
        """Treat the stored copy of an object as missing from now on, so that putting it again writes it anew. Raises MissingObject."""
        info = self.info(digest)
        self.pack_set.quarantine(info)
        return info

    # --- writing ---------------------------------------------------------------------------------------------

    def new_pack(self, tmpdir: Path) -> PackWriter:
        """A pack to be filled; it becomes visible when it is finished."""
        from .writer import PackWriter

        return PackWriter(self, tmpdir)
