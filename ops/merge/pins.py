"""From the names that a merge file uses to the versions they stand for: a recorded merge names commits, not branches that move on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...registry.errors import BadParameter
from .recipe import TOKENIZERS, Recipe, Slice


def renamed(
    recipe: Recipe, pins: Sequence[str], dtype: str | None = None, out_dtype: str | None = None, tokenizer: str | None = None
) -> Recipe:
    """The recipe with its versions, in the order of `recipe.names()`, called as in `pins` (none: left as they are); types and tokenizer
    are replaced where given. Raises BadParameter when there are not as many pins as versions."""
    names = recipe.names()
    if pins and len(pins) != len(names):
        raise BadParameter(f"the merge file names {len(names)} versions, {len(pins)} are given", hint=f"in this order: {', '.join(names)}")
    to = dict(zip(names, pins or names, strict=True))
    slices = tuple(
        Slice(tuple(replace(s, model=to[s.model]) for s in piece.sources), to[piece.base] if piece.base else None, piece.parameters)
        for piece in recipe.slices
    )
    given = recipe.tokenizer if recipe.tokenizer in (None, *TOKENIZERS) else to[recipe.tokenizer]
    template = to.get(recipe.chat_template or "", recipe.chat_template)
    return replace(
        recipe,
        slices=slices,
        base=to[recipe.base] if recipe.base else None,
        dtype=dtype or recipe.dtype,
        out_dtype=out_dtype or recipe.out_dtype,
        tokenizer=tokenizer or given,
        chat_template=template,
    ).validated()
