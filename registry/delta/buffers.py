"""Bytes seen as torch vectors without a copy and without a warning; the only place that looks behind a buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .dtypes import torch_name

Buffer = bytes | bytearray | memoryview | np.ndarray


class _Alias:
    """Presents a read-only array to numpy as writable: torch warns about read-only memory, and we never write to it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array  # keeps the memory alive
        self.__array_interface__: dict[str, Any] = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def as_bytes(data: Buffer) -> np.ndarray:
    """uint8 [bytes]: the same memory, flat."""
    return data if isinstance(data, np.ndarray) else np.frombuffer(data, dtype=np.uint8)


def dtype_of(word: str) -> torch.dtype:
    """The torch type of a safetensors word."""
    return getattr(torch, torch_name(word))


def borrow(data: Buffer, dtype: torch.dtype) -> torch.Tensor:
    """`[n]` of `dtype` over the same memory. Callers must not write into it unless it is theirs; misaligned memory is copied."""
    array = as_bytes(data)
    if not array.size:
        return torch.empty(0, dtype=dtype)  # numpy gives empty arrays strides that torch cannot view
    if array.ctypes.data % dtype.itemsize:
        array = array.copy()
    if not array.flags.writeable:
        array = np.asarray(_Alias(array))
    return torch.from_numpy(array).view(dtype)


def lend(tensor: torch.Tensor) -> np.ndarray:
    """uint8 [bytes] over a contiguous tensor's memory."""
    return tensor.view(-1).view(torch.uint8).numpy()
