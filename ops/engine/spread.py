"""The engine of the conductor when several processes train: it starts them, passes on what they say, and takes over what they wrote.

The conductor stays the only writer: a state becomes the run's when every worker has written its share and the conductor has said so
(`run.save_state` of a state that only names the folder). The trained weights are put together one tensor at a time into a file that the
module's parameters are then mapped on, so that they are never all in memory.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...registry import errors
from ...registry.errors import BadParameter, MlcError
from ..base import Diverged
from .atoms import Atoms, Pieces, complete
from .base import Engine, Outcome, State, Work
from .job import OVER, Handle, Job, Launcher, Patience, Tail, WorkersFailed, first_words, killed
from .local import curve
from .presence import Presence, end
from .resuming import FOLDER, STABLE, STABLE_FOLDER, check_same, folder_of, slowed, whole, without_stable

LOOK = 0.05  # seconds between looks at what the workers say
LAST = 20.0  # seconds that what started the workers has to end, once their work is there
ALIGNED = 64  # bytes


class SpreadEngine(Engine):
    """Trains `job.op` by `launcher` on `job.workers` processes.

    name: what `--engine` was given. state: the file of the run's saved state. patience: how long is waited for workers.
    """

    def __init__(self, name: str, launcher: Launcher, job: Job, state: Path, patience: Patience) -> None:
        self.name, self.launcher, self.job, self.state = name, launcher, job, state
        self.patience = patience

    def perform(self, work: Work) -> Outcome:
        """See `Engine`. The workers build module, rows, objective and masks again by themselves, from the operation.

        Raises BadParameter for a watch, or something attached that has a say before the end; WorkersFailed.
        """
        if work.watch is not None or not all(getattr(rider, "at_end", False) for rider in work.attached):
            raise BadParameter(f"--engine {self.name} cannot look at the whole model between steps", hint="--engine local")
        attempt, trained = _Attempt(self, work), work.trained
        for parameter in trained.values():
            parameter.data = parameter.data.new_empty(0).cpu()  # the workers have them
        attempt.carry_out()
        land(trained, Pieces(attempt.folder / "result"), attempt.folder / "trained")
        for rider in work.attached:
            rider.finish(work.module)
        work.module.eval()
        done = work.settings.steps
        tokens = done * work.settings.grad_accum * work.rows.batch_tokens
        return Outcome(done, tokens, curve(attempt.losses), attempt.resumed_at, attempt.stable_state())


class _Attempt:
    """One start of the workers, until they have ended."""

    def __init__(self, engine: SpreadEngine, work: Work) -> None:
        self.engine, self.settings, self.run, self.digest = engine, work.settings, work.run, work.rows.digest()
        self.losses: list[float] = []
        self.resumed_at = 0
        self.pending: list[dict[str, Any]] = []  # states that are being written
        self.stable: tuple[int, dict[str, Any]] | None = None
        self.stable_in: str | None = None  # folder below scratch, or None: in `stable_held`
        self.stable_held: dict[str, Tensor] = {}
        self.saved: int | None = None
        before = [int(p.name.partition("-")[2]) for p in self.run.scratch.glob("attempt-*")]
        self.name = f"attempt-{max(before, default=0) + 1}"
        self.folder = self.run.scratch / self.name
        self.from_state = self._resumed()

    def carry_out(self) -> None:
        """Start, follow, end. Raises what a worker raised, or WorkersFailed. Nobody on this machine works on it afterwards."""
        for before in self.run.scratch.glob("attempt-*"):
            end(before)  # whoever conducted it was killed: its workers may not have seen that yet
        self.folder.mkdir(parents=True)
        job = replace(self.engine.job, state=self.from_state)
        tail = Tail(self.folder / "progress.jsonl")
        presence = Presence(self.folder, job.workers, self.engine.patience)
        handle = self.engine.launcher.start(job, job.write(self.folder))
        try:
            reason = self._followed(handle, tail, presence)
        finally:
            (self.folder / OVER).touch()
            handle.stop()
            end(self.folder)
        self._follow(tail)
        if fault := self._fault():
            raise fault
        if not complete(self.folder / "result", job.workers):
            raise self._failed(reason or first_words(handle.words()), presence.came)

    def _followed(self, handle: Handle, tail: Tail, presence: Presence) -> str:
        """Follow the workers until they have ended; why it was no use to wait any longer, or what became of them, "" when they say it."""
        done = 0.0
        while (code := handle.poll()) is None:
            self._follow(tail)
            if complete(self.folder / "result", self.engine.job.workers):
                done = done or time.monotonic()
                if time.monotonic() - done > LAST:
                    return ""  # what started them does not see it: their work is there
            elif reason := presence.fault(handle.queued):
                return reason
            time.sleep(LOOK)
        return killed(code) if code < 0 else ""

    # --- what they say ---

    def _follow(self, tail: Tail) -> None:
        for said in tail.new():
            if "step" in said:
                self.losses.append(said["loss"])
                shown = {key: said[key] for key in ("loss", "lr", "tokens_per_second")}
                self.run.progress("train", said["step"], self.settings.steps, **shown)
            elif "saving" in said:
                self.pending.append(said)
        while self.pending and complete(self.folder / self.pending[0]["saving"], self.engine.job.workers):
            self._written(self.pending.pop(0))

    def _written(self, said: dict[str, Any]) -> None:
        """All workers have written a state: now it is the run's."""
        step, name = said["at"], said["saving"]
        if name == "stable":
            self.stable = (step, {"rows": self.digest, "batches": said["batches"], "rate": said["rate"]})
            self.stable_in = f"{self.name}/{name}"
            return
        meta: dict[str, Any] = {
            "losses": self.losses[:step],
            "rows": self.digest,
            "slow": slowed(self.settings, step),
            FOLDER: f"{self.name}/{name}",
        }
        if self.stable is not None:
            meta["stable"] = list(self.stable)
            if self.stable_in is not None:
                meta[STABLE_FOLDER] = self.stable_in
        self.run.save_state(step, {f"{STABLE}{n}": t for n, t in self.stable_held.items()}, meta)
        self.saved = step
        self._sweep({self.name, *((self.stable_in or "").split("/")[:1])}, name)

    def _sweep(self, attempts: set[str], state: str) -> None:
        """Remove what no state names any more."""
        for old in [p for p in self.run.scratch.glob("attempt-*") if p.name not in attempts]:
            shutil.rmtree(old, ignore_errors=True)
        for old in [p for p in self.folder.glob("state-*") if p.name != state and p.name not in {w["saving"] for w in self.pending}]:
            if int(old.name.partition("-")[2]) < int(state.partition("-")[2]):
                shutil.rmtree(old, ignore_errors=True)

    # --- where they begin ---

    def _resumed(self) -> dict[str, Any]:
        state = self.run.load_state()
        if state is None:
            return {}
        step, tensors, meta = state
        check_same(meta, step, self.digest, self.settings)
        self.losses, self.resumed_at, self.saved = list(meta["losses"]), step, step
        if "stable" in meta:
            self.stable, self.stable_in = (meta["stable"][0], meta["stable"][1]), meta.get(STABLE_FOLDER)
            self.stable_held = without_stable(tensors)[1]
        if FOLDER in meta:
            folder_of(self.run, meta[FOLDER])
            return {"step": step, "pieces": str(self.run.scratch / meta[FOLDER])}
        return {"step": step, "file": str(self.engine.state)}

    def stable_state(self) -> State | None:
        """The state before the rate fell, whole: an artifact of the version."""
        if self.stable is None:
            return None
        tensors = self.stable_held if self.stable_in is None else whole(folder_of(self.run, self.stable_in))
        return State(self.stable[0], tensors, self.stable[1])

    # --- how it ended ---

    def _fault(self) -> MlcError | None:
        """The error of a worker in its own words, of the first one that has any."""
        for path in sorted(self.folder.glob("fault-*.json")):
            said = json.loads(path.read_text(encoding="utf-8"))
            kind = Diverged if said["kind"] == "Diverged" else getattr(errors, said["kind"], WorkersFailed)
            return kind(said["message"], hint=said["hint"], **said["details"])
        return None

    def _failed(self, reason: str, came: bool) -> WorkersFailed:
        workers = f"the {self.engine.job.workers} workers of --engine {self.engine.name}"
        done = len(self.losses)
        if done == self.resumed_at and not came:
            return WorkersFailed(f"{workers} could not start: {reason}", hint=f"mlc update --resume {self.run.id} --engine local")
        kept = f"the state after step {self.saved} is kept" if self.saved else "no state was saved yet"
        hint = f"mlc update --resume {self.run.id}, or with another --engine"
        return WorkersFailed(f"{workers} ended after step {done} of {self.settings.steps}: {reason}; {kept}", hint=hint, run=self.run.id)


def land(parameters: dict[str, nn.Parameter], atoms: Atoms, file: Path) -> None:
    """Write `param.NAME` of every name to a file, one tensor at a time, and map the parameters on it (changes to them stay private)."""
    places: dict[str, tuple[int, torch.Size]] = {}
    with file.open("wb") as out:
        for name in parameters:
            tensor = atoms.whole(f"param.{name}").contiguous()
            out.write(b"\0" * (-out.tell() % ALIGNED))
            places[name] = (out.tell(), tensor.shape)
            out.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        size = out.tell()
    if not size:
        return
    flat = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)
    for name, parameter in parameters.items():
        at, shape = places[name]
        parameter.data = flat[at : at + shape.numel() * parameter.element_size()].view(parameter.dtype).view(shape)
