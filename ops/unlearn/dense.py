"""Method `dense`: train every weight with an objective. `train` is shared with `wagle`, which holds some of them still."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...registry.ids import record_digest
from ..engine import LocalEngine, Masks, Outcome, TrainSettings, Watch
from .draws import FORGET, RETAIN, TEXT, Draws
from .objectives import Objective
from .rates import STEPS, WARMUP, usual_rate
from .strength import search

if TYPE_CHECKING:
    from ..base import Run
    from .context import Context

TEXT_SHARE = 4  # one row of plain text for every so many records to forget


def apply(ctx: Context) -> dict[str, Tensor]:
    """The trained parameters."""
    return trained(ctx, None)


def trained(ctx: Context, masks: Masks | None) -> dict[str, Tensor]:
    """Train at the strength that was asked for, or search for one; the parameters that were trained."""
    trainer = Trainer(ctx, Objective(ctx), masks)
    if ctx.op.amount is None:
        return search(ctx, trainer)
    rate = trainer.usual * ctx.op.amount
    outcome = trainer.run(rate, trainer.draws(), ctx.run)
    ctx.facts.update({"strength": ctx.op.amount, "lr": rate, "steps": outcome.steps, "curve": [list(point) for point in outcome.curve]})
    return trainer.values()


@dataclass
class Trainer:
    """Everything of a training run but its rate and its rows; every run starts from the start weights."""

    ctx: Context
    objective: Objective
    masks: Masks | None

    def __post_init__(self) -> None:
        op = self.ctx.op
        self.steps = op.steps or STEPS
        weights = sum(p.numel() for p in self.ctx.parameters.values())
        self.usual = op.lr if op.lr is not None else usual_rate(weights, op.keep_ratio if op.method == "wagle" else 1.0)
        self.start = {name: p.detach().clone() for name, p in self._moving().items()}

    def draws(self, spare: Sequence[int] = ()) -> Draws:
        """The rows of every step. `spare`: retain rows that are measured and never trained on."""
        ctx, op, left_out = self.ctx, self.ctx.op, set(spare)
        sources: dict[str, Sequence[int]] = {FORGET: ctx.forget.everything}
        lengths = list(ctx.forget.rows.lengths)
        if ctx.retain is not None and op.retain_weight:
            for name, pairs in ((RETAIN, True), (TEXT, False)):
                sources[name] = [i for i in ctx.retain.rows.of(pairs=pairs) if i not in left_out]
            lengths += ctx.retain.rows.lengths
        counts = {FORGET: op.batch, RETAIN: op.batch, TEXT: max(1, op.batch // TEXT_SHARE)}
        # It goes into the saved state, hence the forget set by its keyed digest: a plain one of short texts can be guessed.
        read = record_digest("mlc.read.v1", f"{ctx.run.pseudonym(ctx.forget.items.payload)}/{ctx.retain_digest}".encode())
        return Draws(sources, counts, tokens=sum(lengths) / len(lengths), seed=ctx.run.seed, read=read)

    def run(self, rate: float, draws: Draws, run: Run, watch: Watch | None = None) -> Outcome:
        """Train the context's module from the start weights. Raises CheckFailed when loss or gradient is no longer a number."""
        op = self.ctx.op
        self.put(self.start)
        settings = TrainSettings(
            steps=self.steps,
            lr=rate,
            warmup=min(WARMUP, math.ceil(self.steps / 10)),
            decay="wsd",  # forgetting is slow to start: a rate that falls from the beginning ended at three times the recall
            betas=(0.9, 0.999),
            weight_decay=op.weight_decay,
            clip=op.clip,
            save_every=op.save_every,
            seed=self.ctx.run.seed,
            threads=self.ctx.run.threads,
            dropout=False,  # a row's loss must not depend on luck: NPO compares it with the start's
        )
        return LocalEngine().train(self.ctx.module, draws, settings, run, objective=self.objective, masks=self.masks, watch=watch)

    def values(self) -> dict[str, Tensor]:
        """A copy of the trained parameters as they are now."""
        return {name: p.detach().clone() for name, p in self._moving().items()}

    @torch.no_grad()
    def put(self, values: dict[str, Tensor]) -> None:
        """Write such a copy back."""
        for name, parameter in self._moving().items():
            parameter.copy_(values[name])

    def _moving(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.ctx.parameters.items() if p.requires_grad}
