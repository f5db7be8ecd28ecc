"""Workers as the tasks of one Slurm job, through submitit. Partition, account, GPUs and time are sbatch's own SBATCH_* variables.

The registry must lie where all nodes see it. A scheduler that ends the job ends the workers; the run stays, and goes on from its state.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from .atoms import complete
from .job import Handle, Job, WorkersFailed

LONGEST = 24 * 60  # minutes, unless SBATCH_TIMELIMIT says something else
ASKED = 60.0  # seconds between questions to the scheduler: submitit alone would ask every ten minutes
SHOWN = 15.0  # seconds until files of another node are seen here
QUEUED = ("PENDING", "READY", "REQUEUED", "CONFIGURING")
WELL = ("COMPLETED", "FINISHED")  # Slurm's word, and that of the executor on this machine
KILLED = ("INTERRUPTED",)  # the executor on this machine


class Slurm:
    """`--engine slurm`, `--engine slurm:N`. cluster: `local` runs the tasks here, without a scheduler."""

    def __init__(self, cluster: str = "slurm") -> None:
        self.cluster = cluster

    def start(self, job: Job, path: Path) -> Handle:
        """Submit. Raises WorkersFailed where there is no scheduler."""
        import submitit  # type: ignore[import-not-found]  # an extra

        logging.getLogger("submitit").handlers.clear()  # it writes to stdout, which is not its own
        try:
            executor = submitit.AutoExecutor(folder=path.parent / "slurm", cluster=self.cluster)
        except RuntimeError as fault:
            reason = str(fault).splitlines()[0]
            raise WorkersFailed(
                f"no Slurm job can be started from here: {reason}", hint="--engine torchrun:N runs on this machine"
            ) from None
        executor.update_parameters(name=f"mlc-{job.run}", tasks_per_node=job.workers, timeout_min=LONGEST)
        if self.cluster == "slurm":
            executor.update_parameters(cpus_per_task=job.own_threads)
        return Submitted(executor.submit(task, job.entry, str(path)), partial(_left, path.parent, job.workers))


def task(entry: str, path: str) -> None:
    """One task of the job: where its peers are is told to torch, then it is a worker like any other."""
    import submitit  # type: ignore[import-not-found]  # an extra

    submitit.helpers.TorchDistributedEnvironment().export(overwrite=True)
    import_module(entry).main(path)


def _left(folder: Path, workers: int) -> bool:
    """Whether the tasks left all that there can be: their work, or an error in words."""
    return complete(folder / "result", workers) or any(folder.glob("fault-*.json"))


class Submitted:
    """A job that was handed to the scheduler. `seen`: whether what its tasks left is to be seen here."""

    def __init__(self, job: Any, seen: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._job, self._seen, self._clock = job, seen, clock
        self._ended: float | None = None
        self._asked = clock()

    def poll(self) -> int | None:
        """See `Handle`. A job that went well is over when what it left can be seen: shared file systems take their time."""
        due = self._clock() - self._asked > ASKED
        self._asked = self._clock() if due else self._asked
        if not self._job.done(force_check=due):
            return None
        state = self._state()
        if state in KILLED:
            return -signal.SIGKILL
        if state not in WELL:
            return 1
        self._ended = self._clock() if self._ended is None else self._ended
        return 0 if self._seen() or self._clock() - self._ended > SHOWN else None

    def queued(self) -> bool:
        return self._state() in QUEUED

    def stop(self) -> None:
        """Take the job back. A scheduler that does not answer cannot be told; the tasks see for themselves that it is over."""
        with suppress(OSError, subprocess.SubprocessError):
            if not self._job.done():
                self._job.cancel(check=False)

    def words(self) -> str:
        """What the tasks wrote; when they wrote nothing, what the scheduler says of them."""
        return self._job.stderr() or f"the scheduler says {self._state()}"

    def _state(self) -> str:
        """The first word of what the scheduler says: it may add by whom."""
        return (self._job.state.split() or ["UNKNOWN"])[0]
