"""A derived tensor computed on its way into a pack: sources are read, verified, combined, hashed and measured in one pass.

A piece is a segment, so that every step finds it in the processor's cache, and a tensor is never in memory as a whole. What a source's
bytes are is known at its end: until then nothing of the result is believed, and nothing but hashes and sums of it is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..delta.dtypes import item_size
from ..errors import HashMismatch
from ..ids import Digest, tensor_hasher
from . import chain
from .layout import ObjectInfo

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..delta.derived import Derived
    from ..delta.distance import Moved, Stats

Sink = Callable[[memoryview], object]  # is given the bytes of the result, piece by piece


@dataclass(frozen=True, slots=True)
class Passed:
    """What is known of a tensor that went by. `moved`: from the reference. `infinite`: somewhere, though its sources are finite there."""

    digest: Digest
    moved: Stats | None
    infinite: bool
    constant: bool  # one value throughout


@dataclass(frozen=True, slots=True)
class _Piece:
    out: memoryview  # bytes
    read: tuple[memoryview, ...]
    moved: Moved | None
    infinite: bool
    value: bytes | None  # the only one in it


def passed(
    reader: chain.Reader,
    derived: Derived,
    dtype: str,
    shape: tuple[int, ...],
    reference: ObjectInfo | None = None,
    sink: Sink | None = None,
) -> Passed:
    """Compute a tensor of sums or of an election, whose sources fit, and tell what became of it. `reference` is of its type and shape.

    Raises HashMismatch for a source (or reference) whose bytes are not those of its name, and as `chain.tensor_range`.
    """
    from ..delta.crew import in_order, one_thread
    from ..delta.derivation import cut

    infos = {digest: reader.info(Digest(digest)) for digest in derived.sources}
    if reference is not None:
        infos.setdefault(reference.digest, reference)
    step = _Step(reader, derived, dtype, infos, reference)
    hashers = [tensor_hasher(info.dtype, info.shape) for info in infos.values()]
    mine, moved, infinite, values = tensor_hasher(dtype, shape), None, False, set()
    with one_thread():
        for piece in in_order(step, cut(dtype, shape)):
            for hasher, data in zip(hashers, piece.read, strict=True):
                hasher.update(data)
            mine.update(piece.out)
            if sink is not None:
                sink(piece.out)
            moved = piece.moved if moved is None or piece.moved is None else moved + piece.moved
            infinite |= piece.infinite
            values.add(piece.value)
    for hasher, info in zip(hashers, infos.values(), strict=True):
        if hasher.hexdigest() != info.digest:
            raise HashMismatch(
                f"object {info.digest} does not decode to the bytes of its name", hint="mlc fsck --level 3", damaged=info.digest
            )
    return Passed(Digest(mine.hexdigest()), moved.report() if moved else None, infinite, len(values) == 1 and None not in values)


class _Step:
    """One piece: its sources read, combined and measured. Several may be under way side by side."""

    def __init__(
        self, reader: chain.Reader, derived: Derived, dtype: str, infos: dict[str, ObjectInfo], reference: ObjectInfo | None
    ) -> None:
        from ..delta.buffers import dtype_of

        self._reader, self._derived, self._infos, self._reference = reader, derived, infos, reference
        self._dtype, self._types = dtype_of(dtype), {digest: dtype_of(info.dtype) for digest, info in infos.items()}
        bases = [info.base for info in infos.values() if info.base is not None and info.codec != "derived"]
        self._shared = [reader.info(base) for base in dict.fromkeys(bases) if bases.count(base) > 1]

    def __call__(self, part: slice) -> _Piece:
        from ..delta.alone import encode_constant
        from ..delta.buffers import borrow, fresh, lend
        from ..delta.derivation import combine
        from ..delta.distance import moved

        near = _Near(self._reader)
        for base in self._shared:  # of siblings that are deltas of one version: it is decoded once
            near.keep(base, part)
        read = {digest: _read(near, info, part) for digest, info in self._infos.items()}
        xs = {digest: borrow(data, self._types[digest]) for digest, data in read.items()}
        out, derived = fresh(part.stop - part.start, self._dtype), self._derived
        combine(derived.function, derived.numbers, [xs[digest] for digest in derived.sources], out, derived.cuts, part.start)
        there = None if self._reference is None else moved(out, xs[self._reference.digest])
        one = encode_constant(out)
        infinite = _infinite(out, [xs[digest] for digest in derived.sources])
        return _Piece(lend(out).data, tuple(data.data for data in read.values()), there, infinite, bytes(one[0]) if one else None)


def _read(reader: chain.Reader, info: ObjectInfo, part: slice) -> np.ndarray:
    import numpy as np

    item = item_size(info.dtype)
    data = np.frombuffer(chain.tensor_range(reader, info, part.start * item, part.stop * item), np.uint8)
    if info.codec != "raw" or info.blocked:
        return data
    private = data.copy()  # what is verified is what is used
    if part.stop * item == info.raw_size:
        reader.release(info)
    return private


def _infinite(out: Tensor, xs: Sequence[Tensor]) -> bool:
    """Whether an element is infinite or no number though all are finite that it was made of."""
    import torch

    if bool(torch.isfinite(out.sum())):  # then every one of them is; the sum may overflow though none does
        return False
    made = ~torch.isfinite(out)
    for x in xs:
        made &= torch.isfinite(x)
    return bool(made.any())


class _Near:
    """A reader that has ranges of some tensors in memory."""

    def __init__(self, reader: chain.Reader) -> None:
        self._reader = reader
        self._ranges: dict[Digest, tuple[int, memoryview]] = {}
        self.shelf, self.info, self.stored, self.release = reader.shelf, reader.info, reader.stored, reader.release

    def keep(self, info: ObjectInfo, part: slice) -> None:
        """Read these elements of a tensor now, for all who ask for some of them."""
        item = item_size(info.dtype)
        self._ranges[info.digest] = part.start * item, chain.tensor_range(self, info, part.start * item, part.stop * item)

    def held(self, info: ObjectInfo, start: int, stop: int) -> memoryview | None:
        """Raw bytes [start, stop) of a tensor, where they are in memory."""
        first, data = self._ranges.get(info.digest, (0, memoryview(b"")))
        if first <= start and stop <= first + len(data) and start < stop:
            return data[start - first : stop - first]
        return self._reader.held(info, start, stop)
