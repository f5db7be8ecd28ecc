"""`merge.informed`: means that weigh by what each ingredient was trained on: by Fisher information, or RegMean by the Gram matrices of its
inputs. The statistics are artifacts by version and data set: computed once, found again for the next merge. No torch at the top.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from ...registry.records import Json
from ..base import Change, Check, Expectations, Operation, Plan, Run, option, requirement
from .adapters import NOTE
from .recipe import check_numbers

if TYPE_CHECKING:
    from ...registry.view import ModelView

require = requirement("merge")
METHODS = ("fisher", "regmean")


@dataclass(frozen=True, slots=True)
class Informed(Operation):
    """Merge versions by statistics of their own data."""

    name: ClassVar[str] = "merge.informed"
    version: ClassVar[int] = 1
    needs_forward: ClassVar[bool] = True

    ingredients: tuple[str, ...] = option((), help="versions to merge; the first is the one that the result follows")
    method: str = option("fisher", help="fisher: by squared gradients; regmean: least squares on the inputs of every linear map")
    data: tuple[str, ...] = option((), help="a file of records per version, of what it was trained on")
    digests: tuple[str, ...] = option((), help="the digest of each file: statistics that are kept need the file no more")
    weights: tuple[float, ...] = option((), help="fisher: a weight per version (default: equal weights)")
    norms: bool = option(False, help="fisher: divide each version's information by its norm")
    ratio: float = option(0.9, help="regmean: what entries off the diagonal are multiplied with, in [0, 1]")

    def __post_init__(self) -> None:
        count = len(self.ingredients)
        hint = "for example: --method fisher --set data=a.jsonl,b.jsonl"
        require(count >= 1, "no version was named", "mlc merge a b")
        require(self.method in METHODS, f"{self.method!r} is neither fisher nor regmean")
        require(len(self.data) == len(self.digests) == count, f"{self.method} needs a data file for each of {count} versions", hint)
        check_numbers("weights", len(self.weights), (count,), "versions")
        require(not self.weights or self.method == "fisher", "regmean takes no weights")
        require(all(math.isfinite(w) and w > 0 for w in self.weights), "weights of a fisher mean are positive numbers")
        require(0 <= self.ratio <= 1, f"ratio {self.ratio:g} lies outside [0, 1]", "for example: --set ratio=0.9")

    def without(self, gone: str) -> Informed | str:
        """The same merge with one version fewer; the one that is left, where that is all."""
        kept = [at for at, name in enumerate(self.ingredients) if name != gone]
        if len(kept) == 1:
            return self.ingredients[kept[0]]
        given = {n: tuple(getattr(self, n)[at] for at in kept) for n in ("ingredients", "data", "digests")}
        return replace(self, **given, weights=tuple(self.weights[at] for at in kept) if self.weights else ())

    # --- the contract ---

    def joins(self) -> tuple[str, ...]:
        return self.ingredients[1:]

    def plan(self, view: ModelView) -> Plan:
        sizes = [4 * math.prod(view.entry(name).shape) for name in view.names()]
        count = len(self.ingredients)
        summary = f"merge {count} versions by {self.method}, with statistics of their data"
        return Plan(summary, view.names(), bytes_touched=sum(sizes), memory=(count + 2) * sum(sizes))

    def preview(self, view: ModelView, run: Run) -> dict[str, Json]:
        """Refuses what `apply` would refuse: versions that do not fit each other."""
        from .layout import lined_up

        lined_up({name: view if at == 0 else run.version(name) for at, name in enumerate(self.ingredients)})
        return {}

    def apply(self, view: ModelView, run: Run) -> Iterator[Change]:
        from .statistics import merged

        return merged(self, view, run)

    def check(self, before: ModelView, after: ModelView, run: Run) -> Check:
        changed = [n for n in after.names() if not before.has(n) or before.entry(n).digest != after.entry(n).digest]
        return Check(True, {"versions": len(self.ingredients), "tensors": len(after.names()), "tensors_changed": len(changed)})

    def expects(self) -> Expectations:
        return Expectations(may_forget=True, notes=(NOTE,))
