"""Locks between processes and threads: flock, one turnstile, and an owner to name when one cannot be had.

Order (ARCHITECTURE, "Locks"): objects, write, catalog; `turn` is taken for an instant on the way into the last two. flock dies
with its process, so there is no stale lock, and a lock file is never removed: its content only names the last owner, for people.

The turnstile: whoever wants `catalog` passes through `turn`. A reader lets go of it at once. A writer keeps it while it waits, so
that no new reader can slip in before it. A writer waiting for `write` lets go between tries: the holder of `write` needs the turn
for `catalog`, and nobody shares `write` and could starve it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
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
FIRST_SLEEP, LONGEST_SLEEP = 0.002, 0.25  # seconds between tries; grows with the time already waited
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
            with self._again(holdings[path], name, exclusive):
                yield
            return
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
                del holdings[path]
                self._release(path, fd, exclusive)

    @contextlib.contextmanager
    def _again(self, holding: _Holding, name: str, exclusive: bool) -> Iterator[None]:
        if exclusive and not holding.exclusive:
            raise RuntimeError(f"lock {name!r} is held shared by this thread and cannot become exclusive")
        holding.depth += 1
        try:
            yield
        finally:
            holding.depth -= 1

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
        fd = None
        try:
            fd = self._open(path, exclusive)
            if fd is not None:
                self._wait(name, fd, exclusive, until, timeout)
                if exclusive:
                    self._sign(fd)
            return fd
        except BaseException:
            if fd is not None:
                self._close(fd)
            if mutex is not None:
                mutex.release()
            raise

    def _wait(self, name: str, fd: int, exclusive: bool, until: float, timeout: float) -> None:
        """Poll for the lock, through the turnstile where there is one."""
        turn = self._open(self.directory / "turn", exclusive) if name in ("write", "catalog") else None
        keep = exclusive and name == "catalog"
        started, have_turn = time.monotonic(), False
        try:
            while True:
                if turn is None or have_turn or _try(turn, True):
                    have_turn = turn is not None
                    if _try(fd, exclusive):
                        return
                    if have_turn and not keep:
                        fcntl.flock(turn, fcntl.LOCK_UN)  # type: ignore[arg-type]
                        have_turn = False
                now = time.monotonic()
                if now >= until:
                    raise self._locked(name, timeout)
                time.sleep(min(_pause(now - started), until - now))
        finally:
            if turn is not None:
                self._close(turn)

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

    def _sign(self, fd: int) -> None:
        with contextlib.suppress(OSError):  # for people only: a full disk must not make the lock fail
            os.ftruncate(fd, 0)
            os.pwrite(fd, myself().encode().encode(), 0)

    def _release(self, path: Path, fd: int, exclusive: bool) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)  # a child between fork and exec may still have the descriptor: closing alone is not enough
        self._close(fd)
        if exclusive:
            _process.mutex(path).release()

    def _close(self, fd: int) -> None:
        _process.open.discard(fd)
        os.close(fd)

    # --- in words --------------------------------------------------------------------------------------------

    def owner(self, name: str) -> Owner | None:
        """The last process that held `name` alone, if it still runs."""
        try:
            owner = Owner.decode((self.directory / name).read_text(encoding="utf-8"))
        except OSError:
            return None
        return owner if owner and owner.alive else None

    def _locked(self, name: str, timeout: float) -> Locked:
        owner = self.owner(name)
        who = str(owner) if owner else "another process"
        return Locked(
            f"the {name} lock was not free within {timeout:g} s: {who} holds it",
            hint="wait for it to finish and try again",
            owner=as_details(owner),
        )


def _try(fd: int, exclusive: bool) -> bool:
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as fault:
        if fault.errno in _BUSY:
            return False
        raise
    return True


def _pause(waited: float) -> float:
    """Seconds to the next try: an eighth of the time waited so far, jittered, between 2 and 250 ms."""
    return random.uniform(0.5, 1.5) * min(LONGEST_SLEEP, max(FIRST_SLEEP, waited / 8))
