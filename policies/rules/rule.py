"""One rule of a policy, as a frozen record, and the sentence that explains it."""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass
from typing import Literal

from ...ops.evaluate.flips import FlipReport
from . import words

Room = Literal["flips", "suite", "check", "delta", "drift", "sql"]
ROOMS = ("flips", "suite", "check", "delta", "drift")
FLIP_METRICS = tuple(f.name for f in dataclasses.fields(FlipReport) if f.name != "n")
DELTA_METRICS = ("tensors_changed", "tensors_total", "tensors_added", "tensors_removed", "changed_share", "rel_l2", "max_rel_l2", "max_abs")


@dataclass(frozen=True, slots=True)
class Rule:
    """One line that history may not cross. Exactly one of the four limits is set, or `sql` is."""

    id: str
    metric: str  # flips.*, suite.<name>.<metric>, check.*, delta.*, drift.*; "sql" for a query
    suite: tuple[str, ...] = ("*",)  # globs; those that start with ! exclude
    slice: str | None = None
    against: str = "parent"
    max: float | None = None
    min: float | None = None
    ratio_max: float | None = None
    drop_max: float | None = None
    test: Literal["mcnemar", "binomial"] | None = None
    alpha: float = 0.05
    when: str | None = None
    condition: ast.expr | None = None  # `when`, parsed
    action: Literal["block", "warn"] = "block"
    floor: Literal["twin"] | None = None  # flips.*: what two seeds of one recipe differ by is taken off before the limit
    detect: float | None = None  # mcnemar: a fall this large must be found with chance `power`, else examples are too few
    power: float = 0.95
    min_examples: int = 0
    on_few: Literal["block", "warn", "pass"] = "warn"
    sql: str | None = None
    note: str | None = None

    @property
    def room(self) -> str:
        """The first word of the metric: which part of the facts is asked."""
        return self.metric.split(".", 1)[0]

    @property
    def key(self) -> str:
        """The last part of the metric: the number that is asked for. (Suite names may hold dots.)"""
        return self.metric.rsplit(".", 1)[-1] if self.room in ("suite", "flips") else self.metric.partition(".")[2]

    @property
    def suites(self) -> tuple[str, ...]:
        """Globs of the suites judged: the metric's own name where it has one, else `suite`."""
        named = self.metric.removeprefix("suite.").rsplit(".", 1)[0] if self.room == "suite" else "*"
        return self.suite if named == "*" else (named,)

    @property
    def limit(self) -> float | None:
        """The number that is not to be crossed."""
        return next((v for v in (self.max, self.min, self.ratio_max, self.drop_max) if v is not None), None)

    def explain(self) -> str:
        """The rule as one sentence."""
        return f"{self.id}: {words.rule_sentence(self)}"
