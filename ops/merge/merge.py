"""`merge`: one version from several, tensor by tensor. Options here, or a file in mergekit's YAML; both become one recipe.

The dataclass is the whole surface: options, recipe keys and audit record. It imports no torch. The first ingredient is the version that
the result follows; the others are read by `run.version`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...registry.errors import BadParameter
from ...registry.records import Json
from ..base import Change, Check, Expectations, Operation, Plan, Run, option, requirement
from .recipe import DTYPES, Recipe, Slice, Source, check_numbers
from .table import METHODS, method_of

if TYPE_CHECKING:
    from ...registry.view import ModelView

require = requirement("merge")
SCOPES, GENERATORS = ("tensor", "model"), ("keyed", "mergekit")
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class Merge(Operation):
    """Merge several versions into one."""

    name: ClassVar[str] = "merge"
    version: ClassVar[int] = 1

    ingredients: tuple[str, ...] = option((), help="versions to merge; the first is the one that the result follows")
    method: str = option("linear", help=f"how: {', '.join(METHODS)}")
    base: str | None = option(None, help="the version that the ingredients come from (task vectors are measured from it)")
    weights: tuple[float, ...] = option((), help="a weight per ingredient (default: equal weights that sum to 1)")
    density: tuple[float, ...] = option((), help="share of each task vector that is kept, one for all or one per ingredient")
    t: float | None = option(None, help="slerp and nearswap: how far from the base to the ingredient", flag="-t")
    lam: float | None = option(None, help="factor on the merged task vector (default 1)", flag="--lambda")
    normalize: bool | None = option(None, help="divide by the sum of the weights (default: as the method has it)")
    settings: tuple[str, ...] = option((), help="NAME=VALUE: any further parameter of the method", flag="--set")
    config: str | None = option(None, help="a merge file in mergekit's YAML instead of these options")  # or its text: see `pins.pinned`
    scope: str = option("tensor", help="tensor or model: what a magnitude trim ranks over")
    rng: str = option("keyed", help="keyed: random masks depend on seed, tensor and ingredient alone; mergekit: its one running generator")
    parity: bool = option(False, help="the bits of mergekit 0.1.5: its generator, its order among equals, its fused sums")
    dtype: str | None = option(None, help=f"compute in this type (default: float32): {', '.join(DTYPES)}")
    out_dtype: str | None = option(None, help="store in this type (default: that of the ingredients)")
    tokenizer: str | None = option(None, help="base, union, or a version: how differing vocabularies are matched")

    def __post_init__(self) -> None:
        if self.config is not None:
            typed = [f for f in ("weights", "density", "t", "lam", "normalize", "settings", "base") if getattr(self, f) not in (None, ())]
            require(not typed, f"--{' and --'.join(typed)} cannot be given beside --config", "put it into the file")
        else:
            require(len(self.ingredients) >= 1, "merge needs ingredients", "for example: mlc merge main feature")
            method_of(self.method)
            self.recipe()
        require(self.scope in SCOPES, f"--scope is tensor or model, not {self.scope!r}")
        require(self.rng in GENERATORS, f"--rng is keyed or mergekit, not {self.rng!r}")
        trim = METHODS[self.method].trim if self.config is None else "magnitude"
        require(self.scope == "tensor" or trim == "magnitude", f"{self.method} has no trim by magnitude: --scope model has no meaning")
        require(self.scope == "tensor" or not self.parity, "--parity ranks within tensors: it cannot be combined with --scope model")

    def recipe(self) -> Recipe:
        """What is to be merged. With `config`, reads that file; its versions are renamed to `ingredients`, in order, when those are given.

        Raises BadParameter, BadRecipe or InputNotFound.
        """
        if self.config is not None:
            return self._from_file(self.config)
        models, base = self.ingredients, self.base
        if self.method in ("slerp", "nearswap") and base is None and len(models) == 2:
            base = models[0]  # the end at t = 0
        counted = [model != base or METHODS[self.method].base == "ingredient" for model in models]
        sources = tuple(Source(model, None, self._each(at, counted)) for at, model in enumerate(models))
        shared = {key: value for key, value in (("t", self.t), ("lambda", self.lam), ("normalize", self.normalize)) if value is not None}
        shared |= dict(_pair(text) for text in self.settings)
        base = base if METHODS[self.method].base != "ingredient" else None
        return Recipe(self.method, (Slice(sources),), base, shared, self.dtype, self.out_dtype, self.tokenizer).validated()

    def _each(self, at: int, counted: Sequence[bool]) -> dict[str, Any]:
        """Weight and density of the ingredient at this place; `counted`: which of them are merged, and not just the base once more."""
        if not counted[at]:
            return {}
        method, found = METHODS[self.method], {}
        if method.param("weight") is not None:
            found["weight"] = self._number("weights", at, counted, 1.0 / sum(counted))
        elif self.weights:
            raise BadParameter(f"{self.method} takes no weights", hint="`mlc merge --help`")
        if len(self.density) == 1:
            found["density"] = self.density[0]
        elif self.density:
            found["density"] = self._number("density", at, counted, 1.0)
        if "density" in found:
            require(0 < found["density"] <= 1, f"--density {found['density']:g} lies outside (0, 1]", "for example: --density 0.5")
        require(all(math.isfinite(number) for number in found.values()), "weights and densities are finite numbers")
        return found

    def _number(self, option: str, at: int, counted: Sequence[bool], default: float) -> float:
        """The number for the ingredient at this place, where one is given for each that is named, or for each but the base."""
        numbers = getattr(self, option)
        merged = sum(counted)
        check_numbers(option, len(numbers), (merged, len(counted)), "ingredients")
        return default if not numbers else numbers[at if len(numbers) == len(counted) else sum(counted[:at])]

    def _from_file(self, path: str) -> Recipe:
        from .config import parse_config, read_config
        from .pins import TEXT, renamed

        found = parse_config(path.encode("utf-8")) if path.startswith(TEXT) else read_config(path)
        return renamed(found, self.ingredients, self.dtype, self.out_dtype, self.tokenizer)

    # --- the contract ---

    def joins(self) -> tuple[str, ...]:
        return (self.ingredients if self.config is None else self.recipe().ingredients())[1:]

    def plan(self, view: ModelView) -> Plan:
        recipe = self.recipe()
        names, count = recipe.names(), sum(1 for name in view.names() if view.entry(name).dtype in BYTES)
        size = sum(math.prod(view.entry(n).shape) * BYTES.get(view.entry(n).dtype, 1) for n in view.names())
        largest = max((math.prod(view.entry(n).shape) for n in view.names()), default=0)
        return Plan(
            summary=f"merge {len(names)} versions by {recipe.method}, {count} tensors, one at a time",
            touches=view.names() if recipe.whole else ("*",),
            bytes_touched=size,
            memory=4 * largest * (2 * len(names) + 2),
            details={"method": recipe.method, "versions": list(names), "base": recipe.base, "parity": self.parity},
        )

    def preview(self, view: ModelView, run: Run) -> dict[str, Json]:
        """Refuses what `apply` would refuse before it reads a tensor: versions that do not fit each other, settings that cannot work."""
        from . import stream

        recipe = self.recipe()
        stream.prepare(self, recipe, stream.views_of(self, recipe, view, run), view, run)
        return {}

    def apply(self, view: ModelView, run: Run) -> Iterator[Change]:
        from .stream import apply

        return apply(self, view, run)

    def check(self, before: ModelView, after: ModelView, run: Run) -> Check:
        changed = [n for n in after.names() if not before.has(n) or before.entry(n).digest != after.entry(n).digest]
        values = {"tensors": len(after.names()), "tensors_changed": len(changed), "versions": len(self.recipe().names())}
        return Check(True, values)

    def expects(self) -> Expectations:
        return Expectations(may_forget=True, notes=("a merge may lose what each ingredient knew: measure it against all of them",))


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    require(bool(equals and name and value), f"--set {text!r} is not NAME=VALUE", "for example: --set gamma=0.05")
    return name, {"true": True, "false": False}.get(value.lower(), value)
