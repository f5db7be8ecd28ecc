"""Turning words into values without importing a validation library for it.

Recent typers build one pydantic adapter per option, which costs more than all of `mlc status`. The light coercion here
takes that place where the installed typer has one; where it has none, the parser's own conversion stays.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import typer

_WORDS = {int: "a whole number", float: "a number", Path: "a path"}


class Coercion:
    """What one parameter accepts: str, int, float, bool, Path, a Literal, or a list of one of them."""

    def __init__(self, annotation: Any, lowest: float | None = None, highest: float | None = None) -> None:
        self.many = typing.get_origin(annotation) is list
        self.kind = typing.get_args(annotation)[0] if self.many else annotation
        self.choices = typing.get_args(self.kind) if typing.get_origin(self.kind) is typing.Literal else ()
        self.lowest, self.highest = lowest, highest

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value of a parameter; `None` stays None. Raises typer.BadParameter with one sentence."""
        if value is None:
            return () if self.many else None
        if self.many:
            return [self._one(item, param, ctx) for item in value]
        return self._one(value, param, ctx)

    def _one(self, value: Any, param: Any, ctx: Any) -> Any:
        if self.choices:
            if value not in self.choices:
                raise typer.BadParameter(f"{value!r} is not one of {', '.join(self.choices)}.", ctx=ctx, param=param)
            return value
        if self.kind is bool:
            return bool(value)
        try:
            result = self.kind(value)
        except ValueError:
            raise typer.BadParameter(f"{value!r} is not {_WORDS.get(self.kind, 'valid')}.", ctx=ctx, param=param) from None
        high_enough = self.lowest is None or result >= self.lowest  # false for nan, too
        if not (high_enough and (self.highest is None or result <= self.highest)):
            bounds = f"at least {self.lowest}" if self.highest is None else f"between {self.lowest} and {self.highest}"
            raise typer.BadParameter(f"{value} is out of range: it must be {bounds}.", ctx=ctx, param=param)
        return result


def lighten(params: list[Any]) -> list[Any]:
    """Give every parameter the light coercion where this typer has a place for it; returns the same list."""
    for param in params:
        descriptor = getattr(param, "type_descriptor", None)
        if descriptor is not None and getattr(param, "_runtime_param", 0) is None:
            param._runtime_param = Coercion(descriptor.annotation, getattr(param, "min", None), getattr(param, "max", None))
    return params
