"""One vocabulary for versions that number their tokens differently: rows of embeddings and heads are brought into one order, by token.

`base`: the vocabulary of the base (else of the first version). `union`: that one, and behind it every further token in the order of the
versions. A version's name: its vocabulary. A row that a version lacks is the base's, else that of the only version that has the token, else
the mean of those that have it (as mergekit does it).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...registry.errors import BadParameter, Incompatible
from ..arch.configs import edit_json
from .checks import TOKENIZER, shown
from .recipe import Recipe

if TYPE_CHECKING:
    from ...registry.view import ModelView

FILES = (
    TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
    "chat_template.jinja",
)  # fmt: skip
SETTINGS, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`rows[version][id]`: the row in that version's embedding of the result's token `id`, -1 where it has none."""

    size: int
    rows: Mapping[str, Tensor]  # int64 [size]
    base: str
    files: Mapping[str, bytes | None]

    def aligned(self, models: Sequence[str], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Tensors `[rows, ...]` of these versions as `[size, ...]`, row by row the same token; of their common type."""
        dtype = tensors[0].dtype
        for tensor in tensors[1:]:
            dtype = torch.promote_types(dtype, tensor.dtype)
        rows = {model: self._within(model, len(tensor)) for model, tensor in zip(models, tensors, strict=True)}
        held = {model: tensor.to(dtype) for model, tensor in zip(models, tensors, strict=True)}
        substitute = self._substitute(rows, held)
        return tuple(_filled(rows[model], held[model], substitute) for model in models)

    def _within(self, model: str, count: int) -> Tensor:
        rows = self.rows[model]
        return torch.where(rows < count, rows, -1)

    def _substitute(self, rows: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> Tensor:
        """What stands in for a missing row, [size, ...]: zero where nobody has the token."""
        first = next(iter(held.values()))
        total = torch.zeros(self.size, *first.shape[1:], dtype=first.dtype)
        count = torch.zeros(self.size, dtype=first.dtype)
        for model, tensor in held.items():
            there = rows[model] >= 0
            total[there] += tensor[rows[model][there]]
            count += there
        total /= count.clamp(min=1).reshape(-1, *[1] * (first.dim() - 1))
        if self.base in held:
            there = rows[self.base] >= 0
            total[there] = held[self.base][rows[self.base][there]]
        return total


def _filled(rows: Tensor, tensor: Tensor, substitute: Tensor) -> Tensor:
    out = substitute.clone()
    out[rows >= 0] = tensor[rows[rows >= 0]]
    return out


def unify(recipe: Recipe, views: Mapping[str, ModelView]) -> Vocabulary:
    """The vocabulary that a recipe asks for. Raises Incompatible when a version has no tokenizer.json that can be read."""
    from ..models import load_core_tokenizer

    base = recipe.base or recipe.slices[0].sources[0].model
    words = {name: load_core_tokenizer(view).get_vocab(with_added_tokens=True) for name, view in views.items()}
    lead = base if recipe.tokenizer in ("base", "union") else recipe.tokenizer
    assert lead is not None
    files: dict[str, bytes | None] = {path: views[lead].file(path) for path in FILES}
    merged = words[lead]
    if recipe.tokenizer == "union":
        files[TOKENIZER], merged = _union(lead, views, words)
    size = max(merged.values(), default=-1) + 1
    if not size:
        raise Incompatible(f"the tokenizer of {shown(lead)} has no tokens")
    rows = {name: torch.full((size,), -1, dtype=torch.int64) for name in words}
    for name, known in words.items():
        for word, ident in merged.items():
            rows[name][ident] = known.get(word, -1)
    return Vocabulary(size, rows, base, files)


def _union(lead: str, views: Mapping[str, ModelView], words: Mapping[str, dict[str, int]]) -> tuple[bytes, dict[str, int]]:
    from tokenizers import AddedToken

    from ..models import load_core_tokenizer

    core, added = load_core_tokenizer(views[lead]), set(words[lead])
    for name, known in words.items():
        special = {t.content: t for t in load_core_tokenizer(views[name]).get_added_tokens_decoder().values()}
        fresh = [word for word, _ in sorted(known.items(), key=lambda item: item[1]) if word not in added]
        core.add_tokens([special.get(word) or AddedToken(word, normalized=False) for word in fresh])
        added |= set(fresh)
    return core.to_str(pretty=True).encode("utf-8"), core.get_vocab(with_added_tokens=True)


# --- chat template ---------------------------------------------------------------------------------------


def templated(recipe: Recipe, views: Mapping[str, ModelView], files: Mapping[str, bytes | None]) -> dict[str, bytes | None]:
    """The files that change for the recipe's `chat_template`: a text in Jinja, a version's name, or `auto` (the commonest).

    files: tokenizer files of the result. Raises BadParameter for a name that is no version of the recipe.
    """
    wanted = recipe.chat_template
    if wanted is None:
        return {}
    if wanted == "auto":
        held = [text for view in views.values() if (text := template_of(view)) is not None]
        text = Counter(held).most_common(1)[0][0] if held else None
    elif "{" in wanted:
        text = wanted
    elif wanted in views:
        text = template_of(views[wanted])
    else:
        raise BadParameter(f"chat_template {wanted!r} is no version of this merge", hint="give a text in Jinja, 'auto', or a version")
    if text is None:
        return {}
    data = files.get(SETTINGS) or b"{}\n"
    changed: dict[str, bytes | None] = {SETTINGS: edit_json(data.decode("utf-8"), {"chat_template": text}).encode("utf-8")}
    if files.get(TEMPLATE) is not None:
        changed[TEMPLATE] = text.encode("utf-8")
    return changed


def template_of(view: ModelView) -> str | None:
    """A version's chat template: the file of that name, else the one in its tokenizer's settings."""
    if (data := view.file(TEMPLATE)) is not None:
        return data.decode("utf-8", "replace")
    try:
        settings: Any = json.loads(view.file(SETTINGS) or b"{}")
    except ValueError:
        return None
    text = settings.get("chat_template") if isinstance(settings, dict) else None
    return text if isinstance(text, str) else None
