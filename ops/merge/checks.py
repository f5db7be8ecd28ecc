"""Do these versions fit each other? Answered from configs, names and shapes, before anything is read or computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...registry.errors import Incompatible, ShapeMismatch, VocabularyMismatch
from ...registry.ids import is_digest, short
from ..arch import family_of, role_of

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from .layout import Output, Part

FLOATS = ("F64", "F32", "F16", "BF16")
VOCABULARY = ("embedding", "head")  # roles of tensors with a row per token
TOKENIZER = "tokenizer.json"


def shown(model: str) -> str:
    """A version as messages call it: an id is cut."""
    return short(model) if is_digest(model) else model


def check_architectures(views: Mapping[str, ModelView]) -> None:
    """Raise Incompatible unless all are of one type and architecture, and their heads are all tied or all their own."""
    names = list(views)
    for key in ("model_type", "architectures"):
        values = {name: (views[name].config or {}).get(key) for name in names if views[name].config is not None}
        for other in values:
            if values[other] != values[first := next(iter(values))]:
                raise Incompatible(
                    f"{shown(first)} is a {_word(values[first])}, {shown(other)} a {_word(values[other])}: they cannot be merged",
                    hint="merge versions of one architecture; `mlc eval REV --suite FILE` measures models of any kind",
                )
    heads = {name: _has_head(views[name]) for name in names}
    for other in names:
        if heads[other] != heads[names[0]]:
            own, tied = (other, names[0]) if heads[other] else (names[0], other)
            raise Incompatible(
                f"{shown(own)} has a head of its own, the head of {shown(tied)} is tied to its embedding",
                hint="commit a copy of the tied one with its head written out, then merge",
            )


def check_shapes(outputs: Iterable[Output], views: Mapping[str, ModelView], aligned: bool) -> None:
    """Raise ShapeMismatch or VocabularyMismatch for the first tensor whose parts differ. `aligned`: rows per token are matched by name."""
    for output in outputs:
        parts = [*output.parts, *([output.base] if output.base else [])]
        shapes = [tuple(views[part.model].entry(part.tensor).shape) for part in parts]
        for part, shape in zip(parts[1:], shapes[1:], strict=True):
            rows = per_token(views, part) and per_token(views, parts[0])
            if shape == shapes[0] or (rows and aligned and shape[1:] == shapes[0][1:]):
                continue
            said = (
                f"{part.tensor} of {shown(part.model)} is {list(shape)}, {parts[0].tensor} of {shown(parts[0].model)} is {list(shapes[0])}"
            )
            if rows and shape[1:] == shapes[0][1:]:
                raise VocabularyMismatch(f"the vocabularies differ: {said}", hint="say how tokens are matched: --tokenizer base or union")
            raise ShapeMismatch(f"the shapes differ: {said}", hint="merge versions of one size; `mlc diff A B --weights` shows the rest")


def check_vocabularies(views: Mapping[str, ModelView]) -> None:
    """Raise VocabularyMismatch when two versions give tokens different ids. Versions without a tokenizer are passed over."""
    from ..models import load_core_tokenizer

    files = {name: data for name, view in views.items() if (data := view.file(TOKENIZER)) is not None}
    if len(set(files.values())) < 2:
        return
    words = {name: load_core_tokenizer(views[name]).get_vocab(with_added_tokens=True) for name in files}
    first = next(iter(words))
    for other in words:
        if words[other] != words[first]:
            raise VocabularyMismatch(
                f"the tokenizers of {shown(first)} and {shown(other)} differ: the same row of an embedding stands for different tokens",
                hint="say how tokens are matched: --tokenizer base or union",
            )


def check_buffers(parts: Sequence[Part], views: Mapping[str, ModelView]) -> None:
    """Raise Incompatible when tensors that are no floats differ: there is no mean of them."""
    digests = {views[part.model].entry(part.tensor).digest for part in parts}
    if len(digests) > 1:
        kind = views[parts[0].model].entry(parts[0].tensor).dtype
        raise Incompatible(f"{parts[0].tensor} ({kind}) differs between the versions, and only floats can be merged")


def per_token(views: Mapping[str, ModelView], part: Part) -> bool:
    """Whether a tensor has one row per token of the vocabulary."""
    view = views[part.model]
    rows = (view.config or {}).get("vocab_size")
    shape = view.entry(part.tensor).shape
    return bool(shape) and shape[0] == rows and role_of(family_of(view.config), part.tensor)[1] in VOCABULARY


def _has_head(view: ModelView) -> bool:
    family = family_of(view.config)
    return family is not None and family.causal and any(role_of(family, name)[1] == "head" for name in view.names())


def _word(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
