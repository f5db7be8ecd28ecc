"""Every durable call of the registry, and what a failing disk means in one sentence.

Nothing else in the product calls fsync or renames a file into place. Each call here is a numbered fault point: tests
set `FAULTS` to make the k-th one kill the process, run out of space, fail, or write only half (RELIABILITY: T2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .errors import MlcError, UsageError

Data = bytes | bytearray | memoryview
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class DiskFull(MlcError):
    """There is no room left for what was to be written. Nothing of it is visible."""


class DiskFault(MlcError):
    """The operating system could not read or write. Nothing unfinished is visible."""


class ReadOnlyRegistry(UsageError):
    """The registry may be read and not written: its directory or file system says so."""


# --- faults on demand ------------------------------------------------------------------------------------


@dataclass
class FaultPlan:
    """What happens at the `at`-th durable call (from 1); `at=0` only counts. `seen` lists the calls made.

    kill: the process dies before the call. tear: half the bytes are written, then it dies. short: one write takes only
    half, as the system may do at any time. enospc, eio: the call fails, after half the bytes when it writes.
    """

    at: int
    action: Literal["kill", "tear", "short", "enospc", "eio"] = "kill"
    seen: list[str] = field(default_factory=list)


FAULTS: FaultPlan | None = None


def _point(call: str, path: str | Path | int, fd: int | None = None, data: Data = b"") -> int:
    """Count one durable call; returns how many bytes were already written (by a fault that writes some)."""
    plan = FAULTS
    if plan is None:
        return 0
    plan.seen.append(f"{call} {path}")
    if len(plan.seen) != plan.at:
        return 0
    done = os.write(fd, memoryview(data).cast("B")[: len(data) // 2]) if fd is not None and plan.action != "kill" and len(data) > 1 else 0
    if plan.action in ("kill", "tear"):
        os.kill(os.getpid(), signal.SIGKILL)
    if plan.action in ("enospc", "eio"):
        number = errno.ENOSPC if plan.action == "enospc" else errno.EIO
        raise OSError(number, os.strerror(number), str(path))
    return done


# --- single durable calls --------------------------------------------------------------------------------


def create(path: Path) -> int:
    """A descriptor of a new private file. Raises FileExistsError; never follows a link."""
    _point("create", path)
    return os.open(path, _NEW, 0o600)


def write(fd: int, data: Data) -> None:
    """Write all of `data`, however many calls that takes."""
    view = memoryview(data).cast("B")
    view = view[_point("write", fd, fd, view) :]
    while len(view):
        view = view[os.write(fd, view) :]


def fsync_file(fd: int) -> None:
    """Make a file's bytes durable. After a failure the descriptor must not be trusted again: write the file anew."""
    _point("fsync", fd)
    _sync(fd)


def fsync_dir(path: Path) -> None:
    """Make the names in a directory durable."""
    _point("fsync_dir", path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(fd)
    finally:
        os.close(fd)


def rename(source: Path, target: Path) -> None:
    """Give a file its final name, replacing what is there. Durable after `fsync_dir` of the target's directory."""
    _point("rename", target)
    os.rename(source, target)


def place_new(source: Path, target: Path) -> None:
    """Give a file a second name that must be free: of several processes one wins. Raises FileExistsError. Durable after `fsync_dir`."""
    _point("link", target)
    os.link(source, target, follow_symlinks=False)


def truncate(fd: int, size: int) -> None:
    """Cut a file to `size` bytes, durably."""
    _point("truncate", fd)
    os.ftruncate(fd, size)
    _sync(fd)


def remove(path: Path) -> None:
    """Remove a file that may be gone already."""
    _point("remove", path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _sync(fd: int) -> None:
    if sys.platform == "darwin":  # fsync there leaves the bytes in the drive's cache
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


# --- what is made of them --------------------------------------------------------------------------------


def write_new(path: Path, data: Data | Iterable[Data], *, durable: bool = True) -> None:
    """A new file with these bytes, durable when this returns (its name: after `fsync_dir`). On failure it is gone again."""
    fd = create(path)
    try:
        for chunk in (data,) if isinstance(data, bytes | bytearray | memoryview) else data:
            write(fd, memoryview(chunk))
        if durable:
            fsync_file(fd)
    except BaseException:
        os.close(fd)
        os.unlink(path)
        raise
    os.close(fd)


def replace_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Put `text` in the place of a small file: another process sees the old or the new one, never half.

    `durable=False` leaves out the syncs, for what is derived and checked when read: a power cut may then leave anything.
    """
    fresh = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        write_new(fresh, text.encode(), durable=durable)
        rename(fresh, path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    if durable:
        fsync_dir(path.parent)


def append_durable(fd: int, data: Data, *, at: int) -> None:
    """Append at offset `at`, the present end of the file, in one write; durable when this returns.

    When it fails, the file is cut back to `at`, so that the failure leaves nothing half written behind.
    """
    os.lseek(fd, at, os.SEEK_SET)
    try:
        write(fd, data)
        fsync_file(fd)
    except BaseException:
        with contextlib.suppress(OSError):  # recovery cuts a torn tail as well
            os.ftruncate(fd, at)
            _sync(fd)
        raise


def make_dir(path: Path) -> None:
    """A private directory and its missing parents, each made durable in the one above it."""
    if path.is_dir():
        return
    make_dir(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        fsync_dir(path.parent)


def remove_tree(path: Path) -> None:
    """Remove scratch files; what cannot be removed now is swept later."""
    shutil.rmtree(path, ignore_errors=True)


# --- in words --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def faults_in_words(path: Path) -> Iterator[None]:
    """Turn OSErrors of writing below `path` into DiskFull, ReadOnlyRegistry or DiskFault."""
    try:
        yield
    except OSError as fault:
        raise in_words(fault, path) from fault


def in_words(fault: OSError, path: Path) -> MlcError:
    """What an OSError of writing below `path` means for a person."""
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(path)
    if fault.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ReadOnlyRegistry(f"{path} cannot be written: {os.strerror(fault.errno)}", hint=f"chmod -R u+w {path}, or work on a copy")
    reason = os.strerror(fault.errno) if fault.errno else str(fault)
    return DiskFault(f"the disk of {path} failed: {reason}", hint="nothing was changed; see `dmesg`, then `mlc fsck`")


def disk_full(path: Path, needed: int | None = None) -> DiskFull:
    """The error for a full disk, saying how much is missing. `needed` is in bytes, None when it is not known."""
    missing = max(1 << 20, needed - free_bytes(path)) if needed else 64 << 20
    return DiskFull(
        f"the disk of {path} is full; nothing was changed", hint=f"free at least {missing} bytes there and try again", bytes=missing
    )


def free_bytes(path: Path) -> int:
    """Bytes that an ordinary user may still write on the file system of `path`."""
    usage = os.statvfs(path)
    return usage.f_bavail * usage.f_frsize


def require_space(path: Path, estimate: int) -> None:
    """Raise DiskFull when less than 1.1 times `estimate` bytes are free."""
    needed = estimate + estimate // 10
    if estimate and free_bytes(path) < needed:
        raise disk_full(path, needed)
