"""What a gate may know about a candidate: frozen numbers, gathered by measure.py and judged by gate.py.

Nothing here reads, computes on tensors or decides. The same structure is built from a live candidate, from two
recorded commits, or by hand in a test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ops.evaluate.flips import Counts, FlipReport, report
from ..registry.errors import BadRecipe
from ..registry.records import Json

if TYPE_CHECKING:
    from collections.abc import Mapping

PARENT = "parent"  # the usual label of a comparison
TWIN = "twin"  # the label of another seed of the same recipe
NO_TWIN = "no other seed of this recipe was run from the same version (run it again with --seed N --branch twin)"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One suite on the candidate beside the same suite on another version."""

    before: dict[str, float | None] = field(default_factory=dict)  # metrics of the other version
    flips: FlipReport | None = None  # None: the suite has no right and wrong
    slices: dict[str, FlipReport] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SuiteFacts:
    """One suite measured on the candidate, and compared under the labels that rules use (`parent`, `@champion`, a rev)."""

    name: str
    kind: str
    n: int
    after: dict[str, float | None]
    chance: float = 0.0  # the accuracy that guessing gives
    against: dict[str, Comparison] = field(default_factory=dict)

    def guessed(self, label: str) -> float | None:
        """The share of the other version's right answers that luck explains; None when its accuracy is unknown.

        Who knows a share k and guesses the rest at chance c has accuracy a = k + (1 - k) c. So the lucky part is
        c (1 - a) / (1 - c), and its share of the right answers that over a. Near chance almost every right answer is
        luck, and two equally good versions disagree about which ones: such flips say nothing about lost knowledge.
        """
        other = self.against.get(label)
        accuracy = other.before.get("accuracy") if other else None
        if other and other.flips and "accuracy" not in other.before:  # a kind that calls it otherwise (exact_match)
            accuracy = other.flips.acc_a
        if accuracy is None:
            return None
        if self.chance <= 0 or accuracy <= 0:
            return 0.0
        return min(1.0, self.chance * (1 - accuracy) / ((1 - self.chance) * accuracy)) if self.chance < 1 else 1.0


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What an sql rule's query returned: how many rows, and the first one as text."""

    rows: int
    first: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything a rule may ask about."""

    op: str  # the operation's catalog name
    branch: str | None = None
    params: dict[str, Json] = field(default_factory=dict)
    expects: dict[str, Json] = field(default_factory=dict)
    check: dict[str, Json] = field(default_factory=dict)
    delta: dict[str, float | None] = field(default_factory=dict)
    drift: dict[str, Any] = field(default_factory=dict)  # numbers, and tables of numbers by suite
    suites: tuple[SuiteFacts, ...] = ()
    queries: dict[str, QueryResult] = field(default_factory=dict)  # by rule id
    missing: dict[str, str] = field(default_factory=dict)  # label of a version that could not be compared -> why


# --- by hand ---------------------------------------------------------------------------------------------


def read_recorded(path: Path) -> Facts:
    """Facts from a JSON file, for `policy test`. Raises BadRecipe when it is not of the shape of `Facts`.

    Flips are given as counts: {"both_right", "negative", "positive", "both_wrong", "churned"}.
    """
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as fault:
        raise BadRecipe(f"{path.name} holds no facts for a gate: {fault}", hint='the least is {"op": "update"}', path=path.name) from fault


def from_json(data: Mapping[str, Any]) -> Facts:
    """The inverse of how facts are written by hand. Raises TypeError or KeyError on a wrong shape."""
    if not isinstance(data["op"], str):
        raise TypeError("op is the name of an operation")
    plain = {key: value for key, value in data.items() if key not in ("suites", "queries")}
    suites = tuple(_suite(entry) for entry in data.get("suites", ()))
    queries = {name: QueryResult(**value) for name, value in data.get("queries", {}).items()}
    return Facts(**plain, suites=suites, queries=queries)


def _suite(data: Mapping[str, Any]) -> SuiteFacts:
    against = {
        label: Comparison(
            before=dict(entry.get("before", {})),
            flips=report(Counts(**entry["flips"])) if entry.get("flips") else None,
            slices={name: report(Counts(**counts)) for name, counts in entry.get("slices", {}).items()},
        )
        for label, entry in data.get("against", {}).items()
    }
    return SuiteFacts(data["name"], data["kind"], data["n"], dict(data["after"]), data.get("chance", 0.0), against)
