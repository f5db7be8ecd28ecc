"""`merge.adapters`: several LoRA adapters on one base become one: an adapter again, or a whole model with them written in.

Side by side, ranks add up and nothing is lost: sum w_i B_i A_i is one product of the stacked factors. `rank` cuts that product down to its
largest singular values. No torch at the top.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from ...registry.errors import BadParameter, Incompatible
from ...registry.records import Json
from ..base import Change, Check, Expectations, Operation, Plan, Run, option, requirement
from .recipe import check_numbers

if TYPE_CHECKING:
    from ...registry.view import EffectiveView, ModelView

require = requirement("merge")
METHODS = ("linear", "task_arithmetic")
INTO = ("adapter", "base")
NOTE = "a merge may lose what each ingredient knew: measure it against all of them"


@dataclass(frozen=True, slots=True)
class MergeAdapters(Operation):
    """Merge LoRA adapters on one base."""

    name: ClassVar[str] = "merge.adapters"
    version: ClassVar[int] = 1

    ingredients: tuple[str, ...] = option((), help="adapters to merge; the first is the one that the result follows")
    method: str = option("linear", help="linear: the weights are made to sum to 1; task_arithmetic: they count as they are")
    weights: tuple[float, ...] = option((), help="a weight per adapter (default: equal weights that sum to 1)")
    lam: float = option(1.0, help="factor on the sum")
    rank: int | None = option(None, help="cut each sum down to this rank (default: the ranks add up, and nothing is lost)")
    into: str = option("adapter", help="adapter or base: what the result is")

    def __post_init__(self) -> None:
        require(bool(self.ingredients), "no adapter was named", "mlc merge a b")
        require(self.method in METHODS, f"adapters are merged by {' or '.join(METHODS)}, not by {self.method!r}")
        require(self.into in INTO, f"into is adapter or base, not {self.into!r}", "for example: --set into=base")
        require(self.rank is None or self.rank >= 1, f"rank {self.rank} is no rank", "for example: --set rank=8")
        check_numbers("weights", len(self.weights), (len(self.ingredients),), "adapters")
        require(all(math.isfinite(number) for number in (*self.weights, self.lam)), "weights are finite numbers")
        total = sum(self.weights)
        require(not self.weights or self.method != "linear" or abs(total) >= 1e-8, "the weights sum to zero", "--method task-arithmetic")

    def shares(self) -> tuple[float, ...]:
        """What each adapter's change is multiplied with."""
        weights = self.weights or (1.0 / len(self.ingredients),) * len(self.ingredients)
        total = sum(weights) if self.method == "linear" else 1.0
        return tuple(self.lam * weight / total for weight in weights)

    def without(self, gone: str) -> MergeAdapters | str:
        """The same merge with one adapter fewer; the one that is left, where that is all."""
        kept = [at for at, name in enumerate(self.ingredients) if name != gone]
        if len(kept) == 1 and self.into == "adapter":
            return self.ingredients[kept[0]]
        try:
            return replace(
                self,
                ingredients=tuple(self.ingredients[at] for at in kept),
                weights=tuple(self.weights[at] for at in kept) if self.weights else (),
            )
        except BadParameter as fault:
            raise Incompatible(f"without it this merge cannot be made: {fault.message}", hint="merge the others anew") from fault

    # --- the contract ---

    def output_kind(self) -> Literal["model", "adapter"]:
        return "model" if self.into == "base" else "adapter"

    def sits_on(self, view: ModelView) -> ModelView:
        return on_base(view).base

    def joins(self) -> tuple[str, ...]:
        return self.ingredients[1:]

    def plan(self, view: ModelView) -> Plan:
        how = "written into their base" if self.into == "base" else f"at rank {self.rank}" if self.rank else "ranks side by side"
        return adapter_plan(f"merge {len(self.ingredients)} adapters, {how}", on_base(view), len(self.ingredients))

    def preview(self, view: ModelView, run: Run) -> dict[str, Json]:
        """Refuses what `apply` would refuse: adapters that do not fit each other."""
        self._views(view, run)
        return {}

    def apply(self, view: ModelView, run: Run) -> Iterator[Change]:
        from .lowrank import merged

        return merged(self, self._views(view, run), run)

    def _views(self, view: ModelView, run: Run) -> dict[str, EffectiveView]:
        views = {name: on_base(view if at == 0 else run.version(name)) for at, name in enumerate(self.ingredients)}
        check_bases(views)
        return views

    def check(self, before: ModelView, after: ModelView, run: Run) -> Check:
        return Check(True, {"versions": len(self.ingredients), "tensors": len(after.names())})

    def expects(self) -> Expectations:
        return Expectations(may_forget=True, notes=(NOTE,))


def on_base(view: ModelView) -> EffectiveView:
    """An adapter seen on its base. Raises Incompatible for a whole model, and for an adapter whose base is not known."""
    from ...registry.view import EffectiveView

    if not isinstance(view, EffectiveView):
        what = "an adapter without a known base" if view.adapter else "a whole model"
        raise Incompatible(f"{what} is no ingredient of a merge of adapters", hint="mlc import DIR --adapter-of REV gives it a base")
    return view


def check_bases(views: dict[str, EffectiveView]) -> None:
    """Raise Incompatible unless all sit on one base, and hold nothing but low-rank factors of one layout."""
    from .checks import shown

    first = next(iter(views))
    for name, view in views.items():
        if view.base.snapshot_id != views[first].base.snapshot_id:
            raise Incompatible(
                f"{shown(first)} and {shown(name)} are adapters on different bases", hint="name a whole model first: mlc merge BASE a b"
            )
        if view.plan.replaced:
            raise Incompatible(
                f"{shown(name)} holds {next(iter(view.plan.replaced))} as a whole: adapters of factors alone can be stacked",
                hint="as whole models: mlc merge BASE a b --base BASE --method task-arithmetic",
            )
        for target, term in view.plan.added.items():
            other = views[first].plan.added.get(target)
            if other is not None and other.transposed != term.transposed:
                raise Incompatible(f"{shown(first)} and {shown(name)} keep {target} transposed and not", hint="save one of them anew")


def adapter_plan(summary: str, view: EffectiveView, count: int) -> Plan:
    """What a merge of `count` adapters like this one costs."""
    sizes = [4 * math.prod(view.own.entry(name).shape) for name in view.own.names()]
    largest = max((4 * math.prod(view.entry(name).shape) for name in view.plan.added), default=0)
    return Plan(summary, ("*",), bytes_touched=sum(sizes) * count, memory=4 * largest + 2 * count * sum(sizes))
