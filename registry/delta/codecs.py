"""Codecs of one block (at most 64 MiB of one tensor): constant, planes (alone), dense and sparse (against a base).

Encoders take vectors `[n]` and return chunks of bytes; decoders take the stored bytes and return a vector `[n]`, or raise CorruptRecord.
Only moves of bits and integer arithmetic happen here, so a decoded block is right to the bit or its digest says otherwise.
"""

from __future__ import annotations

import struct

import numpy as np
import torch
from torch import Tensor

from ...kernels.planes import BITS, ORDERED, delta_planes, join_planes, split_planes, undelta_planes
from ..errors import CorruptRecord
from .buffers import borrow, lend
from .entropy import decode_section, encode_section

EXPONENT = {torch.float64: 11, torch.float32: 8, torch.float16: 5, torch.bfloat16: 8}  # bits
SPARSE_HEAD = struct.Struct("<I")
Chunks = list[bytes | np.ndarray]


# --- one value throughout ------------------------------------------------------------------------------------


def constant_value(target: Tensor) -> bytes | None:
    """The bytes of the only value in the vector, or None when there are several."""
    raw = lend(target).reshape(target.numel(), -1)
    if not len(raw) or (raw[0] != raw[-1]).any() or (raw[: 1 << 12] != raw[0]).any() or (raw != raw[0]).any():
        return None
    return raw[0].tobytes()


def decode_constant(data: memoryview, word: str, count: int) -> Tensor:
    """`count` times the stored value."""
    value = borrow(bytes(data), word)
    if value.numel() != 1:
        raise CorruptRecord("a constant block does not hold one value")
    return value.repeat(count)


# --- alone ---------------------------------------------------------------------------------------------------


def encode_planes(target: Tensor) -> Chunks:
    """Planes of the tensor alone: the exponent plane shortens by Huffman, the others mostly stay raw."""
    return encode_section(list(split_planes(target).numpy()))


def decode_planes(data: memoryview, word: str, count: int) -> Tensor:
    """The inverse of `encode_planes`."""
    dtype = borrow(b"", word).dtype
    return join_planes(_planes(data, dtype.itemsize, count), dtype)


def _planes(data: memoryview, items: int, count: int) -> Tensor:
    streams, rest = decode_section(data, [count] * items)
    if len(rest):
        raise CorruptRecord("a coded block is longer than it says")
    planes = np.empty((items, count), np.uint8)
    for plane, stream in zip(planes, streams, strict=True):
        plane[:] = stream
    return torch.from_numpy(planes)


# --- against a base, everywhere ------------------------------------------------------------------------------


def exponent_order(base: Tensor) -> np.ndarray | None:
    """Stable order of a float vector by exponent: equal step sizes come together, so that Huffman tables fit. None for other types."""
    if base.dtype not in ORDERED:
        return None
    bits = 8 * base.element_size()
    exponent = (base.view(BITS[base.element_size()]) << 1) >> (bits - EXPONENT[base.dtype])  # signed: any order will do if it is always the same
    return np.argsort(exponent.to(torch.int16).numpy(), kind="stable")


def encode_dense(target: Tensor, base: Tensor) -> Chunks:
    """Planes of the integer distance, ordered by the base's exponent, which the reader knows too."""
    planes, order = delta_planes(target, base).numpy(), exponent_order(base)
    return encode_section([plane if order is None or not plane.any() else plane[order] for plane in planes])


def decode_dense(data: memoryview, base: Tensor) -> Tensor:
    """The inverse of `encode_dense`."""
    streams, rest = decode_section(data, [base.numel()] * base.element_size())
    if len(rest):
        raise CorruptRecord("a coded block is longer than it says")
    planes, order = np.empty((len(streams), base.numel()), np.uint8), exponent_order(base)
    for plane, stream in zip(planes, streams, strict=True):
        plane[slice(None) if order is None else order] = stream
    return undelta_planes(torch.from_numpy(planes), base)


# --- against a base, here and there --------------------------------------------------------------------------


def changed(target: Tensor, base: Tensor) -> Tensor:
    """int64 [k]: where the bits differ."""
    width = BITS[target.element_size()]
    return torch.nonzero(target.view(width) != base.view(width)).view(-1)


def _pick(x: Tensor, where: Tensor) -> Tensor:
    return x.view(BITS[x.element_size()])[where].view(x.dtype)  # as integers: 8-bit floats cannot be indexed everywhere


def encode_sparse(target: Tensor, base: Tensor, where: Tensor) -> Chunks:
    """Gaps between the changed places, and the distances there."""
    gaps = torch.diff(where, prepend=where.new_full((1,), -1)).sub_(1).to(torch.int32)
    streams = [*split_planes(gaps).numpy(), *delta_planes(_pick(target, where), _pick(base, where)).numpy()]
    return [SPARSE_HEAD.pack(len(where)), *encode_section(streams)]


def decode_sparse(data: memoryview, base: Tensor) -> Tensor:
    """The inverse of `encode_sparse`."""
    if len(data) < SPARSE_HEAD.size:
        raise CorruptRecord("a sparse block is cut short")
    (count,) = SPARSE_HEAD.unpack(data[: SPARSE_HEAD.size])
    if count > base.numel():
        raise CorruptRecord("a sparse block changes more elements than there are")
    streams, rest = decode_section(data[SPARSE_HEAD.size :], [count] * (4 + base.element_size()))
    if len(rest):
        raise CorruptRecord("a coded block is longer than it says")
    planes = torch.from_numpy(np.stack(streams))
    where = torch.cumsum(join_planes(planes[:4], torch.int32).to(torch.int64) + 1, 0) - 1
    if count and not 0 <= int(where.min()) <= int(where.max()) < base.numel():
        raise CorruptRecord("a sparse block changes elements that do not exist")
    target = base.clone()
    width = BITS[base.element_size()]
    target.view(width)[where] = undelta_planes(planes[4:], _pick(base, where)).view(width)
    return target

