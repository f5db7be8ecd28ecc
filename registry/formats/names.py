"""Which names from outside are safe: relative paths, tensor names, and how either is shown in a message.

Tensor names never become paths. Paths are relative, POSIX, and cannot leave the folder they are written into.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .limits import DEFAULT, Limits

_TENSOR = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]*")
_DUNDER = re.compile(r"__.*__")


def shown(name: object) -> str:
    """A foreign name as it may stand in a sentence: quoted, ASCII only, at most 80 characters of it."""
    text = ascii(str(name))
    return text if len(text) <= 82 else text[:78] + "...'"


def bad_tensor_name(name: str, limits: Limits = DEFAULT) -> str | None:
    """Why `name` cannot be a tensor name, as the end of a sentence; None when it can."""
    if not name:
        return "is empty"
    if len(name) > limits.name_bytes:  # the alphabet below is ASCII, so characters are bytes
        return f"is longer than {limits.name_bytes} bytes"
    if not _TENSOR.fullmatch(name):
        return "has characters outside A-Z a-z 0-9 _ . : / -"
    if ".." in name or "//" in name:
        return "contains '..' or '//'"
    if any(len(part) > 3 and _DUNDER.fullmatch(part) for part in re.split(r"[.:/]", name)):
        return "has a reserved part of the form __x__"
    return None


def clash(paths: Iterable[str]) -> str | None:
    """A path that is a file and, for another path, a folder; None when all of them can lie in one directory."""
    known = set(paths)
    return next((folder for path in sorted(known) for folder in _folders(path) if folder in known), None)


def _folders(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def bad_path(path: str, limits: Limits = DEFAULT) -> str | None:
    """Why `path` is not a safe relative file name, as the end of a sentence; None when it is."""
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if not path or len(encoded) > limits.path_bytes:
        return f"is empty or longer than {limits.path_bytes} bytes"
    if path.startswith("/") or "\\" in path or re.match(r"[A-Za-z]:", path):
        return "is not a relative path with forward slashes"
    if any(ord(c) < 32 or ord(c) == 127 for c in path):
        return "contains control characters"
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return "has an empty, '.' or '..' part"
    if len(parts) > limits.folder_depth or any(len(part.encode()) > 255 for part in parts):
        return f"is deeper than {limits.folder_depth} folders or has a part longer than 255 bytes"
    return None
