"""What a derived tensor is made of: its recipe, the tensors that recipe and payload name, and how much work reading it is.

An ordinary delta has one base, which its record names. The base of a derived tensor is a recipe; snapshots in that recipe are tables, and
the payload holds the place of each source in them. Whoever follows objects (fsck, gc, repack) asks `needs`, and never `base` alone.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..delta.derived import FLOATS, RANK1
from ..delta.recipes import MOST_BYTES, Head, Recipe, parse_recipe, read_head
from ..errors import CorruptRecord, HashMismatch
from ..ids import Digest, blob_digest, is_digest
from ..records import SNAPSHOT_DOMAIN
from .chain import Reader, blob_bytes
from .layout import MAX_DEPTH_READ, ObjectInfo

T = TypeVar("T")
DERIVED = "derived"
MOST_TABLE = 1 << 28  # bytes of a snapshot that is used as a table
RANKS = 8  # rank-1 terms that cost as much as decoding a delta
KEPT_RECIPES, KEPT_TABLES = 256, 16
MAX_WORK_READ = 1024  # decoded tensors behind one: more is an attack or a bug, never our writing


class Shelf:
    """Parsed recipes and tables, by the digest of their verified bytes: they can never be out of date. Safe among threads."""

    def __init__(self) -> None:
        self.recipes: OrderedDict[Digest, Recipe] = OrderedDict()
        self.tables: OrderedDict[Digest, tuple[Digest, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def recipe(self, reader: Reader, digest: Digest) -> Recipe:
        """A recipe. Raises MissingObject, HashMismatch or CorruptRecord."""
        return self._kept(self.recipes, KEPT_RECIPES, digest, lambda: parse_recipe(_blob(reader, digest, MOST_BYTES)))

    def table(self, reader: Reader, digest: Digest) -> tuple[Digest, ...]:
        """The digests of a snapshot's tensors, in its order. Raises MissingObject, HashMismatch or CorruptRecord."""
        return self._kept(self.tables, KEPT_TABLES, digest, lambda: _table(_blob(reader, digest, MOST_TABLE), digest))

    def _kept(self, shelf: OrderedDict[Digest, T], room: int, digest: Digest, read: Callable[[], T]) -> T:
        with self._lock:
            if digest in shelf:
                shelf.move_to_end(digest)
                return shelf[digest]
        found = read()
        with self._lock:
            shelf[digest] = found
            while len(shelf) > room:
                shelf.popitem(last=False)
        return found


@dataclass(frozen=True, slots=True)
class Parts:
    """A derived tensor taken apart: recipe and sources in the order of the function, and what follows the head in its payload."""

    recipe: Recipe
    sources: tuple[ObjectInfo, ...]
    head: Head
    body: memoryview

    @property
    def rank(self) -> int | None:
        """Rank-1 terms; None for functions without any."""
        return int.from_bytes(self.body[:4], "little") if self.recipe.function == RANK1 else None


def taken_apart(reader: Reader, info: ObjectInfo) -> Parts:
    """The parts of a derived tensor. Raises MissingObject for a source that is gone, HashMismatch or CorruptRecord for damage."""
    if info.base is None or info.kind != "tensor":
        raise CorruptRecord(f"object {info.digest} is derived from nothing")
    recipe, digests, head, body = read_payload(reader, reader.shelf.recipe(reader, info.base), reader.stored(info))
    sources = tuple(reader.info(digest) for digest in digests)
    if (fault := unfit(recipe.function, info.dtype, info.shape, sources)) is not None:
        raise CorruptRecord(f"object {info.digest} cannot be derived: {fault}", hint="mlc fsck")
    return Parts(recipe, sources, head, body)


def read_payload(reader: Reader, recipe: Recipe, payload: memoryview) -> tuple[Recipe, tuple[Digest, ...], Head, memoryview]:
    """Recipe and sources in the order of the function, the head of the payload and what follows it. Raises IntegrityError."""
    head, body = read_head(payload, len(recipe.snapshots), recipe.summed)
    places = iter(head.places)
    digests = [_at(reader, s.digest, next(places)) if s.kind == "snapshot" else s.digest for s in recipe.sources]
    first = len(digests) - recipe.summed
    told = digests if head.order is None else [*digests[:first], *(digests[first + index] for index in head.order)]
    return recipe.ordered(head.order), tuple(told), head, body


def unfit(function: str, dtype: str, shape: tuple[int, ...], sources: tuple[ObjectInfo, ...]) -> str | None:
    """Why a tensor cannot be this function of these objects; None when it can."""
    for source in sources:
        if source.kind != "tensor" or source.shape != shape:
            return f"its source {source.digest} is no tensor of shape {list(shape)}"
        if source.dtype not in FLOATS or dtype not in FLOATS or (function == RANK1 and source.dtype != dtype):
            return f"its source {source.digest} is of type {source.dtype}, it of type {dtype}"
    return None


def sources_of(reader: Reader, info: ObjectInfo) -> tuple[Digest, ...]:
    """The tensors an object is coded against: none, its base, or the sources of a derived one."""
    if info.codec == DERIVED:
        return tuple(source.digest for source in taken_apart(reader, info).sources)
    return () if info.base is None else (info.base,)


def needs(reader: Reader, info: ObjectInfo) -> tuple[Digest, ...]:
    """Every object that must be stored for this one to be read: its sources, and for a derived tensor recipe and tables. Each once."""
    if info.codec != DERIVED or info.base is None:
        return sources_of(reader, info)
    parts = taken_apart(reader, info)
    return tuple(dict.fromkeys([*(source.digest for source in parts.sources), info.base, *parts.recipe.snapshots]))


def work(reader: Reader, info: ObjectInfo) -> int:
    """How many tensors are decoded to read this one, each as often as it is; eight rank-1 terms count as one. Raises CorruptRecord."""
    known: dict[Digest, int] = {}

    def of(link: ObjectInfo, depth: int) -> int:
        if depth > MAX_DEPTH_READ:
            raise CorruptRecord(f"object {info.digest} hangs on a chain of more than {MAX_DEPTH_READ} deltas", hint="mlc fsck")
        if link.digest not in known:
            cost, sources = 1, [] if link.base is None else [link.base]
            if link.codec == DERIVED:
                parts = taken_apart(reader, link)
                cost, sources = 1 + (parts.rank or 0) // RANKS, [source.digest for source in parts.sources]
            known[link.digest] = cost + sum(of(reader.info(digest), depth + 1) for digest in sources)
        return known[link.digest]

    return of(info, 0)


def readable(reader: Reader, info: ObjectInfo) -> Parts:
    """The parts of a derived tensor that may be decoded. Raises CorruptRecord when that would never end."""
    if work(reader, info) > MAX_WORK_READ:
        raise CorruptRecord(f"object {info.digest} is derived from more than {MAX_WORK_READ} tensors", hint="mlc fsck")
    return taken_apart(reader, info)


def _blob(reader: Reader, digest: Digest, most: int) -> bytes:
    info = reader.info(digest)
    if info.kind != "blob" or info.raw_size > most:
        raise CorruptRecord(f"object {digest} is no recipe and no table of tensors", hint="mlc fsck")
    data = blob_bytes(info, reader.stored(info))
    if blob_digest(data) != digest:
        raise HashMismatch(f"object {digest} does not hold the bytes of its name", hint="mlc fsck --level 2", damaged=digest)
    return data


def _table(data: bytes, name: Digest) -> tuple[Digest, ...]:
    try:
        if not data.startswith(SNAPSHOT_DOMAIN):
            raise ValueError
        digests = tuple(entry["digest"] for entry in json.loads(data[len(SNAPSHOT_DOMAIN) :])["tensors"])
        if not all(isinstance(digest, str) and is_digest(digest) for digest in digests):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError) as fault:
        raise CorruptRecord(f"object {name} is no snapshot", hint="mlc fsck") from fault
    return digests


def _at(reader: Reader, snapshot: Digest, place: int) -> Digest:
    table = reader.shelf.table(reader, snapshot)
    if place >= len(table):
        raise CorruptRecord(f"snapshot {snapshot} has no tensor number {place}", hint="mlc fsck")
    return table[place]
