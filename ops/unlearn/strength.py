"""`--strength auto` for the training methods: which rate and how many steps, found by training and measuring. No suite is read.

Nothing that must be forgotten is left out of training. What steers is, of the forget set, the rows that the first epoch reads last: when
they are measured first they are as good as unseen, so that a wording which was not trained on counts. Of the retain set, a part chosen by
digest is held out and never trained on. A run stops at the first look at which forgetting is done and the rest is whole, but not before
every forget row was read once. A run that ends too weak or too strong is tried again at another rate, from the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .choosing import STEERED, by_digest, spared
from .draws import FORGET, Draws
from .goal import Goal, goal_of

if TYPE_CHECKING:
    from ...registry.records import Json
    from ..base import Run
    from .context import Context
    from .dense import Trainer

LOOK = 25  # steps between two looks
ATTEMPTS = 4
MARGIN = 0.5  # of what the limit allows to lose: the search stays well inside it, because it measures a sample
EARLY = 0.25  # the same for stopping before the end: what was kept is still coming back then, and one good look may be luck
TEXT_GROWTH = 1.03  # of the perplexity of plain text


@dataclass(frozen=True, slots=True)
class Look:
    """One measurement on the steering rows. `loss` of the retain pairs and `text` in nats."""

    step: int
    forget: float
    retain: float | None
    text: float | None

    def told(self) -> list[Json]:
        """As it is recorded."""
        return [self.step, *(None if x is None or not math.isfinite(x) else round(x, 6) for x in (self.forget, self.retain, self.text))]


def search(ctx: Context, trainer: Trainer) -> dict[str, Tensor]:
    """The parameters of the first run that reaches the goal; else of the best that stays within the limits, else of the last."""
    goal, spare = goal_of(ctx), spared(ctx)
    draws = trainer.draws(spare)
    steering = Steering(ctx, goal, draws, spare)
    ladder, log, best = Ladder(trainer.usual, fixed=ctx.op.lr is not None), [], None
    while (rate := ladder.next()) is not None:
        watch = Watching(steering, draws.epoch(FORGET), trainer.steps)
        run = Attempt(ctx.run, len(log), watch)
        outcome = trainer.run(rate, draws, run, watch)  # type: ignore[arg-type]  # a Run by what it passes on
        last = watch.looks[-1]
        done, whole = last.forget <= goal.target, steering.whole(last)
        log.append({"lr": rate, "steps": outcome.steps, "forgot": done, "whole": whole, "looks": [look.told() for look in watch.looks]})
        ladder.judge(done, whole)
        if best is None or (whole, -last.forget) > best[0]:
            best = ((whole, -last.forget), trainer.values(), len(log) - 1, outcome)
    assert best is not None
    _, values, chosen, outcome = best
    ctx.facts.update(
        {
            "strength": round(log[chosen]["lr"] / trainer.usual, 6),
            "lr": log[chosen]["lr"],
            "steps": outcome.steps,
            "curve": [list(point) for point in outcome.curve],
            "search": {
                "target": goal.target,
                "guess": goal.guess,
                "reached": bool(log[chosen]["forgot"] and log[chosen]["whole"]),
                "steering_rows": steering.sizes(),
                "start": steering.before.told(),
                "columns": ["step", "forget recall", "retain recall", "text loss"],
                "attempts": log,
                "chosen": chosen,
                "why": why(log[chosen]),
            },
        }
    )
    return values


def why(entry: dict[str, Any]) -> str:
    """The choice in a sentence."""
    if entry["forgot"] and entry["whole"]:
        return f"the first run to reach the target within the limits, at step {entry['steps']}"
    if entry["whole"]:
        return "no run reached the target within the limits; this one forgot most of those that kept the rest"
    return "no run kept the rest within the limits; this one forgot most"


class Ladder:
    """Which rate to try next: twice as much when too weak, half when too strong, between two that failed on either side."""

    def __init__(self, first: float, *, fixed: bool) -> None:
        self.rate: float | None = first
        self.fixed, self.tried = fixed, 0
        self.weak, self.strong = 0.0, math.inf

    def next(self) -> float | None:
        """The rate to try, None when the search is over."""
        return self.rate if self.tried < (1 if self.fixed else ATTEMPTS) else None

    def judge(self, done: bool, whole: bool) -> None:
        """How the run at the current rate ended: forgetting done, the rest whole."""
        assert self.rate is not None
        self.tried += 1
        if done == whole:  # both: found; neither: forgetting and keeping are at odds, and no rate mends that
            self.rate = None
            return
        if whole:
            self.weak = max(self.weak, self.rate)
        else:
            self.strong = min(self.strong, self.rate)
        between = math.sqrt(self.weak * self.strong) if self.weak and self.strong < math.inf else 0.0
        self.rate = float(f"{between or (self.rate * 2 if whole else self.rate / 2):.3g}")


class Steering:
    """The rows that steer, and how the start did on them."""

    def __init__(self, ctx: Context, goal: Goal, draws: Draws, spare: list[int]) -> None:
        self.ctx, self.goal = ctx, goal
        self.forget = draws.order(FORGET, 0)[-STEERED:]
        self.retain: list[int] = []
        if ctx.retain is not None:
            kinds = [ctx.retain.rows.of(pairs=pairs) for pairs in (True, False)]
            held = set(spare)
            for rows in kinds:
                self.retain += [i for i in rows if i in held] or by_digest(ctx.retain, rows)[:STEERED]
        self.before = self.look(0)

    def look(self, step: int) -> Look:
        """Measure the module as it is now."""
        forget = self.ctx.measure(self.ctx.forget, chosen=self.forget).accuracy
        if self.ctx.retain is None or not self.retain:
            return Look(step, 1.0 if forget is None else forget, None, None)
        kept = self.ctx.measure(self.ctx.retain, chosen=self.retain)
        pairs = any(self.ctx.retain.rows.pairs[i] for i in self.retain)
        text = any(not self.ctx.retain.rows.pairs[i] for i in self.retain)
        broken = math.inf if kept.text_loss is None else kept.text_loss
        return Look(step, 1.0 if forget is None else forget, kept.accuracy if pairs else None, broken if text else None)

    def whole(self, look: Look, margin: float = MARGIN) -> bool:
        """Whether the rest is well within its limits: no more than `margin` of the allowed loss is used up."""
        floor = 1 - margin * (1 - self.goal.limit)
        kept = look.retain is None or look.retain >= floor * (self.before.retain or 0.0)
        return kept and (look.text is None or look.text <= (self.before.text or 0.0) + math.log(TEXT_GROWTH))

    def sizes(self) -> dict[str, int]:
        """How many rows steer."""
        return {"forget": len(self.forget), "retain": len(self.retain)}


class Watching:
    """The watch of one run: looks every LOOK steps and at the end, says when to stop."""

    def __init__(self, steering: Steering, epoch: int, steps: int) -> None:
        self.steering, self.least, self.steps = steering, min(epoch, steps), steps
        self.looks: list[Look] = []

    def __call__(self, done: int) -> bool:
        if done % LOOK and done != self.steps and done != self.least:
            return False
        look = self.steering.look(done)
        self.looks.append(look)
        return done >= self.least and look.forget <= self.steering.goal.target and self.steering.whole(look, EARLY)


class Attempt:
    """A run seen from one attempt: its saved states are its own. Finished attempts are made again on resuming, to the same bits."""

    def __init__(self, run: Run, number: int, watch: Watching) -> None:
        self._run, self._number, self._watch = run, number, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def save_state(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Json]) -> None:
        """The state, marked with the attempt and its looks so far."""
        looks = [[x.step, x.forget, x.retain, x.text] for x in self._watch.looks]
        self._run.save_state(step, tensors, {**meta, "attempt": self._number, "looks": looks})

    def load_state(self) -> tuple[int, dict[str, Tensor], dict[str, Json]] | None:
        """The state, when it is this attempt's."""
        state = self._run.load_state()
        if state is None or state[2].get("attempt") != self._number:
            return None
        self._watch.looks = [Look(*values) for values in state[2]["looks"]]
        return state
