"""Locks between processes and threads: flock, one turnstile, and an owner to name when one cannot be had.

Order (ARCHITECTURE, "Locks"): objects, write, catalog. flock dies with its process, so there is no stale lock, and a lock file is
never removed: its content only names the owner, for people.

The turnstile: whoever wants `catalog` waits for it holding `turn`, and lets go of `turn` once inside. So a writer that waits keeps
new readers out, readers that come together go in together, and nobody is overtaken for ever. `write` has no sharers and needs none.

Waiting is left to the kernel, in a thread, so that it can have an end: processes that poll starve the one that has waited longest
(with 8 writers and 8 readers a reader that polled waited 22 s; one that sleeps in the kernel, 0.4 s).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import fs
from .errors import Locked
from .owners import Owner, as_details, myself

ORDER = ("objects", "write", "catalog")
TIMEOUT = 30.0  # seconds
_BUSY = (errno.EAGAIN, errno.EACCES)


@dataclass
class _Holding:
    """What this thread has of one lock; it may take the same again."""

    fd: int
    exclusive: bool
    depth: int = 1


@dataclass
class _Process:
    """What all Locks of this process share: one mutex per lock file, and every descriptor that a fork must drop."""

    guard: threading.Lock = field(default_factory=threading.Lock)
    mutexes: dict[Path, threading.Lock] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)
    local: threading.local = field(default_factory=threading.local)

    def mutex(self, path: Path) -> threading.Lock:
        with self.guard:
            return self.mutexes.setdefault(path, threading.Lock())

    def holdings(self) -> dict[Path, _Holding]:
        if not hasattr(self.local, "holdings"):
            self.local.holdings = {}
        return self.local.holdings


_process = _Process()


def _after_fork() -> None:
    """The child holds no lock: it closes the descriptors, and never unlocks, for they are still its parent's."""
    global _process
    inherited, _process = _process.open, _Process()
    for fd in inherited:
        with contextlib.suppress(OSError):
            os.close(fd)


os.register_at_fork(after_in_child=_after_fork)


class Locks:
    """The locks of one registry. A thread may take a lock again that it has; taking one out of order is a bug and says so."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory).absolute()

    @contextlib.contextmanager
    def shared(self, name: str, timeout: float = TIMEOUT) -> Iterator[None]:
        """Hold `name` together with other sharers. Raises Locked naming the owner after `timeout` seconds."""
        with self._held(name, False, timeout):
            yield

    @contextlib.contextmanager
    def exclusive(self, name: str, timeout: float = TIMEOUT) -> Iterator[None]:
        """Hold `name` alone. Raises Locked naming the owner after `timeout` seconds."""
        with self._held(name, True, timeout):
            yield

    def holds(self, name: str) -> bool:
        """Whether this thread holds the lock, in either way."""
        return self.directory / name in _process.holdings()

    @contextlib.contextmanager
    def _held(self, name: str, exclusive: bool, timeout: float) -> Iterator[None]:
        path, process = self.directory / name, _process
        holdings = process.holdings()
        if path in holdings:
            if exclusive and not holdings[path].exclusive:
                raise RuntimeError(f"lock {name!r} is held shared by this thread and cannot become exclusive")
            holdings[path].depth += 1
        else:
            self._check_order(name, holdings)
            fd = self._acquire(name, exclusive, time.monotonic() + timeout, timeout)
            if fd is None:  # a registry that cannot be written has no writers to keep out
                yield
                return
            holdings[path] = _Holding(fd, exclusive)
        try:
            yield
        finally:
            if process is _process:  # else we are a fork's child, and the descriptor is closed
                self._leave(path, holdings)

    def _leave(self, path: Path, holdings: dict[Path, _Holding]) -> None:
        holding = holdings[path]
        holding.depth -= 1
        if holding.depth:
            return
        del holdings[path]
        if holding.exclusive:
            _sign(holding.fd, "")
        _unlock(holding.fd)
        if holding.exclusive:
            _process.mutex(path).release()

    def _check_order(self, name: str, holdings: dict[Path, _Holding]) -> None:
        mine = [path.name for path in holdings if path.parent == self.directory]
        if any(ORDER.index(other) > ORDER.index(name) for other in mine):
            raise RuntimeError(f"lock {name!r} must be taken before {', '.join(mine)}")

    # --- taking and letting go -------------------------------------------------------------------------------

    def _acquire(self, name: str, exclusive: bool, until: float, timeout: float) -> int | None:
        path = self.directory / name
        mutex = _process.mutex(path) if exclusive else None
        if mutex is not None and not mutex.acquire(timeout=max(0.0, until - time.monotonic())):
            raise self._locked(name, timeout)
        try:
            fd = self._locked_fd(name, exclusive, until, timeout)
            if exclusive and fd is not None:
                _sign(fd, myself().encode())
            return fd
        except BaseException:
            if mutex is not None:
                mutex.release()
            raise

    def _locked_fd(self, name: str, exclusive: bool, until: float, timeout: float) -> int | None:
        turn = self._locked_fd("turn", True, until, timeout) if name == "catalog" and self._writable() else None
        try:
            fd = self._open(self.directory / name, exclusive)
            if fd is not None and not _flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, until):
                raise self._locked(name, timeout)
            return fd
        finally:
            if turn is not None:
                _unlock(turn)

    def _writable(self) -> bool:
        return os.access(self.directory, os.W_OK)

    def _open(self, path: Path, exclusive: bool) -> int | None:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
        except OSError as fault:
            if exclusive or fault.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise fs.in_words(fault, self.directory.parent) from fault
            try:
                fd = os.open(path, os.O_RDONLY | flags)
            except FileNotFoundError:
                return None
        _process.open.add(fd)
        return fd

    # --- in words --------------------------------------------------------------------------------------------

    def owner(self, name: str) -> Owner | None:
        """The process that holds `name` alone, as far as is known."""
        try:
            owner = Owner.decode((self.directory / name).read_text(encoding="utf-8"))
        except OSError:
            return None
        return owner if owner and owner.alive else None

    def _locked(self, name: str, timeout: float) -> Locked:
        name = "catalog" if name == "turn" else name  # who keeps the turn waits for the catalog
        owner = self.owner(name)
        who = str(owner) if owner else "another process"
        return Locked(
            f"the {name} lock was not free within {timeout:g} s: {who} holds it",
            hint="wait for it to finish and try again",
            owner=as_details(owner),
        )


# --- one descriptor --------------------------------------------------------------------------------------


@dataclass
class _Wait:
    """A wait in the kernel that somebody may give up."""

    fd: int
    way: int
    done: threading.Event = field(default_factory=threading.Event)
    guard: threading.Lock = field(default_factory=threading.Lock)
    given_up: bool = False
    fault: OSError | None = None

    def run(self) -> None:
        try:
            fcntl.flock(self.fd, self.way)
        except OSError as fault:
            self.fault = fault
        with self.guard:
            if self.given_up:
                _close(self.fd)
            self.done.set()

    def give_up(self) -> bool:
        """True when the lock was not had; the thread closes the descriptor when the kernel lets it go."""
        with self.guard:
            self.given_up = not self.done.is_set()
            return self.given_up


def _flock(fd: int, way: int, until: float) -> bool:
    """Lock a descriptor, waiting to the moment `until`; when it was not to be had, the descriptor is closed and the answer False."""
    try:
        fcntl.flock(fd, way | fcntl.LOCK_NB)
        return True
    except OSError as fault:
        if fault.errno not in _BUSY:
            _close(fd)
            raise
    wait = _Wait(fd, way)
    threading.Thread(target=wait.run, name="flock", daemon=True).start()
    try:
        wait.done.wait(max(0.0, until - time.monotonic()))
    except BaseException:  # an interrupt
        if not wait.give_up():
            _unlock(fd)
        raise
    if wait.give_up():
        return False
    if wait.fault is not None:
        _close(fd)
        raise wait.fault
    return True


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file `path` alone. Who asks shares it for an instant: two who ask see nobody."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as fault:
        if fault.errno not in _BUSY:
            raise
        return True
    finally:
        os.close(fd)
    return False


def _unlock(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_UN)  # a child between fork and exec may still have the descriptor: closing alone is not enough
    _close(fd)


def _close(fd: int) -> None:
    _process.open.discard(fd)
    os.close(fd)


def _sign(fd: int, text: str) -> None:
    with contextlib.suppress(OSError):  # for people only: a full disk must not make the lock fail
        os.ftruncate(fd, 0)
        os.pwrite(fd, text.encode(), 0)
