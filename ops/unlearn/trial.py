"""How a try is judged during a search: on a fixed sample of both sets, against what the model did before.

The sample is evenly spaced, at most 200 rows of either set, so that the same data always gives the same search. It is smaller than what the
final check reads, hence the room to spare: a try is `met` only at half the target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...registry.errors import CheckFailed
from .search import Trial

if TYPE_CHECKING:
    from .context import Context, Part

SAMPLE = 200
ROOM = 0.5  # of the target, aimed at on the sample


class Probe:
    """Measures the module of a context on the sample. The module must hold the original weights when this is made."""

    def __init__(self, ctx: Context, target: float, limit: float) -> None:
        """target: forget accuracy to reach; limit: retain accuracy to keep, as a share of before."""
        assert ctx.retain is not None
        self.ctx, self.target, self.limit, self.retain = ctx, target, limit, ctx.retain
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
        accuracy, text = self._retained()
        relative = accuracy / self.before[0]
        kept = relative >= self.limit and text <= self.before[1] - math.log(self.limit)
        return Trial(strength, forget, relative, forget <= ROOM * self.target, forget <= self.target, kept)

    def _retained(self) -> tuple[float, float]:
        """(accuracy, nats per token of plain text; 0 without any, infinity for no number)."""
        found = self.ctx.measure(self.retain, chosen=self.retain_rows)
        has_text = any(not self.retain.rows.pairs[i] for i in self.retain_rows)
        return found.accuracy or 0.0, 0.0 if not has_text else math.inf if found.text_loss is None else found.text_loss


def sample(part: Part, most: int = SAMPLE) -> Sequence[int]:
    """At most `most` rows of a part, evenly spaced."""
    count = len(part.rows)
    return range(count) if count <= most else [round(i * (count - 1) / (most - 1)) for i in range(most)]
