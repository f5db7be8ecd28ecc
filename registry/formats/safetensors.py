"""The safetensors header: a strict reader and a writer that gives the library's own bytes.

    file = u64 little-endian n · n bytes of JSON, first byte `{`, padded with spaces · tensor bytes, no hole, nothing behind

The reader refuses what the library lets pass (duplicate keys, unknown entry keys, unsafe names), so that a file means one
thing only. The header's bytes are kept verbatim: they, and the tensors in data order, are the file.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BadInputFile
from .limits import DEFAULT, Limits
from .names import bad_tensor_name, shown
from .strict_json import JsonRefused, unique

# Bits of one element, in the order the library lays tensors out: it sorts by type, then by name.
_ASCENDING = (
    ("BOOL", 8), ("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6), ("U8", 8), ("I8", 8), ("F8_E5M2", 8), ("F8_E4M3", 8), ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8), ("F8_E5M2FNUZ", 8), ("I16", 16), ("U16", 16), ("F16", 16), ("BF16", 16), ("I32", 32), ("U32", 32),
    ("F32", 32), ("C64", 64), ("F64", 64), ("I64", 64), ("U64", 64),
)  # fmt: skip
BITS = dict(_ASCENDING)
_RANK = {word: -place for place, (word, _) in enumerate(_ASCENDING)}
_FORMAT_MAXIMUM = 100_000_000  # the library reads no longer header
_INFO = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file. `begin` and `end` are bytes, counted from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: the tensors in data order, the metadata, and the verbatim bytes (length, JSON, padding)."""

    entries: tuple[Entry, ...]
    metadata: dict[str, str] | None
    raw: bytes

    @property
    def data_size(self) -> int:
        """Bytes of all tensors: what must follow the header."""
        return self.entries[-1].end if self.entries else 0


def byte_size(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor. Raises BadInputFile for an unknown type or a size that is no whole number of bytes."""
    if dtype not in BITS:
        raise BadInputFile(f"{shown(dtype)} is not an element type of safetensors")
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8:
        raise BadInputFile(f"a {dtype} tensor of shape {list(shape)} does not end at a byte")
    return bits // 8


def read_header(fd: int, *, path: str, limits: Limits = DEFAULT) -> Header:
    """The header of an open safetensors file of `os.fstat` size. Raises BadInputFile; reads no tensor."""
    size = os.fstat(fd).st_size
    head = os.pread(fd, 8, 0)
    length = _header_length(head, size, path, limits)
    return parse_header(head + os.pread(fd, length, 8), limits, path=path, size=size)


def parse_header(data: bytes | memoryview, limits: Limits = DEFAULT, *, path: str = "file", size: int | None = None) -> Header:
    """The header at the start of `data`; `size` is the whole file's, when `data` holds only its beginning.

    Raises BadInputFile with one sentence naming `path` and the cause.
    """
    whole = len(data) if size is None else size
    length = _header_length(bytes(data[:8]), whole, path, limits)
    raw = bytes(data[: 8 + length])
    if len(raw) != 8 + length:
        raise _bad(path, "ended while its header was read")
    entries, metadata = _interpret(_decode(raw[8:], path, limits), path, limits)
    ordered = tuple(sorted(entries, key=lambda entry: (entry.begin, entry.end)))
    _check_cover(ordered, whole - len(raw), path)
    return Header(ordered, metadata, raw)


def write_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None) -> Header:
    """The header for (name, dtype, shape) triples: the same bytes as `safetensors.torch.save_file` writes.

    The library orders tensors by type, widest first, then by name; metadata keys stand in the order given.
    """
    content: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    entries, place = [], 0
    for name, dtype, shape in sorted(tensors, key=lambda item: (_RANK[item[1]], item[0])):
        end = place + byte_size(dtype, shape)
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, end]}
        entries.append(Entry(name, dtype, tuple(shape), place, end))
        place = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return Header(tuple(entries), None if metadata is None else dict(metadata), struct.pack("<Q", len(text)) + text)


# --- one step each ---------------------------------------------------------------------------------------


def _bad(path: str, cause: str) -> BadInputFile:
    return BadInputFile(f"{path} {cause}", path=path, hint="fetch or save the file again")


def _header_length(head: bytes, size: int, path: str, limits: Limits) -> int:
    if size < 8 or len(head) < 8:
        raise _bad(path, f"is not a safetensors file: {size} bytes cannot hold the header's length")
    if head == b"version ":
        raise BadInputFile(f"{path} is a Git LFS pointer and not the weights", path=path, hint="git lfs pull")
    (length,) = struct.unpack("<Q", head)
    if length > min(limits.header_bytes, _FORMAT_MAXIMUM):
        raise _bad(path, f"declares a header of {length} bytes, more than the limit of {min(limits.header_bytes, _FORMAT_MAXIMUM)}")
    if length < 2:
        raise _bad(path, f"declares a header of {length} bytes, which cannot hold an object")
    if 8 + length > size:
        raise _bad(path, f"is truncated: its header needs {8 + length} bytes and the file has {size}")
    return length


class _Budget:
    """JSON hooks that count objects while they are made, so that a million entries never become a million dicts."""

    def __init__(self, objects: int) -> None:
        self.left = objects

    def object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self.left -= 1
        if self.left < 0:
            raise JsonRefused("too many tensors")
        return unique(pairs)


def _integer(word: str) -> int:
    # the library reads unsigned 64-bit numbers: "-0" is none, and 30 digits are an attack on the checks below
    if word.startswith("-") or len(word) > 20:
        raise JsonRefused(f"the number {word[:24]} is not an unsigned 64-bit integer")
    return int(word)


def _no_number(word: str) -> Any:
    raise JsonRefused(f"{word[:24]} is not an integer")


def _decode(text: bytes, path: str, limits: Limits) -> dict[str, Any]:
    if text[:1] != b"{":
        raise _bad(path, "has a header that does not start with '{'")
    budget = _Budget(limits.tensors_per_file + 2)
    try:
        value = json.loads(
            text.decode("utf-8"), object_pairs_hook=budget.object, parse_int=_integer, parse_float=_no_number, parse_constant=_no_number
        )
    except json.JSONDecodeError as fault:
        raise _bad(path, f"has a header that is not JSON: {fault.msg} at byte {fault.pos}") from None
    except UnicodeDecodeError:
        raise _bad(path, "has a header that is not UTF-8") from None
    except JsonRefused as fault:
        raise _bad(path, f"has a header that is refused: {fault}") from None
    except RecursionError:
        raise _bad(path, "has a header that is nested too deeply") from None
    return value


def _interpret(content: dict[str, Any], path: str, limits: Limits) -> tuple[list[Entry], dict[str, str] | None]:
    metadata = None
    if "__metadata__" in content:
        metadata = _metadata(content.pop("__metadata__"), path, limits)
    if len(content) > limits.tensors_per_file:
        raise _bad(path, f"holds {len(content)} tensors, more than the limit of {limits.tensors_per_file}")
    return [_entry(name, info, path, limits) for name, info in content.items()], metadata


def _metadata(value: Any, path: str, limits: Limits) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise _bad(path, "has metadata that is not an object of strings")
    if len(value) > limits.metadata_keys:
        raise _bad(path, f"has {len(value)} metadata keys, more than the limit of {limits.metadata_keys}")
    for key, item in value.items():
        try:
            too_long = max(len(key.encode()), len(item.encode())) > limits.metadata_value_bytes
        except UnicodeEncodeError:
            raise _bad(path, f"has metadata {shown(key)} that holds half of a surrogate pair") from None
        if too_long:
            raise _bad(path, f"has metadata {shown(key)} of more than {limits.metadata_value_bytes} bytes")
    return value


def _entry(name: str, info: Any, path: str, limits: Limits) -> Entry:
    if fault := bad_tensor_name(name, limits):
        raise _bad(path, f"has a tensor name that {fault}: {shown(name)}")
    if not isinstance(info, dict) or info.keys() != _INFO:
        keys = ", ".join(sorted(map(shown, info))) if isinstance(info, dict) else "no object"
        raise _bad(path, f"describes tensor {shown(name)} by {keys or 'nothing'} and not by dtype, shape, data_offsets")
    dtype, offsets = info["dtype"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _bad(path, f"has tensor {shown(name)} of the unknown type {shown(dtype)}")
    shape = _shape(info["shape"], name, path, limits)
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(place) is int for place in offsets)):
        raise _bad(path, f"has tensor {shown(name)} whose data_offsets are not two integers")
    bits, (begin, end) = math.prod(shape) * BITS[dtype], offsets
    if begin > end or (end - begin) * 8 != bits:
        need = f"{bits // 8} bytes" if bits % 8 == 0 else f"{bits} bits"
        raise _bad(path, f"has tensor {shown(name)} whose type and shape need {need} while its offsets give {end - begin}")
    return Entry(name, dtype, shape, begin, end)


def _shape(value: Any, name: str, path: str, limits: Limits) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(side) is int for side in value):
        raise _bad(path, f"has tensor {shown(name)} whose shape is not a list of integers")
    if len(value) > limits.dimensions:
        raise _bad(path, f"has tensor {shown(name)} of {len(value)} dimensions, more than the limit of {limits.dimensions}")
    if any(side >= limits.dimension for side in value) or math.prod(side or 1 for side in value) >= limits.elements:
        raise _bad(path, f"has tensor {shown(name)} whose shape {shown(value)} is beyond the limits")
    return tuple(value)


def _check_cover(entries: tuple[Entry, ...], available: int, path: str) -> None:
    place = 0
    for entry in entries:
        if entry.begin != place:
            kind = "overlaps the tensor before it" if entry.begin < place else "leaves a hole before it"
            raise _bad(path, f"is inconsistent: tensor {shown(entry.name)} {kind}")
        place = entry.end
    if place > available:
        raise _bad(path, f"is truncated: its tensors need {place} bytes and {available} follow the header")
    if place < available:
        raise _bad(path, f"has {available - place} bytes behind its last tensor")
