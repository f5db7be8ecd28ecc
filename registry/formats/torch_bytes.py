"""Tensors of torch to stored bytes and back, without arithmetic: every bit pattern survives, NaN payloads included.

Imports torch inside its functions only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import Incompatible
from .names import shown

if TYPE_CHECKING:
    import torch

# safetensors word -> attribute of torch. F6 types have none: such tensors are stored, compared and exported, not computed with.
TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32", "I16": "int16",
    "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu", "F4": "float4_e2m1fn_x2",
}  # fmt: skip
_WORDS = {name: word for word, name in TORCH_NAMES.items()}


def to_tensor(dtype: str, shape: tuple[int, ...], data: bytes | bytearray | memoryview) -> torch.Tensor:
    """A tensor in memory of its own. `dtype` is the safetensors word; two F4 values share one torch element, so its last side is halved.

    Raises Incompatible for a type that torch does not have.
    """
    import torch

    if dtype not in TORCH_NAMES:
        raise Incompatible(f"torch has no element type for {dtype}", hint="export the model and read the file with a tool that has")
    if dtype == "F4":
        shape = (*shape[:-1], shape[-1] // 2)
    target = getattr(torch, TORCH_NAMES[dtype])
    view = memoryview(data).cast("B")
    if not len(view):
        return torch.empty(shape, dtype=target)
    private = torch.empty(len(view), dtype=torch.uint8)
    private.numpy().data.cast("B")[:] = view  # a copy, aligned by torch: the stored bytes may be a read-only mapping
    return private.view(target).reshape(shape)


def word_of(tensor: torch.Tensor) -> str:
    """The safetensors word of a tensor's type; "" for a type that safetensors does not have."""
    return _WORDS.get(str(tensor.dtype).removeprefix("torch."), "")


def from_tensor(tensor: torch.Tensor) -> tuple[str, tuple[int, ...], memoryview]:
    """(safetensors word, shape, bytes) of a tensor; the bytes are its own memory when it is contiguous on the CPU.

    Raises Incompatible for a type or layout that safetensors does not have.
    """
    import torch

    word = word_of(tensor)
    if not word or tensor.layout != torch.strided or tensor.is_meta:
        raise Incompatible(
            f"a {shown(tensor.dtype)} tensor of layout {tensor.layout} cannot be stored", hint="make it a dense tensor of a plain type"
        )
    shape = tuple(tensor.shape) if word != "F4" else (*tensor.shape[:-1], tensor.shape[-1] * 2)
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    flat = torch.view_as_real(plain).reshape(-1) if plain.is_complex() else plain
    return word, shape, flat.view(torch.uint8).numpy().data.cast("B") if flat.numel() else memoryview(b"")
