"""Filling one pack: payloads stream into a temporary file, and become visible all at once when it is finished."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from .. import delta, fs
from ..delta.dtypes import CODECS, byte_size
from ..errors import ShapeMismatch
from ..ids import Digest, blob_digest, tensor_digest
from . import chain, layout
from .layout import ALIGN, PACK_HEADER, ObjectInfo

if TYPE_CHECKING:
    from .store import ObjectStore

CODEC_NAMES = {code: name for name, code in CODECS.items()}
SMALL_BLOB = 64  # bytes below which compressing is not tried


class PackWriter:
    """One pack in the making. Objects that the store already has are not written again. Not safe among threads."""

    def __init__(self, store: ObjectStore, tmpdir: Path) -> None:
        self._store = store
        self._tmpdir = tmpdir
        self._file: int | None = None
        self._path = tmpdir / f"pack-{os.getpid()}-{id(self):x}.tmp"
        self._hash = blake3()
        self._end = 0
        self._infos: dict[Digest, ObjectInfo] = {}

    # --- what may be put -------------------------------------------------------------------------------------

    def add_blob(self, data: bytes | memoryview) -> Digest:
        """Store opaque bytes; returns their digest."""
        digest = blob_digest(data)
        if not self._known(digest):
            from ..delta.frames import compress

            coded = compress(data) if len(data) > SMALL_BLOB else data
            codec = "zstd" if len(coded) < 0.95 * len(data) else "raw"
            self._put(digest, "blob", "", (), len(data), [coded if codec == "zstd" else data], codec)
        return digest

    def add_tensor(self, dtype: str, shape: Sequence[int], data: bytes | memoryview, base: Digest | None = None) -> ObjectInfo:
        """Store a tensor's little-endian row-major bytes, as a delta of `base` where that is shorter; returns how it is stored.

        Raises ShapeMismatch when the data has not the size that type and shape promise.
        """
        view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
        if len(view) != byte_size(dtype, shape):
            raise ShapeMismatch(f"{len(view)} bytes cannot be a {dtype} tensor of shape {list(shape)}")
        digest = tensor_digest(dtype, shape, [view])
        if self._known(digest):
            return self.info(digest)
        root = self._base_for(dtype, tuple(shape), base)
        coded = delta.encode(dtype, shape, view, self._reader(root))
        return self._put(digest, "tensor", dtype, tuple(shape), len(view), coded.chunks, CODEC_NAMES[coded.codec], root if coded.uses_base else None, coded.blocked)

    # --- what can be read back before it is finished ---------------------------------------------------------

    def has(self, digest: Digest) -> bool:
        """Whether the object is in the store or in this pack."""
        return self._known(digest)

    def info(self, digest: Digest) -> ObjectInfo:
        """How an object of the store or of this pack is stored. Raises MissingObject."""
        return self._infos[digest] if digest in self._infos else self._store.info(digest)

    def stored(self, info: ObjectInfo) -> memoryview:
        """Stored bytes of an object of the store or of this pack."""
        if info.pack or self._file is None:
            return self._store.stored(info)
        return memoryview(os.pread(self._file, info.stored_size, info.offset))

    # --- the end ---------------------------------------------------------------------------------------------

    def finish(self) -> str | None:
        """Make the pack durable and visible; returns its id, or None when nothing was put."""
        if self._file is None:
            return None
        table = layout.table_of(list(self._infos.values()))
        self._align()
        offset = self._end
        self._write(table)
        self._write(layout.trailer(table, offset))
        self._write(self._hash.digest())
        pack = self._hash.hexdigest()
        fs.fsync_file(self._file)
        os.close(self._file)
        self._file = None
        index = self._path.with_suffix(".idx")
        fs.write_new(index, layout.index_bytes(table))
        target = self._store.pack_set
        fs.rename(index, target.path(pack, "idx"))  # the index first: a pack that is seen has one
        fs.rename(self._path, target.path(pack))
        fs.fsync_dir(target.directory)
        target.forget(pack)
        self._infos = {}
        return pack

    def abort(self) -> None:
        """Drop everything put so far."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self._path.unlink(missing_ok=True)
        self._infos = {}

    # --- steps -----------------------------------------------------------------------------------------------

    def _known(self, digest: Digest) -> bool:
        return digest in self._infos or self._store.has(digest)

    def _base_for(self, dtype: str, shape: tuple[int, ...], base: Digest | None) -> ObjectInfo | None:
        if base is None or not self._known(base):
            return None
        info = self.info(base)
        if info.kind != "tensor" or (info.dtype, info.shape) != (dtype, shape) or info.depth >= delta.MAX_DEPTH:
            return None
        return info

    def _reader(self, base: ObjectInfo | None):  # noqa: ANN202
        if base is None:
            return None
        return lambda start, stop: chain.tensor_range(self, base, start, stop)

    def _put(self, digest, kind, dtype, shape, raw_size, chunks, codec, base=None, blocked=False) -> ObjectInfo:  # noqa: ANN001
        self._open()
        self._align()
        offset, checksum = self._end, blake3()
        for chunk in chunks:
            checksum.update(chunk)
            self._write(chunk)
        stored = self._end - offset
        info = ObjectInfo(
            digest, kind, dtype, shape, raw_size, stored, base.digest if base else None, base.depth + 1 if base else 0, codec, "",
            offset, checksum.hexdigest(), base.path_size + stored if base else 0, blocked,
        )
        self._infos[digest] = info
        return info

    def _open(self) -> None:
        if self._file is None:
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(self._path, flags, 0o600)
            self._write(PACK_HEADER)

    def _align(self) -> None:
        self._write(bytes(-self._end % ALIGN))

    def _write(self, data) -> None:  # noqa: ANN001
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self._end += len(view)
        while len(view):
            view = view[os.write(self._file, view) :]  # type: ignore[arg-type]
