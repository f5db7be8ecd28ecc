"""From the names that a merge file uses to the versions they stand for: a recorded merge names commits, not branches that move on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...registry.errors import BadParameter
from .recipe import TOKENIZERS, Recipe, Slice

TEXT = "{"  # what a merge file's text begins with where it stands for a path


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


def pinned(recipe: Recipe, pins: Sequence[str]) -> str:
    """The recipe with its versions called as in `pins`, as the text of a merge file (JSON is YAML): what a commit keeps of a file that may
    be changed or lost later."""
    return as_text(renamed(recipe, pins))


def as_text(recipe: Recipe) -> str:
    """A merge file that says what the recipe says."""
    whole: dict[str, Any] = {"merge_method": recipe.method}
    if recipe.whole and recipe.slices[0].base is None and not recipe.slices[0].parameters:
        whole["models"] = [{"model": s.model, "parameters": s.parameters or None} for s in recipe.slices[0].sources]
    else:
        whole["slices"] = [
            {
                "sources": [{"model": s.model, "layer_range": s.layers, "parameters": s.parameters or None} for s in piece.sources],
                "base_model": piece.base,
                "parameters": piece.parameters or None,
            }
            for piece in recipe.slices
        ]
    whole |= {"base_model": recipe.base, "parameters": recipe.parameters or None, "dtype": recipe.dtype, "out_dtype": recipe.out_dtype}
    whole |= {"tokenizer_source": recipe.tokenizer, "chat_template": recipe.chat_template}
    return json.dumps(_said(whole), ensure_ascii=False)


def _said(value: Any) -> Any:
    """Without what was not said."""
    if isinstance(value, dict):
        return {key: _said(item) for key, item in value.items() if item is not None}
    return [_said(item) for item in value] if isinstance(value, list | tuple) else value
