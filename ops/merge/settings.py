"""What a parameter is for one tensor: numbers, gradients over the layers, and filters by name, looked up where mergekit looks.

A setting is a scalar, a list of scalars (a gradient: piecewise linear over the layers, at t = i / (L - 1)), or one or several
{filter, value}: the first filter that occurs in the tensor's name holds, `*` or none fits all. Order of look-up: the source, the slice,
the whole recipe, the default. What lies outside the layers (embeddings, last norm, head) is read at t = 0. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ...registry.errors import BadParameter
from .table import REQUIRED, Method, Param

Settings = Mapping[str, Any]


def evaluate(param: Param, setting: Any, name: str, t: float) -> Any:
    """The value of a setting for tensor `name` at place `t` in [0, 1]; None when no filter fits. Raises BadParameter for a wrong kind."""
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list | tuple):
        return valid(param, setting)
    if not setting:
        return None
    if all(isinstance(item, Mapping) for item in setting):
        return _filtered(param, setting, name, t)
    return _gradient(param, [valid(param, item) for item in setting], t)


def _filtered(param: Param, conditions: Iterable[Mapping[str, Any]], name: str, t: float) -> Any:
    for condition in conditions:
        wanted = condition.get("filter")
        if wanted is None or wanted == "*" or wanted in name:
            return evaluate(param, condition["value"], name, t)
    return None


def filters_of(setting: Any) -> Iterator[str]:
    """The words by which a setting chooses tensors."""
    for item in setting if isinstance(setting, list | tuple) else [setting]:
        if isinstance(item, Mapping) and item.get("filter") not in (None, "*"):
            yield item["filter"]


def _gradient(param: Param, values: list[Any], t: float) -> Any:
    at = t * (len(values) - 1)
    low = int(at)
    if param.kind is bool:
        return values[low]
    high, share = min(len(values) - 1, low + 1), at - low
    return valid(param, (1 - share) * values[low] + share * values[high])


def resolve(method: Method, name: str, t: float, scopes: Iterable[Settings], *, each: bool, who: str = "") -> dict[str, Any]:
    """Values of the method's parameters (those per ingredient, or the shared ones) for one tensor. `scopes`: the strongest first.

    Raises BadParameter for a required one that is set nowhere, or a value that cannot work.
    """
    scopes = tuple(scopes)
    return {p.name: _one(p, name, t, scopes, who) for p in method.params if p.each == each}


def _one(param: Param, name: str, t: float, scopes: tuple[Settings, ...], who: str) -> Any:
    for scope in scopes:
        if param.name in scope and (value := evaluate(param, scope[param.name], name, t)) is not None:
            return check_value(param.name, value)
    if param.default is REQUIRED:
        of = f" of {who}" if who else ""
        raise BadParameter(
            f"the parameter {param.name!r}{of} is not set for tensor {name}",
            hint=f"{_flag(param.name)}; in a merge file a filter '*' fits every tensor",
        )
    return param.default


def _flag(name: str) -> str:
    """How a parameter is typed."""
    return {"t": "-t 0.5", "weight": "--weights 1,1", "density": "--density 0.5"}.get(name, f"--set {name}=1")


def valid(param: Param, value: Any) -> Any:
    """`value` as the parameter's kind. Numbers in quotes count as numbers, as YAML reads 1e-4. Raises BadParameter."""
    if param.kind is bool:
        if isinstance(value, bool) or value in (0, 1):
            return bool(value)
    elif isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = param.kind(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number) and number == float(value):
            return number
    raise BadParameter(f"{param.name} is a {param.kind.__name__}, not {value!r}", hint=f"for example: {param.name}: {param.kind(1)}")


def check_value(name: str, value: Any) -> Any:
    """The value, if the formula is defined there. Raises BadParameter."""
    if name in ("density", "select_topk") and not 0 < value <= 1:
        raise BadParameter(f"{name} {value:g} lies outside (0, 1]", hint=f"for example: {name}: 0.5")
    if name in ("gamma", "epsilon") and not 0 <= value < 1:
        raise BadParameter(f"{name} {value:g} lies outside [0, 1)", hint=f"for example: {name}: 0.05")
    if name == "max_iter" and value < 1:
        raise BadParameter(f"max_iter must be at least 1, not {value}", hint="for example: max_iter: 10")
    return value


def read_words(who: str, said: Iterable[str], words: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """`--set NAME=VALUE` for what is not in the table of methods: every value through its word's reader. Raises BadParameter."""
    found: dict[str, Any] = {}
    for text in said:
        name, _, value = text.partition("=")
        try:
            found[name] = words[name](value)
        except (KeyError, ValueError):
            hint = ", ".join(f"--set {word}=..." for word in words)
            raise BadParameter(f"{who} cannot be given {text!r}", hint=hint) from None
    return found
