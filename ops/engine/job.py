"""What workers are told and what they say back: a job is a folder that all of them see. Imports no torch.

attempt-1/job.json        what to do: everything is a function of it and of the registry, which workers only read
          rank-0.json     one per worker, once it runs: who it is; touched while it lives
          progress.jsonl  one line per event, written by worker 0, read by the conductor
          fault-0.json    the error of a worker, in the words that people are to see
          words           what the launcher and the workers wrote to stderr
          over            the conductor is done with this attempt: whoever still works on it ends
          state-50/ stable/ result/    pieces of tensors (see `atoms`)
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...registry.errors import RemoteError

OVER = "over"
LINES = 3  # of what workers wrote, when there is no error among it
# Lines that a launcher writes beside what the workers said.
_CHATTER = re.compile(r"^(\[?rank\d+\]?:?\s*)?([WEI]\d{4} |\s*$|\*+$|Setting OMP_NUM_THREADS|Traceback|\s+File |\s{4,}|\[W\d|=+$|-+$)")
_ERROR = re.compile(
    r"(?:^|\s)((?:[A-Za-z_]\w*\.)*(?:[A-Z]\w*)?(?:Error|Exception|Interrupt)\b: .*"
    r"|\S*python\S*: (?:No module|can't open).*)"
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the conductor waits for workers, in seconds; whose choice that is lies above this room."""

    start: float  # from their turn until all are there
    queue: float  # for their turn, where a scheduler has a queue
    silence: float  # between two signs of life


class WorkersFailed(RemoteError):
    """Workers did not start, or ended before their work was done. The run can be resumed from its last state."""


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt at one training run."""

    entry: str  # module whose `main(path of job.json)` does it
    op: str
    params: dict[str, Any]
    registry: str
    start: str  # commit
    branch: str
    run: str
    seed: int
    threads: int  # of the whole run: part of what kept artifacts are found by
    workers: int
    directory: str  # the conductor's current one: names of data files are relative to it
    lock: str  # a file that the conductor holds a lock on while it lives
    state: dict[str, Any] = field(default_factory=dict)  # where to go on from: {"step", "file"} or {"step", "pieces"}; {} for the start

    @property
    def own_threads(self) -> int:
        """Of each worker."""
        return max(1, self.threads // self.workers)

    def write(self, folder: Path) -> Path:
        """Put it into its folder; returns the file."""
        path = folder / "job.json"
        path.write_text(json.dumps(asdict(self), sort_keys=True), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> Job:
        """The inverse of `write`."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


class Handle(Protocol):
    """Workers that were started."""

    def poll(self) -> int | None:
        """None while they run, then 0 when all ended well; minus a signal's number when what started them was killed by it."""
        ...

    def queued(self) -> bool:
        """Whether they wait for their turn."""
        ...

    def stop(self) -> None:
        """End them, and what started them; never raises because a scheduler does not answer."""
        ...

    def words(self) -> str:
        """What they and their launcher wrote to stderr so far."""
        ...


class Launcher(Protocol):
    """Starts `job.workers` processes that call `main` of `job.entry` and can speak with each other."""

    def start(self, job: Job, path: Path) -> Handle:
        """Start them on the job file at `path`. Raises WorkersFailed."""
        ...


class Tail:
    """The lines of a file that somebody else appends to, whole ones only."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def new(self) -> Iterator[dict[str, Any]]:
        """What was added since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            yield json.loads(line)


def killed(code: int) -> str:
    """In words, what became of something whose exit status is minus the number of a signal."""
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"what started them was killed ({name})"


def first_words(text: str) -> str:
    """The reason in what workers wrote: the first error, else the first lines that are none of the launcher's own."""
    lines = [re.sub(r"^\[rank\d+\]:\s?", "", line) for line in text.splitlines()]
    for line in lines:
        if found := _ERROR.search(line):
            return found.group(1).strip()[:400]
    said = [line.strip() for line in lines if not _CHATTER.match(line)]
    return " / ".join(said[:LINES])[:400] or "they wrote nothing"
