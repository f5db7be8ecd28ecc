"""The merge that would have been made without one of its ingredients: the same method, parameters and base, one version fewer.

What a method divides by is summed over those that are left, as if the one had never been named. No torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

from ...registry.errors import BadParameter, Incompatible
from .checks import shown
from .merge import Merge
from .pins import as_text
from .recipe import Recipe, Slice
from .table import METHODS

REFUSED = "has no result without one of its ingredients"


def without(op: Merge, gone: str) -> Merge | str:
    """What is left of a merge of pinned versions when `gone` is taken out: a merge, or the one version that remains.

    Raises Incompatible, with the reason, where that is not defined: stacked layers, a soup chosen by a score, a tokenizer of the version.
    """
    if op.tokenizer == gone:
        raise Incompatible(f"the tokenizer of the merge is that of {shown(gone)}: it {REFUSED}", hint="merge the others anew")
    try:
        return _file_without(op, gone) if op.config is not None else _options_without(op, gone)
    except BadParameter as fault:
        raise Incompatible(f"without {shown(gone)} this merge cannot be made: {fault.message}", hint="merge the others anew") from fault


def _options_without(op: Merge, gone: str) -> Merge | str:
    if op.method == "soup" and 0.0 in op.weights:
        raise Incompatible("a soup chosen by a score would have to be chosen anew", hint="mlc merge the others with --method soup-greedy")
    counted = [name for name in op.ingredients if name != op.base or METHODS[op.method].base == "ingredient"]
    left = tuple(name for name in op.ingredients if name != gone)
    if len(left) < 2:
        return _only(left, gone)
    return _changed(
        op,
        ingredients=left,
        weights=_numbers(op.weights, op.ingredients, counted, gone),
        density=op.density if len(op.density) == 1 else _numbers(op.density, op.ingredients, counted, gone),
    )


def _numbers(numbers: tuple[float, ...], named: tuple[str, ...], counted: list[str], gone: str) -> tuple[float, ...]:
    """A number for each that is named, or for each but the base: without that of `gone`."""
    whose = named if len(numbers) == len(named) else counted
    return tuple(number for number, name in zip(numbers, whose, strict=False) if name != gone)


def _file_without(op: Merge, gone: str) -> Merge | str:
    recipe = op.recipe()
    if recipe.method == "passthrough" or not recipe.whole:
        raise Incompatible(f"stacked layers: the merge {REFUSED}", hint="write the merge file that is wanted and merge by it")
    if recipe.chat_template == gone:
        raise Incompatible(f"the chat template of the merge is that of {shown(gone)}: it {REFUSED}", hint="merge the others anew")
    piece = recipe.slices[0]
    left = tuple(source for source in piece.sources if source.model != gone)
    base = None if recipe.base == gone and recipe.spec.base == "ingredient" else recipe.base
    rest: Recipe = replace(recipe, slices=(Slice(left, piece.base, piece.parameters),), base=base)
    if len(rest.names()) < 2:
        return _only(rest.names(), gone)
    return _changed(op, config=as_text(rest.validated()), ingredients=())


def _only(left: tuple[str, ...], gone: str) -> str:
    if not left:
        raise Incompatible(f"{shown(gone)} is all that the merge is made of", hint="mlc rollback REV")
    return left[0]


def _changed(op: Merge, **values: Any) -> Merge:
    """The operation with other values, checked like any."""
    given: dict[str, Any] = {f.name: getattr(op, f.name) for f in dataclasses.fields(op)} | values
    found = Merge(**given)
    found.recipe()
    return found
