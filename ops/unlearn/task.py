"""How records become rows and rows become numbers: one interface for language models and classifiers.

Whatever is computed for a row depends on that row alone (beyond the rounding of a matrix product): padding is on the right and behind
everything that is scored, batch statistics are never taken. That is what makes per-sample gradients and caches meaningful.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ...registry.errors import Incompatible
from ..models import read_config

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..data.items import ItemSet

TOKENS = 2048  # of one batch that is measured: bounds memory, costs nothing


@dataclass(frozen=True, slots=True)
class Rows:
    """Records as a model reads them. Index i is one row; a long text gives several rows, all owned by the same item."""

    lengths: tuple[int, ...]  # tokens (classes: 1)
    scored: tuple[int, ...]  # tokens scored (classes: 1)
    owner: tuple[int, ...]  # index of the item each row came from
    pairs: tuple[bool, ...]  # False: a row of plain text
    inputs: tuple[Any, ...] = field(repr=False)  # what the task made of them: token ids, pixels, ...

    def __len__(self) -> int:
        return len(self.lengths)

    def of(self, *, pairs: bool) -> list[int]:
        """Indices of the rows that are pairs (or labelled), or of those that are plain text."""
        return [i for i, pair in enumerate(self.pairs) if pair == pairs]


@dataclass(frozen=True, slots=True)
class Measured:
    """How a model does on rows. Shares and means are None where there is nothing to take them over, or where it is not a number."""

    accuracy: float | None  # pairs: share whose whole answer is the greedy choice (argmax class); without pairs: share of such tokens
    probability: float | None  # pairs: mean of exp(-NLL / tokens)
    loss: float | None  # pairs (all rows when there are none): mean of per-row means, nats
    text_loss: float | None  # plain text: mean per token, nats
    right: tuple[bool, ...]  # per row
    losses: tuple[float, ...]  # per row, mean per token; NaN where it is not a number


class Task(Protocol):
    """What a model is asked, and how its answer is scored."""

    kind: str  # "language" or "classes"

    def rows(self, items: ItemSet) -> Rows:
        """Raises BadInputFile with the line of a record that this model cannot be asked."""
        ...

    def inputs(self, rows: Rows, chosen: Sequence[int], where: torch.device) -> tuple[dict[str, Tensor], Tensor | None]:
        """(what the module is called with, which positions are real: bool [B, T], or None when all are)."""
        ...

    def losses(self, module: nn.Module, rows: Rows, chosen: Sequence[int]) -> Tensor:
        """fp32 [B]: mean NLL over each row's scored tokens (cross-entropy of the class). Differentiable."""
        ...

    def token_sums(self, module: nn.Module, rows: Rows, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """fp32 [B] summed NLL and int64 [B] scored tokens. Differentiable."""
        ...

    def output_norms(self, module: nn.Module, rows: Rows, chosen: Sequence[int]) -> Tensor:
        """fp32 [B]: mean over scored positions of the squared L2 norm of the logits; no label is read. Differentiable."""
        ...

    def measure(self, module: nn.Module, rows: Rows) -> Measured:
        """Accuracy, probability and loss, without gradients; sums in fp64."""
        ...


def task_of(view: ModelView) -> Task:
    """The task of the model in `view`. Raises Incompatible when it is neither language model nor classifier, VocabularyMismatch."""
    from transformers.models.auto import modeling_auto as tables

    from .classes import ClassTask
    from .language import LanguageTask

    config = read_config(view)
    named = next(iter((view.config or {}).get("architectures") or ()), None)
    causal = tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if causal is not None and named in (None, causal):
        return LanguageTask(view, config)
    for table in (tables.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, tables.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES):
        found = table.get(config.model_type, ())
        if named in ((found,) if isinstance(found, str) else tuple(found)):
            return ClassTask(view, config, images=table is tables.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)
    raise Incompatible(
        f"this works on language models that predict the next token and on classifiers, not on a {named or config.model_type}",
        hint="name a version that writes text or classifies",
    )


def batches(rows: Rows, chosen: Sequence[int], budget_tokens: int = TOKENS) -> list[list[int]]:
    """`chosen` in batches whose padded size keeps to the budget (at least one row each), longest first; ties by index."""
    order = sorted(chosen, key=lambda i: (-rows.lengths[i], i))
    found, start = [], 0
    while start < len(order):
        size = max(1, budget_tokens // max(1, rows.lengths[order[start]]))
        found.append(order[start : start + size])
        start += size
    return found


def device_of(module: nn.Module) -> torch.device:
    """Where a module lies."""
    return next(module.parameters()).device
