"""What stands before the subject: a change behind the subject cannot reach it, so that it is read once and not in every step.

Later tokens see it through keys and values alone. Rows are cut where the first change is; their fronts, of different lengths, are
aligned on the right, and what is put before the shorter ones is masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .prompts import Batch

if TYPE_CHECKING:
    from torch import Tensor

    from .site import Editable


@dataclass(frozen=True, slots=True)
class Front:
    """Keys and values of every block [n, heads, P, d] before each row's cut, right aligned; `real` bool [n, P] tells them from padding."""

    pairs: tuple[tuple[Tensor, Tensor], ...]
    real: Tensor
    places: Tensor  # position of every token behind the cut, int64 [n, S]

    def of(self, keep: Tensor) -> Front:
        """The rows that `keep` (bool [n]) marks."""
        return Front(tuple((keys[keep], values[keep]) for keys, values in self.pairs), self.real[keep], self.places[keep])

    def words(self) -> dict[str, Any]:
        """What a model is called with to read on from here."""
        from transformers import DynamicCache

        cache = DynamicCache()  # a new one for each call: the model adds to it
        for block, (keys, values) in enumerate(self.pairs):
            cache.update(keys, values, block)
        mask = torch.cat([self.real, torch.ones_like(self.places, dtype=torch.bool)], 1)
        return {"past_key_values": cache, "attention_mask": mask, "position_ids": self.places, "use_cache": True}


def cut(model: Editable, layer: int, batch: Batch, states: Tensor) -> tuple[Batch, Tensor, Front | None]:
    """Rows from the subject's last token (or the first scored place) to the last scored one: batch, states [n, S, d1], what stands before.

    states [n, width, d1] are the outputs of block `layer`. The front is None when no row has one.
    """
    width, rows = batch.ids.shape[1], torch.arange(len(batch.ids), device=states.device)[:, None]
    start = batch.at.scatter_reduce(0, batch.rows, batch.places, "amin")
    end = int((batch.places - start[batch.rows]).max())
    places = (start[:, None] + torch.arange(max(end, int((batch.at - start).max())) + 1, device=states.device)).clamp_max(width - 1)
    tail = Batch(
        batch.ids[rows, places], torch.zeros_like(start), batch.at - start, batch.rows, batch.places - start[batch.rows], batch.targets
    )
    before = start[:, None] + torch.arange(-int(start.max()), 0, device=states.device)
    if not before.shape[1]:
        return tail, states[rows, places], None
    at = before.clamp_min(0)
    pairs = [(keys.transpose(1, 2)[rows, at].transpose(1, 2), values.transpose(1, 2)[rows, at].transpose(1, 2))
             for keys, values in model.remembered(batch, states, layer)]  # fmt: skip
    return tail, states[rows, places], Front(tuple(pairs), before >= 0, places)
