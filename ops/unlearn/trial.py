"""How a try is judged during a search: on a fixed sample of both sets, against what the model did before.

The sample is evenly spaced, at most 200 rows of either set, so that the same data always gives the same search. It is smaller than what the
final check reads, hence the room to spare on both sides: half the target, and half of what the limits allow to lose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...registry.errors import CheckFailed
from .check import ADVICE, GROWTH, SLACK
from .goal import Goal
from .search import Found, Trial

if TYPE_CHECKING:
    from .context import Context, Part

SAMPLE = 200
ROOM = 0.5


class Probe:
    """Measures the module of a context on the sample. The module must hold the original weights when this is made."""

    def __init__(self, ctx: Context, goal: Goal) -> None:
        assert ctx.retain is not None  # the operation asks for it
        self.ctx, self.goal, self.retain = ctx, goal, ctx.retain
        self.forget_rows, self.retain_rows = sample(ctx.forget), sample(self.retain)
        self.before = self._retained()
        if self.before[0] <= 0:
            raise CheckFailed(
                "the model gets nothing of the retain set right before anything is forgotten: a search has nothing to keep",
                hint="give a retain set that the model knows, or a fixed --strength",
            )

    def __call__(self, strength: float) -> Trial:
        """The module as it is now, tried with `strength`."""
        forget = self.ctx.measure(self.ctx.forget, chosen=self.forget_rows).accuracy
        forget = 1.0 if forget is None else forget
        now, target = self._retained(), self.goal.target
        kept, safe = (self._within(now, share) for share in (1.0, ROOM))
        return Trial(strength, forget, now[0] / self.before[0], forget <= ROOM * target, forget <= target, kept, safe)

    def _within(self, now: tuple[float, float, float], share: float) -> bool:
        """Whether no more than `share` of what the final check allows is lost: accuracy, loss of the pairs, loss of plain text."""
        limits = (self.before[1] - share * SLACK * math.log(self.goal.limit), self.before[2] + math.log(1 + share * (GROWTH - 1)))
        lost = share * (1 - self.goal.limit) * self.before[0]
        return now[0] >= self.before[0] - lost and now[1] <= limits[0] and now[2] <= limits[1]

    def _retained(self) -> tuple[float, float, float]:
        """(accuracy, loss of the pairs, loss of plain text) on the sample; 0 for a kind that it has none of, infinity for no number."""
        found = self.ctx.measure(self.retain, chosen=self.retain_rows)
        kinds = {self.retain.rows.pairs[i] for i in self.retain_rows}
        pairs, text = (_loss(value) if kind in kinds else 0.0 for kind, value in ((True, found.loss), (False, found.text_loss)))
        return found.accuracy or 0.0, pairs, text


def require_reached(ctx: Context, found: Found) -> None:
    """Raise CheckFailed with the best that was found and the whole log (in `check`) when no try satisfies both sides."""
    if found.reached:
        return
    best = found.best
    raise CheckFailed(
        f"no strength forgets enough and keeps enough: the best try leaves {best.forget:.3f} of the forget set right and keeps "
        f"{best.retain:.3f} of what was right in the retain set; nothing was committed",
        hint=ADVICE,
        check=dict(ctx.facts),
    )


def sample(part: Part, most: int = SAMPLE) -> Sequence[int]:
    """At most `most` rows of a part, evenly spaced."""
    count = len(part.rows)
    return range(count) if count <= most else [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _loss(value: float | None) -> float:
    return math.inf if value is None else value
