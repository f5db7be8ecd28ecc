"""A dry run that looks: what an operation shows of itself before anything is done (its `preview`), and nothing is kept of it.

The run that it is handed reads what is stored, computes the rest, and forgets it; it has no directory, no key and no state.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..ops.base import Operation
from ..registry.errors import MlcError
from ..registry.records import InputRecord, Json
from .artifacts import ArtifactStore
from .outcome import Outcome, Progress, Request
from .past import Past
from .runs import threads_here
from .targets import Target

if TYPE_CHECKING:
    import torch

    from ..ops.base import Plan
    from ..ops.engine.base import Engine
    from ..registry.repository import Repository
    from ..registry.view import ModelView


def rehearsed(repo: Repository, op: Operation, plan: Plan, target: Target, request: Request) -> Outcome:
    """The answer of a dry run: the plan, joined by what the operation's preview found."""
    notes = tuple(op.expects().notes)
    if type(op).preview is not Operation.preview:  # else nothing that computes is imported
        run = Rehearsal(repo, target, request.seed, threads_here(), request.progress)
        found = op.preview(repo.view(target.start), run)
        plan, notes = dataclasses.replace(plan, details={**plan.details, **found}), (*notes, *run.notes)
    return Outcome(branch=target.branch, plan=plan, warnings=notes)


@dataclass
class Rehearsal:
    """The `Run` of a preview (see ops/base.py): it keeps what it is told for as long as it lasts, and writes nothing."""

    repo: Repository
    target: Target
    seed: int
    threads: int  # as many as the run itself would use: the preview computes the same bits
    listener: Progress | None = None
    id: str = "preview"
    scratch: Path = Path(os.devnull)  # nothing can be put there
    notes: list[str] = field(default_factory=list)
    made: dict[tuple[str, str], bytes] = field(default_factory=dict)
    engine: Engine | None = None

    def progress(self, phase: str, done: int, total: int, **values: float) -> None:
        """Pass live progress on."""
        if self.listener is not None:
            self.listener(phase, done, total, **values)

    def note(self, text: str) -> None:
        """A warning of the dry run, once."""
        if text not in self.notes:
            self.notes.append(text)

    def record(self, key: str, value: Json) -> None:
        """There is no commit that would keep it."""

    def input(self, record: InputRecord) -> None:
        """There is no commit that would name it."""

    def artifact(self, kind: str, key: str, compute: Callable[[], bytes]) -> bytes:
        """What is kept, else computed for the length of this rehearsal."""
        if (kind, key) not in self.made:
            found = ArtifactStore(self.repo).find(kind, key)
            self.made[kind, key] = compute() if found is None else found[0]
        return self.made[kind, key]

    def kept(self, rev: str, kind: str) -> bytes | None:
        """The artifact of this kind that a commit keeps, or None."""
        records = self.repo.commit(self.repo.resolve(rev)).artifacts
        return next((self.repo.blob(record.digest) for record in records if record.kind == kind), None)

    def inherited(self, kind: str) -> bytes | None:
        """The artifact of this kind that the nearest version behind keeps, or None."""
        return next((data for _, data in Past(self.repo, self.target.start).kept(kind)), None)

    def pseudonym(self, data: bytes, *, scope: Literal["request", "registry"] = "request") -> str:
        """Never: to name something, a key would have to be made."""
        raise MlcError("a preview asked for a pseudonym, which a dry run cannot make")

    def version(self, rev: str) -> ModelView:
        """Another version. Raises RefNotFound or AmbiguousId."""
        return self.repo.view(self.repo.resolve(rev))

    def save_state(self, step: int, tensors: dict[str, torch.Tensor], meta: dict[str, Json]) -> None:
        """There is nothing to resume."""

    def load_state(self) -> tuple[int, dict[str, torch.Tensor], dict[str, Json]] | None:
        """Never one."""
        return None
