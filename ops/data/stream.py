"""What a run read, row by row: an artifact of its commit, from which the stream can be played again and checked.

A row is named by its place in its corpus, which the commit names by its digest: whoever has the file finds the row, whoever has not learns
nothing about it that the commit does not say. Digests of single rows are not kept (a short text could be guessed from its digest).
The artifact is one line of JSON (what was mixed, the mixture of every window) and six bytes per row: number of the source, place.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...registry.errors import CorruptRecord
from ...registry.ids import record_digest
from ...registry.records import canonical

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from .mixing import Mixture

KIND = "stream"
_FORM = "mlc stream 1"


@dataclass(frozen=True, slots=True)
class Told:
    """One source as the stream knows it. `corpus`: digest of the file, None for text that the model wrote itself."""

    name: str
    corpus: str | None
    rows: int
    digest: str  # of the token rows as they were trained on
    chosen: bool = False  # only some rows of the corpus: places in the stream are places in the whole corpus


@dataclass(frozen=True, slots=True)
class Stream:
    """Every row that was read: (number of the source, place in it), `rows_per_step` for each step, steps in order."""

    seed: int
    seq_len: int
    steps: int
    rows_per_step: int
    sources: tuple[Told, ...]
    windows: tuple[dict[str, Any], ...]  # {"step", "weights", "counts"}: the mixture that was asked for, and what it came to
    order: tuple[tuple[int, int], ...]

    def last_seen(self, source: int) -> dict[int, int]:
        """Place of each row of a source that was read -> the step (from 0) in which it was read last."""
        return {row: g // self.rows_per_step for g, (number, row) in enumerate(self.order) if number == source}

    def times_seen(self, source: int) -> int:
        """How often a row of this source was read at most."""
        counts: dict[int, int] = {}
        for number, row in self.order:
            if number == source:
                counts[row] = counts.get(row, 0) + 1
        return max(counts.values(), default=0)


def rows_digest(rows: Tensor) -> str:
    """The digest of token rows int64 [n, seq_len], as a stream names them."""
    return record_digest("mlc.rows.v1", repr(tuple(rows.shape)).encode() + rows.contiguous().numpy().tobytes())


def write_stream(mixture: Mixture, steps: int, *, first: int = 0, grad_accum: int = 1, corpora: Mapping[str, str] | None = None) -> bytes:
    """The artifact of a run of `steps` steps that read `mixture` from micro-batch `first` on. `corpora`: source -> digest of its file."""
    numbers = range(first, first + steps * grad_accum)
    picked = [mixture.picks(number) for number in numbers]
    order = [pair for batch in picked for pair in batch]
    sources = [
        {
            "name": s.name,
            "corpus": (corpora or {}).get(s.name),
            "rows": len(s.rows),
            "digest": rows_digest(s.rows),
            "chosen": s.origin is not None,
        }
        for s in mixture.sources
    ]
    head = {
        "form": _FORM,
        "seed": mixture.seed,
        "seq_len": mixture.seq_len,
        "steps": steps,
        "rows_per_step": mixture.batch * grad_accum,
        "sources": sources,
        "windows": _windows(mixture, picked, first, grad_accum),
    }
    places = [s.origin or range(len(s.rows)) for s in mixture.sources]
    flat = [value for s, row in order for value in (s, places[s][row])]
    return canonical(head) + b"\n" + struct.pack("<" + "HI" * len(order), *flat)


def _windows(mixture: Mixture, picked: list[list[tuple[int, int]]], first: int, accum: int) -> list[dict[str, Any]]:
    """The shares that were asked for, and the rows of each source that they came to, from each turn to the next."""
    turns = mixture.windows()
    found = []
    for at, (start, shares) in enumerate(turns):
        end = turns[at + 1][0] if at + 1 < len(turns) else first + len(picked)
        counts = [0] * len(shares)
        for batch in picked[max(0, start - first) : max(0, end - first)]:
            for source, _ in batch:
                counts[source] += 1
        if sum(counts):
            found.append({"step": max(0, start - first) // accum, "weights": [round(s, 12) for s in shares], "counts": counts})
    return found


def read_stream(data: bytes) -> Stream:
    """The inverse of `write_stream`. Raises CorruptRecord."""
    line, _, body = data.partition(b"\n")
    try:
        head = json.loads(line)
        numbers = struct.unpack("<" + "HI" * (len(body) // 6), body)
        order = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        sources = tuple(Told(**source) for source in head["sources"])
        sizes = head["seed"], head["seq_len"], head["steps"], head["rows_per_step"]
        sound = head["form"] == _FORM and len(order) == head["steps"] * head["rows_per_step"]
        windows = tuple(head["windows"])
    except (ValueError, KeyError, TypeError, struct.error) as fault:
        raise CorruptRecord("an artifact that should say what was read does not", hint="mlc fsck --level 2") from fault
    if not sound or any(s >= len(sources) for s, _ in order):
        raise CorruptRecord("an artifact that should say what was read is cut short", hint="mlc fsck --level 2")
    return Stream(*sizes, sources, windows, order)
