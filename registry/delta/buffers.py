"""Bytes seen as numpy and torch vectors without a copy and without a warning; the only place that looks behind a buffer."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dtypes import torch_name

Buffer = bytes | bytearray | memoryview | np.ndarray
STEADY = (32 << 20) - (64 << 10)  # bytes: just below the largest block for which glibc learns
SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}  # item size -> integers of the same bits


class _Alias:
    """Presents a read-only array to numpy as writable: torch warns about read-only memory, and we never write to it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array  # keeps the memory alive
        self.__array_interface__: dict[str, Any] = {**array.__array_interface__, "data": (array.ctypes.data, False)}


@cache
def keep_freed_memory() -> None:
    """Let this process keep what it frees, for work that takes and frees tensor after tensor.

    glibc returns blocks of some megabytes to the system at once, which then has to clear every page of the next one: a third of the time
    of a merge. It stops doing so after a larger block was freed, and keeps up to twice that size. Other allocators take no notice.
    """
    np.empty(STEADY, np.uint8)


def as_bytes(data: Buffer) -> np.ndarray:
    """uint8 [bytes]: the same memory, flat."""
    return data if isinstance(data, np.ndarray) else np.frombuffer(data, dtype=np.uint8)


def dtype_of(word: str) -> torch.dtype:
    """The torch type of a safetensors word."""
    return getattr(torch, torch_name(word))


def borrow(data: Buffer, dtype: torch.dtype) -> Tensor:
    """`[n]` of `dtype` over the same memory. Callers must not write into it unless it is theirs; misaligned memory is copied."""
    array = as_bytes(data)
    if not array.size:
        return torch.empty(0, dtype=dtype)  # numpy gives empty arrays strides that torch cannot view
    if array.ctypes.data % dtype.itemsize:
        array = array.copy()
    if not array.flags.writeable:
        array = np.asarray(_Alias(array))
    return torch.from_numpy(array).view(dtype)


def fresh(count: int, dtype: torch.dtype) -> Tensor:
    """Empty memory for `[count]`. numpy asks the system for large pages: with small ones, taking memory costs more than a sum."""
    return borrow(np.empty(count * dtype.itemsize, np.uint8), dtype)


def lend(tensor: Tensor) -> np.ndarray:
    """uint8 [bytes] over a contiguous tensor's memory."""
    return tensor.view(-1).view(torch.uint8).numpy()


def bits(x: Tensor) -> np.ndarray:
    """Signed integers [n] over the same memory: numpy has no names for most float types, and needs none to move them."""
    return lend(x).view(SIGNED[x.element_size()])


def differ(a: Tensor, b: Tensor) -> np.ndarray:
    """bool [n]: where two vectors of one type differ in a bit."""
    return bits(a) != bits(b)
