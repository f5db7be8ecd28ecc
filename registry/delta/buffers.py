"""Bytes seen as numpy and torch vectors without a copy and without a warning; the only place that looks behind a buffer."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dtypes import torch_name

Buffer = bytes | bytearray | memoryview | np.ndarray
STEADY = (32 << 20) - (64 << 10)  # bytes: just below the largest block for which glibc learns
KEPT = 256 << 20  # bytes of larger blocks that are kept
ROOMY = 1.25  # times what was asked for
UNUSED = 2  # references to a block that only the list holds: the list's, and that of the question
SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}  # item size -> integers of the same bits


_LOCK = threading.Lock()
_spare: list[np.ndarray] | None = None  # views of a block count as references to it: numpy lets every view hold the owner


class _Alias:
    """Presents a read-only array to numpy as writable: torch warns about read-only memory, and we never write to it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array  # keeps the memory alive
        self.__array_interface__: dict[str, Any] = {**array.__array_interface__, "data": (array.ctypes.data, False)}


@contextmanager
def recycling() -> Iterator[None]:
    """Inside, this process keeps what it frees: for work that takes and frees tensor after tensor.

    The system clears every page that it gives, which was up to a third of the time of a merge. glibc returns blocks of some megabytes at
    once, until a larger one was freed (other allocators take no notice of that); what is larger still is kept here, up to a bound.
    """
    global _spare
    np.empty(STEADY, np.uint8)
    with _LOCK:
        before, _spare = _spare, _spare if _spare is not None else []
    try:
        yield
    finally:
        with _LOCK:
            _spare = before


def memory(size: int) -> np.ndarray:
    """uint8 `[size]`: empty memory; inside `recycling` that of a large block that nobody holds any more."""
    if _spare is None:
        return np.empty(size, np.uint8)
    if not STEADY < size <= KEPT:
        return _small_pages(size)
    with _LOCK:
        kept = [] if _spare is None else _spare
        for number in range(len(kept)):
            if size <= len(kept[number]) <= ROOMY * size and sys.getrefcount(kept[number]) == UNUSED:
                return kept[number][:size]
        fresh = _small_pages(size)
        kept.append(fresh)
        while sum(map(len, kept)) > KEPT:
            del kept[0]
        return fresh[:size]


def _small_pages(size: int) -> np.ndarray:
    """numpy asks for large pages, which the system may have to clear a place for: dear for memory that is used again and again."""
    return torch.empty(size, dtype=torch.uint8).numpy()


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
    return borrow(memory(count * dtype.itemsize), dtype)


def lend(tensor: Tensor) -> np.ndarray:
    """uint8 [bytes] over a contiguous tensor's memory."""
    return tensor.view(-1).view(torch.uint8).numpy()


def bits(x: Tensor) -> np.ndarray:
    """Signed integers [n] over the same memory: numpy has no names for most float types, and needs none to move them."""
    return lend(x).view(SIGNED[x.element_size()])


def differ(a: Tensor, b: Tensor) -> np.ndarray:
    """bool [n]: where two vectors of one type differ in a bit."""
    return bits(a) != bits(b)
