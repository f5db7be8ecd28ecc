"""Names and digests: distinct types for distinct things, and the one hash function.

Everything content-addressed is BLAKE3-256, written as 64 lowercase hex digits. A domain word is mixed into
every digest that covers a structure, so that a tensor can never be mistaken for a blob with the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NewType

from blake3 import blake3

Digest = NewType("Digest", str)  # any object
CommitId = NewType("CommitId", str)
SnapshotId = NewType("SnapshotId", str)
RefName = NewType("RefName", str)  # full: heads/main, tags/v1, aliases/champion

SHORT = 12  # digits shown to people
MIN_PREFIX = 4  # digits a person must type

_HEX64 = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """True for 64 lowercase hex digits."""
    return _HEX64.fullmatch(text) is not None


def short(digest: str) -> str:
    """The first digits of an id, as shown in tables."""
    return digest[:SHORT]


def blob_digest(data: bytes | memoryview) -> Digest:
    """BLAKE3-256 of plain bytes: the name of every opaque file, record and columnar object."""
    return Digest(blake3(data).hexdigest())


def record_digest(domain: str, data: bytes) -> str:
    """BLAKE3-256 over `domain`, a newline and the canonical bytes of a record."""
    return blake3(domain.encode() + b"\n" + data).hexdigest()


def tensor_hasher(dtype: str, shape: Iterable[int]) -> blake3:
    """A hasher that has seen the preamble of a tensor: what `tensor_digest` starts from."""
    return blake3(f"mlc.tensor.v1\n{dtype}\n{','.join(map(str, shape))}\n".encode())


def tensor_digest(dtype: str, shape: Iterable[int], chunks: Iterable[bytes | memoryview]) -> Digest:
    """BLAKE3-256 over dtype, shape and little-endian row-major bytes (STORAGE: the unit of storage).

    `dtype` is the safetensors word (`F32`, `BF16`, ...). The preamble is `mlc.tensor.v1\\n<dtype>\\n<d0,d1,...>\\n`.
    `chunks` lets a caller stream a tensor that is larger than memory.
    """
    hasher = tensor_hasher(dtype, shape)
    for chunk in chunks:
        hasher.update(chunk)
    return Digest(hasher.hexdigest())
