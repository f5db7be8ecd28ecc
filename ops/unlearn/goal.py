"""What a search aims at: how little of the forget set may still be right, and how much of the retain set must stay. From the data alone.

A model that never saw the forget set is not always wrong about it: it guesses. Going far below what guessing gives is no better
forgetting; it costs the rest of the model, and it tells an observer that something was removed. So the target is the guess rate: for
classes 1 / classes and two points; else by the retain set's answers, but not below FLOOR, under which a count on a few hundred rows is
noise. (The forget set's own answers would not do: all its records may be wordings of one fact.)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.items import Item
    from .context import Context

FLOOR = 0.05
MARGIN = 0.02  # above 1 / classes: what the field asks of class forgetting
HALF = 0.5  # of what was right in forgotten plain text, when there is nothing to compare it with


@dataclass(frozen=True, slots=True)
class Goal:
    """target: forget accuracy to reach. limit: retain accuracy to keep, as a share of before. guess: the guess rate, where it is known."""

    target: float
    limit: float
    guess: float | None


def goal_of(ctx: Context) -> Goal:
    """The goal of a run; the module must still hold the start weights (plain text is compared with what it knows now)."""
    guess = guess_rate(ctx)
    target = ctx.op.target
    if target is None and guess is None:
        target = HALF * (ctx.measure(ctx.forget).accuracy or 0.0)
    elif target is None:
        target = min(0.99, guess + MARGIN if ctx.task.kind == "classes" else max(FLOOR, guess))  # type: ignore[operator]
    return Goal(round(target, 6), ctx.op.retain_limit, None if guess is None else round(guess, 6))


def guess_rate(ctx: Context) -> float | None:
    """How often one who never saw the forget set would be right about it.

    Classes: 1 / classes. Pairs: the mean, over forget records, of the share of the retain answers that are the same answer. Plain text:
    the token accuracy on the holdout set, None without one.
    """
    if ctx.task.kind == "classes":
        return 1 / ctx.module.config.num_labels  # type: ignore[union-attr,operator]  # a PreTrainedModel's
    wanted = [answer(item) for item in ctx.forget.items.items if item.kind == "pair"]
    if wanted:
        told = Counter(answer(item) for item in ctx.retain.items.items if item.kind == "pair") if ctx.retain is not None else Counter()
        total = sum(told.values())
        return sum(told[a] for a in wanted) / (len(wanted) * total) if total else 0.0
    return ctx.measure(ctx.holdout).accuracy if ctx.holdout is not None else None


def answer(item: Item) -> str:
    """What a record's answer is compared by."""
    return " ".join(item.answer.split())
