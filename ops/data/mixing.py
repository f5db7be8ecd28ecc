"""Which rows go into which batch: several sources by shares, every order a function of (seed, position).

The row at position g of a run is computed from g alone, so a resumed run reads exactly the rows that the uninterrupted run would have
read, and the shares hold in every prefix (replay 0.5 means four of every eight rows). Shares that change on the way (`Turning`) are a
list of turns: with the same turns the row is again a function of its position.
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
    origin: tuple[int, ...] | None = None  # place of each row in its corpus, where only some were taken


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

        picked = self.picks(number)
        return Batch(torch.stack([self.sources[s].rows[row] for s, row in picked]), tuple(s for s, _ in picked))

    def picks(self, number: int) -> list[tuple[int, int]]:
        """(source, row) of every row of a micro-batch, rows of one source side by side: a source can be taken out as a slice."""
        return sorted((self._pick(g) for g in range(number * self.batch, (number + 1) * self.batch)), key=lambda pair: pair[0])

    def windows(self) -> list[tuple[int, tuple[float, ...]]]:
        """(first micro-batch, share of each source) wherever the shares change; once where they never do."""
        return [(0, tuple(s.share for s in self.sources))]

    def _pick(self, g: int) -> tuple[int, int]:
        number, position = spread(g, [s.share for s in self.sources])
        return number, self._row(number, position)

    def _row(self, number: int, position: int) -> int:
        n = len(self.sources[number].rows)
        return self._order(number, position // n)[position % n]

    def _shuffled(self, number: int, epoch: int) -> list[int]:
        order = list(range(len(self.sources[number].rows)))
        random.Random(f"{self.seed}/{self.sources[number].name}/{epoch}").shuffle(order)
        return order


class Turning(Mixture):
    """A mixture whose shares are given anew on the way: `turn` says from which micro-batch on."""

    def __init__(self, sources: Sequence[Source], *, batch: int, seed: int) -> None:
        super().__init__(sources, batch=batch, seed=seed)
        self._turns: list[tuple[int, tuple[float, ...], tuple[int, ...]]] = []
        self.begin_again()

    def begin_again(self) -> None:
        """Forget every turn."""
        self._turns = [(0, tuple(s.share for s in self.sources), (0,) * len(self.sources))]

    def turn(self, number: int, shares: Sequence[float]) -> None:
        """From micro-batch `number` on the sources have these shares (non-negative, sum 1); what was read before stays as it was."""
        first, old, had = self._turns[-1]
        if number < first or len(shares) != len(self.sources) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError("turns come in order, and the shares of a mixture sum to 1")
        counts = list(had)
        for g in range((number - first) * self.batch):
            counts[spread(g, old)[0]] += 1
        self._turns.append((number, tuple(shares), tuple(counts)))

    def windows(self) -> list[tuple[int, tuple[float, ...]]]:
        return [(first, shares) for first, shares, _ in self._turns]

    def _pick(self, g: int) -> tuple[int, int]:
        first, shares, had = next(turn for turn in reversed(self._turns) if turn[0] * self.batch <= g)
        number, position = spread(g - first * self.batch, shares)
        return number, self._row(number, had[number] + position)


def spread(g: int, shares: Sequence[float]) -> tuple[int, int]:
    """(source, how many of its rows came before) at position g: each source in turn takes its share of what those before it left."""
    left = 1.0
    for number, share in enumerate(shares[:-1]):
        part = share / left if left > 1e-12 else 0.0
        had = int(g * part + 1e-9)
        if int((g + 1) * part + 1e-9) > had:
            return number, had
        g, left = g - had, left - share
    return len(shares) - 1, g


def tempered(sizes: Sequence[float], temperature: float) -> list[float]:
    """w_i = n_i^(1/T) / sum_j n_j^(1/T): proportional to size at T = 1, uniform as T grows without end."""
    powers = [size ** (1.0 / temperature) for size in sizes]
    return [power / sum(powers) for power in powers]
