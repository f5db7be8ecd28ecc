"""The training loop on this machine: AdamW, clipping, accumulation, autocast, and a state that can be picked up after a kill.

Same module, rows, settings and thread count give the same bits, and so does a run that was stopped and resumed: what is read and at
which rate is a function of the step, and parameters, moments and generator state are saved as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..base import Diverged
from .base import Engine, Masks, Outcome, State, TrainSettings, Work
from .documents import logits_of
from .resuming import STABLE, check_same, gathered, slowed
from .saving import Saver
from .schedule import learning_rate, stable_steps

if TYPE_CHECKING:
    from ..data.mixing import Batch

POINTS = 100  # of the loss curve that is kept


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with `count` torch threads: sums are split by thread, so the count is part of what makes a run repeatable."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device() -> torch.device:
    """Where this engine computes: the first GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def placed(module: nn.Module) -> nn.Module:
    """The module, moved to where this engine computes."""
    return module.to(device())


def autocast(precision: str, where: torch.device) -> AbstractContextManager[Any]:
    """bf16 autocast, or nothing for fp32. Parameters and moments stay fp32 either way."""
    return torch.autocast(where.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


class LocalEngine(Engine):
    """The engine `local`."""

    def perform(self, work: Work) -> Outcome:
        """Train in place, on this machine's device."""
        where = device()
        placed(work.module)
        with threads(work.settings.threads), torch.random.fork_rng(devices=[where.index or 0] if where.type == "cuda" else []):
            torch.manual_seed(work.settings.seed)
            return _Loop(work, where).run_all()


def adamw(parameters: Collection[nn.Parameter], s: TrainSettings) -> torch.optim.AdamW:
    """The optimizer of every engine: norms and biases are never pulled towards zero."""
    decayed, others = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": s.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=s.lr, betas=s.betas)


def broken(what: str, step: int, s: TrainSettings) -> Diverged:
    """The error of a step, counted from 0, whose loss or gradient is no number."""
    sentence = f"the {what} is no longer a number at step {step + 1} of {s.steps}"
    return Diverged(sentence, hint=f"try --lr {s.lr / 4:.2g}", step=step + 1)


class _Loop:
    def __init__(self, work: Work, where: torch.device) -> None:
        self.module, self.rows, self.s, self.run, self.where = work.module, work.rows, work.settings, work.run, where
        self.objective, self.attached, self.start, self.watch = work.objective, work.attached, work.start, work.watch
        self.trained = work.trained
        self.optimizer = adamw(self.trained.values(), self.s)
        self.frozen = Frozen(self.trained, work.masks, where)
        self.losses: list[float] = []
        self.digest, self.read = self.rows.digest(), work.read
        self.stable_at = stable_steps(self.s) if self.s.keep_stable else None
        self.stable: State | None = None
        self.saver = Saver(self.run.save_state)

    def run_all(self) -> Outcome:
        try:
            return self._run_all()
        finally:
            self.saver.join()

    def _run_all(self) -> Outcome:
        start = self._restore()
        self.module.train(self.s.dropout)
        began, per_step, done = time.perf_counter(), self.s.grad_accum * self.rows.batch_tokens, start
        for step in range(start, self.s.steps):
            rate = learning_rate(step, self.s)
            drawn = torch.get_rng_state()
            try:
                self.losses.append(self._step(step, rate))
            except Diverged as fault:
                if step and self.s.save_every:  # before the first step nothing is lost
                    self._save(step, drawn)
                    fault.details["saved"] = step
                raise
            done = step + 1
            if done == self.stable_at:
                self.stable = State(done, _copies(self._tensors(torch.get_rng_state())), self._meta(done, rate))
            speed = (done - start) * per_step / max(time.perf_counter() - began, 1e-9)
            enough = self.watch is not None and self.watch(done)
            if not enough and done < self.s.steps and self.s.save_every and done % self.s.save_every == 0:
                self._save(done)
            self.run.progress("train", done, self.s.steps, loss=self.losses[-1], lr=rate, tokens_per_second=speed)
            if enough:
                break
        for rider in self.attached:
            rider.finish(self.module)
        self.frozen.restore()
        self.module.eval()
        return Outcome(done, done * per_step, curve(self.losses), start, self.stable)

    def _step(self, step: int, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in range(self.s.grad_accum):
            batch = self.rows.at(self.read + step * self.s.grad_accum + part)
            with autocast(self.s.precision, self.where):
                loss = self.objective(self.module, batch.to(self.where)) / self.s.grad_accum
            loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise broken("loss", step, self.s)
        if self.s.clip > 0 and not nn.utils.clip_grad_norm_(self.trained.values(), self.s.clip).isfinite():
            raise broken("gradient", step, self.s)  # scaled by it, every weight would become NaN
        self.frozen.still()
        self.optimizer.step()
        if self.s.weight_decay > 0:  # decoupled decay shrinks what has no gradient, too
            self.frozen.restore()
        for rider in self.attached:
            for name in rider.after_step(self.module, step + 1) or ():
                self.optimizer.state.pop(self.trained[name], None)
        return total

    # --- a state that survives a kill ---

    def _tensors(self, rng: Tensor) -> dict[str, Tensor]:
        """Parameters, moments and generator: live ones, to be copied or written at once."""
        tensors: dict[str, Tensor] = {"rng": rng}
        for name, parameter in self.trained.items():
            tensors[f"param.{name}"] = parameter.detach()
            if moments := self.optimizer.state.get(parameter):  # none where no gradient has come by
                tensors[f"m.{name}"], tensors[f"v.{name}"] = moments["exp_avg"], moments["exp_avg_sq"]
                tensors[f"t.{name}"] = moments["step"]  # its own count: fewer where gradients came late or moments were dropped
        return tensors

    def _meta(self, step: int, rate: float) -> dict[str, Any]:
        return {"rows": self.digest, "batches": self.read + step * self.s.grad_accum, "rate": rate}

    def _save(self, step: int, rng: Tensor | None = None) -> None:
        tensors = self._tensors(torch.get_rng_state() if rng is None else rng)
        for number, rider in enumerate(self.attached):
            tensors |= {f"attached.{number}.{name}": tensor for name, tensor in rider.state().items()}
        meta: dict[str, Any] = {"losses": self.losses, "rows": self.digest, "slow": slowed(self.s, step)}
        if self.stable is not None:
            tensors |= {f"{STABLE}{name}": tensor for name, tensor in self.stable.tensors.items()}
            meta["stable"] = [self.stable.step, self.stable.meta]
        self.saver.save(step, tensors, meta)

    def _restore(self) -> int:
        state = self.run.load_state()
        if state is None:
            if self.start is not None:
                self._put(self.start.tensors)
            return 0
        check_same(state[2], state[0], self.digest, self.s)
        step, tensors, meta = gathered(state, self.run)
        if "stable" in meta:
            held = {name.removeprefix(STABLE): t for name, t in tensors.items() if name.startswith(STABLE)}
            self.stable = State(meta["stable"][0], held, meta["stable"][1])
        self._put(tensors)
        for number, rider in enumerate(self.attached):
            own = f"attached.{number}."
            rider.load({name.removeprefix(own): tensor for name, tensor in tensors.items() if name.startswith(own)})
        self.losses = list(meta["losses"])
        return step

    def _put(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[f"param.{name}"])
                if f"m.{name}" not in tensors:
                    continue
                self.optimizer.state[parameter] = {
                    "step": tensors[f"t.{name}"].to("cpu", copy=True),
                    "exp_avg": tensors[f"m.{name}"].to(self.where, copy=True),
                    "exp_avg_sq": tensors[f"v.{name}"].to(self.where, copy=True),
                }
        torch.set_rng_state(tensors["rng"].cpu())


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


class Frozen:
    """Elements that a mask holds still: no gradient reaches them, and their first bits are put back."""

    def __init__(self, trained: dict[str, nn.Parameter], masks: Masks, where: torch.device) -> None:
        self.held = [(p, ~masks[n].to(where), p.detach().clone()) for n, p in trained.items() if n in masks]

    def still(self) -> None:
        """After clipping, before the step: the norm that is clipped is that of the whole gradient."""
        for parameter, frozen, _ in self.held:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(frozen, 0.0)

    @torch.no_grad()
    def restore(self) -> None:
        """Every frozen element as it was when this object was made."""
        for parameter, frozen, first in self.held:
            parameter.copy_(torch.where(frozen, first, parameter))


def curve(losses: list[float]) -> tuple[tuple[int, float], ...]:
    """At most POINTS of (step, mean loss since the point before): what a commit keeps of a loss curve."""
    if not losses:
        return ()
    width = math.ceil(len(losses) / POINTS)
    parts = [losses[i : i + width] for i in range(0, len(losses), width)]
    return tuple((min((i + 1) * width, len(losses)), round(sum(p) / len(p), 6)) for i, p in enumerate(parts))


def language_loss(module: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the next token over ids int64 [batch, seq_len], in fp32."""
    return token_losses(module(input_ids=batch.ids, use_cache=False).logits, batch.ids).mean()


def token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy of every next token, fp32 [batch, seq_len - 1], from logits [batch, seq_len, vocabulary]."""
    flat = logits[:, :-1].float().flatten(0, 1)
    return nn.functional.cross_entropy(flat, ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)


def read_losses(module: nn.Module, ids: Tensor, begin: int | None = None) -> Tensor:
    """`token_losses` of rows int64 [n, seq_len] as an update reads them: `begin` names the id that begins each document, for models that
    `documents.reads_apart`; None: a row is one text."""
    return token_losses(logits_of(module, ids, (begin,) * len(ids)), ids)


@torch.no_grad()
def mean_loss(module: nn.Module, rows: Tensor, *, batch: int = 8, begin: int | None = None) -> float:
    """Mean next-token loss in nats over rows int64 [n, seq_len]; sums in fp64. `begin`: see `read_losses`."""
    module.eval()
    where = next(module.parameters()).device
    parts = (p.to(where) for p in rows.split(batch))
    sums = [read_losses(module, p, begin).double().sum().item() for p in parts]
    return sum(sums) / (rows.shape[0] * (rows.shape[1] - 1))
