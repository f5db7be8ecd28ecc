"""Which rows go into which batch: several sources by fixed shares, every order a function of (seed, position).

Nothing here keeps a state. The row at position g of a run is computed from g alone, so a resumed run reads exactly the rows that the
uninterrupted run would have read, and the shares hold in every prefix (replay 0.5 means four of every eight rows).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ...registry.ids import record_digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Source:
    """Rows int64 [n, seq_len] that make up `share` of all that is read."""

    name: str
    rows: Tensor
    share: float


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch: ids int64 [batch, seq_len] and, per row, the number of the source it came from."""

    ids: Tensor
    source: tuple[int, ...]

    def to(self, where: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(self.ids.to(where), self.source)


class Mixture:
    """Batches of `batch` rows from sources whose shares sum to 1."""

    def __init__(self, sources: Sequence[Source], *, batch: int, seed: int) -> None:
        self.sources, self.batch, self.seed = tuple(sources), batch, seed
        if abs(sum(s.share for s in sources) - 1) > 1e-9:
            raise ValueError("the shares of a mixture sum to 1")
        self._order = lru_cache(maxsize=2 * len(self.sources))(self._shuffled)

    @property
    def seq_len(self) -> int:
        """Tokens per row."""
        return self.sources[0].rows.shape[1]

    @property
    def batch_tokens(self) -> int:
        """Tokens of one micro-batch."""
        return self.batch * self.seq_len

    def digest(self) -> str:
        """Covers all rows, shares and the seed: a resumed run must read what the stopped one read."""
        facts = [self.batch, self.seed, *((s.name, s.share, s.rows.shape[1]) for s in self.sources)]
        return record_digest("mlc.rows.v1", repr(facts).encode() + b"".join(s.rows.numpy().tobytes() for s in self.sources))

    def at(self, number: int) -> Batch:
        """The micro-batch with this number, counted from 0 over the whole run."""
        import torch

        picked = [self._pick(g) for g in range(number * self.batch, (number + 1) * self.batch)]
        picked.sort(key=lambda pair: pair[0])  # rows of one source side by side: a source can be taken out as a slice
        return Batch(torch.stack([self.sources[s].rows[row] for s, row in picked]), tuple(s for s, _ in picked))

    def _pick(self, g: int) -> tuple[int, int]:
        """(source, row) at position g: each source in turn takes its share of the positions that those before it left."""
        left = 1.0
        for number, source in enumerate(self.sources[:-1]):
            share = source.share / left
            had = int(g * share + 1e-9)
            if int((g + 1) * share + 1e-9) > had:
                return number, self._row(number, had)
            g, left = g - had, left - source.share
        return len(self.sources) - 1, self._row(len(self.sources) - 1, g)

    def _row(self, number: int, position: int) -> int:
        n = len(self.sources[number].rows)
        return self._order(number, position // n)[position % n]

    def _shuffled(self, number: int, epoch: int) -> list[int]:
        order = list(range(len(self.sources[number].rows)))
        random.Random(f"{self.seed}/{self.sources[number].name}/{epoch}").shuffle(order)
        return order
