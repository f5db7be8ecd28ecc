"""Walking a foreign directory without trusting it: from a handle, no link followed, regular files only.

Every file is opened part by part with O_NOFOLLOW, so that nothing outside the named folder can be reached, whatever
changes under our feet. A Hugging Face cache, whose files are links into its own blob folder, is read on request.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInputFile, InputNotFound
from .limits import DEFAULT, Limits
from .names import bad_path, shown

SKIPPED = {".git", ".mlc"}  # histories of their own: recording one inside the other would only grow both
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # nonblocking: a fifo must not hang us before we see what it is


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One regular file: its name in the source, and the folder and path that it is really opened by."""

    path: str  # relative, POSIX
    size: int
    root: Path  # absolute, resolved
    place: str  # below root, without links


def walk(directory: Path, *, follow_cache: Path | None = None, limits: Limits = DEFAULT) -> tuple[list[FoundFile], list[str]]:
    """All regular files below `directory`, sorted by path, and the folders that were skipped.

    Raises InputNotFound when there is no such folder; BadInputFile for a link, a device, an unsafe name or too many files.
    """
    root = directory.resolve()
    cache = follow_cache.resolve() if follow_cache is not None else None
    found: list[FoundFile] = []
    skipped: list[str] = []
    try:
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as fault:
        raise InputNotFound(f"{directory} cannot be opened as a directory: {os.strerror(fault.errno or 0)}") from None
    _descend(handle, "", _Walk(root, cache, limits, found, skipped))
    return sorted(found, key=lambda file: file.path), sorted(skipped)


def single(path: Path, *, follow_cache: Path | None = None) -> FoundFile:
    """One file named by the user, refused when it is a link (unless into `follow_cache`) or not regular."""
    folder = path.parent.resolve()
    walking = _Walk(folder, follow_cache.resolve() if follow_cache is not None else None, DEFAULT, [], [])
    if fault := bad_path(path.name):
        raise BadInputFile(f"the file name {shown(path.name)} {fault}", path=str(path))
    if not os.path.lexists(path):
        raise InputNotFound(f"{path} does not exist")
    walking.take(path.name, os.lstat(path))
    return walking.found[0]


@contextmanager
def opened(file: FoundFile) -> Iterator[int]:
    """A read-only descriptor of the file, reached from its root without following a link."""
    handle = os.open(file.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *folders, name = file.place.split("/")
        for folder in folders:
            inner = os.open(folder, _OPEN | os.O_DIRECTORY, dir_fd=handle)
            os.close(handle)
            handle = inner
        fd = os.open(name, _OPEN, dir_fd=handle)
    except OSError as fault:
        cause = "goes through a symbolic link" if fault.errno in {errno.ELOOP, errno.ENOTDIR} else os.strerror(fault.errno or 0)
        raise BadInputFile(f"{file.path} cannot be read: {cause}", path=file.path) from None
    finally:
        os.close(handle)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BadInputFile(f"{file.path} is not a regular file", path=file.path)
        yield fd
    finally:
        os.close(fd)


def read_exactly(fd: int, size: int, offset: int, path: str) -> bytearray:
    """`size` bytes at `offset`, in a private buffer: what is hashed is what is stored, even if the file changes. Raises BadInputFile."""
    buffer = bytearray(size)
    view, done = memoryview(buffer), 0
    while done < size:
        got = os.preadv(fd, [view[done:]], offset + done)
        if got == 0:
            raise BadInputFile(
                f"{path} became shorter while it was read", path=path, hint="wait until the program that writes it has ended"
            )
        done += got
    return buffer


@dataclass(frozen=True, slots=True)
class _Walk:
    root: Path
    cache: Path | None
    limits: Limits
    found: list[FoundFile]
    skipped: list[str]

    def take(self, path: str, status: os.stat_result) -> None:
        if fault := bad_path(path, self.limits):
            raise BadInputFile(f"the file name {shown(path)} {fault}", path=path)
        if len(self.found) >= self.limits.files:
            raise BadInputFile(f"{self.root} holds more than {self.limits.files} files", path=str(self.root))
        if stat.S_ISLNK(status.st_mode):
            self.found.append(self._linked(path))
        elif stat.S_ISREG(status.st_mode):
            self.found.append(FoundFile(path, status.st_size, self.root, path))
        else:
            raise BadInputFile(f"{path} is not a regular file", path=path, hint="move devices, pipes and sockets out of the directory")

    def _linked(self, path: str) -> FoundFile:
        if self.cache is None:
            raise BadInputFile(
                f"{path} is a symbolic link, and links are not followed",
                path=path,
                hint="mlc import --follow-cache CACHE_DIR SRC, or copy the file",
            )
        link = self.root / path
        target = os.path.normpath(link.parent / os.readlink(link))
        place = os.path.relpath(target, self.cache)
        if bad_path(place):
            raise BadInputFile(
                f"{path} is a symbolic link that leaves {self.cache}", path=path, hint="name the cache that holds its target"
            )
        file = FoundFile(path, 0, self.cache, place)
        with opened(file) as fd:  # refuses a second link, a folder or a device
            return FoundFile(path, os.fstat(fd).st_size, self.cache, place)


def _descend(handle: int, prefix: str, walking: _Walk) -> None:
    try:
        with os.scandir(handle) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            path, status = prefix + name, os.stat(name, dir_fd=handle, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                walking.take(path, status)
            elif name in SKIPPED:
                walking.skipped.append(path)
            elif fault := bad_path(path, walking.limits):
                raise BadInputFile(f"the folder name {shown(path)} {fault}", path=path)
            else:
                _descend(os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=handle), path + "/", walking)
    except OSError as fault:
        raise BadInputFile(f"{prefix or walking.root} cannot be read: {os.strerror(fault.errno or 0)}", path=prefix) from None
    finally:
        os.close(handle)
