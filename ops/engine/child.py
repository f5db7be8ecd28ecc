"""Workers behind one child process of ours: its launcher, which ends them when it is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PATIENCE = 20.0  # seconds that a launcher has to end its workers
READ = 200_000  # bytes of what was written that are looked at


class Child:
    """A command in a process group of its own; what it and its children write goes to the file `words`."""

    def __init__(self, command: Sequence[str], words: Path) -> None:
        self._words = words
        with words.open("wb") as out:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)

    def poll(self) -> int | None:
        if self._process.returncode is None and self._ended():
            self._kill_group()
        return self._process.poll()

    def queued(self) -> bool:
        return False

    def stop(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            if self.poll() is None:
                os.killpg(self._process.pid, signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        while self.poll() is None:
            if time.monotonic() > until:
                self._kill_group()
            time.sleep(0.05)

    def _ended(self) -> bool:
        """Whether it has ended; its number stays its own until `poll` of the process has taken note."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _kill_group(self) -> None:
        """Whoever is left of the group: what ends by a kill cannot end its own."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def words(self) -> str:
        with suppress(OSError), self._words.open("rb") as file:
            return file.read(READ).decode("utf-8", "replace")
        return ""
