"""Per-sample gradients of a table (an embedding): a few rows for each sample, in slots, one for each id that the sample looks up.

With a tied head the gradient of sample b is a + b, where a (from the head) fills the whole table and b (from the look-up) only the rows of
the ids. a's share is squared without those rows, which are kept apart until b arrives and (a + b)^2 can be taken as it stands: no B x V x d
tensor, and none of the cancellation that adding 2ab + b^2 to a^2 would bring.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Slots:
    """Slots of the distinct ids of each sample. Args: look_ups: ids `[B, T_i]`, int64."""

    def __init__(self, look_ups: list[Tensor]) -> None:
        self.lengths = [ids.shape[1] for ids in look_ups]
        ids = torch.cat(look_ups, 1)
        ordered, order = ids.sort(dim=1, stable=True)
        step = torch.zeros_like(ordered)
        step[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        rank = step.cumsum(1)  # [B, T]: the slot of each position, in the order of the ids
        self.of = torch.empty_like(rank).scatter_(1, order, rank)  # the same in the order of the positions
        self.used = rank[:, -1] + 1
        width = int(self.used.max())
        self.ids = ordered[:, :1].expand(-1, width).clone().scatter_(1, rank, ordered)  # [B, U]; spare slots repeat the first id
        self.kept: Tensor | None = None  # [B, U, d]: the other layer's gradient of the rows

    @contextmanager
    def apart(self, x: Tensor, delta: Tensor) -> Iterator[Tensor]:
        """Keep the slots' rows of delta_b^T x_b, and lend `delta` with those columns zero (the same memory: they come back after).

        Args: x `[B, T, d]`, delta `[B, T, V]`.
        """
        delta = delta if delta.is_contiguous() else delta.contiguous()
        where = self.ids.unsqueeze(1).expand(-1, delta.shape[1], -1)
        columns = delta.gather(2, where)
        self.kept = torch.bmm(columns.float().transpose(1, 2), x.float())
        delta.scatter_(2, where, 0.0)
        try:
            yield delta
        finally:
            delta.scatter_(2, where, columns)

    def settle(self, total: Tensor, rows: list[Tensor | None], absolute: bool) -> None:
        """Add the squared (or absolute) gradients of the slots' rows, over all samples, to total `[V, d]`.

        Args: rows: the look-ups' output gradients `[B, T_i, d]`, in the order in which `ids` joined them; None for one without.
        """
        count, width = self.ids.shape
        gradient = torch.zeros(count * width, total.shape[1], dtype=torch.float32, device=total.device)
        place, start = self.of + width * torch.arange(count, device=total.device).unsqueeze(1), 0
        for delta, length in zip(rows, self.lengths, strict=True):
            if delta is not None:
                here = place[:, start : start + length].reshape(-1)
                gradient.index_add_(0, here, delta.reshape(-1, total.shape[1]).float())
            start += length
        if self.kept is not None:
            gradient += self.kept.reshape(gradient.shape)
        valid = (torch.arange(width, device=total.device) < self.used.unsqueeze(1)).reshape(-1)
        gradient = gradient.abs_() if absolute else gradient.square_()
        total.index_add_(0, self.ids.reshape(-1)[valid], gradient[valid])
