"""Every merge method on one line: its parameters, what it asks of its inputs, and for the task-vector family what makes it that member.

Names, parameters and defaults are mergekit's (0.1.5), so that its files mean here what they mean there. No torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ...registry.errors import BadParameter

REQUIRED: Any = object()


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter. `each`: a value per ingredient (never for the base); otherwise one for all."""

    name: str
    kind: type  # float, int or bool
    default: Any = REQUIRED
    each: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """One way to merge. `base`: whether it needs a base, may have one, or treats a base as one more ingredient."""

    name: str
    formula: str  # key in `formulas.FORMULAS`
    params: tuple[Param, ...]
    base: Literal["required", "optional", "ingredient"] = "required"
    least: int = 1  # ingredients beside the base
    most: int | None = None
    trim: Literal["magnitude", "random", "outliers", "ranks"] | None = None  # task vectors: what is dropped from each
    vote: bool = False  # task vectors: only entries of the elected sign count
    symmetric: bool = True  # the order of the ingredients has no meaning
    steady: Literal["always", "base", "never"] = "always"  # equal inputs give that tensor; `base`: if the base is equal, too

    @property
    def random(self) -> bool:
        """Whether the outcome depends on random numbers."""
        return self.trim in ("random", "ranks")

    def param(self, name: str) -> Param | None:
        """The parameter of this name."""
        return next((p for p in self.params if p.name == name), None)


_WEIGHT = Param("weight", float, each=True)


def _task(name: str, trim: Any = None, vote: bool = False, normalize: bool = False, rescale: bool = False, extra: Any = ()) -> Method:
    params = (
        _WEIGHT,
        Param("density", float, 1.0, each=True),
        *extra,
        Param("normalize", bool, normalize),
        Param("rescale", bool, rescale),
        Param("lambda", float, 1.0),
        Param("int8_mask", bool, False),  # read and of no effect: no mask is stored
    )
    return Method(name, "task", params, trim=trim, vote=vote, steady="base")


_GAMMA = (Param("gamma", float, 0.01, each=True),)
_EPSILON = (Param("epsilon", float, 0.15, each=True),)

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("linear", "linear", (_WEIGHT, Param("normalize", bool, True)), base="ingredient"),
        Method("soup", "linear", (Param("weight", float, 1.0, each=True), Param("normalize", bool, True)), base="ingredient"),
        Method(
            "sparse_soup", "sparse_soup",
            (Param("weight", float, 1.0, each=True), Param("normalize", bool, True), Param("union", bool, False)), base="ingredient",
        ),
        Method("slerp", "slerp", (Param("t", float),), most=1, symmetric=False),
        Method(
            "nuslerp", "nuslerp", (_WEIGHT, Param("nuslerp_row_wise", bool, False), Param("nuslerp_flatten", bool, True)),
            base="optional", least=2, most=2, symmetric=False,
        ),
        Method("multislerp", "multislerp", (_WEIGHT, Param("normalize_weights", bool, True), Param("eps", float, 1e-8)), base="optional"),
        Method("karcher", "karcher", (Param("max_iter", int, 10), Param("tol", float, 1e-5)), base="ingredient"),
        _task("task_arithmetic"),
        _task("ties", trim="magnitude", vote=True, normalize=True),
        _task("dare_linear", trim="random", rescale=True),
        _task("dare_ties", trim="random", vote=True, rescale=True),
        _task("breadcrumbs", trim="outliers", extra=_GAMMA),
        _task("breadcrumbs_ties", trim="outliers", vote=True, extra=_GAMMA),
        _task("della", trim="ranks", vote=True, normalize=True, rescale=True, extra=_EPSILON),
        _task("della_linear", trim="ranks", rescale=True, extra=_EPSILON),
        Method("sce", "sce", (Param("select_topk", float, 1.0), Param("int8_mask", bool, False)), steady="base"),
        Method("model_stock", "model_stock", (Param("filter_wise", bool, False),), least=2, steady="base"),
        Method("nearswap", "nearswap", (Param("t", float),), most=1, symmetric=False, steady="base"),
        Method(
            "passthrough", "passthrough", (Param("scale", float, None, each=True),),
            base="ingredient", most=1, symmetric=False, steady="never",
        ),
    )
}  # fmt: skip


def method_of(name: str) -> Method:
    """The method of this name. Raises BadParameter with the nearest name that there is."""
    if name not in METHODS:
        raise unknown(name, METHODS)
    return METHODS[name]


def unknown(name: str, known: Iterable[str]) -> BadParameter:
    """The complaint about the name of a method."""
    close = difflib.get_close_matches(name, known := tuple(known), 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return BadParameter(f"there is no merge method {name!r}", hint=f"{hint}known: {', '.join(known)}")


def check_count(method: Method, ingredients: int, base: bool) -> None:
    """Raise BadParameter when the method cannot work on so many ingredients (the base not counted)."""
    if method.base == "required" and not base:
        raise BadParameter(f"{method.name} needs a base", hint="name the version that the ingredients come from with --base")
    if base and method.base == "ingredient":
        ingredients += 1
    if ingredients < method.least or (method.most is not None and ingredients > method.most):
        wanted = f"exactly {method.least}" if method.least == method.most else f"at least {method.least}"
        wanted = f"at most {method.most}" if method.most is not None and ingredients > method.most else wanted
        beside = " beside the base" if method.base != "ingredient" else ""
        one = "ingredient" if wanted.endswith(" 1") else "ingredients"
        raise BadParameter(f"{method.name} merges {wanted} {one}{beside}, not {ingredients}", hint="mlc merge --help")
