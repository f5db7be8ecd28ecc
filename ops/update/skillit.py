"""Skill-it in a run: every so many steps the domains' held-out rows are measured, and what is read next follows from the losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..data.mixing import Turning
from ..data.skills import SkillIt
from ..engine.local import mean_loss
from .mixes import graph_of, turning_every

if TYPE_CHECKING:
    from .rows import Prepared
    from .train import Update

MEASURED = 32  # held-out rows of each domain


class Mixer:
    """Rides along with a run and turns its feed. `places`: the domains' numbers among the sources; what other sources have, they keep."""

    def __init__(
        self,
        feed: Turning,
        held: Sequence[tuple[Tensor, int | None]],
        places: Sequence[int],
        rule: SkillIt,
        *,
        every: int,
        accum: int,
        steps: int,
    ) -> None:
        self.feed, self.held, self.places, self.rule = feed, tuple(held), tuple(places), rule
        self.every, self.accum, self.steps = every, accum, steps
        self.losses: list[list[float]] = []
        feed.begin_again()
        feed.turn(0, self._shares())

    def after_step(self, module: nn.Module, done: int) -> None:
        """Measure and turn, where it is time; gradients, parameters and modes stay as they are."""
        if done % self.every or done >= self.steps:
            return
        training = module.training
        self.losses.append([mean_loss(module, rows, begin=begin) for rows, begin in self.held])
        module.train(training)
        self.feed.turn(done * self.accum, self._shares())

    def _shares(self) -> list[float]:
        shares = [s.share for s in self.feed.sources]
        all_domains = sum(shares[place] for place in self.places)
        for place, weight in zip(self.places, self.rule.weights(self.losses), strict=True):
            shares[place] = weight * all_domains
        return shares

    def state(self) -> dict[str, Tensor]:
        """The losses: the turns follow from them."""
        return {"losses": torch.tensor(self.losses, dtype=torch.float64).reshape(len(self.losses), len(self.places))}

    def load(self, tensors: dict[str, Tensor]) -> None:
        told = tensors["losses"].tolist()
        self.losses = []
        self.feed.begin_again()
        self.feed.turn(0, self._shares())
        for number, row in enumerate(told, start=1):
            self.losses.append(row)
            self.feed.turn(number * self.every * self.accum, self._shares())

    def finish(self, module: nn.Module) -> None:
        """Nothing."""

    def facts(self) -> dict[str, Any]:
        """What was measured, for the record: step and loss of each domain."""
        return {"eta": self.rule.eta, "window": self.rule.window, "every": self.every,
                "losses": [[n * self.every, *(round(v, 6) for v in row)] for n, row in enumerate(self.losses, start=1)]}  # fmt: skip


def mixers(op: Update, rows: Prepared) -> tuple[Mixer, ...]:
    """The rider of a Skill-it run; none for other policies."""
    if not isinstance(rows.mixture, Turning):
        return ()
    rule = SkillIt(graph_of(op), op.mix_eta, op.mix_window)
    held = [(part[:: max(1, len(part) // MEASURED)][:MEASURED], rows.begins.get(f"part {corpus}")) for corpus, part in rows.parts.items()]
    return (Mixer(rows.mixture, held, rows.places, rule, every=turning_every(op), accum=op.grad_accum, steps=op.steps),)
