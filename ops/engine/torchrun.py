"""Workers on this machine by torch's own launcher: one child process, which ends all workers when one of them ends badly."""

from __future__ import annotations

import sys
from pathlib import Path

from .child import Child
from .job import Handle, Job


class Torchrun:
    """`--engine torchrun:N`."""

    def start(self, job: Job, path: Path) -> Handle:
        """N processes of this interpreter. `-P`: what lies in the current directory is no module of theirs."""
        python = [sys.executable, "-P"]
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(job.workers), "--max-restarts", "0", "--no-python"]
        return Child([*python, *launch, *python, "-m", job.entry, str(path)], path.parent / "words")
