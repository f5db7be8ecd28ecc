"""Who works on an attempt: workers say who they are and that they live; the conductor gives up on those that do not, and ends who is left.

A worker's sign is the file `rank-N.json` in the attempt's folder: the owner record of its process, touched every few seconds by a thread of
its own. The same thread ends the process when the conductor does, so that nobody works on for nobody. What the other side of a shared
file system calls the time does not matter: the conductor looks at whether a sign changes, and measures by its own clock.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ...registry.locks import is_held
from ...registry.owners import Owner, myself
from .job import OVER, Job, Patience

LOOK = 0.5  # seconds between looks of a worker at the conductor
BEAT = 2.0  # seconds between signs of life, and between looks at them
ABANDONED = 70  # exit status of a worker whose conductor is gone
PARTING = 5.0  # seconds that workers on this machine have to see that it is over


# --- in a worker, or in what starts workers ---


class Watch:
    """A thread that ends this process when the conductor does, or says that this attempt is over. `last` is called before."""

    def __init__(self, job: Job, folder: Path, last: Callable[[], None] = lambda: None) -> None:
        self._job, self._folder, self._last = job, folder, last
        self._sign: Path | None = None
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    def signed(self, rank: int) -> None:
        """Say who this process is; from now on it also shows that it lives."""
        sign = _sign(self._folder, rank)
        fresh = sign.with_suffix(".tmp")
        fresh.write_text(myself().encode(), encoding="utf-8")
        fresh.replace(sign)
        self._sign = sign

    def _look(self) -> None:
        beat = time.monotonic()
        while not over(self._folder) and is_held(Path(self._job.lock)):
            if self._sign is not None and time.monotonic() - beat >= BEAT:
                beat = time.monotonic()
                with suppress(OSError):
                    os.utime(self._sign)
            time.sleep(LOOK)
        self._last()
        os._exit(ABANDONED)


def over(folder: Path) -> bool:
    """Whether the conductor is done with this attempt, or its folder is gone."""
    return (folder / OVER).exists() or not folder.exists()


# --- in the conductor ---


class Presence:
    """What the conductor knows of the workers of one attempt. `clock`: seconds that only grow."""

    def __init__(self, folder: Path, workers: int, patience: Patience, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._workers, self._patience, self._clock = folder, workers, patience, clock
        self._began = self._started = self._looked = clock()
        self._seen: dict[int, tuple[int, float]] = {}  # by worker: (its sign's time, ours when that was new)

    @property
    def came(self) -> bool:
        """Whether any worker was ever there."""
        return bool(self._seen) or any(_sign(self._folder, rank).exists() for rank in range(self._workers))

    def fault(self, queued: Callable[[], bool]) -> str:
        """Why it makes no sense to wait any longer; "" while it does. `queued`: whether they wait for their turn."""
        now = self._clock()
        if now - self._looked < BEAT:
            return ""
        self._looked = now
        missing = [rank for rank in range(self._workers) if not self._beats(rank, now)]
        if missing and not self._seen and queued():
            self._started = now  # the time to start begins with their turn
            waited = now - self._began
            return f"they were queued for {waited:.0f} s, [engine] queue allows no more" if waited > self._patience.queue else ""
        if missing:
            said = f"{self._workers - len(missing)} of {self._workers} came within {now - self._started:.0f} s"
            return f"{said}, [engine] start allows no more" if now - self._started > self._patience.start else ""
        rank, silent = max(((rank, now - at) for rank, (_, at) in self._seen.items()), key=lambda found: found[1])
        if silent > self._patience.silence:
            return f"worker {rank} gave no sign of life for {silent:.0f} s, [engine] silence allows no more"
        return ""

    def _beats(self, rank: int, now: float) -> bool:
        """Note the sign of a worker; whether there is one."""
        try:
            sign = _sign(self._folder, rank).stat().st_mtime_ns
        except OSError:
            return rank in self._seen
        if rank not in self._seen or self._seen[rank][0] != sign:
            self._seen[rank] = (sign, now)
        return True


def end(folder: Path, parting: float = PARTING) -> None:
    """Say that an attempt is over, and see that nobody on this machine works on it any more: who does not go is killed.

    Workers on other machines see the same file and go by themselves.
    """
    (folder / OVER).touch()
    until = time.monotonic() + parting
    while (left := present(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in left:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + parting
    while left and present(folder) and time.monotonic() < until:
        time.sleep(0.05)


def present(folder: Path) -> set[int]:
    """The processes on this machine that work on an attempt: those that gave their sign, and those that are still starting.

    The latter are told by their program, which is ours, and by an argument that lies in the folder.
    """
    return ({*_signed(folder)} | {*_starting(folder)}) - {os.getpid()}


def _signed(folder: Path) -> Iterator[int]:
    for path in folder.glob("rank-*.json"):
        with suppress(OSError):
            owner = Owner.decode(path.read_text(encoding="utf-8"))
            if owner is not None and owner.here and owner.alive:
                yield owner.pid


def _starting(folder: Path) -> Iterator[int]:
    within, program = os.fsencode(folder), os.path.realpath(sys.executable)
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (place / "cmdline").read_bytes().split(b"\0")
            if any(word == within or word.startswith(within + b"/") for word in words) and os.path.realpath(place / "exe") == program:
                yield int(place.name)


def _sign(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.json"
