"""What an unlearning is to reach: how much of the forget set may still be right, and how much of the retain set must stay right."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .context import Context

MARGIN = 0.02  # above guessing: two points, as the field asks ("chance plus 2")


@dataclass(frozen=True, slots=True)
class Goal:
    """target: forget accuracy to reach. limit: retain accuracy to keep, as a share of before."""

    target: float
    limit: float


def goal_of(ctx: Context) -> Goal:
    """The options where they are given; else a target of guessing plus two points."""
    target = ctx.op.target if ctx.op.target is not None else min(0.99, guessing(ctx) + MARGIN)
    return Goal(target, ctx.op.retain_limit)


def guessing(ctx: Context) -> float:
    """What guessing would get right: 1 / classes, or the share of the most common answer among the records to forget."""
    config = ctx.view.config or {}
    if ctx.task.kind == "classes":
        labels = config.get("num_labels") or len(config.get("id2label") or ()) or 2
        return 1 / labels
    answers = Counter(" ".join(item.answer.split()) for item in ctx.forget.items.items if item.kind == "pair")
    return max(answers.values()) / answers.total() if answers else 0.0
