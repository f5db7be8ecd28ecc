"""What every worker does around its work: join the others, say who it is, leave its error in words, end when nobody conducts any more."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ...registry.errors import MlcError
from .job import Job
from .presence import Watch
from .sharded import Finished, ShardedEngine


@contextmanager
def joined(path: Path) -> Iterator[tuple[Job, ShardedEngine]]:
    """The job and the engine of this worker, one of `job.workers` that can speak with each other meanwhile.

    Takes the process group that there is (Ray makes one), else makes it from what the launcher put into the environment.
    """
    job, folder = Job.read(path), path.parent
    watch = Watch(job, folder)
    os.chdir(job.directory)  # what parameters name is relative to it, and Ray puts its workers elsewhere
    torch.set_num_threads(job.own_threads)
    if own := not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank = dist.get_rank()
    if torch.cuda.is_available():
        local = dist.get_node_local_rank(rank)  # type: ignore[reportPrivateImportUsage]
        torch.cuda.set_device(local % torch.cuda.device_count())  # Slurm shows each task its own alone
    watch.signed(rank)
    try:
        yield job, ShardedEngine(job, folder, _teller(folder) if rank == 0 else _silent)
    except Finished:
        if own:
            dist.destroy_process_group()
    except MlcError as fault:
        said = {"kind": fault.kind, "message": fault.message, "hint": fault.hint, "details": _plain(fault.details)}
        _leave(folder / f"fault-{rank}.json", said)
        raise


def _teller(folder: Path) -> Any:
    place = folder / "progress.jsonl"

    def tell(**facts: Any) -> None:
        with place.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    return tell


def _silent(**facts: Any) -> None:
    pass


def _leave(path: Path, said: dict[str, Any]) -> None:
    """Written whole or not at all: the launcher may end this process at any moment from now on."""
    with suppress(OSError):
        fresh = path.with_suffix(".tmp")
        fresh.write_text(json.dumps(said), encoding="utf-8")
        fresh.replace(path)


def _plain(details: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in details.items() if isinstance(v, str | int | float | bool | None)}
