"""Tensors by name in a folder of the run, one file each: what was computed before a run died need not be computed again.

A file is one line of JSON (name, type, shape, digest) and the raw bytes. It is written beside its place and renamed, and its digest is
compared when it was not written by this process, so that what a power cut left behind is no tensor. No torch at the top.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ...registry.fs import faults_in_words
from ...registry.ids import blob_digest, tensor_digest

if TYPE_CHECKING:
    from torch import Tensor


class Kept:
    """A folder of tensors. The folder is made with the first of them; several threads may write different names."""

    def __init__(self, place: Path) -> None:
        self.place, self._own = place, set[str]()

    def has(self, name: str) -> bool:
        """Whether there is a file for this name; only `read` says whether it is whole."""
        return self._path(name).is_file()

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor away. Raises DiskFull and the like in words."""
        path, (header, data) = self._path(name), _packed(name, tensor)
        with faults_in_words(self.place):
            self.place.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".tmp")
            with fresh.open("wb") as file:
                file.write(json.dumps(header).encode() + b"\n")
                file.write(data)
            fresh.replace(path)
        self._own.add(name)

    def read(self, name: str) -> Tensor | None:
        """The tensor as it was written; None when there is none, or none that is whole."""
        import torch

        try:
            with self._path(name).open("rb") as file:
                header, body = json.loads(file.readline()), torch.empty(_left(file), dtype=torch.uint8)
                data = body.numpy().data if body.numel() else memoryview(b"")
                whole = not body.numel() or file.readinto(data) == body.numel()
            if not whole or header["name"] != name or (name not in self._own and _digest(header, data) != header["digest"]):
                return None
            return body.view(getattr(torch, header["dtype"])).reshape(header["shape"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
            return None

    def clear(self) -> None:
        """Remove all of it."""
        self._own.clear()
        shutil.rmtree(self.place, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.place / blob_digest(name.encode("utf-8"))[:32]


def _left(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size - file.tell()


def _packed(name: str, tensor: Tensor) -> tuple[dict[str, Any], memoryview]:
    import torch

    plain = tensor.detach().cpu().contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else memoryview(b"")
    header: dict[str, Any] = {"name": name, "dtype": str(plain.dtype).removeprefix("torch."), "shape": list(plain.shape)}
    return header | {"digest": _digest(header, data)}, data


def _digest(header: dict[str, Any], data: memoryview) -> str:
    return tensor_digest(header["dtype"], header["shape"], [data])
