"""Workers for tests: forks of the test process, which cost no start of Python. Everything else of the engine is the real thing."""

from __future__ import annotations

import fcntl
import os
import signal
import time
import traceback
from pathlib import Path
from typing import Any

from mlc.ops.engine.atoms import complete
from mlc.ops.engine.job import Job, Launcher, Patience
from mlc.ops.engine.sharded import Finished
from mlc.ops.engine.spread import SpreadEngine
from mlc.ops.engine.worker import joined
from mlc.tests.ops.fakes import MemoryRun, MemoryView

PATIENCE = Patience(start=120.0, queue=120.0, silence=120.0)


class Forked:
    """A launcher. `kill`: (worker, step) that gets `way` once it has done that step and a state is whole."""

    def __init__(
        self, op: Any, view: MemoryView, run: MemoryRun, kill: tuple[int, int] | None = None, way: signal.Signals = signal.SIGKILL
    ) -> None:
        self.op, self.view, self.run, self.kill, self.way = op, view, run, kill, way
        self.pids: dict[int, int] = {}
        self.status: dict[int, int] = {}
        self.folder = Path()

    def start(self, job: Job, path: Path) -> Forked:
        self.folder = path.parent
        for rank in range(job.workers):
            pid = os.fork()
            if not pid:
                self._be(rank, job, path)
            self.pids[rank] = pid
        return self

    def _be(self, rank: int, job: Job, path: Path) -> None:
        import torch
        import torch.distributed as dist

        code = 1
        try:
            words = os.open(path.parent / "words", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(words, 1), os.dup2(words, 2)
            torch.set_num_threads(1)
            dist.init_process_group("gloo", init_method=f"file://{path.parent}/store", rank=rank, world_size=job.workers)
            with joined(path) as (_, engine):
                run = MemoryRun(seed=job.seed)
                run.artifacts, run.engine = self.run.artifacts, engine
                if self.kill and self.kill[0] == rank:
                    step = engine.tell

                    def tell(**facts: Any) -> None:
                        step(**facts)
                        if facts.get("step") == self.kill[1]:
                            until_saved(path.parent, job.workers)
                            os.kill(os.getpid(), self.way)

                    engine.tell = tell
                for _ in self.op.apply(self.view, run):
                    pass
            code = 0
        except Finished:
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        for rank, pid in self.pids.items():
            if rank not in self.status:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.status[rank] = status
        if any(self.status.values()):
            self.stop()
            return 1
        return 0 if len(self.status) == len(self.pids) else None

    def queued(self) -> bool:
        return False

    def stop(self) -> None:
        for rank, pid in self.pids.items():
            if rank not in self.status:
                os.kill(pid, signal.SIGKILL)
                self.status[rank] = os.waitpid(pid, 0)[1]

    def words(self) -> str:
        path = self.folder / "words"
        return path.read_text() if path.exists() else ""


class Deserted(Forked):
    """One whose launcher is killed as soon as a state is whole: nobody ends its workers."""

    def poll(self) -> int | None:
        super().poll()
        return -signal.SIGKILL if any(complete(state, len(self.pids)) for state in self.folder.glob("state-*")) else None

    def stop(self) -> None:
        """It is dead."""


def until_saved(folder: Path, workers: int, seconds: float = 60.0) -> None:
    """Wait for a state to be whole: it is written while later steps run, and on a busy machine long after them."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not any(complete(state, workers) for state in folder.glob("state-*")):
        time.sleep(0.05)


def spread(
    op: Any,
    view: MemoryView,
    run: MemoryRun,
    workers: int,
    kill: tuple[int, int] | None = None,
    *,
    launcher: Launcher | None = None,
    patience: Patience = PATIENCE,
) -> MemoryView:
    """What `op` makes of `view` on so many workers; `run.scratch` must be a directory."""
    from safetensors.torch import save_file

    lock = os.open(run.scratch / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    state = run.scratch / "state.safetensors"
    if run.state is not None and run.state[1]:
        save_file(run.state[1], state)
    job = Job("none", op.name, {}, "none", "none", "main", run.id, run.seed, 1, workers, ".", str(run.scratch / "lock"))
    run.engine = SpreadEngine(f"torchrun:{workers}", launcher or Forked(op, view, run, kill), job, state, patience)
    try:
        return view.after(op.apply(view, run), adapter=op.output_kind() == "adapter")
    finally:
        os.close(lock)
        run.engine = None
