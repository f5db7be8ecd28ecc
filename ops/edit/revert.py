"""`edit.revert`: take single facts of an edit back and leave the others, from what the edit's commit keeps.

The dataclass imports no torch. Which layers are touched, and what was taken back before, is asked of history before the plan is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from ...registry.errors import BadParameter
from ...registry.ids import short
from ..base import Change, Check, Expectations, History, Operation, Plan, Run, option
from .conflicts import KEYS, about
from .site import editable, stored_name

if TYPE_CHECKING:
    from ...registry.view import ModelView

REST = "edit-rest"  # the artifact that holds what an edit writes without facts that were taken back
SHOWN = 8  # ids named in a complaint


@dataclass(frozen=True, slots=True)
class RevertFacts(Operation):
    """Take single facts of an edit back."""

    name: ClassVar[str] = "edit.revert"
    version: ClassVar[int] = 3  # 2: others that would turn are corrected; 3: as in `Edit`
    needs_forward: ClassVar[bool] = True

    rev: str = option(help="commit id of the edit")
    facts: tuple[str, ...] = option((), help="ids of the facts to take back")
    lost: tuple[str, ...] = option((), help="ids that were taken back before")
    layers: tuple[int, ...] = option((), help="blocks that the edit wrote into")
    after: str = option("", help="commit id of what took them back last")

    def foresee(self, past: History) -> RevertFacts:
        """With what history says of the edit. Raises BadParameter for facts that it did not write, or that are gone already."""
        data = next((data for commit, data in past.kept(KEYS) if commit == self.rev), None)
        if data is None:
            raise BadParameter(
                f"{short(self.rev)} is no edit that still holds here: only facts of `mlc edit` can be taken back one by one",  # type: ignore[arg-type]
                hint="mlc log --op edit lists the edits",
            )
        told = about(data)
        known = [fact for members in told["ids"] for fact in members]
        if not self.facts:
            raise BadParameter("no fact was named", hint=f"--fact {known[0]}")
        if unknown := [fact for fact in self.facts if fact not in known]:
            shown = ", ".join(sorted(known, key=_ordered)[:SHOWN]) + (" ..." if len(known) > SHOWN else "")
            raise BadParameter(f"{short(self.rev)} wrote no fact {unknown[0]!r}", hint=f"it wrote {shown}")  # type: ignore[arg-type]
        lost = past.lost(self.rev)
        if again := [fact for fact in self.facts if fact in lost]:
            raise BadParameter(f"fact {again[0]!r} of {short(self.rev)} was taken back already", hint="mlc log --op edit.revert")  # type: ignore[arg-type]
        last = self._last(past, lost) if lost else ""
        facts = tuple(dict.fromkeys(self.facts))
        return replace(self, facts=facts, lost=tuple(sorted(lost)), layers=tuple(told["layers"]), after=last)

    def _last(self, past: History, lost: frozenset[str]) -> str:
        """The nearest commit that keeps what the edit writes without `lost`; "" where two lines met that took back different facts."""
        for commit, data in past.kept(REST):
            told = about(data)
            if (told["rev"], frozenset(told["out"])) == (self.rev, lost):
                return commit
        return ""

    def plan(self, view: ModelView) -> Plan:
        family, blocks = editable(view)
        touches = tuple(stored_name(family, view, layer) for layer in self.layers or range(blocks))
        size = sum(math.prod(view.entry(name).shape) for name in touches) * 4
        what = f"{len(self.facts)} fact{'s' if len(self.facts) != 1 else ''}"
        return Plan(
            f"take {what} of {short(self.rev)} back and solve for the others again",  # type: ignore[arg-type]
            touches,
            bytes_touched=size,
            details={"facts": list(self.facts), "taken_back_before": list(self.lost), "means": "stored artifact"},
        )

    def apply(self, view: ModelView, run: Run) -> Iterator[Change]:
        from .taking_back import apply

        return apply(self, view, run)

    def check(self, before: ModelView, after: ModelView, run: Run) -> Check:
        from .taking_back import check

        return check(self, before, after, run)

    def expects(self) -> Expectations:
        return Expectations(may_forget=True, notes=("the facts that are taken back are meant to go",))


def _ordered(fact: str) -> tuple[int, str]:
    return (int(fact), "") if fact.isdecimal() else (1 << 62, fact)
