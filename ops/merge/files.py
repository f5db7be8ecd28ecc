"""The files beside the weights that a merge changes: the config's size, type and layers, the tokenizer, the chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...registry.errors import Incompatible
from ..arch import family_of
from ..arch.configs import edit_json
from ..base import SetFile
from .recipe import Recipe
from .vocabulary import SETTINGS, TEMPLATE, Vocabulary, templated

if TYPE_CHECKING:
    from ...registry.view import ModelView

CONFIG = "config.json"


def changed_files(
    recipe: Recipe, views: Mapping[str, ModelView], view: ModelView, vocabulary: Vocabulary | None, dtype: str | None
) -> Iterator[SetFile]:
    """The files of the result that differ from those of `view`."""
    found: dict[str, bytes | None] = dict(vocabulary.files) if vocabulary is not None else {}
    current = {path: found.get(path, view.file(path)) for path in (SETTINGS, TEMPLATE)}
    found |= templated(recipe, views, current)
    if (config := view.file(CONFIG)) is not None:
        found[CONFIG] = edited(recipe, views, config, vocabulary, dtype)
    for path in sorted(found):
        if found[path] != view.file(path):
            yield SetFile(path, found[path])


def edited(recipe: Recipe, views: Mapping[str, ModelView], config: bytes, vocabulary: Vocabulary | None, dtype: str | None) -> bytes:
    """config.json with the result's vocabulary, type and number of layers; every other byte as it was."""
    text = config.decode("utf-8")
    given = json.loads(text)
    changes: dict[str, Any] = {}
    if vocabulary is not None and given.get("vocab_size") != vocabulary.size:
        changes["vocab_size"] = vocabulary.size
    for key in ("dtype", "torch_dtype"):
        if dtype is not None and key in given and given[key] != dtype:
            changes[key] = dtype
    if not recipe.whole:
        changes |= _layers(recipe, views, given)
    changes = {key: value for key, value in changes.items() if given.get(key) != value}
    return edit_json(text, changes).encode("utf-8") if changes else config


def _layers(recipe: Recipe, views: Mapping[str, ModelView], given: dict[str, Any]) -> dict[str, Any]:
    """The number of blocks, and every list with one entry per block, put together from the first source of each slice."""
    first = recipe.slices[0].sources[0].model
    family = family_of(views[first].config)
    assert family is not None  # slices were laid out by it
    spans = [(piece.sources[0].model, piece.sources[0].layers or (0, 0)) for piece in recipe.slices]
    count = sum(end - start for _, (start, end) in spans)
    changes: dict[str, Any] = {key: count for key in (family.layers_key, "num_hidden_layers") if key in given} or {family.layers_key: count}
    for key in family.per_layer:
        lists = [(views[model].config or {}).get(key) for model, _ in spans]
        if all(isinstance(values, list) for values in lists):
            changes[key] = [v for values, (_, (a, b)) in zip(lists, spans, strict=True) for v in values[a:b]]  # type: ignore[index]
        elif any(isinstance(values, list) for values in lists):
            raise Incompatible(f"the config of one version lists {key} by layer, that of another does not: their layers cannot be stacked")
    return changes
