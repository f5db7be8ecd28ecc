"""From an object's record to its bytes, through the objects it is a delta of. Codecs are imported when a tensor is decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

from ..delta.dtypes import CODECS, item_size
from ..errors import CorruptRecord
from ..ids import Digest
from .layout import MAX_DEPTH_READ, ObjectInfo

if TYPE_CHECKING:
    import numpy as np

    from .sources import Shelf


Borrowed = WeakValueDictionary[Digest, "np.ndarray"]  # bytes of tensors that somebody holds in memory, uint8 [n]


class Reader(Protocol):
    """What a chain is read from: the store, or a pack that is being written on top of it."""

    @property
    def shelf(self) -> Shelf: ...

    def held(self, info: ObjectInfo, start: int, stop: int) -> memoryview | None: ...

    def info(self, digest: Digest) -> ObjectInfo: ...

    def stored(self, info: ObjectInfo) -> memoryview: ...

    def release(self, info: ObjectInfo) -> None: ...


def blob_bytes(info: ObjectInfo, payload: memoryview) -> bytes:
    """The bytes of a blob, not yet verified."""
    if info.codec == "raw" and info.stored_size == info.raw_size:
        return bytes(payload)
    if info.codec != "zstd":
        raise CorruptRecord(f"object {info.digest} has a record that contradicts itself", hint="mlc fsck")
    from ..delta.frames import decompress

    try:
        return decompress(payload, info.raw_size)
    except CorruptRecord as fault:
        raise _named(info, fault) from fault


def tensor_range(reader: Reader, info: ObjectInfo, start: int, stop: int, depth: int = 0) -> memoryview:
    """Raw bytes [start, stop) of a tensor, not yet verified. Raises CorruptRecord naming the object that cannot be decoded."""
    if info.kind != "tensor":
        raise CorruptRecord(f"object {info.digest} is a blob, not a tensor")
    if (found := reader.held(info, start, stop)) is not None:
        return found
    if depth > MAX_DEPTH_READ:
        raise CorruptRecord(f"object {info.digest} hangs on a chain of more than {MAX_DEPTH_READ} deltas", hint="mlc fsck")
    if info.codec == "derived":
        return _derived_range(reader, info, start, stop, depth)
    payload = reader.stored(info)
    if info.codec == "raw" and not info.blocked:
        if info.stored_size != info.raw_size:
            raise CorruptRecord(f"object {info.digest} has a raw payload of a wrong length", hint="mlc fsck")
        return payload[start:stop]
    from ..delta.decode import decode_range

    def read_base(low: int, high: int) -> memoryview:
        if info.base is None:
            raise CorruptRecord("a delta has no base")
        base = reader.info(info.base)
        if (base.dtype, base.shape) != (info.dtype, info.shape):
            raise CorruptRecord("a delta has a base of another type or shape")
        return tensor_range(reader, base, low, high, depth + 1)

    try:
        decoded = decode_range(payload, info.dtype, info.shape, CODECS[info.codec], info.blocked, slice(start, stop), read_base)
    except CorruptRecord as fault:
        raise _named(info, fault) from fault
    if stop == info.raw_size:
        reader.release(info)
    return decoded.data


def _derived_range(reader: Reader, info: ObjectInfo, start: int, stop: int, depth: int) -> memoryview:
    from ..delta import derivation
    from .sources import readable

    def read(number: int, part: slice) -> memoryview:
        source = parts.sources[number]
        item = item_size(source.dtype)
        return tensor_range(reader, source, part.start * item, part.stop * item, depth + 1)

    try:
        parts = readable(reader, info)
        words = tuple(source.dtype for source in parts.sources)
        formula, residual = derivation.parse_formula(parts.recipe, info.dtype, info.shape, words, parts.body)
        return derivation.decode(formula, parts.head.residual, info.blocked, residual, slice(start, stop), read).data
    except CorruptRecord as fault:
        raise _named(info, fault) from fault


def _named(info: ObjectInfo, fault: CorruptRecord) -> CorruptRecord:
    if "object" in fault.details:
        return fault
    return CorruptRecord(f"object {info.digest} cannot be decoded: {fault.message}", hint="mlc fsck --level 2", object=info.digest)
