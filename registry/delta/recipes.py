"""The bytes of a recipe, and the head of a derived tensor's payload. No torch, no numpy.

A recipe is a small object that the derived tensors of a commit share: function, numbers, and for each source a snapshot or one tensor.
    mlc.recipe.v1 · {"function": ..., "numbers": [...], "sources": [{"snapshot": id} | {"tensor": digest}, ...]}
Tensors that sum the same in different orders share it.
The payload of a tensor says where in those snapshots its sources stand: most often one place for all, two or three bytes in the whole.
    form (1 byte) · codec of the residual (1 byte, where there is one) · order (where it is another) · places
    · factors (rank1) or cuts (elect) · residual
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CorruptRecord
from ..ids import Digest, is_digest
from ..records import canonical
from .derived import BASED, LOW, RANK1, Cut, miscut, misfit

DOMAIN = b"mlc.recipe.v1\n"
MOST_BYTES = 1 << 20  # of a recipe: thousands of sources
RESIDUAL, ALIKE, ORDERED = 1, 2, 4  # bits of the form: there is a residual; all places are one; the sum is taken in another order
FACTOR = struct.Struct("<BQ")  # codec, stored bytes
PLACE_BYTES, INDEX_BYTES = 4, 9  # at most, of a number in sevens of bits


@dataclass(frozen=True, slots=True)
class Source:
    """Where one source of each tensor is found: in a snapshot, at a place that the tensor's payload tells; or one tensor for all."""

    kind: str  # snapshot | tensor
    digest: Digest


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the derived tensors that share it have in common."""

    function: str
    numbers: tuple[float, ...]
    sources: tuple[Source, ...]

    @property
    def snapshots(self) -> tuple[Digest, ...]:
        """Those of the sources that are snapshots, in order: each takes a place from the payload."""
        return tuple(source.digest for source in self.sources if source.kind == "snapshot")

    @property
    def summed(self) -> int:
        """How many of the sources are summed: all of `linear`, all but the base of `task` and `elect`, none of `rank1`."""
        return 0 if self.function == RANK1 else len(self.sources) - (self.function in BASED)

    def ordered(self, order: Sequence[int] | None) -> Recipe:
        """The same function with what is summed in another order: the k-th is the one that was number `order[k]`."""
        if order is None:
            return self
        first, last = len(self.sources) - self.summed, self.summed
        sources = (*self.sources[:first], *(self.sources[first + index] for index in order))
        return Recipe(self.function, (*(self.numbers[index] for index in order), *self.numbers[last:]), sources)

    def sorting(self) -> tuple[int, ...]:
        """What is summed by source, then by weight: the same for all orders of the same."""
        told = self.sources[len(self.sources) - self.summed :]
        return tuple(sorted(range(self.summed), key=lambda i: (told[i].kind, told[i].digest, self.numbers[i])))

    def encode(self) -> bytes:
        """The bytes of the object."""
        sources = [{source.kind: source.digest} for source in self.sources]
        return DOMAIN + canonical({"function": self.function, "numbers": list(self.numbers), "sources": sources})


def parse_recipe(data: bytes) -> Recipe:
    """The inverse of `encode`. Raises CorruptRecord for whatever cannot be evaluated."""
    try:
        if not data.startswith(DOMAIN):
            raise ValueError
        told = json.loads(data[len(DOMAIN) :])
        sources = tuple(_source(entry) for entry in told["sources"])
        function, numbers = told["function"], tuple(told["numbers"])
    except (ValueError, KeyError, TypeError, RecursionError) as fault:
        raise CorruptRecord("a recipe cannot be parsed") from fault
    if not isinstance(function, str) or any(type(number) not in (int, float) for number in numbers):
        raise CorruptRecord("a recipe is not of functions and numbers")
    try:
        numbers = tuple(map(float, numbers))
    except OverflowError as reason:
        raise CorruptRecord("a recipe has numbers beyond all bounds") from reason
    if (fault := misfit(function, len(sources), numbers)) is not None:
        raise CorruptRecord(f"a recipe makes no sense: {fault}")
    return Recipe(function, numbers, sources)


def _source(entry: Any) -> Source:
    ((kind, digest),) = dict(entry).items()
    if kind not in ("snapshot", "tensor") or not isinstance(digest, str) or not is_digest(digest):
        raise ValueError
    return Source(kind, Digest(digest))


# --- the head of a payload -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before the factors.

    The codec of the residual (None when there is none), a place per snapshot of the recipe, and the order in which its sources are summed
    (None: as they stand there).
    """

    residual: int | None
    places: tuple[int, ...]
    order: tuple[int, ...] | None = None


def write_head(head: Head) -> bytes:
    """The head's bytes."""
    alike = len(head.places) > 1 and len(set(head.places)) == 1
    form = (RESIDUAL if head.residual is not None else 0) | (ALIKE if alike else 0) | (ORDERED if head.order is not None else 0)
    coded = [bytes([form]) if head.residual is None else bytes([form, head.residual])]
    coded += map(_varint, (head.order or ())[:-1])  # the last is the one that is left
    return b"".join([*coded, *map(_varint, head.places[:1] if alike else head.places)])


def read_head(payload: memoryview, snapshots: int, summed: int) -> tuple[Head, memoryview]:
    """The head of a payload whose recipe has so many snapshots and sums so many sources, and what follows it. Raises CorruptRecord."""
    form, rest = (payload[0], payload[1:]) if len(payload) else (~0, payload)
    impossible = form & ~(RESIDUAL | ALIKE | ORDERED) or (form & RESIDUAL and not len(rest))
    if impossible or (form & ALIKE and snapshots < 2) or (form & ORDERED and summed < 2):
        raise CorruptRecord("a derived tensor has a head that cannot be")
    residual = None
    if form & RESIDUAL:
        residual, rest = rest[0], rest[1:]
    order = None
    if form & ORDERED:
        order, rest = _read_order(rest, summed)
    places, rest = _read_varints(rest, 1 if form & ALIKE else snapshots)
    return Head(residual, tuple(places * snapshots if form & ALIKE else places), order), rest


def _read_order(data: memoryview, summed: int) -> tuple[tuple[int, ...], memoryview]:
    order, data = _read_varints(data, summed - 1)
    left = set(range(summed)) - set(order)
    if len(left) != 1 or max(order) >= summed:
        raise CorruptRecord("a derived tensor sums its sources in an order that cannot be")
    return (*order, left.pop()), data


def _read_varints(data: memoryview, count: int) -> tuple[list[int], memoryview]:
    numbers = []
    for _ in range(count):
        number, data = _read_varint(data, PLACE_BYTES)
        numbers.append(number)
    return numbers, data


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the last byte is below 128."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _read_varint(data: memoryview, most: int) -> tuple[int, memoryview]:
    number = 0
    for index, byte in enumerate(data[:most]):
        number |= (byte & 127) << (7 * index)
        if byte < 128:
            return number, data[index + 1 :]
    raise CorruptRecord("a derived tensor names a place that cannot be")


def read_cuts(data: memoryview, count: int) -> tuple[tuple[Cut, ...], memoryview]:
    """`count` cuts (four bytes and a number each), and what follows. Raises CorruptRecord."""
    cuts: list[Cut] = []
    for _ in range(count):
        if len(data) < LOW.size:
            raise CorruptRecord("a derived tensor's cuts are cut short")
        (low,) = LOW.unpack(data[: LOW.size])
        after, data = _read_varint(data[LOW.size :], INDEX_BYTES)
        if miscut(low, after - 1):
            raise CorruptRecord("a derived tensor is cut where nothing can be")
        cuts.append((low, after - 1))
    return tuple(cuts), data


def write_cuts(cuts: Sequence[Cut]) -> bytes:
    """The inverse of `read_cuts`, for numbers of float32."""
    return b"".join(LOW.pack(low) + _varint(last + 1) for low, last in cuts)


def read_parts(data: memoryview, count: int) -> tuple[list[tuple[int, memoryview]], memoryview]:
    """`count` coded pieces (codec, bytes) behind their lengths, and what follows. Raises CorruptRecord."""
    parts = []
    for _ in range(count):
        codec, length = FACTOR.unpack(data[: FACTOR.size]) if len(data) >= FACTOR.size else (0, 1 << 63)
        data = data[FACTOR.size :]
        if length > len(data):
            raise CorruptRecord("a derived tensor's factors are cut short")
        parts.append((codec, data[:length]))
        data = data[length:]
    return parts, data


def write_parts(parts: Sequence[tuple[int, bytes]]) -> bytes:
    """The inverse of `read_parts`."""
    return b"".join(FACTOR.pack(codec, len(data)) + data for codec, data in parts)
