"""Which rows go into which step: records to forget, records to keep, plain text to keep. Every order a function of (seed, position)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ...registry.ids import record_digest

if TYPE_CHECKING:
    import torch

FORGET, RETAIN, TEXT = "forget", "retain", "text"


@dataclass(frozen=True, slots=True)
class Draw:
    """Row numbers of one step. `retain` and `text` are rows of the retain set."""

    forget: tuple[int, ...] = ()
    retain: tuple[int, ...] = ()
    text: tuple[int, ...] = ()

    def to(self, where: torch.device) -> Draw:
        """Itself: row numbers live nowhere."""
        return self


class Draws:
    """The feed of an engine: from each source so many rows per step, each source in its own order, again and again."""

    def __init__(self, sources: Mapping[str, Sequence[int]], counts: Mapping[str, int], *, tokens: float, seed: int, read: str) -> None:
        """sources: row numbers to draw from; counts: how many of each per step (at most all); tokens: mean tokens of a row; read: digest
        of what the numbers stand for."""
        self.sources = {name: tuple(rows) for name, rows in sources.items() if rows and counts.get(name)}
        self.counts = {name: min(counts[name], len(rows)) for name, rows in self.sources.items()}
        self.seed, self.read = seed, read
        self._tokens = tokens
        self._order = lru_cache(maxsize=8)(self.order)

    @property
    def batch_tokens(self) -> int:
        """Tokens of a step, about."""
        return round(self._tokens * sum(self.counts.values()))

    def digest(self) -> str:
        """Covers the data, the choice of rows, the counts and the seed."""
        return record_digest(
            "mlc.draws.v1", repr((self.read, self.seed, sorted(self.counts.items()), sorted(self.sources.items()))).encode()
        )

    def at(self, number: int) -> Draw:
        """The rows of step `number`, counted from 0."""
        return Draw(**{name: tuple(self._at(name, number * n + k) for k in range(n)) for name, n in self.counts.items()})

    def epoch(self, name: str) -> int:
        """Steps until every row of a source has been drawn once."""
        return -(-len(self.sources[name]) // self.counts[name])

    def order(self, name: str, epoch: int) -> tuple[int, ...]:
        """All rows of a source in the order of one epoch."""
        rows = list(self.sources[name])
        random.Random(f"{self.seed}/{name}/{epoch}").shuffle(rows)
        return tuple(rows)

    def _at(self, name: str, position: int) -> int:
        epoch, place = divmod(position, len(self.sources[name]))
        return self._order(name, epoch)[place]
