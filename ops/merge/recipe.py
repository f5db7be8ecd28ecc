"""What is to be merged, as one record: the same whether it was typed as options or written in a file. No torch.

`models` and `slices` of a file become the same thing here: slices, each with sources. A recipe for whole models has one slice whose
sources have no range of layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...registry.errors import BadParameter
from .table import Method, check_count, method_of

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
TOKENIZERS = ("base", "union")


def check_numbers(option: str, given: int, wanted: Sequence[int], what: str) -> None:
    """Raise BadParameter where as many numbers are `given` as none of `wanted` (or none at all)."""
    if given not in (0, *wanted):
        typed = ",".join(["0.5"] * wanted[0])
        raise BadParameter(
            f"--{option} takes a number for each of {wanted[0]} {what}, not {given}", hint=f"for example: --{option} {typed}"
        )


@dataclass(frozen=True, slots=True)
class Source:
    """One ingredient of a slice. `layers`: first and one past the last block (None: all of them)."""

    model: str
    layers: tuple[int, int] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of blocks of the result."""

    sources: tuple[Source, ...]
    base: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One merge. `dtype` is what is computed in (None: float32), `out_dtype` what is stored (None: as the ingredients)."""

    method: str
    slices: tuple[Slice, ...]
    base: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: str | None = None  # base, union, or a version
    chat_template: str | None = None

    @property
    def spec(self) -> Method:
        """The method's row in the table."""
        return method_of(self.method)

    @property
    def whole(self) -> bool:
        """Whether whole models are merged, not stacks of layers."""
        return len(self.slices) == 1 and all(source.layers is None for source in self.slices[0].sources)

    def names(self) -> tuple[str, ...]:
        """Every version that is named, in order of first mention; the base last unless it is an ingredient, too."""
        named = [source.model for piece in self.slices for source in piece.sources]
        named += [piece.base for piece in self.slices if piece.base] + ([self.base] if self.base else [])
        if self.tokenizer and self.tokenizer not in TOKENIZERS:
            named.append(self.tokenizer)
        return tuple(dict.fromkeys(named))

    def ingredients(self) -> tuple[str, ...]:
        """The versions that go into the result, in order of first mention; a base that is only measured from is none of them."""
        return tuple(dict.fromkeys(source.model for piece in self.slices for source in self.inputs(piece)[1]))

    def inputs(self, piece: Slice) -> tuple[str | None, tuple[Source, ...]]:
        """(base, ingredients) of a slice as the method sees them; a base that a method takes as an ingredient comes last if not listed."""
        base = piece.base or self.base
        if self.spec.base == "ingredient":
            listed = any(source.model == base for source in piece.sources)
            extra = () if base is None or listed else (Source(base, _same_layers(piece)),)
            return None, (*piece.sources, *extra)
        return base, tuple(source for source in piece.sources if source.model != base)

    def base_layers(self, piece: Slice) -> tuple[int, int] | None:
        """The range of the base's blocks: what the slice says of it, else that of its first source."""
        base = piece.base or self.base
        return next((s.layers for s in piece.sources if s.model == base), _same_layers(piece))

    def validated(self) -> Recipe:
        """This recipe. Raises BadParameter for a method or a number of ingredients that cannot work, or an unknown parameter."""
        method = self.spec
        for piece in self.slices:
            base, ingredients = self.inputs(piece)
            check_count(method, len(ingredients), base is not None)
            for scope in (self.parameters, piece.parameters, *(source.parameters for source in piece.sources)):
                for name in scope:
                    if method.param(name) is None:
                        known = ", ".join(p.name for p in method.params) or "none"
                        raise BadParameter(f"{method.name} has no parameter {name!r}", hint=f"known: {known}")
        for word in (self.dtype, self.out_dtype):
            if word is not None and word not in DTYPES:
                raise BadParameter(f"{word!r} is no type to merge in", hint=f"known: {', '.join(DTYPES)}")
        return self


def _same_layers(piece: Slice) -> tuple[int, int] | None:
    return piece.sources[0].layers
