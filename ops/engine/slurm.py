"""Workers as the tasks of one Slurm job, through submitit. Partition, account, GPUs and time are sbatch's own SBATCH_* variables.

The registry must lie where all nodes see it. A scheduler that ends the job ends the workers; the run stays, and goes on from its state.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from .job import Handle, Job, WorkersFailed

LONGEST = 24 * 60  # minutes, unless SBATCH_TIMELIMIT says something else


class Slurm:
    """`--engine slurm`, `--engine slurm:N`. cluster: `local` runs the tasks here, without a scheduler."""

    def __init__(self, cluster: str = "slurm") -> None:
        self.cluster = cluster

    def start(self, job: Job, path: Path) -> Handle:
        """Submit. Raises WorkersFailed where there is no scheduler."""
        import submitit  # type: ignore[import-not-found]  # an extra

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
        return Submitted(executor.submit(task, job.entry, str(path)))


def task(entry: str, path: str) -> None:
    """One task of the job: where its peers are is told to torch, then it is a worker like any other."""
    import submitit  # type: ignore[import-not-found]  # an extra

    submitit.helpers.TorchDistributedEnvironment().export(overwrite=True)
    import_module(entry).main(path)


class Submitted:
    """A job that was handed to the scheduler."""

    def __init__(self, job: Any) -> None:
        self._job = job

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        return int(self._job.exception() is not None)

    def stop(self) -> None:
        if not self._job.done():
            self._job.cancel()

    def words(self) -> str:
        """What the tasks wrote; when they wrote nothing, what the scheduler says of them."""
        return self._job.stderr() or f"the scheduler says {self._job.state}"
