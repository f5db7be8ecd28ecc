"""Skill-it (Chen et al., 2307.14430): how often each domain is read, from the losses that were measured on the way. Pure arithmetic.

Training on domain i helps domain j by A[i][j] (1 on the diagonal). Before anything is measured w_i ~ exp(eta sum_j A_ij); afterwards
w_i ~ exp(eta sum_j A_ij L_j), where L_j is the sum of the last `window` losses measured on j. Only these losses count, not earlier weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...registry.errors import BadInputFile, InputNotFound

Graph = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class SkillIt:
    """The rule: `graph` [k][k], `eta` >= 0, `window` >= 1."""

    graph: Graph
    eta: float = 0.5
    window: int = 3

    def weights(self, losses: Sequence[Sequence[float]]) -> list[float]:
        """Weights [k] on the simplex from all losses measured so far, oldest first, one list [k] per evaluation; () at the beginning."""
        recent = losses[-self.window :]
        pulls = [math.fsum(row[j] for row in recent) for j in range(len(self.graph))] if recent else [1.0] * len(self.graph)
        return softmax([self.eta * math.fsum(a * pull for a, pull in zip(row, pulls, strict=True)) for row in self.graph])


def softmax(values: Sequence[float]) -> list[float]:
    """exp(v_i) / sum exp(v_j)."""
    powers = [math.exp(value - max(values)) for value in values]
    return [power / math.fsum(powers) for power in powers]


def identity(k: int) -> Graph:
    """Every domain helps itself alone."""
    return tuple(tuple(float(i == j) for j in range(k)) for i in range(k))


def read_graph(path: str, names: Sequence[str]) -> Graph:
    """The graph in a JSON file: `{"FILE": {"FILE": 0.5, ...}, ...}` (training on the first helps the second), or rows of numbers in the
    order `names`. What an object does not name is 0, and 1 for a domain itself. Raises InputNotFound, BadInputFile.
    """
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        raise InputNotFound(f"{path} does not exist", hint="give the path of a JSON file") from fault
    except (OSError, ValueError) as fault:
        raise _bad(path, f"not a readable JSON file ({fault})") from fault
    rows = _named(path, told, names) if isinstance(told, dict) else told
    k = len(names)
    if not isinstance(rows, list) or len(rows) != k or any(not isinstance(row, list) or len(row) != k for row in rows):
        raise _bad(path, f"expected {k} rows of {k} numbers, for {', '.join(names)}")
    for row in rows:
        for value in row:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise _bad(path, f"{value!r} is no weight: numbers from 0 on are")
    return tuple(tuple(map(float, row)) for row in rows)


def _named(path: str, told: dict[str, Any], names: Sequence[str]) -> list[list[Any]]:
    rows: list[list[Any]] = [list(row) for row in identity(len(names))]
    for source, helped in told.items():
        if not isinstance(helped, dict):
            raise _bad(path, f"{source!r} should say whom it helps, and how much")
        for name in (source, *helped):
            if name not in names:
                raise _bad(path, f"{name!r} is none of the domains {', '.join(names)}")
        for target, weight in helped.items():
            rows[names.index(source)][names.index(target)] = weight
    return rows


def _bad(path: str, reason: str) -> BadInputFile:
    return BadInputFile(f"{path}: {reason}", hint='for example {"a.txt": {"b.txt": 0.5}}: reading a.txt helps b.txt', path=path)
