"""Whether a layer can hold so many facts apart, asked before the long work: keys and second moments say it without a single target.

Written alone, a fact gets the share of its residual that lambda was chosen for. Written together, facts with similar keys take from each
other, and so do their contexts: what is lost is the crowding. Measured on one draw each from the facts of a model of width 128 (MLP 384,
200 subjects whose names share words): 20 subjects lose 4 %, 50 lose 9 %, 100 lose 17 %, 130 lose 22 %. Draws differ: 20 subjects lost
between 1 % and 5 %, depending on how many of them share a surname.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...registry.errors import BadParameter

if TYPE_CHECKING:
    from torch import Tensor

    from .solve import Metric

LIMIT = 0.15  # share of the single-fact write that may be lost to crowding
MOST = 0.5  # subjects per dimension of a key: beyond that keys cannot be independent


@dataclass(frozen=True, slots=True)
class Room:
    """Mean write fraction of facts alone and together; `used` is 1 where the limit is reached."""

    alone: float
    together: float

    @property
    def used(self) -> float:
        """Crowding relative to LIMIT."""
        return max(0.0, 1 - self.together / self.alone) / LIMIT if self.alone > 0 else float("inf")


def room(metric: Metric, keys: Tensor, weight: float, spread: Tensor, owner: Tensor, earlier: Tensor | None = None) -> Room:
    """What the facts with these keys [d0, u] would get, float64. spread [d0, n]: how their contexts differ, owner [n] whose they are."""
    import torch

    wide = torch.cat([keys, spread] if earlier is None else [keys, spread, earlier], 1)
    gram = wide.T @ metric.spread(wide) / weight
    gram = (gram + gram.T) / 2
    count = keys.shape[1]
    together = _shares(gram, count).mean().item()
    alone = []
    for i in range(count):
        own = torch.cat([torch.tensor([i]), count + torch.nonzero(owner.cpu() == i).flatten()]).to(gram.device)
        alone.append(_shares(gram[own][:, own], 1).item())
    return Room(sum(alone) / count, together)


def _shares(gram: Tensor, count: int) -> Tensor:
    """Diagonal of S (1 + S)^-1 for the first `count` columns."""
    import torch

    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return 1 - torch.linalg.inv(eye + gram).diagonal()[:count]


def check_count(subjects: int, width: int, forced: bool) -> None:
    """Raise BadParameter for more subjects than keys of `width` numbers can tell apart; known without reading a tensor."""
    if subjects > MOST * width and not forced:
        raise BadParameter(
            f"{subjects:,} subjects are more than a layer can hold whose keys have {width:,} numbers (at most {int(MOST * width):,})",
            hint="write fewer facts at a time, or add --over-capacity to try all the same",
        )


def check_room(found: Room, subjects: int, layer: int, forced: bool) -> None:
    """Raise BadParameter when the facts would take too much from each other."""
    if found.used > 1 and not forced:
        raise BadParameter(
            f"{subjects:,} subjects exceed what layer {layer} can hold: written together each gets {found.together:.0%} of its change, "
            f"alone {found.alone:.0%} (capacity used: {found.used:.0%})",
            hint="write fewer facts at a time, or add --over-capacity to try all the same",
            capacity_used=round(found.used, 4),
        )
