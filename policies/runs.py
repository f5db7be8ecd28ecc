"""What an operation has while it runs: scratch, resumable state, kept artifacts, notes. Lives in `.mlc/runs/<id>`.

A run directory holds `run.json` (what was asked), `state.safetensors` (the last saved state), `scratch/`, and `lock`,
which is held while the run is under way; the kernel frees it when the process dies, so an unfinished run whose lock is
free is one that can be resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..registry import fs
from ..registry.errors import CorruptRecord, Locked, NotFound
from ..registry.ids import CommitId
from ..registry.journal import utc_now
from ..registry.keys import REGISTRY, request_scope
from ..registry.locks import is_held
from ..registry.records import ArtifactRecord, InputRecord, Json, canonical
from .artifacts import ArtifactStore
from .past import Past

if TYPE_CHECKING:
    import torch

    from ..ops.engine.base import Engine
    from ..registry.repository import Repository
    from ..registry.view import ModelView
    from .outcome import Progress

STATE = "state.safetensors"
LOCK = "lock"
TRIES = 4  # at a lock that others may hold for an instant


class RunNotFound(NotFound):
    """No unfinished run answers to this name."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What was asked of a run. `params` are the operation's fields as it takes them back."""

    id: str
    op: str
    params: dict[str, Json]
    start: CommitId
    branch: str
    old: CommitId | None
    seed: int
    author: str
    message: str
    started: str
    engine: str = "local"  # where it was to run; a resumed run may be given another
    step: int | None = None  # of the last saved state
    active: bool = False  # a process is working on it now

    @property
    def txid(self) -> str:
        """The transaction that records the result: the same for every attempt, so that it is recorded once."""
        return f"run-{self.id}"


class Runs:
    """The unfinished runs of one repository."""

    def __init__(self, repo: Repository) -> None:
        self.repo = repo
        self.path = repo.path / "runs"

    def list(self) -> list[RunInfo]:
        """Unfinished runs, the latest first."""
        if not self.path.is_dir():
            return []
        names = sorted((p.name for p in self.path.iterdir() if (p / "run.json").is_file()), reverse=True)
        return [self.info(name) for name in names]

    def info(self, run_id: str) -> RunInfo:
        """What was asked of one run. Raises RunNotFound, CorruptRecord."""
        place = self.path / run_id / "run.json"
        try:
            info = RunInfo(**json.loads(place.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise RunNotFound(f"there is no unfinished run {run_id}", hint="mlc runs") from None
        except (ValueError, TypeError) as fault:
            raise CorruptRecord(f"{place.name} of run {run_id} cannot be read: {fault}", hint=f"rm -r {place.parent}") from fault
        state = _read_state_meta(place.parent / STATE)
        return dataclasses.replace(info, step=state[0] if state else None, active=is_held(place.parent / LOCK))

    def find(self, run_id: str | None, op: str | None = None) -> RunInfo:
        """The run of this id (a unique prefix will do), or the latest resumable one of an operation. Raises RunNotFound."""
        runs = [run for run in self.list() if op is None or run.op == op]
        if run_id:
            runs = [run for run in runs if run.id.startswith(run_id)]
            if len(runs) > 1:
                raise RunNotFound(f"{run_id} fits {len(runs)} runs", hint=", ".join(run.id for run in runs))
        runs = [run for run in runs if not run.active] or runs
        if not runs:
            raise RunNotFound(f"there is no unfinished run{f' {run_id}' if run_id else ''} to resume", hint="mlc runs")
        return runs[0]

    @contextlib.contextmanager
    def begin(self, info: RunInfo | None = None, **asked: Json) -> Iterator[ActiveRun]:
        """Start a run, or take up an unfinished one; holds its lock meanwhile. Raises Locked when somebody works on it.

        The directory stays when the block raises (the caller decides what is over: `ActiveRun.finish`).
        """
        if info is None:
            info = RunInfo(id=_new_id(), started=utc_now(), **asked)  # type: ignore[arg-type]
            place = self.path / info.id
            with fs.faults_in_words(self.path):
                fs.make_dir(place / "scratch")
                fs.replace_text(place / "run.json", canonical(_asked(info)).decode())
        place = self.path / info.id
        lock = os.open(place / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            _take(lock, info.id)
            yield ActiveRun(info, place, ArtifactStore(self.repo), info.id, info.seed, threads_here(), place / "scratch")
        finally:
            os.close(lock)

    def amended(self, info: RunInfo, params: dict[str, Json]) -> RunInfo:
        """The run, asked for with these parameters from now on."""
        info = dataclasses.replace(info, params=params)
        place = self.path / info.id
        with fs.faults_in_words(place):
            fs.replace_text(place / "run.json", canonical(_asked(info)).decode())
        return info

    def forget(self, run_id: str) -> None:
        """Remove a run's directory and its key. A run that was recorded, but died before it could say so, keeps its key."""
        repo = self.repo
        if repo.journal.find(f"run-{run_id}", "commit") is None:
            repo.keys.destroy(request_scope(run_id))
        fs.remove_tree(self.path / run_id)


@dataclass
class ActiveRun:
    """The `Run` that an operation is handed (see ops/base.py for what each method promises)."""

    info: RunInfo
    place: Path
    store: ArtifactStore
    id: str
    seed: int
    threads: int
    scratch: Path
    listener: Progress | None = None
    engine: Engine | None = None
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Json] = field(default_factory=dict)
    inputs: list[InputRecord] = field(default_factory=list)
    artifacts: list[ArtifactRecord] = field(default_factory=list)

    def progress(self, phase: str, done: int, total: int, **values: float) -> None:
        """Pass live progress on."""
        if self.listener is not None:
            self.listener(phase, done, total, **values)

    def note(self, text: str) -> None:
        """Keep a warning, once."""
        if text not in self.notes:
            self.notes.append(text)

    def record(self, key: str, value: Json) -> None:
        """Keep a fact for the commit's `check`."""
        self.facts[key] = value

    def input(self, record: InputRecord) -> None:
        """Declare something that was read, once."""
        if record not in self.inputs:
            self.inputs.append(record)

    def artifact(self, kind: str, key: str, compute: Callable[[], bytes]) -> bytes:
        """The kept artifact, computed when absent."""
        data, record = self.store.get(kind, key, compute)
        if record not in self.artifacts:
            self.artifacts.append(record)
        return data

    def kept(self, rev: str, kind: str) -> bytes | None:
        """The artifact of this kind that a commit keeps, or None. Raises RefNotFound, AmbiguousId, MissingObject."""
        repo = self.store.repo
        records = repo.commit(repo.resolve(rev)).artifacts
        self.store.adopt(records)
        return next((repo.blob(record.digest) for record in records if record.kind == kind), None)

    def inherited(self, kind: str) -> bytes | None:
        """The artifact of this kind that the nearest version behind keeps, or None."""
        return next((data for _, data in Past(self.store.repo, self.info.start).kept(kind)), None)

    def pseudonym(self, data: bytes, *, scope: Literal["request", "registry"] = "request") -> str:
        """A keyed digest that stands for `data`, under this run's own key or the registry's."""
        return self.store.repo.keys.pseudonym(REGISTRY if scope == "registry" else request_scope(self.id), data)

    def version(self, rev: str) -> ModelView:
        """Another version; recorded among the inputs. Raises RefNotFound or AmbiguousId."""
        commit_id = self.store.repo.resolve(rev)
        self.input(InputRecord("commit", rev, commit_id, 0))
        return self.store.repo.view(commit_id)

    def save_state(self, step: int, tensors: dict[str, torch.Tensor], meta: dict[str, Json]) -> None:
        """Write the state beside the old one, make it durable, put it in the old one's place."""
        from safetensors.torch import save_file

        fresh = self.place / f".{STATE}.tmp"
        said = {"step": step, "meta": meta, "notes": self.notes, "facts": self.facts, "inputs": [i.to_json() for i in self.inputs]}
        with fs.faults_in_words(self.place):
            save_file(_separate(tensors), fresh, metadata={"mlc": canonical(said).decode()})
            with fresh.open("rb+") as file:
                fs.fsync_file(file.fileno())
            fs.rename(fresh, self.place / STATE)
            fs.fsync_dir(self.place)

    def load_state(self) -> tuple[int, dict[str, torch.Tensor], dict[str, Json]] | None:
        """The last state; what the run had noted by then comes back with it. Raises CorruptRecord."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        found = _read_state_meta(self.place / STATE)
        if found is None:
            return None
        step, said = found
        try:
            tensors = load_file(self.place / STATE)
        except SafetensorError as fault:
            raise CorruptRecord(f"the saved state of run {self.id} is damaged: {fault}", hint=f"rm {self.place / STATE}") from fault
        self.notes += [text for text in said["notes"] if text not in self.notes]
        self.facts = {**said["facts"], **self.facts}
        for entry in said["inputs"]:
            self.input(InputRecord.from_json(entry))
        return step, tensors, said["meta"]

    def finish(self, *, committed: bool = False) -> None:
        """The run is over. Without a commit its key goes too: nothing that history keeps was made with it."""
        if not committed:
            self.store.repo.keys.destroy(request_scope(self.id))
        fs.remove_tree(self.place)


def threads_here() -> int:
    """How many threads torch uses here: part of what makes a run repeatable."""
    import torch

    return torch.get_num_threads()


def _new_id() -> str:
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _asked(info: RunInfo) -> dict[str, Json]:
    names = ("id", "op", "params", "start", "branch", "old", "seed", "author", "message", "started", "engine")
    return {name: getattr(info, name) for name in names}


def _take(lock: int, run_id: str) -> None:
    """Whoever asks whether somebody works on a run holds its lock for an instant: a worker whose conductor was killed, `mlc runs`."""
    for waited in range(TRIES):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.05 if waited < TRIES - 1 else 0)
    raise Locked(f"run {run_id} is being worked on by another process", hint="mlc runs")


def _read_state_meta(path: Path) -> tuple[int, dict[str, Json]] | None:
    """(step, what was said) from the header of a state file; None when there is no file or no whole one."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        said = json.loads(header["__metadata__"]["mlc"])
        return int(said["step"]), said
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _separate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors on the CPU that share no memory: the format has no aliases."""
    seen: set[int] = set()
    apart: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        if plain.untyped_storage().data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        apart[name] = plain
    return apart
