"""Workers behind one child process of ours: its launcher, which ends them when it is ended."""

from __future__ import annotations

import os
import signal
import subprocess
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
        return self._process.poll()

    def stop(self) -> None:
        for way, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, None)):
            if self._process.poll() is not None:
                return
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, way)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)

    def words(self) -> str:
        with suppress(OSError), self._words.open("rb") as file:
            return file.read(READ).decode("utf-8", "replace")
        return ""
