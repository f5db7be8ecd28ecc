"""Workers by Ray Train: on the cluster that RAY_ADDRESS names, else on a private one on this machine that ends with the run.

Ray is talked to from a child process (`python -m mlc.ops.engine.rayed JOB`), so that nothing of it stays in the conductor.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .child import Child
from .job import Handle, Job
from .presence import Watch


class Ray:
    """`--engine ray:N`."""

    def start(self, job: Job, path: Path) -> Handle:
        """The child that speaks with Ray."""
        place = tempfile.mkdtemp(prefix="mlc-ray-")  # short: sockets lie in it
        return Head([sys.executable, "-P", "-m", __name__, str(path), place], path.parent / "words", place)


class Head(Child):
    """The child, and the directory of its private cluster, which it cannot remove when it is killed."""

    def __init__(self, command: Sequence[str], words: Path, place: str) -> None:
        super().__init__(command, words)
        self._place = place

    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self._place, ignore_errors=True)


def loop(config: dict[str, Any]) -> None:
    """What each of Ray's workers calls; the process group is made by then."""
    import_module(config["entry"]).main(config["job"])


def main(path: Path, place: str) -> None:
    """Start Ray's workers on a job and wait for them; raises what they raised. `place`: where a private cluster puts its files."""
    import ray  # type: ignore[import-not-found]  # an extra
    import torch
    from ray.train import FailureConfig, RunConfig, ScalingConfig  # type: ignore[import-not-found]
    from ray.train.torch import TorchConfig, TorchTrainer  # type: ignore[import-not-found]

    from . import rayed  # by its name: the workers import it, too

    job, cuda = Job.read(path), torch.cuda.is_available()
    Watch(job, path.parent, lambda: shutil.rmtree(place, ignore_errors=True))  # Ray ends its own when this process ends
    common: dict[str, Any] = {"include_dashboard": False, "log_to_driver": True}
    try:
        ray.init(num_cpus=max(os.cpu_count() or 1, job.workers + 1), _temp_dir=place, **common)
    except ValueError:  # a cluster is there already, and says itself what it has
        ray.init(**common)
    try:
        TorchTrainer(
            rayed.loop,
            train_loop_config={"entry": job.entry, "job": str(path)},
            torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
            scaling_config=ScalingConfig(num_workers=job.workers, use_gpu=cuda),
            run_config=RunConfig(name="ray", storage_path=str(path.parent), failure_config=FailureConfig(max_failures=0)),
        ).fit()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
