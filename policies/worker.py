"""One worker of an engine that spreads training: it makes the operation again, up to its training, and trains its share.

The registry is only read: the run that the operation is handed keeps nothing, like that of a dry run. What the conductor has computed
before (importance, masks, sampled text) is found among its artifacts.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..ops.catalog import load
from ..ops.engine.worker import joined
from ..registry.ids import CommitId
from ..registry.repository import Repository
from .rehearsal import Rehearsal
from .targets import Target


def main(path: str) -> None:
    """Do the job that the file describes. Raises MlcError when the operation does; its words are left for the conductor."""
    with joined(Path(path)) as (job, engine):
        repo, start = Repository.open(Path(job.registry)), CommitId(job.start)
        op = load(job.op).from_params(job.params)
        run = Rehearsal(repo, Target(start, job.branch, start), job.seed, job.threads, id=job.run, engine=engine)
        for _ in op.apply(repo.view(start), run):  # ends with its training
            pass


if __name__ == "__main__":
    main(sys.argv[1])
