"""A signature as one self-contained stream of bytes: what it changes, in how many bits, and for which architecture.

Layout: a mark, the sizes of the header, the header (canonical JSON, zstd), numbers (float32: one per ternary tensor, else two), statistics
(bfloat16 in ternary signatures, else float32), then the codes in frames. A frame holds the codes of neighbouring tensors, a few million at
a time: together they share one code table, and one tensor can be read without the rest. The digest of the stream is the signature's name
in every commit.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...registry.delta.frames import compress, decompress
from ...registry.errors import CorruptRecord
from ...registry.ids import Digest, blob_digest, record_digest
from ...registry.records import canonical
from .quantise import BITS, TERNARY, Coded, pack, packed_size, restore, unpack

MARK = b"mlc.signature.v1"
SIZES = struct.Struct("<II")  # bytes of the header, and of its frame
LEVEL = 19  # signatures are small and kept for long
FRAME = 1 << 22  # elements of one frame
LONGEST_HEADER = 1 << 26
REPAIR = "mlc fsck --level 2"
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """How a signature was made: bits ("ternary", "8", "4"), share kept, layers, and the strength it is meant for."""

    bits: str
    density: float
    layers: str
    strength: float


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor on its way into a signature."""

    name: str
    shape: Shape
    coded: Coded


@dataclass(frozen=True, slots=True)
class _Frame:
    """The codes of tensors `first` to `last` (not included) in `data`; `kept` marks the elements that have codes."""

    first: int
    last: int
    counts: tuple[int, ...]  # codes per tensor
    data: memoryview
    kept: memoryview


@dataclass(frozen=True, slots=True, eq=False)
class Signature:
    """A decoded header and the frames behind it. `tensors` name -> shape; `statistics` name -> how far running statistics move, float32."""

    digest: Digest
    size: int
    kind: Kind
    architecture: str
    total: int  # tensors of the architecture
    tensors: dict[str, Shape]
    statistics: dict[str, Tensor]
    _numbers: tuple[tuple[float, float], ...]
    _frames: tuple[_Frame, ...]
    _cache: dict[int, dict[str, Coded]] = field(default_factory=dict)

    @property
    def full_bytes(self) -> int:
        """What the same tensors take in float32."""
        return 4 * sum(math.prod(shape) for shape in (*self.tensors.values(), *(tuple(v.shape) for v in self.statistics.values())))

    def names(self) -> tuple[str, ...]:
        """Every tensor that the signature changes."""
        return (*self.tensors, *self.statistics)

    def tensor(self, name: str) -> Tensor:
        """What the signature adds to a tensor at strength 1: float32. Raises KeyError, CorruptRecord."""
        shape, place = self.tensors[name], list(self.tensors).index(name)
        number = next(i for i, frame in enumerate(self._frames) if frame.first <= place < frame.last)
        if number not in self._cache:
            self._cache.clear()  # one frame in memory
            self._cache[number] = self._codes(self._frames[number])
        return restore(self._cache[number][name], self.kind.bits, math.prod(shape)).reshape(shape)

    def _codes(self, frame: _Frame) -> dict[str, Coded]:
        names = list(self.tensors)[frame.first : frame.last]
        sizes = [math.prod(self.tensors[name]) for name in names]
        total = sum(frame.counts)
        try:
            codes = unpack(decompress(frame.data, packed_size(total, self.kind.bits)), total, self.kind.bits)
        except ValueError as fault:
            raise CorruptRecord(f"signature {self.digest[:12]} is damaged: {fault}", hint=REPAIR) from fault
        kept = None
        if len(frame.kept):
            bits = np.frombuffer(decompress(frame.kept, -(-sum(sizes) // 8)), dtype=np.uint8)
            kept = np.unpackbits(bits, count=sum(sizes), bitorder="little").astype(bool)
        found, at, element = {}, 0, 0
        for place, (name, size, count) in enumerate(zip(names, sizes, frame.counts, strict=True), frame.first):
            mask = None if kept is None else kept[element : element + size]
            if count != (size if mask is None else int(mask.sum())):
                raise CorruptRecord(f"signature {self.digest[:12]} is damaged: tensor {name} has {count} codes", hint=REPAIR)
            found[name] = Coded(codes[at : at + count], self._numbers[place], mask)
            at, element = at + count, element + size
        return found


def architecture_of(shapes: Iterable[tuple[str, Iterable[int]]]) -> str:
    """The fingerprint of an architecture: a digest of all names and shapes, whatever the types."""
    return record_digest("mlc.architecture.v1", canonical(sorted([name, list(shape)] for name, shape in shapes)))


def encode(kind: Kind, architecture: str, total: int, parts: Iterable[Part], statistics: dict[str, Tensor]) -> bytes:
    """The bytes of a signature; parts in the order of their names."""
    names, shapes, numbers, frames, streams = [], [], [], [], []
    for group in _groups(parts):
        codes = [part.coded.codes for part in group]
        masks = [part.coded.kept for part in group if part.coded.kept is not None]
        data = compress(pack(np.concatenate(codes), kind.bits), LEVEL)
        kept = compress(np.packbits(np.concatenate(masks), bitorder="little").tobytes(), LEVEL) if masks else b""
        frames.append([len(data), len(kept), [len(c) for c in codes] if masks else len(codes)])
        streams += [data, kept]
        names += [part.name for part in group]
        shapes += [list(part.shape) for part in group]
        numbers += [number for part in group for number in part.coded.numbers]
    header = canonical(
        {
            "kind": [kind.bits, kind.density, kind.layers, kind.strength],
            "architecture": [architecture, total],
            "names": "\n".join(names),
            "shapes": shapes,
            "frames": frames,
            "statistics": [[name, list(values.shape)] for name, values in statistics.items()],
        }
    )
    if kind.bits == TERNARY:
        numbers = numbers[::2]
    plain = [
        np.asarray(numbers, dtype="<f4").tobytes(),
        *(_statistic_bytes(values, kind.bits) for values in statistics.values()),
    ]
    squeezed = compress(header, LEVEL)
    return b"".join([MARK, SIZES.pack(len(header), len(squeezed)), squeezed, *plain, *streams])


def _groups(parts: Iterable[Part]) -> Iterator[list[Part]]:
    group: list[Part] = []
    count = 0
    for part in parts:
        group.append(part)
        count += math.prod(part.shape)
        if count >= FRAME:
            yield group
            group, count = [], 0
    if group:
        yield group


def decode(data: bytes) -> Signature:
    """Read a signature; codes are read when a tensor is asked for. Raises CorruptRecord for anything that is none."""
    digest = blob_digest(data)
    try:
        return _decoded(memoryview(data), digest)
    except (ValueError, KeyError, TypeError, struct.error) as fault:
        raise CorruptRecord(f"object {digest[:12]} is not a signature: {fault}", hint=REPAIR) from fault


def _decoded(data: memoryview, digest: Digest) -> Signature:
    if bytes(data[: len(MARK)]) != MARK:
        raise ValueError("its mark is missing")
    length, squeezed = SIZES.unpack_from(data, len(MARK))
    if length > LONGEST_HEADER:
        raise ValueError("its header is too long")
    at = len(MARK) + SIZES.size
    header: dict[str, Any] = json.loads(decompress(data[at : at + squeezed], length))
    kind = _kind(*header["kind"])
    names = str.split(header["names"], "\n") if header["names"] else []  # str.split: TypeError for what is no text
    tensors = dict(zip(names, (_counts(shape) for shape in header["shapes"]), strict=True))
    plain = memoryview(data)[at + squeezed :]
    numbers, plain = _floats(plain, len(names) * (1 if kind.bits == TERNARY else 2))
    pairs = zip(numbers, [0.0] * len(numbers), strict=True) if kind.bits == TERNARY else zip(numbers[::2], numbers[1::2], strict=True)
    statistics = {}
    for name, shape in ((name, _counts(shape)) for name, shape in header["statistics"]):
        size = math.prod(shape) * (2 if kind.bits == TERNARY else 4)
        if len(plain) < size:
            raise ValueError("it ends too early")
        statistics[name] = _statistic(bytes(plain[:size]), kind.bits).reshape(shape)
        plain = plain[size:]
    frames, first = [], 0
    for size, masked, told in header["frames"]:
        _counts([size, masked, *(told if isinstance(told, list) else [told])])
        if len(plain) < size + masked:
            raise ValueError("it ends too early")
        last = first + (len(told) if isinstance(told, list) else told)
        counts = told if isinstance(told, list) else [math.prod(shape) for shape in list(tensors.values())[first:last]]
        frames.append(_Frame(first, last, tuple(counts), plain[:size], plain[size : size + masked]))
        plain, first = plain[size + masked :], last
    if len(plain) or first != len(tensors):
        raise ValueError("it does not end where its header says")
    found = tuple((float(a), float(b)) for a, b in pairs)
    architecture, total = header["architecture"]
    return Signature(digest, len(data), kind, architecture, total, tensors, statistics, found, tuple(frames))


def _kind(bits: str, density: float, layers: str, strength: float) -> Kind:
    if bits not in (TERNARY, *BITS):
        raise ValueError(f"{bits!r:.20} bits are unknown")
    return Kind(bits, float(density), str(layers), float(strength))


def _counts(told: Iterable[Any]) -> tuple[int, ...]:
    """Numbers of a header that must be counts: whole, not negative. Raises ValueError, TypeError."""
    found = tuple(told)
    if not all(type(count) is int and count >= 0 for count in found):
        raise ValueError(f"{found!r:.40} are no counts")
    return found


def _floats(data: memoryview, count: int) -> tuple[np.ndarray[Any, Any], memoryview]:
    return np.frombuffer(data[: 4 * count], dtype="<f4", count=count).astype(np.float32), data[4 * count :]


def _statistic_bytes(values: Tensor, bits: str) -> bytes:
    """Running statistics as stored: the upper half of a float32 will do where weights have but a sign."""
    kept = values.to(torch.bfloat16).view(torch.int16) if bits == TERNARY else values.to(torch.float32)
    return np.asarray(kept.contiguous().reshape(-1).numpy(), dtype="<i2" if bits == TERNARY else "<f4").tobytes()


def _statistic(data: bytes, bits: str) -> Tensor:
    if bits == TERNARY:
        return torch.from_numpy(np.frombuffer(data, dtype="<i2").astype(np.int16)).view(torch.bfloat16).to(torch.float32)
    return torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32))
