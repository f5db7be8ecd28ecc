"""`merge.rmm` and `merge.rebuild`: adapters merged so that each can be had back. What is kept beside the merge is a mean, a few basis
vectors and coefficients (rmm.py); the merge itself is the mean of all, cut down to the rank of one. No torch at the top.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from ...registry.errors import BadParameter, CheckFailed, Incompatible
from ..base import Change, Check, Expectations, Operation, Plan, Run, option
from .adapters import NOTE, adapter_plan, check_bases, on_base

if TYPE_CHECKING:
    from ...registry.view import EffectiveView, ModelView

BASIS = "rmm-basis"  # artifact: mean, basis and coefficients of every module


@dataclass(frozen=True, slots=True)
class Rmm(Operation):
    """Merge adapters of one shape, and keep a basis from which each is rebuilt."""

    name: ClassVar[str] = "merge.rmm"
    version: ClassVar[int] = 1

    ingredients: tuple[str, ...] = option((), help="adapters to merge; the first is the one that the result follows")
    p: int | None = option(None, help="basis vectors per position; one fewer than adapters rebuilds each exactly")
    error: float = option(0.05, help="without p: the fewest vectors whose relative error, module by module, is at most this")

    def __post_init__(self) -> None:
        if len(self.ingredients) < 2:
            raise BadParameter("rmm needs two adapters or more", hint="mlc merge a b --method rmm")
        if self.p is not None and not 0 <= self.p <= len(self.ingredients):
            raise BadParameter(f"p {self.p} does not lie between 0 and the number of adapters", hint="for example: --set p=2")
        if not (math.isfinite(self.error) and self.error >= 0):
            raise BadParameter(f"error {self.error:g} is no share of a norm", hint="for example: --set error=0.05")

    def without(self, gone: str) -> Rmm | str:
        """The same merge with one adapter fewer; the one that is left, where that is all."""
        left = tuple(name for name in self.ingredients if name != gone)
        return left[0] if len(left) == 1 else replace(self, ingredients=left, p=None if self.p is None else min(self.p, len(left)))

    # --- the contract ---

    def output_kind(self) -> Literal["model", "adapter"]:
        return "adapter"

    def sits_on(self, view: ModelView) -> ModelView:
        return on_base(view).base

    def joins(self) -> tuple[str, ...]:
        return self.ingredients[1:]

    def plan(self, view: ModelView) -> Plan:
        return adapter_plan(f"merge {len(self.ingredients)} adapters, and keep a basis of them", on_base(view), len(self.ingredients))

    def apply(self, view: ModelView, run: Run) -> Iterator[Change]:
        from .basis import merged

        views = {name: on_base(view if at == 0 else run.version(name)) for at, name in enumerate(self.ingredients)}
        check_bases(views)
        check_alike(views)
        return merged(self, views, run)

    def check(self, before: ModelView, after: ModelView, run: Run) -> Check:
        return Check(True, {"versions": len(self.ingredients), "tensors": len(after.names())})

    def expects(self) -> Expectations:
        return Expectations(may_forget=True, notes=(NOTE,))


@dataclass(frozen=True, slots=True)
class Rebuild(Operation):
    """Have one adapter back from the basis that a merge of it keeps."""

    name: ClassVar[str] = "merge.rebuild"
    version: ClassVar[int] = 1

    merged: str = option("", help="the merge that keeps the basis")
    model: str = option("", help="the ingredient to rebuild")

    def output_kind(self) -> Literal["model", "adapter"]:
        return "adapter"

    def sits_on(self, view: ModelView) -> ModelView:
        return on_base(view).base

    def plan(self, view: ModelView) -> Plan:
        return adapter_plan("rebuild one adapter from the basis of a merge", on_base(view), 1)

    def apply(self, view: ModelView, run: Run) -> Iterator[Change]:
        from .basis import rebuilt

        data = run.kept(self.merged, BASIS)
        if data is None:
            raise CheckFailed("the merge keeps no basis to rebuild from", hint="mlc merge a b --method rmm makes one that does")
        return rebuilt(self, data, run)

    def expects(self) -> Expectations:
        return Expectations(may_forget=True, notes=("what is rebuilt is the ingredient up to the error that the merge stated",))


def check_alike(views: dict[str, EffectiveView]) -> None:
    """Raise Incompatible unless all change the same tensors by factors of the same names, shapes and types."""
    from .checks import shown

    first = next(iter(views))
    lead = views[first]
    for name, view in views.items():
        for target in sorted({*lead.plan.added, *view.plan.added}):
            ours, theirs = lead.plan.added.get(target), view.plan.added.get(target)
            if ours is None or theirs is None:
                raise Incompatible(
                    f"only one of {shown(first)} and {shown(name)} changes {target}: they share no positions", hint="mlc merge a b"
                )
            for a, b in ((ours.up, theirs.up), (ours.down, theirs.down)):
                here, there = lead.own.entry(a), view.own.entry(b)
                if (here.name, here.dtype, here.shape) != (there.name, there.dtype, there.shape):
                    said = f"{b} of {shown(name)} is {there.dtype} {list(there.shape)}"
                    raise Incompatible(
                        f"{said}, {a} of {shown(first)} is {here.dtype} {list(here.shape)}",
                        hint="bring them to one rank first: mlc merge X Y --set rank=R",
                    )
