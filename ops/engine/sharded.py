"""The training loop of one worker of many: parameters, gradients and moments cut by rows over all workers (FSDP2).

The curve is that of one process: batch numbers are a function of the step, each worker takes every Nth row of each micro-batch, its loss
counts by its share of the rows (a worker without a row takes one that counts nothing, for the others wait for it), gradients are summed,
and the norm that is clipped is that of the whole gradient. What differs is the order of sums, and what dropout draws.
Every worker saves its own rows, so that nothing is gathered anywhere: see `atoms`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...registry.errors import BadParameter
from ..base import Diverged
from .atoms import Atoms, Filed, Held, Pieces, write_pieces
from .base import Engine, Outcome, Work
from .job import Job
from .local import adamw, autocast, broken, device, threads
from .saving import Saver
from .schedule import learning_rate, stable_steps

Tell = Callable[..., None]


class Finished(Exception):
    """The work of a worker is done and its pieces are written: what the operation would do next is the conductor's."""


class ShardedEngine(Engine):
    """The engine inside a worker. `tell` passes facts to the conductor (worker 0 only speaks); never returns, see `Finished`."""

    def __init__(self, job: Job, folder: Path, tell: Tell) -> None:
        self.job, self.folder, self.tell = job, folder, tell

    def perform(self, work: Work) -> Outcome:
        """Train this worker's share and leave it in the job's folder. The conductor has refused what cannot be shared out."""
        where = device()
        work.module.to(where)
        with threads(self.job.own_threads):
            _Loop(self, work, where).run_all()
        raise Finished


class _Loop:
    def __init__(self, engine: ShardedEngine, work: Work, where: torch.device) -> None:
        self.job, self.folder, self.tell = engine.job, engine.folder, engine.tell
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.module, self.rows, self.s, self.where = work.module, work.rows, work.settings, where
        self.objective, self.start, self.read = work.objective, work.start, work.read
        shard(self.module, where, self.world)
        self.parameters = work.trained  # as they are now: cut
        self.spans = {n: span(p.shape[0], self.rank, self.world) for n, p in self.parameters.items()}
        self.shapes = {n: tuple(p.shape) for n, p in self.parameters.items()}
        # The optimizer sees plain tensors that share the memory of this worker's rows.
        self.own = {n: nn.Parameter(_local(p.detach())) for n, p in self.parameters.items()}
        self.optimizer = adamw(self.own.values(), self.s)
        masks = {n: ~work.masks[n][slice(*self.spans[n])].to(where) for n in self.own if n in work.masks}
        self.held = [(self.own[n], frozen, self.own[n].detach().clone()) for n, frozen in masks.items()]
        self.stable_at = stable_steps(self.s) if self.s.keep_stable else None
        self.saver = Saver(self._write)

    def run_all(self) -> None:
        begin = self._restore()
        self.module.train(self.s.dropout)
        try:
            self._steps(begin)
        finally:
            self.saver.join()
        tensors = {f"param.{n}": p.detach() for n, p in self.own.items()}
        write_pieces(self.folder / "result", self.rank, _on_cpu(tensors), self._rows(tensors))
        dist.barrier()

    def _steps(self, begin: int) -> None:
        began, per_step = time.perf_counter(), self.s.grad_accum * self.rows.batch_tokens
        for step in range(begin, self.s.steps):
            rate, drawn = learning_rate(step, self.s), torch.get_rng_state()
            try:
                loss = self._step(step, rate)
            except Diverged as fault:
                if step and self.s.save_every:
                    self._save(step, f"state-{step}", drawn)
                    self.saver.join()
                    fault.details["saved"] = step
                dist.barrier()  # or the first to end would take the others with it
                raise
            done = step + 1
            speed = (done - begin) * per_step / max(time.perf_counter() - began, 1e-9)
            self.tell(step=done, loss=loss, lr=rate, tokens_per_second=speed)
            if done == self.stable_at:
                self._save(done, "stable", torch.get_rng_state(), rate=rate)
            if done < self.s.steps and self.s.save_every and done % self.s.save_every == 0:
                self._save(done, f"state-{done}", torch.get_rng_state())

    def _step(self, step: int, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for parameter in self.parameters.values():
            parameter.grad = None
        total = torch.zeros((), dtype=torch.float64)
        for part in range(self.s.grad_accum):
            batch, share = shared(self.rows.at(self.read + step * self.s.grad_accum + part), self.rank, self.world)
            with autocast(self.s.precision, self.where):
                loss = self.objective(self.module, batch.to(self.where)) * (share / self.s.grad_accum)
            (loss * self.world).backward()  # the gradients that meet are averaged over the workers
            total += loss.item()
        loss_of_all = self._sum(total).item()
        if not math.isfinite(loss_of_all):
            raise broken("loss", step, self.s)
        for name, parameter in self.parameters.items():
            self.own[name].grad = None if parameter.grad is None else _local(parameter.grad)
        if self.s.clip > 0 and not math.isfinite(self._clip()):
            raise broken("gradient", step, self.s)
        for parameter, frozen, _ in self.held:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(frozen, 0.0)
        self.optimizer.step()
        with torch.no_grad():
            for parameter, frozen, first in self.held:
                parameter.copy_(torch.where(frozen, first, parameter))
        return loss_of_all

    def _clip(self) -> float:
        """Scale all gradients to a norm of at most `clip`, that of the whole model; returns the norm before."""
        gradients = [p.grad for p in self.own.values() if p.grad is not None]
        squares = [torch.linalg.vector_norm(g).double().cpu().square() for g in gradients if g.numel()]
        norm = math.sqrt(self._sum(torch.stack([*squares, torch.zeros((), dtype=torch.float64)]).sum()).item())
        if math.isfinite(norm) and norm > self.s.clip:
            for gradient in gradients:
                gradient.mul_(self.s.clip / (norm + 1e-6))
        return norm

    def _sum(self, value: Tensor) -> Tensor:
        """The sum over all workers of a scalar, fp64."""
        value = value.to(self.where)
        dist.all_reduce(value)
        return value

    # --- states ---

    def _save(self, step: int, name: str, rng: Tensor, **said: Any) -> None:
        tensors: dict[str, Tensor] = {f"rng.{self.rank}": rng}
        for parameter_name, parameter in self.own.items():
            tensors[f"param.{parameter_name}"] = parameter.detach()
            if moments := self.optimizer.state.get(parameter):
                tensors[f"m.{parameter_name}"] = moments["exp_avg"]
                tensors[f"v.{parameter_name}"] = moments["exp_avg_sq"]
                if self.rank == 0:
                    tensors[f"t.{parameter_name}"] = moments["step"]
        self.saver.save(step, tensors, {"name": name})
        self.tell(saving=name, at=step, batches=self.read + step * self.s.grad_accum, **said)

    def _write(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        write_pieces(self.folder / meta["name"], self.rank, tensors, self._rows(tensors))

    def _rows(self, tensors: dict[str, Tensor]) -> dict[str, tuple[int, int, tuple[int, ...]]]:
        """Which rows of which whole tensor each of these is."""
        found = {}
        for name in tensors:
            kind, _, parameter = name.partition(".")
            if kind in ("param", "m", "v"):
                found[name] = (*self.spans[parameter], self.shapes[parameter])
        return found

    def _restore(self) -> int:
        torch.manual_seed(self.s.seed + self.rank)
        state = self.job.state
        if not state:
            if self.start is not None:
                self._put(Held(self.start.tensors))
            return 0
        source: Atoms = Pieces(Path(state["pieces"])) if "pieces" in state else Filed(Path(state["file"]))
        torch.manual_seed((self.s.seed + self.rank) * 1_000_003 + state["step"])  # where no generator was saved for this worker
        self._put(source)
        return state["step"]

    def _put(self, source: Atoms) -> None:
        names = source.names()
        with torch.no_grad():
            for name, parameter in self.own.items():
                rows = self.spans[name]
                parameter.copy_(source.rows(f"param.{name}", *rows))
                if f"m.{name}" in names:
                    self.optimizer.state[parameter] = {
                        "step": source.whole(f"t.{name}").clone(),
                        "exp_avg": source.rows(f"m.{name}", *rows).to(self.where, copy=True),
                        "exp_avg_sq": source.rows(f"v.{name}", *rows).to(self.where, copy=True),
                    }
        mine = "rng" if self.rank == 0 and "rng" in names else f"rng.{self.rank}"
        if mine in names:
            torch.set_rng_state(source.whole(mine))


def shard(module: nn.Module, where: torch.device, world: int) -> None:
    """Cut all parameters by rows, block by block, in place. Raises BadParameter for one without rows."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if scalar := next((n for n, p in module.named_parameters() if not p.dim()), None):
        raise BadParameter(f"{scalar} is a single number, which cannot be shared out", hint="--engine local")
    mesh = init_device_mesh(where.type, (world,))
    for blocks in [m for m in module.modules() if isinstance(m, nn.ModuleList)]:
        for block in blocks:
            if any(True for _ in block.parameters()) and not any(isinstance(m, nn.ModuleList) for m in block.modules()):
                fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def span(rows: int, rank: int, world: int) -> tuple[int, int]:
    """(first row, last row) of a worker: equal shares from the top, the last ones shorter or empty."""
    share = -(-rows // world)
    return min(rows, rank * share), min(rows, (rank + 1) * share)


def shared(batch: Any, rank: int, world: int) -> tuple[Any, float]:
    """Every `world`-th row of a batch, and its share of all rows. A worker without a row gets the first one, with a share of 0.

    Every field of the batch that has as many entries as there are rows is cut.
    """
    if not dataclasses.is_dataclass(batch) or isinstance(batch, type):
        raise BadParameter("batches of this kind cannot be shared out over workers", hint="--engine local")
    count = len(batch.ids)  # type: ignore[attr-defined]
    mine = slice(rank, None, world) if rank < count else slice(0, 1)
    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    cut = {name: value[mine] for name, value in values.items() if hasattr(value, "__len__") and len(value) == count}
    return dataclasses.replace(batch, **cut), len(range(rank, count, world)) / count


def _local(tensor: Any) -> Tensor:
    """This worker's rows of a sharded tensor: its own memory."""
    return tensor.to_local()


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
