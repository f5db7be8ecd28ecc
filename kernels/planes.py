"""Byte planes of tensors and of the integer distance between two tensors: what an entropy coder can shorten.

All four functions are exact for every bit pattern (payloads of NaN, -0.0, infinities): they move bits and add integers
modulo 2^k, no float is ever computed. A float's bits are mapped to integers in the order of the numbers they stand for
(`-0.0` to -1, `+0.0` to 0), so that a small change of a weight is a small integer even across zero. Integers, booleans
and 8-bit floats are subtracted as they are. Planes are little-endian: plane 0 holds the low bytes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .dispatch import accelerated

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # item size -> the view all arithmetic happens in
ORDERED = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


@accelerated("planes")
def delta_planes(target: Tensor, base: Tensor) -> Tensor:
    """Byte planes of zigzag(order(target) - order(base)).

    Args: two tensors `[n]` of one dtype with items of 1, 2, 4 or 8 bytes. Returns uint8 `[itemsize, n]`; bit-exact on every road.
    """
    check_pair(target, base)
    bits = 8 * target.element_size()
    step = _order(target) - _order(base)  # wraps modulo 2^bits, and so does its inverse
    return _to_planes((step << 1) ^ (step >> (bits - 1)))


@accelerated("planes")
def undelta_planes(planes: Tensor, base: Tensor) -> Tensor:
    """The inverse of `delta_planes`: target `[n]` in base's dtype from uint8 planes `[itemsize, n]` and base `[n]`."""
    zigzag = _from_planes(planes, base.dtype)
    step = _shift_right(zigzag, 1) ^ -(zigzag & 1)
    return _unorder(_order(base) + step, base.dtype)


@accelerated("planes")
def split_planes(x: Tensor) -> Tensor:
    """Byte planes of `x` alone, uint8 `[itemsize, n]`. A float's sign is rotated down, so that the top plane is pure exponent."""
    raw = _bits(x)
    if x.dtype in ORDERED:
        raw = (raw << 1) | _shift_right(raw, 8 * x.element_size() - 1)
    return _to_planes(raw)


@accelerated("planes")
def join_planes(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `split_planes`: a tensor `[n]` of `dtype` from uint8 planes `[itemsize, n]`."""
    raw = _from_planes(planes, dtype)
    if dtype in ORDERED:
        raw = _shift_right(raw, 1) | (raw << (8 * dtype.itemsize - 1))
    return raw.view(dtype)


def join_pair(low: Tensor, high: Tensor, out: Tensor, room: Tensor | None = None) -> None:
    """`join_planes` for 16-bit floats, into memory that is there: uint8 `[n]` planes, out `[n]`. The way of a tensor's first reading.

    `room`: int16 `[n]` or longer to work in, for many calls the same.
    """
    if out.dtype not in ORDERED or out.element_size() != 2 or out.shape != low.shape or out.shape != high.shape:
        raise ValueError(f"two planes {list(low.shape)} and {list(high.shape)} are no {out.dtype} {list(out.shape)}")
    raw, rest = out.view(torch.int16), torch.empty(len(low), dtype=torch.int16) if room is None else room[: len(low)]
    rest.copy_(low)  # seven bits, and the sign below them
    np.right_shift(rest.numpy(), 1, out=raw.numpy())  # torch's shift takes twice as long
    torch.add(raw, rest, alpha=-0x8000, out=raw)  # modulo 2^16 the sign, in its place
    torch.add(raw, rest.copy_(high), alpha=0x80, out=raw)


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(BITS[x.element_size()])


def _shift_right(x: Tensor, count: int) -> Tensor:
    """Logical shift: torch shifts signed integers arithmetically, and has no unsigned ones wide enough on every device."""
    width = 8 * x.element_size()
    return (x >> count) & ((1 << (width - count)) - 1)


def _order(x: Tensor) -> Tensor:
    """Bits as integers that rise with the number; for ordered floats the magnitude of negatives is inverted."""
    raw = _bits(x)
    if x.dtype not in ORDERED:
        return raw
    width = 8 * x.element_size()
    return raw ^ ((raw >> (width - 1)) & ((1 << (width - 1)) - 1))


def _unorder(value: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype in ORDERED:  # the map keeps the sign bit, hence is its own inverse
        width = 8 * dtype.itemsize
        value = value ^ ((value >> (width - 1)) & ((1 << (width - 1)) - 1))
    return value.view(dtype)


def _to_planes(value: Tensor) -> Tensor:
    planes = torch.empty(value.element_size(), value.numel(), dtype=torch.uint8, device=value.device)
    for index, plane in enumerate(planes):  # shifts: a transposing copy of bytes is twenty times slower
        plane.copy_(value >> 8 * index)  # keeps the low eight bits
    return planes


def _from_planes(planes: Tensor, dtype: torch.dtype) -> Tensor:
    check_planes(planes, dtype)
    value = planes[-1].to(BITS[dtype.itemsize])
    for plane in reversed(planes[:-1].unbind()):
        value.bitwise_left_shift_(8).bitwise_or_(plane)
    return value


def check_planes(planes: Tensor, dtype: torch.dtype) -> None:
    """Raise ValueError unless these are planes of `dtype`, uint8 `[itemsize, n]`."""
    if planes.dtype != torch.uint8 or planes.dim() != 2 or planes.shape[0] != dtype.itemsize:
        raise ValueError(f"planes of {dtype} are uint8 [{dtype.itemsize}, n], not {planes.dtype} {list(planes.shape)}")


def check_pair(target: Tensor, base: Tensor) -> None:
    """Raise ValueError unless these are two vectors `[n]` of one dtype."""
    if target.dtype != base.dtype or target.shape != base.shape or target.dim() != 1:
        raise ValueError(f"two vectors of one dtype are needed: {target.dtype} {list(target.shape)}, {base.dtype} {list(base.shape)}")
