"""Filling one pack: payloads stream into a temporary file, and become visible all at once when it is finished."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from blake3 import blake3

from .. import delta, fs
from ..delta.dtypes import CODECS, byte_size
from ..errors import HashMismatch, IntegrityError, ShapeMismatch
from ..ids import Digest, blob_digest, tensor_digest, tensor_hasher
from . import chain, layout, sources
from .layout import ALIGN, PACK_HEADER, ObjectInfo

if TYPE_CHECKING:
    from ..delta.chooser import Encoded
    from ..delta.derived import Derived
    from ..delta.recipes import Recipe
    from .making import Locate, Made, Witness
    from .passing import Passed, Sink
    from .store import ObjectStore

CODEC_NAMES = {code: name for name, code in CODECS.items()}
SMALL_BLOB = 64  # bytes below which compressing is not tried
BUFFER = 1 << 20  # bytes gathered before a write
NEARLY = 1.05  # of the bound on a path: what is foreseen beyond it is not tried
CLOSE = 0.95  # a derived tensor with a residual must be this much smaller: its reader is slower
Place = tuple[Digest | None, int, int]  # base, depth, bytes of the deltas below


class PackWriter:
    """One pack in the making. Objects that the store already has are not written again. Not safe among threads."""

    def __init__(self, store: ObjectStore, tmpdir: Path) -> None:
        self._store = store
        self._path = tmpdir / f"pack-{secrets.token_hex(8)}.tmp"
        self._file: int | None = None  # written through this one, read back through the other
        self._again: int | None = None
        self._buffer = bytearray()
        self._end = 0  # offset of the next byte, the buffer included
        self._hash = blake3()
        self._infos: dict[Digest, ObjectInfo] = {}
        self._share = 0.0  # of its bytes that the last delta of a delta took
        self.recipes: dict[Recipe, Recipe] = {}  # of derived tensors: sorted, and as it is stored

    # --- what may be put -------------------------------------------------------------------------------------

    def add_blob(self, data: bytes | memoryview) -> Digest:
        """Store opaque bytes; returns their digest."""
        digest = blob_digest(data)
        if not self.has(digest):
            from ..delta.frames import compress

            coded = compress(data) if len(data) > SMALL_BLOB else data
            codec, chunk = ("zstd", coded) if len(coded) < 0.95 * len(data) else ("raw", data)
            self._put(digest, "blob", "", (), len(data), [chunk], codec)
        return digest

    def add_tensor(
        self, dtype: str, shape: Sequence[int], data: bytes | memoryview, base: Digest | None = None,
        derived: Derived | None = None, locate: Locate | None = None,
    ) -> ObjectInfo:  # fmt: skip
        """Store a tensor's little-endian row-major bytes, as a delta of `base` where that is shorter; returns how it is stored.

        `derived`: what it is a function of. It is stored so when that is exact, or shorter than otherwise. `locate` finds a snapshot that
        names a source, so that the tensors of a commit share one recipe.

        Until the pack is finished, `pack` of that record is empty. Raises ShapeMismatch when the data has not the size of type and shape.
        """
        view, shape = memoryview(data).cast("B"), tuple(shape)
        if len(view) != byte_size(dtype, shape):
            raise ShapeMismatch(f"{len(view)} bytes cannot be a {dtype} tensor of shape {list(shape)}")
        digest = tensor_digest(dtype, shape, [view])
        if self.has(digest):
            return self.info(digest)
        made = None
        if derived is not None:
            from .making import make

            made = make(self, digest, dtype, shape, view, derived, locate)
            if made is not None and made.exactly:
                return self._put_derived(digest, dtype, shape, len(view), made)
        coded, origin = self._encode(dtype, shape, view, base)
        if made is not None and made.size < CLOSE * coded.size:
            return self._put_derived(digest, dtype, shape, len(view), made)
        place = _place(origin)
        return self._put(digest, "tensor", dtype, shape, len(view), coded.chunks, CODEC_NAMES[coded.codec], place, coded.blocked)

    def add_passing(
        self,
        dtype: str,
        shape: tuple[int, ...],
        derived: Derived,
        locate: Locate,
        reference: Digest | None = None,
        sink: Sink | None = None,
    ) -> Passed | None:
        """Store a tensor that is what `derived` says and that nobody has computed yet; tells what it is. `sink` is given its bytes.

        `reference`: the tensor that it is measured against. None, and nothing is stored, when it cannot be kept so: it is of one value, of
        a few bytes, or too far from a keyframe. Raises IntegrityError for a damaged source.
        """
        from .making import claimed
        from .passing import passed

        known = self.info(reference) if reference is not None else None
        if known is not None and (known.kind, known.dtype, known.shape) != ("tensor", dtype, shape):
            known = None
        made = claimed(self, dtype, shape, derived, locate)
        try:
            found = passed(self, derived, dtype, shape, known, sink) if made is not None else None
        except HashMismatch as fault:
            raise self._store.mismatch(self._store.info(Digest(fault.details["damaged"]))) from None
        if made is None or found is None or found.constant:
            return None
        if not self.has(found.digest):
            self._put_derived(found.digest, dtype, shape, byte_size(dtype, shape), made)
        return found

    def _put_derived(self, digest: Digest, dtype: str, shape: tuple[int, ...], raw_size: int, made: Made) -> ObjectInfo:
        place = self.add_blob(made.recipe), made.depth, made.path_size
        return self._put(digest, "tensor", dtype, shape, raw_size, [made.payload], sources.DERIVED, place, made.blocked)

    # --- what can be read back before it is finished ---------------------------------------------------------

    def has(self, digest: Digest) -> bool:
        """Whether the object is in the store or in this pack."""
        return digest in self._infos or self._store.has(digest)

    def info(self, digest: Digest) -> ObjectInfo:
        """How an object of the store or of this pack is stored. Raises MissingObject."""
        return self._infos[digest] if digest in self._infos else self._store.info(digest)

    @property
    def shelf(self) -> sources.Shelf:
        """Recipes and tables that were read."""
        return self._store.shelf

    def held(self, info: ObjectInfo, start: int, stop: int) -> memoryview | None:
        """Bytes of a tensor that somebody holds in memory."""
        return self._store.held(info, start, stop)

    @property
    def witness(self) -> Witness:
        """Tensors that the store computed itself."""
        return self._store.witness

    def release(self, info: ObjectInfo) -> None:
        """Stored bytes were read to their end."""
        if info.pack:
            self._store.release(info)

    def stored(self, info: ObjectInfo) -> memoryview:
        """Stored bytes of an object of the store or of this pack."""
        if info.pack:
            return self._store.stored(info)
        self._flush()
        if self._again is None:
            self._again = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return memoryview(os.pread(self._again, info.stored_size, info.offset))

    def tensor_bytes(self, digest: Digest) -> memoryview:
        """The bytes of a tensor of the store or of this pack, verified; do not write into them. Raises as the store does."""
        if digest not in self._infos:
            return self._store.tensor_bytes(digest)
        info = self._infos[digest]
        data = chain.tensor_range(self, info, 0, info.raw_size)
        if tensor_digest(info.dtype, info.shape, [data]) != digest:
            raise HashMismatch(f"object {digest} does not decode to the bytes of its name", hint="mlc fsck --level 3", damaged=digest)
        return data.toreadonly()

    # --- the end ---------------------------------------------------------------------------------------------

    def finish(self) -> str | None:
        """Make the pack durable and visible; returns its id, or None when nothing was put. The writer is empty again afterwards."""
        if self._file is None:
            return None
        table = layout.table_of(list(self._infos.values()))
        self._align()
        self._write(table + layout.trailer(table, self._end))
        self._write(self._hash.digest())
        pack = self._hash.hexdigest()
        self._flush()
        fs.fsync_file(self._file)
        index = self._path.with_suffix(".idx")
        fs.write_new(index, layout.index_bytes(table))
        packs = self._store.pack_set
        fs.rename(index, packs.path(pack, "idx"))  # the index first: a pack that is seen has one
        fs.rename(self._path, packs.path(pack))
        if packs.path(pack, "bad").exists():  # the same objects were damaged and in quarantine: these bytes are new
            fs.remove(packs.path(pack, "bad"))
        fs.fsync_dir(packs.directory)
        self._reset()
        packs.forget(pack)
        with contextlib.suppress(OSError):  # only a derived file: the pack is safe without it
            packs.write_midx(self._path.with_suffix(".midx"))
        return pack

    def abort(self) -> None:
        """Drop everything that was put since the last pack was finished."""
        self._path.unlink(missing_ok=True)
        self._reset()

    def _reset(self) -> None:
        for file in (self._file, self._again):
            if file is not None:
                os.close(file)
        self._file = self._again = None
        self._buffer, self._end, self._hash, self._infos = bytearray(), 0, blake3(), {}
        self.recipes = {}
        self._path = self._path.with_name(f"pack-{secrets.token_hex(8)}.tmp")

    # --- choosing a base -------------------------------------------------------------------------------------

    def _encode(self, dtype: str, shape: tuple[int, ...], data: memoryview, base: Digest | None) -> tuple[Encoded, ObjectInfo | None]:
        """The coded tensor and what it is a delta of: the base asked for, else the keyframe below that, else nothing.

        The keyframe is taken when the chain would get too deep, or its deltas together longer than the keyframe: reading must stay cheap.
        """
        for origin in self._origins(dtype, shape, base):
            if origin.depth and origin.path_size + self._share * len(data) > NEARLY * self._keyframe(origin).stored_size:
                continue  # the tensors before this one say how long the delta would be: too long for the path that it lengthens
            coded = self._against(origin, dtype, shape, data)
            if coded is None:
                continue
            if not coded.uses_base:
                return coded, None
            if origin.depth and len(data) >= BUFFER:
                self._share = coded.size / len(data)
            keyframe = self._keyframe(origin)  # of a derived origin: that of its first source
            if origin.depth == 0 or origin.path_size + coded.size <= keyframe.stored_size:
                return coded, origin
        return delta.encode(dtype, shape, data), None

    def _origins(self, dtype: str, shape: tuple[int, ...], base: Digest | None) -> list[ObjectInfo]:
        try:
            info = self.info(base) if base is not None and self.has(base) else None
            if info is None or info.kind != "tensor" or (info.dtype, info.shape) != (dtype, shape):
                return []
            keyframe = self._keyframe(info)
        except IntegrityError:  # a chain that cannot be read is no base; fsck will name it
            return []
        if info.depth == 0:
            return [info]
        fits = [keyframe] if (keyframe.dtype, keyframe.shape) == (dtype, shape) else []  # a derived tensor's may be of another type
        return fits if info.depth >= delta.MAX_DEPTH else [info, *fits]

    def _keyframe(self, info: ObjectInfo) -> ObjectInfo:
        for _ in range(layout.MAX_DEPTH_READ):
            below = sources.sources_of(self, info)
            if not below:
                break
            info = self.info(below[0])
        return info

    def _against(self, origin: ObjectInfo, dtype: str, shape: tuple[int, ...], data: memoryview) -> Encoded | None:
        """Encode against one base, verified while it is read; None when it is damaged: a delta of wrong bytes would spread the damage."""
        hasher = tensor_hasher(dtype, shape)

        def read_base(start: int, stop: int) -> memoryview:
            part = chain.tensor_range(self, origin, start, stop)
            hasher.update(part)
            return part

        try:
            coded = delta.encode(dtype, shape, data, read_base)
        except IntegrityError:
            return None
        return coded if hasher.hexdigest() == origin.digest else None

    # --- bytes -----------------------------------------------------------------------------------------------

    def _put(
        self, digest: Digest, kind: Literal["tensor", "blob"], dtype: str, shape: tuple[int, ...], raw_size: int,
        chunks: Sequence[bytes | memoryview], codec: str, place: Place = (None, 0, 0), blocked: bool = False,
    ) -> ObjectInfo:  # fmt: skip
        if self._file is None:
            self._file = fs.create(self._path)
            self._write(PACK_HEADER)
        self._align()
        offset, checksum = self._end, blake3()
        for chunk in chunks:
            checksum.update(chunk)
            self._write(chunk)
        stored = self._end - offset
        info = ObjectInfo(
            digest=digest, kind=kind, dtype=dtype, shape=shape, raw_size=raw_size, stored_size=stored,
            base=place[0], depth=place[1], codec=codec, pack="", offset=offset,
            checksum=checksum.hexdigest(), path_size=place[2] + stored if place[0] else 0, blocked=blocked,
        )  # fmt: skip
        self._infos[digest] = info
        return info

    def _align(self) -> None:
        self._write(bytes(-self._end % ALIGN))

    def _write(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._end += len(data)
        if len(data) < BUFFER:
            self._buffer += data
            if len(self._buffer) >= BUFFER:
                self._flush()
        else:
            self._flush()
            fs.write(self._file, data)  # type: ignore[arg-type]

    def _flush(self) -> None:
        if self._buffer:
            fs.write(self._file, self._buffer)  # type: ignore[arg-type]
            self._buffer = bytearray()


def _place(origin: ObjectInfo | None) -> Place:
    return (origin.digest, origin.depth + 1, origin.path_size) if origin else (None, 0, 0)
