"""Which engine a run is carried out by. The choice is no parameter of the operation: it says where the work runs, not what it is."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..registry.errors import BadParameter, NeedsExtra

if TYPE_CHECKING:
    from ..ops.base import Operation
    from ..ops.engine.base import Engine
    from ..ops.engine.job import Launcher
    from ..registry.records import Json
    from ..registry.repository import Repository
    from .runs import ActiveRun
    from .settings import Waiting
    from .targets import Target

Kind = Literal["local", "torchrun", "ray", "slurm"]
KINDS: tuple[Kind, ...] = ("local", "torchrun", "ray", "slurm")
ENTRY = "mlc.policies.worker"
MOST = 4096  # workers
EXTRAS = {"ray": ("ray", "Ray"), "slurm": ("submitit", "submitit")}  # module and name; the extra is called as the engine


@dataclass(frozen=True, slots=True)
class Choice:
    """What `--engine` says."""

    kind: Kind = "local"
    workers: int = 1

    def __str__(self) -> str:
        return self.kind if self.kind == "local" else f"{self.kind}:{self.workers}"

    def facts(self) -> dict[str, Json]:
        """For the environment of a commit; nothing for this process alone."""
        return {} if self.kind == "local" else {"engine": self.kind, "workers": self.workers}


def parse_engine(word: str) -> Choice:
    """`local`, `torchrun:N`, `ray:N`, `slurm` or `slurm:N`. Raises BadParameter."""
    hint = "local, torchrun:2, ray:2 or slurm:2"
    name, colon, count = word.partition(":")
    kind: Kind | None = next((k for k in KINDS if k == name), None)
    if kind is None or (kind == "local" and colon) or (kind in ("torchrun", "ray") and not colon):
        raise BadParameter(f"--engine is local, torchrun:N, ray:N or slurm, not {word!r}", hint=hint)
    if colon and not (count.isascii() and count.isdigit() and 1 <= int(count) <= MOST):
        raise BadParameter(f"--engine {kind}:N needs a number of workers from 1 to {MOST}, not {count!r}", hint=hint)
    return Choice(kind, int(count) if colon else 1)


def chosen(word: str | None, op: Operation) -> Choice:
    """What `--engine` says, `local` when it says nothing. To be asked before a run is begun or taken up.

    Raises BadParameter when the operation cannot be shared out, NeedsExtra when what starts its workers is not installed.
    """
    choice = parse_engine(word or "local")
    if choice.kind != "local" and (reason := op.alone()):
        raise BadParameter(f"--engine {choice}: {reason}", hint="--engine local")
    module, name = EXTRAS.get(choice.kind, ("", ""))
    if module and find_spec(module) is None:
        raise NeedsExtra(f"--engine {choice} needs {name}, which is not installed", hint=f'pip install "mlc-registry[{choice.kind}]"')
    return choice


def engaged(
    choice: Choice, repo: Repository, op: Operation, params: dict[str, Json], target: Target, active: ActiveRun, waiting: Waiting
) -> Engine | None:
    """The engine that trains in other processes; None for this one. `waiting`: how long it waits for them."""
    if choice.kind == "local":
        return None
    from ..ops.engine.job import Job, Patience
    from ..ops.engine.spread import SpreadEngine
    from .runs import LOCK, STATE

    job = Job(
        entry=ENTRY,
        op=op.name,
        params=params,
        registry=str(repo.path.absolute()),
        start=target.start,
        branch=target.branch,
        run=active.id,
        seed=active.seed,
        threads=active.threads,
        workers=choice.workers,
        directory=str(Path.cwd()),
        lock=str((active.place / LOCK).absolute()),
    )
    patience = Patience(waiting.start, waiting.queue, waiting.silence)
    active.scratch = active.scratch.absolute()  # workers may stand elsewhere
    return SpreadEngine(str(choice), launcher(choice), job, (active.place / STATE).absolute(), patience)


def launcher(choice: Choice) -> Launcher:
    """What starts the workers."""
    if choice.kind == "torchrun":
        from ..ops.engine.torchrun import Torchrun

        return Torchrun()
    if choice.kind == "ray":
        from ..ops.engine.rayed import Ray

        return Ray()
    from ..ops.engine.slurm import Slurm

    return Slurm()
