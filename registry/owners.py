"""Who holds a lock or a pin: a record for people, and the test whether that process is still alive."""

from __future__ import annotations

import functools
import json
import os
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Owner:
    """One process on one boot of one host."""

    host: str
    boot: str
    pid: int
    start: str  # start time of the process as the kernel counts it: tells a reused pid apart
    command: str
    since: str

    def encode(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), sort_keys=True) + "\n"

    @classmethod
    def decode(cls, text: str) -> Owner | None:
        """The inverse of `encode`; None for anything else."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    @property
    def here(self) -> bool:
        """Whether it ran on this host: only then can we know whether it lives."""
        return self.host == _host()

    @property
    def alive(self) -> bool:
        """Whether the process still runs. True for another host: nobody may assume that it died."""
        if not self.here:
            return True
        return self.boot == _boot() and _start(self.pid) == self.start

    def __str__(self) -> str:
        place = "" if self.here else f" on {self.host}"
        return f"process {self.pid}{place} ({self.command}, since {self.since})"


def myself() -> Owner:
    """The owner record of this process, now."""
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Owner(_host(), _boot(), os.getpid(), _start(os.getpid()), _command(), since)


def _command() -> str:
    # names only: arguments may hold what must not be written down
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    verb = next((word for word in sys.argv[1:] if word.isidentifier()), "")
    return f"{program} {verb}".strip()


@functools.cache
def _host() -> str:
    for place in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        text = _read(place)
        if text:
            return f"{os.uname().nodename}-{text[:8]}"
    return os.uname().nodename


@functools.cache
def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id")


def _start(pid: int) -> str:
    """Start time of a process; empty when there is none, or where the system does not say."""
    stat = _read(f"/proc/{pid}/stat")
    if stat:
        fields = stat.rpartition(")")[2].split()  # the name may hold spaces and brackets
        return "" if fields[0] in "ZX" else fields[19]
    return "" if Path("/proc/self/stat").exists() else _signalled(pid)


def _signalled(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def as_details(owner: Owner | None) -> dict[str, Any] | None:
    """For the details of an error."""
    return asdict(owner) if owner else None
