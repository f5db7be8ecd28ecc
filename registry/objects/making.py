"""Coding a tensor as what it is derived from, on its way into a pack: sources found and verified, the recipe written short.

No claim is trusted: sources that are not stored, do not fit, are damaged or are themselves too far from a keyframe mean None, and the
tensor is coded as any other. Only what was computed in this room from verified sources, and is put as it was given away, is not computed
a second time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..delta import MAX_DEPTH
from ..delta.dtypes import byte_size, item_size
from ..delta.recipes import Head, Recipe, Source, parse_recipe
from ..errors import BadParameter, HashMismatch, IntegrityError
from ..ids import Digest, blob_digest, is_digest, tensor_digest, tensor_hasher
from . import chain, sources
from .layout import ObjectInfo

if TYPE_CHECKING:
    from torch import Tensor

    from ..delta.derivation import Coded
    from ..delta.derived import Derived
    from .store import ObjectStore
    from .writer import PackWriter

MAX_WORK = 64  # decoded tensors behind one that we write
Locate = Callable[[Digest], tuple[Digest, int] | None]  # a snapshot that names this tensor, and the place where it does


REMEMBERED = 256  # tensors that were given away and not put yet


class Witness:
    """Which tensors were computed here, by digest, and of what. Safe among threads."""

    def __init__(self) -> None:
        self._seen: OrderedDict[Digest, Derived] = OrderedDict()
        self._lock = threading.Lock()

    def saw(self, digest: Digest, derived: Derived) -> None:
        """A tensor of this digest was computed as `derived` says."""
        with self._lock:
            self._seen[digest] = derived
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)

    def confirms(self, digest: Digest, derived: Derived) -> bool:
        """Whether it was just this; asked once."""
        with self._lock:
            return self._seen.pop(digest, None) is derived


def derive(store: ObjectStore, derived: Derived, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of this type and shape that `derived` describes, of stored tensors that are verified on the way.

    Raises BadParameter for sources of other shapes or types, and as `ObjectStore.tensor_bytes`.
    """
    from ..delta.buffers import borrow, dtype_of, lend
    from ..delta.derived import derive as evaluate

    infos = {digest: store.info(Digest(digest)) for digest in derived.sources}
    if (fault := sources.unfit(derived.function, dtype, shape, tuple(infos.values()))) is not None:
        raise BadParameter(f"a tensor cannot be derived: {fault}")
    held = {digest: borrow(store.lent(info.digest), dtype_of(info.dtype)).view(shape) for digest, info in infos.items()}
    data = evaluate(derived, lambda digest, rows: held[digest][rows] if shape else held[digest], dtype_of(dtype), shape)
    if not derived.factors:  # those are coded on their way
        store.witness.saw(tensor_digest(dtype, shape, [lend(data).data]), derived)
    return data


@dataclass(frozen=True, slots=True)
class Made:
    """A derived tensor ready to be put. `size` counts the recipe where it is new."""

    recipe: bytes
    payload: bytes
    blocked: bool
    exactly: bool
    depth: int
    path_size: int  # of the sources
    size: int


def make(
    pack: PackWriter, digest: Digest, dtype: str, shape: tuple[int, ...], data: memoryview, derived: Derived, locate: Locate | None
) -> Made | None:
    """The tensor as derived, proven to decode from sources whose bytes are those of their names; None when it cannot be."""
    known = pack.witness.confirms(digest, derived)
    try:
        infos = _sources(pack, dtype, shape, derived)
        if infos is None:
            return None
        stored, head, recipe = _told(pack, derived, locate)
        reader = None if known else _Verified(pack, infos)
        from ..delta import derivation

        words = tuple(info.dtype for info in infos)
        coded = derivation.encode(recipe, derived, head, dtype, shape, data, words, reader.read if reader else None)
    except IntegrityError:  # a source that cannot be read is none; fsck will name it
        return None
    if coded is None or not (reader is None or reader.verified()):
        return None
    return _made(pack, derived, infos, stored, recipe, coded)


def claimed(pack: PackWriter, dtype: str, shape: tuple[int, ...], derived: Derived, locate: Locate | None) -> Made | None:
    """What would be put of a tensor of sums, or of an election, that is exactly what `derived` says; None when it cannot be kept so.

    Raises BadParameter for sources of other shapes or types, MissingObject for one that is not stored.
    """
    from ..delta import derivation

    infos = tuple(pack.info(Digest(digest)) for digest in derived.sources)
    if (fault := sources.unfit(derived.function, dtype, shape, infos)) is not None:
        raise BadParameter(f"a tensor cannot be derived: {fault}")
    if derived.factors or byte_size(dtype, shape) < derivation.SMALLEST or not _near(pack, infos, derived):
        return None
    stored, head, recipe = _told(pack, derived, locate)
    return _made(pack, derived, infos, stored, recipe, derivation.exactly(derived, head))


def _sources(pack: PackWriter, dtype: str, shape: tuple[int, ...], derived: Derived) -> tuple[ObjectInfo, ...] | None:
    """The records of the sources; None when one is not stored, does not fit or is too far from a keyframe."""
    if not all(is_digest(digest) and pack.has(Digest(digest)) for digest in derived.sources):
        return None
    infos = tuple(pack.info(Digest(digest)) for digest in derived.sources)
    return None if sources.unfit(derived.function, dtype, shape, infos) or not _near(pack, infos, derived) else infos


def _told(pack: PackWriter, derived: Derived, locate: Locate | None) -> tuple[Recipe, Head, Recipe]:
    """The recipe as it is stored, the head of a payload without a residual, and the recipe in the order of the function."""
    recipe, places = _recipe(pack, derived, locate)
    return *_shared(pack, recipe, places), recipe


def _made(pack: PackWriter, derived: Derived, infos: tuple[ObjectInfo, ...], stored: Recipe, recipe: Recipe, coded: Coded) -> Made:
    told = stored.encode()
    again, digests, _, _ = sources.read_payload(pack, parse_recipe(told), memoryview(coded.payload))
    if (again, digests) != (recipe, tuple(derived.sources)):
        raise HashMismatch("a recipe did not survive its own encoding; nothing was stored", hint="mlc doctor")
    size = len(coded.payload) + (0 if pack.has(blob_digest(told)) else len(told))
    depth, below = 1 + max(info.depth for info in infos), sum(info.path_size for info in infos)
    return Made(told, coded.payload, coded.blocked, coded.exactly, depth, below, size)


def _near(pack: PackWriter, infos: tuple[ObjectInfo, ...], derived: Derived) -> bool:
    """Whether reading this one would stay cheap: few steps to the keyframes, and not too many tensors to decode."""
    rank = derived.factors[1].shape[0] if derived.factors else 0
    below = sum(sources.work(pack, info) for info in infos)
    return max(info.depth for info in infos) < MAX_DEPTH and below <= MAX_WORK and rank // sources.RANKS <= sources.MAX_WORK_READ // 2


def _recipe(pack: PackWriter, derived: Derived, locate: Locate | None) -> tuple[Recipe, list[int | None]]:
    """The recipe in the order of the function, and for each source its place in the snapshot that names it (None: it is named itself)."""
    named, places = [], []
    for digest in map(Digest, derived.sources):
        found = locate(digest) if locate is not None else None
        if found is None or pack.shelf.table(pack, found[0])[found[1]] != digest:
            named.append(Source("tensor", digest))
            places.append(None)
        else:
            named.append(Source("snapshot", found[0]))
            places.append(found[1])
    return Recipe(derived.function, tuple(map(float, derived.numbers)), tuple(named)), places


def _shared(pack: PackWriter, recipe: Recipe, places: list[int | None]) -> tuple[Recipe, Head]:
    """The recipe as tensors of this pack that sum the same in another order share it, and the head that leads back from there."""
    mine, first = recipe.sorting(), len(places) - recipe.summed
    stored = pack.recipes.setdefault(recipe.ordered(mine), recipe)  # in the order that came first, which costs nothing
    theirs = stored.sorting()
    order = tuple(theirs[mine.index(index)] for index in range(len(mine)))
    placed = [*places[:first], *(places[first + mine[theirs.index(index)]] for index in range(len(mine)))]
    known = None if order == tuple(range(len(order))) else order
    return stored, Head(None, tuple(place for place in placed if place is not None), known)


class _Verified:
    """Reads sources, and hashes each on the way from its start to its end: a function of wrong bytes would spread the damage."""

    def __init__(self, pack: PackWriter, infos: tuple[ObjectInfo, ...]) -> None:
        self._pack, self._infos = pack, infos
        self._hashers = [tensor_hasher(info.dtype, info.shape) for info in infos]
        self._seen = [0] * len(infos)  # bytes

    def read(self, number: int, part: slice) -> memoryview:
        info = self._infos[number]
        item, seen = item_size(info.dtype), self._seen[number]
        data = chain.tensor_range(self._pack, info, part.start * item, part.stop * item)
        if part.start * item <= seen < part.stop * item:
            self._hashers[number].update(data[seen - part.start * item :])
            self._seen[number] = part.stop * item
        return data

    def verified(self) -> bool:
        """Whether every source was read to its end, and is what its name says."""
        return all(hasher.hexdigest() == info.digest for hasher, info in zip(self._hashers, self._infos, strict=True))
